package extension

import (
	"errors"
	"fmt"
	"maps"
	"strings"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apiserver/pkg/admission"
	mutatingpolicy "k8s.io/apiserver/pkg/admission/plugin/policy/mutating"
	validatingpolicy "k8s.io/apiserver/pkg/admission/plugin/policy/validating"
	mutatingwebhook "k8s.io/apiserver/pkg/admission/plugin/webhook/mutating"
	validatingwebhook "k8s.io/apiserver/pkg/admission/plugin/webhook/validating"
	auditinternal "k8s.io/apiserver/pkg/apis/audit"
	"k8s.io/apiserver/pkg/authentication/user"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/authn"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// ExtraTarget is the key in the extra of the user that guard rails are shown: the name of
// the virtual cluster that is written to. The user may belong to another one, the root.
const ExtraTarget = authn.ExtraPrefix + "target-virtual-cluster"

// rail is one rule of the root's for virtual clusters: a webhook, or a policy with one
// binding. One of the four is set.
type rail struct {
	where *where

	mutatingPolicy   *mutatingpolicy.PolicyHook
	validatingPolicy *validatingpolicy.PolicyHook

	// A webhook has a plugin of its own without its selector of namespaces, which is
	// looked at before: the plugin is one for all virtual clusters, the namespaces are not.
	mutating   *mutatingwebhook.Plugin
	validating *validatingwebhook.Plugin
	selector   selector
}

// selector is a parsed selector of namespaces, as upstream's matcher wants it.
type selector struct{ labels.Selector }

func (s selector) GetParsedNamespaceSelector() (labels.Selector, error) { return s.Selector, nil }

// where are the virtual clusters around which a rule goes.
type where struct{ labels.Selector }

func (w *where) matches(of map[string]string) bool { return w.Matches(labels.Set(of)) }

const (
	appliesToRoot = "root"
	appliesToAll  = "all"
)

// parseWhere reads the annotation; nil is the root itself.
func parseWhere(value string) (*where, error) {
	switch value {
	case "", appliesToRoot:
		return nil, nil
	case appliesToAll:
		return &where{labels.Everything()}, nil
	}
	s, err := labels.Parse(value)
	if err != nil {
		return nil, fmt.Errorf("must be %q, %q or a selector of virtual clusters by their labels, as in tier=production: %w", appliesToRoot, appliesToAll, err)
	}
	return &where{s}, nil
}

// where are the virtual clusters that an object of the root is for; nil is its own.
func (m *maker) where(o *object.Object) (*where, error) {
	if m.cluster != logical.Root {
		return nil, nil
	}
	w, err := parseWhere(o.Annotations[v1alpha1.AnnotationAppliesTo])
	if err != nil {
		return nil, fmt.Errorf("%s %q: metadata.annotations[%s]: %w", o.Kind, o.Name, v1alpha1.AnnotationAppliesTo, err)
	}
	return w, nil
}

// webhookRails makes a guard rail of each webhook of a configuration.
func (m *maker) webhookRails(kind int, o *object.Object) ([]*rail, error) {
	var rails []*rail
	everywhere := &metav1.LabelSelector{}
	switch kind {
	case mutatingWebhooks:
		c, err := read[admissionregistrationv1.MutatingWebhookConfiguration](kind, o)
		if err != nil {
			return nil, err
		}
		for i := range c.Webhooks {
			one := c.DeepCopy()
			one.Webhooks = one.Webhooks[i : i+1]
			in, err := metav1.LabelSelectorAsSelector(one.Webhooks[0].NamespaceSelector)
			if err != nil {
				return nil, err
			}
			one.Webhooks[0].NamespaceSelector = everywhere
			w, err := m.newMutating(m.cluster, "", []*admissionregistrationv1.MutatingWebhookConfiguration{one})
			if err != nil {
				return nil, err
			}
			rails = append(rails, &rail{mutating: w, selector: selector{in}})
		}
	case validatingWebhooks:
		c, err := read[admissionregistrationv1.ValidatingWebhookConfiguration](kind, o)
		if err != nil {
			return nil, err
		}
		for i := range c.Webhooks {
			one := c.DeepCopy()
			one.Webhooks = one.Webhooks[i : i+1]
			in, err := metav1.LabelSelectorAsSelector(one.Webhooks[0].NamespaceSelector)
			if err != nil {
				return nil, err
			}
			one.Webhooks[0].NamespaceSelector = everywhere
			w, err := m.newValidating(m.cluster, "", []*admissionregistrationv1.ValidatingWebhookConfiguration{one})
			if err != nil {
				return nil, err
			}
			rails = append(rails, &rail{validating: w, selector: selector{in}})
		}
	}
	return rails, nil
}

// seen is a write as guard rails see it: the user's extra names the virtual cluster, and
// what they leave behind does not get in the way of the virtual cluster's own rules.
func seen(a admission.Attributes, cluster string, index int) admission.Attributes {
	s := &seenAttributes{Attributes: a, index: index}
	info := &user.DefaultInfo{Extra: map[string][]string{}}
	if u := a.GetUserInfo(); u != nil {
		info.Name, info.UID, info.Groups, info.Extra = u.GetName(), u.GetUID(), u.GetGroups(), maps.Clone(u.GetExtra())
		if info.Extra == nil {
			info.Extra = map[string][]string{}
		}
	}
	info.Extra[ExtraTarget] = []string{cluster}
	s.user = info
	return s
}

type seenAttributes struct {
	admission.Attributes
	user  user.Info
	index int
}

func (s *seenAttributes) GetUserInfo() user.Info { return s.user }

func (s *seenAttributes) GetReinvocationContext() admission.ReinvocationContext {
	return ownValues{s.Attributes.GetReinvocationContext()}
}

func (s *seenAttributes) AddAnnotation(key, value string) error {
	return s.Attributes.AddAnnotation(s.key(key), value)
}

func (s *seenAttributes) AddAnnotationWithLevel(key, value string, level auditinternal.Level) error {
	return s.Attributes.AddAnnotationWithLevel(s.key(key), value, level)
}

// key keeps audit annotations apart. Each plugin of a webhook counts from 0.
func (s *seenAttributes) key(key string) string {
	if counted, ok := strings.CutSuffix(key, "_index_0"); ok {
		key = fmt.Sprintf("%s_index_%d", counted, s.index)
	}
	return "platform." + key
}

// ownValues keeps what plugins remember of a write apart from what the virtual cluster's
// plugins of the same names do.
type ownValues struct{ admission.ReinvocationContext }

const ownValuesPrefix = "platform/"

func (o ownValues) SetValue(plugin string, v any) {
	o.ReinvocationContext.SetValue(ownValuesPrefix+plugin, v)
}
func (o ownValues) Value(plugin string) any {
	return o.ReinvocationContext.Value(ownValuesPrefix + plugin)
}

// platform marks an error as one of the platform's rules: nothing that the reader of it
// can find or change in the virtual cluster.
func platform(err error) error {
	if err == nil {
		return nil
	}
	const mark = "by a rule of the platform: "
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		return fmt.Errorf(mark+"%w", err)
	}
	s := status.Status()
	s.Message = mark + s.Message
	if s.Details != nil { // of what is invalid, kubectl shows the causes alone
		s.Details = s.Details.DeepCopy()
		for i := range s.Details.Causes {
			s.Details.Causes[i].Message = mark + s.Details.Causes[i].Message
		}
	}
	return &apierrors.StatusError{ErrStatus: s}
}
