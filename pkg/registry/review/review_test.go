package review

import (
	"context"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"

	"github.com/vmesh-io/vmesh/pkg/authn"
	"github.com/vmesh-io/vmesh/pkg/authz"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// ask posts a review as someone of virtual cluster shop.
func ask(t *testing.T, here string, storage rest.Storage, obj runtime.Object) (runtime.Object, error) {
	t.Helper()
	alice := &user.DefaultInfo{Name: "alice", UID: "7", Groups: []string{user.SystemPrivilegedGroup}, Extra: map[string][]string{authn.ExtraCluster: {"shop"}}}
	ctx := request.WithUser(logical.WithCluster(context.Background(), here), alice)
	return storage.(rest.Creater).Create(ctx, obj, rest.ValidateAllObjectFunc, &metav1.CreateOptions{})
}

func TestACallerLearnsWhoItIs(t *testing.T) {
	obj, err := ask(t, "shop", SelfSubjectReview(), &authenticationv1.SelfSubjectReview{})
	if err != nil {
		t.Fatal(err)
	}
	got := obj.(*authenticationv1.SelfSubjectReview).Status.UserInfo
	if got.Username != "alice" || got.UID != "7" || len(got.Groups) != 1 || got.Extra[authn.ExtraCluster][0] != "shop" {
		t.Errorf("got %+v", got)
	}
}

func TestACallerLearnsWhatItMayDo(t *testing.T) {
	resource := &authorizationv1.ResourceAttributes{Verb: "create", Resource: "configmaps", Namespace: "a"}
	path := &authorizationv1.NonResourceAttributes{Verb: "get", Path: "/version"}
	for _, c := range []struct {
		name, here string
		spec       authorizationv1.SelfSubjectAccessReviewSpec
		may        bool
		fault      string
	}{
		{"at home", "shop", authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: resource}, true, ""},
		{"elsewhere", "other", authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: resource}, false, ""},
		{"a path", "shop", authorizationv1.SelfSubjectAccessReviewSpec{NonResourceAttributes: path}, true, ""},
		{"a question about nothing", "shop", authorizationv1.SelfSubjectAccessReviewSpec{}, false, "exactly one of nonResourceAttributes or resourceAttributes"},
		{"two questions", "shop", authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: resource, NonResourceAttributes: path}, false, "spec.nonResourceAttributes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			obj, err := ask(t, c.here, SelfSubjectAccessReview(authz.New(nil)), &authorizationv1.SelfSubjectAccessReview{Spec: c.spec})
			if c.fault != "" {
				if err == nil || !strings.Contains(err.Error(), c.fault) {
					t.Errorf("got %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if status := obj.(*authorizationv1.SelfSubjectAccessReview).Status; status.Allowed != c.may || status.EvaluationError != "" {
				t.Errorf("got %+v", status)
			}
		})
	}
}

func TestACallerLearnsAllThatItMayDo(t *testing.T) {
	review := func(here, namespace string) (authorizationv1.SubjectRulesReviewStatus, error) {
		obj, err := ask(t, here, SelfSubjectRulesReview(authz.New(nil)), &authorizationv1.SelfSubjectRulesReview{Spec: authorizationv1.SelfSubjectRulesReviewSpec{Namespace: namespace}})
		if err != nil {
			return authorizationv1.SubjectRulesReviewStatus{}, err
		}
		return obj.(*authorizationv1.SelfSubjectRulesReview).Status, nil
	}
	if got, err := review("shop", "a"); err != nil || len(got.ResourceRules) != 1 || len(got.NonResourceRules) != 1 || got.Incomplete {
		t.Errorf("at home: %+v, %v", got, err)
	}
	// Clients read the lists without asking whether they are there.
	if got, err := review("other", "a"); err != nil || got.ResourceRules == nil || len(got.ResourceRules) != 0 || got.NonResourceRules == nil {
		t.Errorf("elsewhere: %+v, %v", got, err)
	}
	if _, err := review("shop", ""); err == nil || !strings.Contains(err.Error(), "spec.namespace") {
		t.Errorf("without a namespace: %v", err)
	}
}

func TestNobodyIsNotAnswered(t *testing.T) {
	if _, err := SelfSubjectReview().(rest.Creater).Create(context.Background(), &authenticationv1.SelfSubjectReview{}, nil, nil); err == nil {
		t.Error("nobody is answered")
	}
}
