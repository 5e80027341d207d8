package vmesh

import (
	"context"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/registry/rest"

	"github.com/vmesh-io/vmesh/pkg/apis/kind"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/authn"
	"github.com/vmesh-io/vmesh/pkg/pki"
)

const (
	defaultUser = "admin"
	defaultTTL  = 365 * 24 * time.Hour
	minTTL      = 10 * time.Minute
	maxTTL      = 10 * 365 * 24 * time.Hour
)

// KubeconfigREST answers virtualclusters/NAME/kubeconfig: it signs client certificates
// that are good for one virtual cluster.
type KubeconfigREST struct {
	clusters *Clusters
	kind     *kind.Kind
	clients  *pki.Authority
	servers  *pki.Authority
}

var _ rest.NamedCreater = (*KubeconfigREST)(nil)

// KubeconfigREST makes the storage. clients signs what it issues; servers signed what
// the server shows.
func (c *Clusters) KubeconfigREST(k *kind.Kind, clients, servers *pki.Authority) *KubeconfigREST {
	return &KubeconfigREST{clusters: c, kind: k, clients: clients, servers: servers}
}

// New implements rest.Storage.
func (r *KubeconfigREST) New() runtime.Object { return object.New(r.kind.GVK(Version)) }

// Destroy implements rest.Storage.
func (r *KubeconfigREST) Destroy() {}

// Create implements rest.NamedCreater.
func (r *KubeconfigREST) Create(ctx context.Context, name string, obj runtime.Object, validate rest.ValidateObjectFunc, options *metav1.CreateOptions) (runtime.Object, error) {
	if validate != nil {
		if err := validate(ctx, obj.DeepCopyObject()); err != nil {
			return nil, err
		}
	}
	cluster, err := r.clusters.get(ctx, name)
	if err != nil {
		return nil, err
	}
	if cluster.DeletionTimestamp != nil {
		return nil, apierrors.NewForbidden(r.clusters.store.DefaultQualifiedResource, name, fmt.Errorf("it is being deleted"))
	}
	o := obj.(*object.Object)
	o.Name = name
	if _, errs := r.kind.Validate(ctx, Version, o, nil); len(errs) > 0 {
		return nil, apierrors.NewInvalid(r.kind.GroupKind(), name, errs)
	}
	var request v1alpha1.KubeconfigRequest
	if err := o.Into(&request); err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	path := field.NewPath("spec")
	key, err := pki.ParseRequest(request.Spec.Request)
	if err != nil {
		return nil, invalid(r.kind, name, field.Invalid(path.Child("request"), string(request.Spec.Request), err.Error()))
	}
	ttl := defaultTTL
	if s := request.Spec.ExpirationSeconds; s != nil {
		ttl = time.Duration(*s) * time.Second
		if ttl < minTTL || ttl > maxTTL {
			return nil, invalid(r.kind, name, field.Invalid(path.Child("expirationSeconds"), *s,
				fmt.Sprintf("must be from %d to %d", int64(minTTL.Seconds()), int64(maxTTL.Seconds()))))
		}
	}
	who := request.Spec.User
	if who == "" {
		who = defaultUser
	}
	groups := request.Spec.Groups
	if len(groups) == 0 {
		groups = []string{user.SystemPrivilegedGroup}
	}
	cert, notAfter, err := r.clients.IssueClient(key, pki.Client{
		User: who, Groups: groups, URI: authn.ClusterURI(name, string(cluster.UID)), TTL: ttl,
	})
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	expires := metav1.NewTime(notAfter)
	return o, SetStatus(o, v1alpha1.KubeconfigRequestStatus{
		Certificate: cert, CertificateAuthority: r.servers.PEM, Server: r.clusters.url(name), ExpirationTimestamp: &expires,
	})
}

func invalid(k *kind.Kind, name string, err *field.Error) error {
	return apierrors.NewInvalid(k.GroupKind(), name, field.ErrorList{err})
}
