package vmesh

import (
	"context"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/registry/rest"

	"github.com/vmesh-io/vmesh/pkg/apis/kind"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

// Analyze runs Istio's analyzers over a virtual cluster.
type Analyze func(ctx context.Context, cluster string) (v1alpha1.AnalysisStatus, error)

// AnalysisREST answers virtualclusters/NAME/analysis.
type AnalysisREST struct {
	clusters *Clusters
	kind     *kind.Kind
	analyze  Analyze
}

var _ rest.Getter = (*AnalysisREST)(nil)

// AnalysisREST makes the storage.
func (c *Clusters) AnalysisREST(k *kind.Kind, analyze Analyze) *AnalysisREST {
	return &AnalysisREST{clusters: c, kind: k, analyze: analyze}
}

// New implements rest.Storage.
func (r *AnalysisREST) New() runtime.Object { return object.New(r.kind.GVK(Version)) }

// Destroy implements rest.Storage.
func (r *AnalysisREST) Destroy() {}

// Get implements rest.Getter.
func (r *AnalysisREST) Get(ctx context.Context, name string, _ *metav1.GetOptions) (runtime.Object, error) {
	cluster, err := r.clusters.get(ctx, name)
	if err != nil {
		return nil, err
	}
	status, err := r.analyze(ctx, name)
	if err != nil {
		return nil, err
	}
	o := object.New(r.kind.GVK(Version))
	o.Name, o.UID, o.CreationTimestamp = name, cluster.UID, metav1.Now()
	return o, SetStatus(o, status)
}
