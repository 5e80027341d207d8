package filters

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/audit"
	"k8s.io/apiserver/pkg/authentication/serviceaccount"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	genericapifilters "k8s.io/apiserver/pkg/endpoints/filters"
	"k8s.io/apiserver/pkg/endpoints/handlers/responsewriters"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/server/httplog"

	"github.com/vmesh-io/vmesh/pkg/authn"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// impersonatePrefix begins the headers that ask to act as somebody else.
const impersonatePrefix = "Impersonate-"

// Entrance decides what a caller may do, and whether it may come in.
type Entrance interface {
	authorizer.UnconditionalAuthorizer
	// Enter is why a request may not come in, or nil.
	Enter(ctx context.Context, a authorizer.Attributes) error
}

// WithImpersonation lets callers act as somebody else, as far as the RBAC of the virtual
// cluster that the request is for lets them impersonate, with the headers and the verbs
// of Kubernetes. Who a caller becomes is a user of that virtual cluster and of no other,
// and never a member of system:masters, whoever asks. clusters knows the UIDs that
// identities are bound to.
func WithImpersonation(handler http.Handler, z Entrance, clusters authn.Clusters, s runtime.NegotiatedSerializer) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if !impersonates(req.Header) {
			handler.ServeHTTP(w, req)
			return
		}
		ctx := req.Context()
		refuse := func(err error) { responsewriters.ErrorNegotiated(err, s, schema.GroupVersion{}, w, req) }
		caller, ok := request.UserFrom(ctx)
		if !ok {
			responsewriters.InternalError(w, req, errors.New("no user found for request"))
			return
		}
		wish, err := readWish(req.Header)
		if err != nil {
			refuse(err)
			return
		}
		// The request is judged as that of who the caller becomes; whether the caller may
		// come in at all has to be asked before.
		own, err := genericapifilters.GetAuthorizerAttributes(ctx)
		if err == nil {
			err = z.Enter(ctx, own)
		}
		if err != nil {
			refuse(forbidden("%v", err))
			return
		}
		for _, question := range wish.questions {
			question.User, question.Verb, question.ResourceRequest = caller, "impersonate", true
			if decision, reason, err := z.Authorize(ctx, question); err != nil {
				refuse(apierrors.NewServiceUnavailable(err.Error()))
				return
			} else if decision != authorizer.DecisionAllow {
				responsewriters.Forbidden(question, w, req, reason, s)
				return
			}
		}
		become, err := wish.user(ctx, clusters)
		if err != nil {
			refuse(apierrors.NewInternalError(err))
			return
		}
		httplog.LogOf(req, w).Addf("%s%q is impersonating %s%q", caller.GetName(), caller.GetGroups(), become.Name, become.Groups)
		audit.LogImpersonatedUser(audit.WithAuditContext(ctx), become, "")
		req = req.WithContext(request.WithUser(ctx, become))
		req.Header = req.Header.Clone()
		for header := range req.Header {
			if strings.HasPrefix(header, impersonatePrefix) {
				req.Header.Del(header)
			}
		}
		handler.ServeHTTP(w, req)
	})
}

func impersonates(headers http.Header) bool {
	for header := range headers {
		if strings.HasPrefix(header, impersonatePrefix) {
			return true
		}
	}
	return false
}

func forbidden(format string, args ...any) error {
	err := apierrors.NewForbidden(schema.GroupResource{}, "", nil)
	err.ErrStatus.Message = fmt.Sprintf(format, args...)
	return err
}

// wish is whom a caller wants to act as, and what that asks of its rights.
type wish struct {
	name, uid string
	groups    []string
	extra     map[string][]string
	questions []authorizer.AttributesRecord
}

func readWish(headers http.Header) (*wish, error) {
	w := &wish{extra: map[string][]string{}}
	ask := func(a authorizer.AttributesRecord) { w.questions = append(w.questions, a) }
	w.name = headers.Get(authenticationv1.ImpersonateUserHeader)
	if w.name == "" {
		return nil, apierrors.NewBadRequest("to act as a group, a UID or with extra values, name a user as well: --as (" + authenticationv1.ImpersonateUserHeader + ")")
	}
	if namespace, name, err := serviceaccount.SplitUsername(w.name); err == nil {
		ask(authorizer.AttributesRecord{APIVersion: "v1", Resource: "serviceaccounts", Namespace: namespace, Name: name})
		w.groups = serviceaccount.MakeGroupNames(namespace)
	} else {
		ask(authorizer.AttributesRecord{APIVersion: "v1", Resource: "users", Name: w.name})
	}
	if groups := headers.Values(authenticationv1.ImpersonateGroupHeader); len(groups) > 0 {
		w.groups = slices.Clone(groups) // those of a service account included: what is asked for counts
	}
	for _, group := range w.groups {
		if group == user.SystemPrivilegedGroup {
			return nil, forbidden("group %q cannot be impersonated: leave it out of --as-group", group)
		}
	}
	for _, group := range headers.Values(authenticationv1.ImpersonateGroupHeader) {
		ask(authorizer.AttributesRecord{APIVersion: "v1", Resource: "groups", Name: group})
	}
	const group, version = "authentication.k8s.io", "v1"
	for header, values := range headers {
		switch {
		case !strings.HasPrefix(header, impersonatePrefix), header == authenticationv1.ImpersonateUserHeader, header == authenticationv1.ImpersonateGroupHeader:
		case header == authenticationv1.ImpersonateUIDHeader:
			if w.uid = headers.Get(header); w.uid != "" {
				ask(authorizer.AttributesRecord{APIGroup: group, APIVersion: version, Resource: "uids", Name: w.uid})
			}
		case strings.HasPrefix(header, authenticationv1.ImpersonateUserExtraHeaderPrefix):
			key := strings.ToLower(strings.TrimPrefix(header, authenticationv1.ImpersonateUserExtraHeaderPrefix))
			if plain, err := url.PathUnescape(key); err == nil {
				key = plain
			}
			// Unescaping may bring back capitals, which would make another key of it.
			if strings.HasPrefix(strings.ToLower(key), authn.ExtraPrefix) {
				return nil, forbidden("extra value %q cannot be impersonated: it says to which virtual cluster an identity belongs", key)
			}
			for _, value := range values {
				ask(authorizer.AttributesRecord{APIGroup: group, APIVersion: version, Resource: "userextras", Subresource: key, Name: value})
			}
			w.extra[key] = append(w.extra[key], values...)
		default:
			return nil, apierrors.NewBadRequest(fmt.Sprintf("header %q is not known here, and is not ignored either: it asks to act as somebody else", header))
		}
	}
	return w, nil
}

// user is who the caller becomes.
func (w *wish) user(ctx context.Context, clusters authn.Clusters) (*user.DefaultInfo, error) {
	here, err := logical.Cluster(ctx)
	if err != nil {
		return nil, err
	}
	uid := ""
	if here != logical.Root {
		uid, _ = clusters.UID(ctx, here) // of one that there is not, nothing is served
	}
	w.extra[authn.ExtraCluster], w.extra[authn.ExtraClusterUID] = []string{here}, []string{uid}
	u := &user.DefaultInfo{Name: w.name, UID: w.uid, Groups: w.groups, Extra: w.extra}
	anonymous := w.name == user.Anonymous
	switch {
	case anonymous && !slices.Contains(u.Groups, user.AllUnauthenticated):
		u.Groups = append(u.Groups, user.AllUnauthenticated)
	case !anonymous && !slices.Contains(u.Groups, user.AllAuthenticated) && !slices.Contains(u.Groups, user.AllUnauthenticated):
		u.Groups = append(u.Groups, user.AllAuthenticated)
	}
	return u, nil
}
