// Package extension runs what people register to take part in admission: webhooks and
// policies of each virtual cluster, and the root's, for itself and as guard rails for
// virtual clusters. What it does with them is upstream's; that it keeps virtual clusters
// apart is its own. Nothing runs or is kept for a virtual cluster that has none.
package extension

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/admission/plugin/policy/generic"
	"k8s.io/apiserver/pkg/admission/plugin/policy/matching"
	mutatingpolicy "k8s.io/apiserver/pkg/admission/plugin/policy/mutating"
	validatingpolicy "k8s.io/apiserver/pkg/admission/plugin/policy/validating"
	"k8s.io/apiserver/pkg/admission/plugin/webhook/predicates/namespace"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/registry/rest"

	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// ErrNotReady is the reason for which nothing may be written yet.
var ErrNotReady = errors.New("admission webhooks and policies are still being read from the storage: try again in a moment")

// Config is what a Plugin is made of.
type Config struct {
	// Authorizer answers the expressions that ask who may do what.
	Authorizer authorizer.UnconditionalAuthorizer
	// Namespaces are those of the context's virtual cluster.
	Namespaces rest.Getter
	// Labels are those of a virtual cluster, by which guard rails choose.
	Labels func(ctx context.Context, cluster string) (map[string]string, error)
	// Egress says where virtual clusters' webhooks may be.
	Egress *Egress
}

// Endpoint is what differs between the root's API and that of the virtual clusters.
type Endpoint struct {
	// Interfaces are for writes that come with none: those of the process's own controllers.
	Interfaces admission.ObjectInterfaces
	// Converter knows the kinds for ApplyConfiguration mutations.
	Converter managedfields.TypeConverter
	// Params are the kinds that can be parameters of policies.
	Params map[schema.GroupKind]Param
}

// Plugin is the admission plugin. Its observers feed it; see Observers.
type Plugin struct {
	*admission.Handler
	config       Config
	root, tenant Endpoint

	clusters sync.Map     // name to *holdings, of those that hold anything
	changing sync.Mutex   // held while clusters changes
	fed      atomic.Int32 // how many observers have given their state
	made     atomic.Int32 // for how many virtual clusters there is more than their objects
}

var (
	_ admission.MutationInterface   = (*Plugin)(nil)
	_ admission.ValidationInterface = (*Plugin)(nil)
)

// New makes a plugin that refuses everything until it has been fed.
func New(c Config) *Plugin {
	boundMetrics()
	return &Plugin{
		Handler: admission.NewHandler(admission.Connect, admission.Create, admission.Delete, admission.Update),
		config:  c,
	}
}

// Serve tells the plugin of the two endpoints, before the first request.
func (p *Plugin) Serve(root, tenant Endpoint) { p.root, p.tenant = root, tenant }

func (p *Plugin) endpoint(cluster string) *Endpoint {
	if cluster == logical.Root {
		return &p.root
	}
	return &p.tenant
}

// Ready is ErrNotReady until all that is registered has been read.
func (p *Plugin) Ready() error {
	if p.fed.Load() < int32(kinds) {
		return ErrNotReady
	}
	return nil
}

// exempt are the groups of questions about identities and permissions: who could not ask
// them any more could not mend what refuses them.
func exempt(a admission.Attributes) bool {
	switch a.GetResource().Group {
	case "authentication.k8s.io", "authorization.k8s.io":
		return true
	}
	return false
}

// ownGroup are the kinds by which all this is registered. Upstream keeps webhooks away
// from all of them, and policies from policies and bindings.
const ownGroup = "admissionregistration.k8s.io"

var policyResources = []string{"validatingadmissionpolicies", "validatingadmissionpolicybindings", "mutatingadmissionpolicies", "mutatingadmissionpolicybindings"}

func isPolicy(gr schema.GroupResource) bool {
	return gr.Group == ownGroup && slices.Contains(policyResources, gr.Resource)
}

// act is what a write has to pass: the rules of its own virtual cluster, and the guard
// rails that the root puts around it. Either may be nil.
type act struct {
	cluster string
	own     *rules
	rails   []*rail
}

// begin finds what a write has to pass; nothing at all is nil.
func (p *Plugin) begin(ctx context.Context, a admission.Attributes) (*act, error) {
	if exempt(a) {
		return nil, nil
	}
	if err := p.Ready(); err != nil {
		unavailable := apierrors.NewServiceUnavailable(err.Error())
		unavailable.ErrStatus.Details = &metav1.StatusDetails{RetryAfterSeconds: 1}
		return nil, unavailable
	}
	cluster, err := logical.Cluster(ctx)
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	b := &act{cluster: cluster, own: p.rules(cluster)}
	var all []*rail
	var broken error
	if b.own != nil {
		broken = b.own.broken
	}
	if cluster != logical.Root {
		if root := p.rules(logical.Root); root != nil {
			all = root.rails
			if broken == nil && root.broken != nil {
				broken = platform(root.broken)
			}
		}
	}
	if broken != nil && a.GetResource().Group != ownGroup {
		return nil, apierrors.NewInternalError(broken)
	}
	if b.rails, err = p.around(ctx, cluster, all); err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	if b.own == nil && len(b.rails) == 0 {
		return nil, nil
	}
	return b, nil
}

// around are the rails that go around a virtual cluster.
func (p *Plugin) around(ctx context.Context, cluster string, all []*rail) ([]*rail, error) {
	if len(all) == 0 {
		return nil, nil
	}
	of, err := p.config.Labels(ctx, cluster)
	if err != nil {
		return nil, fmt.Errorf("finding out which of the platform's rules apply: %w", err)
	}
	var out []*rail
	for _, r := range all {
		if r.where.matches(of) {
			out = append(out, r)
		}
	}
	return out, nil
}

// Admit implements admission.MutationInterface: first what the virtual cluster has, then
// the guard rails; in each policies before webhooks. All of it is called a second time
// if something of the object has changed, for those that want to be.
func (p *Plugin) Admit(ctx context.Context, a admission.Attributes, o admission.ObjectInterfaces) error {
	b, err := p.begin(ctx, a)
	if b == nil || err != nil {
		return err
	}
	if o == nil {
		o = p.endpoint(b.cluster).Interfaces
	}
	if err := p.admit(ctx, b, a, o); err != nil {
		return err
	}
	if again := a.GetReinvocationContext(); again.ShouldReinvoke() {
		again.SetIsReinvoke()
		return p.admit(ctx, b, a, o)
	}
	return nil
}

func (p *Plugin) admit(ctx context.Context, b *act, a admission.Attributes, o admission.ObjectInterfaces) error {
	if b.own != nil {
		if err := p.mutate(ctx, b.cluster, b.own.mutatingPolicies, a, o); err != nil {
			return err
		}
		if b.own.mutating != nil {
			if err := b.own.mutating.Admit(ctx, a, o); err != nil {
				return err
			}
		}
	}
	var policies []mutatingpolicy.PolicyHook
	for _, r := range b.rails {
		if r.mutatingPolicy != nil {
			policies = append(policies, *r.mutatingPolicy)
		}
	}
	if len(policies) > 0 {
		if err := p.mutate(ctx, b.cluster, policies, seen(a, b.cluster, 0), o); err != nil {
			return platform(err)
		}
	}
	for i, r := range b.rails {
		if r.mutating == nil {
			continue
		}
		matches, err := p.inNamespaces(b.cluster, r, a)
		if err == nil && matches {
			err = r.mutating.Admit(ctx, seen(a, b.cluster, i), o)
		}
		if err != nil {
			return platform(err)
		}
	}
	return nil
}

// Validate implements admission.ValidationInterface, in the order of Admit. It also
// checks what is being registered, as far as that is a matter of who registers it where.
func (p *Plugin) Validate(ctx context.Context, a admission.Attributes, o admission.ObjectInterfaces) error {
	if a.GetResource().Group == ownGroup {
		if err := p.checkRegistration(ctx, a); err != nil {
			return err
		}
	}
	b, err := p.begin(ctx, a)
	if b == nil || err != nil {
		return err
	}
	if o == nil {
		o = p.endpoint(b.cluster).Interfaces
	}
	if b.own != nil {
		if err := p.validate(ctx, b.cluster, b.own.validatingPolicies, a, o); err != nil {
			return err
		}
		if b.own.validating != nil {
			if err := b.own.validating.Validate(ctx, a, o); err != nil {
				return err
			}
		}
	}
	var policies []validatingpolicy.PolicyHook
	for _, r := range b.rails {
		if r.validatingPolicy != nil {
			policies = append(policies, *r.validatingPolicy)
		}
	}
	if len(policies) > 0 {
		if err := p.validate(ctx, b.cluster, policies, seen(a, b.cluster, 0), o); err != nil {
			return platform(err)
		}
	}
	return p.validateByWebhooks(ctx, b, a, o)
}

// validateByWebhooks calls the guard rails' webhooks side by side, as upstream calls those
// of one cluster. The error is that of the first by name.
func (p *Plugin) validateByWebhooks(ctx context.Context, b *act, a admission.Attributes, o admission.ObjectInterfaces) error {
	errs := make([]error, len(b.rails))
	var wg sync.WaitGroup
	for i, r := range b.rails {
		if r.validating == nil {
			continue
		}
		matches, err := p.inNamespaces(b.cluster, r, a)
		if err != nil {
			errs[i] = err
			break
		}
		if matches {
			wg.Go(func() { errs[i] = r.validating.Validate(ctx, seen(a, b.cluster, i), o) })
		}
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return platform(err)
		}
	}
	return nil
}

// inNamespaces tells whether a guard rail's webhook is about the namespace of a write.
func (p *Plugin) inNamespaces(cluster string, r *rail, a admission.Attributes) (bool, error) {
	in := p.namespaces(cluster)
	matches, err := (&namespace.Matcher{NamespaceLister: in, Client: in.client()}).MatchNamespaceSelector(r.selector, a)
	if err != nil {
		return false, err // not err itself: a nil *StatusError is not a nil error
	}
	return matches, nil
}

func (p *Plugin) authorizer(cluster string) authorizer.UnconditionalAuthorizer {
	return scoped{p.config.Authorizer, cluster}
}

func (p *Plugin) matcher(cluster string) *matching.Matcher {
	in := p.namespaces(cluster)
	return matching.NewMatcher(in, in.client())
}

// mutate and validate run policies in the way of upstream's plugins, whose dispatchers
// they make for the occasion: all that a dispatcher holds is where the namespaces are.
func (p *Plugin) mutate(ctx context.Context, cluster string, hooks []mutatingpolicy.PolicyHook, a admission.Attributes, o admission.ObjectInterfaces) error {
	if len(hooks) == 0 || a.GetOperation() == admission.Delete || isPolicy(a.GetResource().GroupResource()) {
		return nil
	}
	return mutatingpolicy.NewDispatcher(p.authorizer(cluster), p.matcher(cluster), converters{p.endpoint(cluster).Converter}).Dispatch(ctx, a, o, hooks)
}

func (p *Plugin) validate(ctx context.Context, cluster string, hooks []validatingpolicy.PolicyHook, a admission.Attributes, o admission.ObjectInterfaces) error {
	if len(hooks) == 0 || isPolicy(a.GetResource().GroupResource()) {
		return nil
	}
	return validatingpolicy.NewDispatcher(p.authorizer(cluster), generic.NewPolicyMatcher(p.matcher(cluster))).Dispatch(ctx, a, o, hooks)
}

// converters gives the mutating policies' dispatcher one converter for all kinds.
type converters struct{ managedfields.TypeConverter }

func (c converters) GetTypeConverter(schema.GroupVersionKind) managedfields.TypeConverter {
	return c.TypeConverter
}

// Run implements patch.TypeConverterManager: there is nothing to refresh.
func (converters) Run(context.Context) {}
