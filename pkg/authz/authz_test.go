package authz

import (
	"context"
	"errors"
	"testing"

	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"

	"github.com/vmesh-io/vmesh/pkg/authn"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

func TestAnIdentityIsGoodInItsOwnVirtualClusterAlone(t *testing.T) {
	of := func(cluster string, groups ...string) user.Info {
		u := &user.DefaultInfo{Name: "u", Groups: groups}
		if cluster != "" {
			u.Extra = map[string][]string{authn.ExtraCluster: {cluster}}
		}
		return u
	}
	write := authorizer.AttributesRecord{Verb: "create", Resource: "configmaps", ResourceRequest: true}
	probe := authorizer.AttributesRecord{Verb: "get", Path: "/livez"}
	admin := of(logical.Root, user.SystemPrivilegedGroup)
	for _, c := range []struct {
		name string
		who  user.Info
		here string
		what authorizer.AttributesRecord
		may  bool
	}{
		{"at home", of("shop"), "shop", write, true},
		{"in another virtual cluster", of("shop"), "other", write, false},
		{"in the root", of("shop"), logical.Root, write, false},
		{"in another, as one of its masters", of("shop", user.SystemPrivilegedGroup), "other", write, false},
		{"in the root, as one of its masters", of("shop", user.SystemPrivilegedGroup), logical.Root, write, false},
		{"the root's administrator at home", admin, logical.Root, write, true},
		{"the root's administrator elsewhere", admin, "shop", write, true},
		{"anyone else of the root's", of(logical.Root), logical.Root, write, false},
		{"who belongs nowhere", of("", user.SystemPrivilegedGroup), "shop", write, false},
		{"nobody", nil, "shop", write, false},
		{"a probe of the root by nobody", nil, logical.Root, probe, true},
		{"a probe of a virtual cluster by nobody", nil, "shop", probe, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx := logical.WithCluster(context.Background(), c.here)
			c.what.User = c.who
			decision, _, err := Authorizer{}.Authorize(ctx, c.what)
			if err != nil || (decision == authorizer.DecisionAllow) != c.may {
				t.Errorf("the decision is %v, %v", decision, err)
			}
			if c.what.Path != "" {
				return
			}
			rules, paths, incomplete, err := Authorizer{}.RulesFor(ctx, c.who, "default")
			if err != nil || incomplete || len(rules) > 0 != c.may || len(paths) > 0 != c.may {
				t.Errorf("the rules are %v, %v, %t, %v", rules, paths, incomplete, err)
			}
		})
	}
}

func TestNothingIsAllowedWhereNoVirtualClusterIsNamed(t *testing.T) {
	admin := &user.DefaultInfo{Groups: []string{user.SystemPrivilegedGroup}, Extra: map[string][]string{authn.ExtraCluster: {logical.Root}}}
	decision, _, err := Authorizer{}.Authorize(context.Background(), authorizer.AttributesRecord{User: admin, Verb: "get", Path: "/livez"})
	if decision != authorizer.DecisionDeny || !errors.Is(err, logical.ErrNoCluster) {
		t.Errorf("the decision is %v, %v", decision, err)
	}
	if _, _, incomplete, err := (Authorizer{}).RulesFor(context.Background(), admin, "default"); !incomplete || !errors.Is(err, logical.ErrNoCluster) {
		t.Errorf("the rules are incomplete: %t, %v", incomplete, err)
	}
}
