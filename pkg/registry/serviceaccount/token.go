// Package serviceaccount answers requests for the tokens of service accounts. Nothing of
// it is stored.
package serviceaccount

import (
	"context"
	"fmt"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/audit"
	apiserverserviceaccount "k8s.io/apiserver/pkg/authentication/serviceaccount"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/warning"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/authn/serviceaccount"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

const (
	defaultTTL = time.Hour
	minTTL     = 10 * time.Minute
	// maxTTL is the longest that a token is good; who asks for more gets that, and a warning.
	maxTTL = 365 * 24 * time.Hour
	// endlessTTL is what is refused as no duration at all, as in Kubernetes.
	endlessTTL = 1 << 32 * time.Second
)

var tokenRequest = authenticationv1.SchemeGroupVersion.WithKind("TokenRequest")

// TokenREST answers serviceaccounts/NAME/token.
type TokenREST struct {
	accounts, pods, secrets, nodes serviceaccount.Getter
	tokens                         *serviceaccount.Tokens
}

var (
	_ rest.NamedCreater                   = (*TokenREST)(nil)
	_ rest.GroupVersionKindProvider       = (*TokenREST)(nil)
	_ rest.SubresourceObjectMetaPreserver = (*TokenREST)(nil)
)

// NewTokenREST makes the storage. Tokens can be bound to what the getters read.
func NewTokenREST(tokens *serviceaccount.Tokens, accounts, pods, secrets, nodes serviceaccount.Getter) *TokenREST {
	return &TokenREST{accounts: accounts, pods: pods, secrets: secrets, nodes: nodes, tokens: tokens}
}

// New implements rest.Storage.
func (r *TokenREST) New() runtime.Object { return &authenticationv1.TokenRequest{} }

// Destroy implements rest.Storage.
func (r *TokenREST) Destroy() {}

// GroupVersionKind implements rest.GroupVersionKindProvider.
func (r *TokenREST) GroupVersionKind(schema.GroupVersion) schema.GroupVersionKind {
	return tokenRequest
}

// PreserveRequestObjectMetaSystemFieldsOnSubresourceCreate implements
// rest.SubresourceObjectMetaPreserver: a UID says which service account is meant.
func (r *TokenREST) PreserveRequestObjectMetaSystemFieldsOnSubresourceCreate() bool { return true }

// Create implements rest.NamedCreater.
func (r *TokenREST) Create(ctx context.Context, name string, obj runtime.Object, validate rest.ValidateObjectFunc, _ *metav1.CreateOptions) (runtime.Object, error) {
	namespace, ok := request.NamespaceFrom(ctx)
	if !ok {
		return nil, apierrors.NewBadRequest("namespace is required")
	}
	asked := obj.(*authenticationv1.TokenRequest)
	meta := field.NewPath("metadata")
	if asked.Name != "" && asked.Name != name {
		return nil, invalid(name, field.Invalid(meta.Child("name"), asked.Name, "must match the service account name if specified"))
	}
	if asked.Namespace != "" && asked.Namespace != namespace {
		return nil, invalid(name, field.Invalid(meta.Child("namespace"), asked.Namespace, "must match the service account namespace if specified"))
	}
	account, err := get(ctx, r.accounts, name)
	if err != nil {
		return nil, err
	}
	if asked.UID != "" && asked.UID != account.UID {
		return nil, apierrors.NewConflict(schema.GroupResource{Group: tokenRequest.Group, Resource: tokenRequest.Kind}, name,
			fmt.Errorf("the UID in the token request (%s) does not match the UID of the service account (%s)", asked.UID, account.UID))
	}
	now := time.Now().Truncate(time.Second)
	asked.Name, asked.Namespace, asked.UID, asked.CreationTimestamp = name, namespace, account.UID, metav1.NewTime(now)
	asked.ManagedFields = nil
	asked.Status = authenticationv1.TokenRequestStatus{}
	if err := r.complete(ctx, asked); err != nil {
		return nil, err
	}
	if validate != nil {
		if err := validate(ctx, asked.DeepCopyObject()); err != nil {
			return nil, err
		}
	}
	bound := serviceaccount.Bound{Namespace: namespace, ServiceAccount: serviceaccount.Ref{Name: name, UID: account.UID}}
	if err := r.bind(ctx, &bound, asked.Spec.BoundObjectRef); err != nil {
		return nil, err
	}
	ttl := time.Duration(*asked.Spec.ExpirationSeconds) * time.Second
	if ttl > maxTTL {
		warning.AddWarning(ctx, "", fmt.Sprintf("requested expiration of %d seconds shortened to %d seconds", int64(ttl.Seconds()), int64(maxTTL.Seconds())))
		ttl = maxTTL
		*asked.Spec.ExpirationSeconds = int64(ttl.Seconds())
	}
	token, id, err := r.tokens.Issue(ctx, bound, asked.Spec.Audiences, now, ttl)
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	audit.AddAuditAnnotation(ctx, apiserverserviceaccount.IssuedCredentialIDAuditAnnotationKey, serviceaccount.CredentialID(id))
	asked.Status = authenticationv1.TokenRequestStatus{Token: token, ExpirationTimestamp: metav1.NewTime(now.Add(ttl))}
	return asked, nil
}

// complete fills in what a request leaves open, and says what is wrong with it.
func (r *TokenREST) complete(ctx context.Context, asked *authenticationv1.TokenRequest) error {
	if len(asked.Spec.Audiences) == 0 {
		cluster, err := logical.Cluster(ctx)
		if err != nil {
			return err
		}
		asked.Spec.Audiences = []string{r.tokens.Issuer(cluster)}
	}
	if asked.Spec.ExpirationSeconds == nil {
		seconds := int64(defaultTTL.Seconds())
		asked.Spec.ExpirationSeconds = &seconds
	}
	path := field.NewPath("spec", "expirationSeconds")
	switch seconds := *asked.Spec.ExpirationSeconds; {
	case seconds < int64(minTTL.Seconds()):
		return invalid("", field.Invalid(path, seconds, "may not specify a duration less than 10 minutes"))
	case seconds > int64(endlessTTL.Seconds()):
		return invalid("", field.Invalid(path, seconds, "may not specify a duration larger than 2^32 seconds"))
	}
	return nil
}

// bind reads what a token is to be bound to.
func (r *TokenREST) bind(ctx context.Context, bound *serviceaccount.Bound, ref *authenticationv1.BoundObjectReference) error {
	if ref == nil {
		return nil
	}
	gvk := schema.FromAPIVersionAndKind(ref.APIVersion, ref.Kind)
	var uid types.UID
	switch gvk {
	case corev1.SchemeGroupVersion.WithKind("Pod"):
		o, err := get(inside(ctx, "pods", ref.Name, bound.Namespace), r.pods, ref.Name)
		if err != nil {
			return err
		}
		var pod corev1.Pod
		if err := o.Into(&pod); err != nil {
			return apierrors.NewInternalError(err)
		}
		if pod.Spec.ServiceAccountName != bound.ServiceAccount.Name {
			return apierrors.NewBadRequest(fmt.Sprintf("cannot bind token for serviceaccount %q to pod running with different serviceaccount name.", bound.ServiceAccount.Name))
		}
		uid = o.UID
		bound.Pod = &serviceaccount.Ref{Name: o.Name, UID: uid}
		if name := pod.Spec.NodeName; name != "" {
			bound.Node = &serviceaccount.Ref{Name: name}
			node, err := get(inside(ctx, "nodes", name, metav1.NamespaceNone), r.nodes, name)
			if err == nil {
				bound.Node.UID = node.UID
			} else if !apierrors.IsNotFound(err) {
				return err
			}
		}
	case corev1.SchemeGroupVersion.WithKind("Secret"):
		o, err := get(inside(ctx, "secrets", ref.Name, bound.Namespace), r.secrets, ref.Name)
		if err != nil {
			return err
		}
		uid = o.UID
		bound.Secret = &serviceaccount.Ref{Name: o.Name, UID: uid}
	case corev1.SchemeGroupVersion.WithKind("Node"):
		o, err := get(inside(ctx, "nodes", ref.Name, metav1.NamespaceNone), r.nodes, ref.Name)
		if err != nil {
			return err
		}
		uid = o.UID
		bound.Node = &serviceaccount.Ref{Name: o.Name, UID: uid}
	default:
		return apierrors.NewBadRequest(fmt.Sprintf("cannot bind token to object of type %s", gvk.String()))
	}
	if ref.UID != "" && ref.UID != uid {
		return apierrors.NewConflict(schema.GroupResource{Group: gvk.Group, Resource: gvk.Kind}, ref.Name, fmt.Errorf(
			"the UID in the bound object reference (%s) does not match the UID in record. The object might have been deleted and then recreated", ref.UID))
	}
	return nil
}

// inside is the context of a read of another resource.
func inside(ctx context.Context, resource, name, namespace string) context.Context {
	ctx = request.WithRequestInfo(ctx, &request.RequestInfo{
		IsResourceRequest: true, Verb: "get", APIVersion: "v1", Resource: resource, Name: name, Namespace: namespace,
	})
	return request.WithNamespace(ctx, namespace)
}

func get(ctx context.Context, objects serviceaccount.Getter, name string) (*object.Object, error) {
	obj, err := objects.Get(ctx, name, &metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	return obj.(*object.Object), nil
}

func invalid(name string, err *field.Error) error {
	return apierrors.NewInvalid(tokenRequest.GroupKind(), name, field.ErrorList{err})
}
