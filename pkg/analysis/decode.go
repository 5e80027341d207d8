package analysis

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"istio.io/istio/pkg/config"
	"istio.io/istio/pkg/config/analysis/legacy/source/kube"
	"istio.io/istio/pkg/config/resource"
	"istio.io/istio/pkg/config/schema/gvk"
	configschema "istio.io/istio/pkg/config/schema/resource"
	"istio.io/istio/pkg/kube/inject"

	"github.com/vmesh-io/vmesh/pkg/apis/istio"
	"github.com/vmesh-io/vmesh/pkg/apis/kind"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// source makes what the analyzers read of the objects of one kind.
type source struct {
	schema   configschema.Schema
	gvk      config.GroupVersionKind
	resource schema.GroupResource
	istio    *istio.Resource // nil for Kubernetes' own kinds
}

func newSource(s configschema.Schema, k *kind.Kind) *source {
	src := &source{schema: s, gvk: s.GroupVersionKind(), resource: k.GroupResource()}
	if r, err := istio.ResourceOf(k); err == nil {
		src.istio = r
	}
	return src
}

// istioNamespace is where istioctl looks for the control plane's own objects.
const istioNamespace = "istio-system"

// revision is the one that istioctl analyzes unless it is told otherwise.
const revision = "default"

// wants tells whether istioctl gives an object to the analyzers.
func (s *source) wants(o *object.Object) bool {
	if _, lost := logical.Quarantined(o); lost {
		return false
	}
	switch s.gvk {
	case gvk.Namespace:
		return !inject.IgnoredNamespaces.Contains(o.Name)
	case gvk.Service, gvk.Pod:
		return !inject.IgnoredNamespaces.Contains(o.Namespace)
	case gvk.Node:
		return true
	case gvk.Secret:
		kind := strings.Trim(string(o.Field("type")), `"`)
		return kind != "helm.sh/release.v1" && kind != "kubernetes.io/service-account-token"
	case gvk.ConfigMap:
		_, lock := o.Annotations["control-plane.alpha.kubernetes.io/leader"]
		if o.Namespace != istioNamespace || !strings.HasPrefix(o.Name, "istio") || lock {
			return false
		}
	}
	return config.LabelsInRevision(o.Labels, revision)
}

// instance decodes an object.
func (s *source) instance(o *object.Object) (*resource.Instance, error) {
	c := config.Config{Meta: config.Meta{
		GroupVersionKind: s.gvk, Name: o.Name, Namespace: o.Namespace, Labels: o.Labels, Annotations: o.Annotations,
		ResourceVersion: o.ResourceVersion, CreationTimestamp: o.CreationTimestamp.Time, Generation: o.Generation,
	}}
	var err error
	if c.Spec, err = s.spec(o); err != nil {
		return nil, fmt.Errorf("decoding %s %s/%s: %w", s.gvk.Kind, o.Namespace, o.Name, err)
	}
	if status, err := s.schema.Status(); err == nil { // else the analyzers read none
		if raw := o.Field("status"); raw != nil {
			_ = json.Unmarshal(raw, status) // as far as it can be read
		}
		c.Status = status
	}
	return newInstance(&c, s.schema), nil
}

func (s *source) spec(o *object.Object) (config.Spec, error) {
	if s.istio != nil {
		return s.istio.Message(o)
	}
	spec, err := s.schema.NewInstance()
	if err != nil {
		return nil, err
	}
	if _, whole := spec.(metav1.Object); whole {
		return spec, o.Into(spec)
	}
	if raw := o.Field("spec"); raw != nil {
		err = json.Unmarshal(raw, spec)
	}
	return spec, err
}

// clusterID is what istioctl calls the one cluster that it analyzes.
const clusterID = "default"

func newInstance(c *config.Config, s configschema.Schema) *resource.Instance {
	r := resource.PilotConfigToInstance(c, s)
	r.Metadata.Generation = c.Generation
	r.Origin = &kube.Origin{
		Type: c.GroupVersionKind, FullName: r.Metadata.FullName, ResourceVersion: resource.Version(c.ResourceVersion), Cluster: clusterID,
	}
	return r
}

// changes tells whether the analyzers may see a difference.
func (s *source) changes(old, to *object.Object) bool {
	return old == nil || to == nil || !bytes.Equal(old.Body(), to.Body()) ||
		!maps.Equal(old.Labels, to.Labels) || !maps.Equal(old.Annotations, to.Annotations)
}
