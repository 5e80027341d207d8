package vmesh

import (
	"context"
	"fmt"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"

	"github.com/vmesh-io/vmesh/pkg/apis/kind"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/pki"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

const (
	defaultUser = "admin"
	defaultTTL  = 365 * 24 * time.Hour
	minTTL      = 10 * time.Minute
	maxTTL      = 10 * 365 * 24 * time.Hour
)

// KubeconfigREST answers virtualclusters/NAME/kubeconfig: it signs client certificates
// that are good for one virtual cluster, and records them.
type KubeconfigREST struct {
	clusters    *Clusters
	kubeconfigs *Kubeconfigs
	kind        *kind.Kind
	clients     *pki.Authority
	servers     *pki.Authority
}

var _ rest.NamedCreater = (*KubeconfigREST)(nil)

// KubeconfigREST makes the storage. clients signs what it issues; servers signed what
// the server shows.
func (c *Clusters) KubeconfigREST(k *kind.Kind, kubeconfigs *Kubeconfigs, clients, servers *pki.Authority) *KubeconfigREST {
	return &KubeconfigREST{clusters: c, kubeconfigs: kubeconfigs, kind: k, clients: clients, servers: servers}
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
	uid, server, err := r.origin(ctx, name)
	if err != nil {
		return nil, err
	}
	o := obj.(*object.Object)
	o.Name = name
	if _, errs := r.kind.Validate(ctx, Version, o, nil); len(errs) > 0 {
		return nil, apierrors.NewInvalid(r.kind.GroupKind(), name, errs)
	}
	var asked v1alpha1.KubeconfigRequest
	if err := o.Into(&asked); err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	path := field.NewPath("spec")
	key, err := pki.ParseRequest(asked.Spec.Request)
	if err != nil {
		return nil, invalid(r.kind, name, field.Invalid(path.Child("request"), field.OmitValueType{}, err.Error()))
	}
	ttl := defaultTTL
	if s := asked.Spec.ExpirationSeconds; s != nil {
		ttl = time.Duration(*s) * time.Second
		if ttl < minTTL || ttl > maxTTL {
			return nil, invalid(r.kind, name, field.Invalid(path.Child("expirationSeconds"), *s,
				fmt.Sprintf("must be from %d to %d", int64(minTTL.Seconds()), int64(maxTTL.Seconds()))))
		}
	}
	who := asked.Spec.User
	if who == "" {
		who = defaultUser
	}
	groups := asked.Spec.Groups
	if len(groups) == 0 {
		groups = []string{user.SystemPrivilegedGroup}
	}
	cert, record, err := r.kubeconfigs.Issue(ctx, r.clients, key, name, uid, pki.Client{User: who, Groups: groups, TTL: ttl}, options)
	if err != nil {
		return nil, err
	}
	return o, SetStatus(o, v1alpha1.KubeconfigRequestStatus{
		Kubeconfig: record.Name, Certificate: cert, CertificateAuthority: r.servers.Bundle(), Server: server, ExpirationTimestamp: &record.Spec.Expires,
	})
}

// origin is the UID that a certificate for a virtual cluster is bound to, and where its
// API is. Identities of the root are given out by its administrators alone: to be allowed
// this for every virtual cluster is not to be allowed it for what manages them.
func (r *KubeconfigREST) origin(ctx context.Context, name string) (uid, server string, err error) {
	resource := r.clusters.store.DefaultQualifiedResource
	if name == logical.Root {
		if u, ok := request.UserFrom(ctx); !ok || !slices.Contains(u.GetGroups(), user.SystemPrivilegedGroup) {
			return "", "", apierrors.NewForbidden(resource, name, fmt.Errorf("only administrators of the root (group %s) give out identities of the root", user.SystemPrivilegedGroup))
		}
		return "", r.clusters.url(name), nil
	}
	cluster, err := r.clusters.get(ctx, name)
	if err != nil {
		return "", "", err
	}
	if cluster.DeletionTimestamp != nil {
		return "", "", apierrors.NewForbidden(resource, name, fmt.Errorf("it is being deleted"))
	}
	return string(cluster.UID), r.clusters.url(name), nil
}

func invalid(k *kind.Kind, name string, err *field.Error) error {
	return apierrors.NewInvalid(k.GroupKind(), name, field.ErrorList{err})
}
