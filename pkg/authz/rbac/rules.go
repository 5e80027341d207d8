package rbac

import (
	"encoding/json"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"weak"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apiserver/pkg/authorization/authorizer"
)

// Everything is the rules that allow whatever can be asked. They must not be modified.
var Everything = []rbacv1.PolicyRule{
	{Verbs: []string{"*"}, APIGroups: []string{"*"}, Resources: []string{"*"}},
	{Verbs: []string{"*"}, NonResourceURLs: []string{"*"}},
}

// ruleSet is the rules of one role. It is immutable and shared by all roles, of all
// virtual clusters, that say the same.
type ruleSet struct {
	rules []rbacv1.PolicyRule
}

// question is what is asked of rules. Attributes answer by copying themselves, which is
// too much for every rule.
type question struct {
	verb, path                         string
	group, resource, subresource, name string
	aboutResource                      bool
}

func questionOf(a authorizer.Attributes) *question {
	return &question{
		verb: a.GetVerb(), path: a.GetPath(), group: a.GetAPIGroup(), resource: a.GetResource(), subresource: a.GetSubresource(),
		name: a.GetName(), aboutResource: a.IsResourceRequest(),
	}
}

// allows is Kubernetes' meaning of a rule.
func allows(rule *rbacv1.PolicyRule, q *question) bool {
	if !matches(rule.Verbs, rbacv1.VerbAll, q.verb) {
		return false
	}
	if !q.aboutResource {
		return pathMatches(rule.NonResourceURLs, q.path)
	}
	return matches(rule.APIGroups, rbacv1.APIGroupAll, q.group) &&
		resourceMatches(rule.Resources, q.resource, q.subresource) &&
		(len(rule.ResourceNames) == 0 || matches(rule.ResourceNames, "", q.name))
}

// matches tells whether a value is among those of a rule, or the rule names all. A rule
// cannot name all where all is empty.
func matches(allowed []string, all, value string) bool {
	for _, a := range allowed {
		if a == value || all != "" && a == all {
			return true
		}
	}
	return false
}

// resourceMatches knows pods, pods/status, */status and *, which includes subresources.
func resourceMatches(allowed []string, resource, subresource string) bool {
	for _, a := range allowed {
		if a == rbacv1.ResourceAll {
			return true
		}
		if subresource == "" {
			if a == resource {
				return true
			}
			continue
		}
		// Cut at the end: what a resource is called is up to the caller, who may ask about
		// one with a slash in it.
		of, ok := strings.CutSuffix(a, subresource)
		if of, slash := strings.CutSuffix(of, "/"); ok && slash && (of == "*" || of == resource) {
			return true
		}
	}
	return false
}

func pathMatches(allowed []string, path string) bool {
	for _, a := range allowed {
		if a == rbacv1.NonResourceAll || a == path {
			return true
		}
		if strings.HasSuffix(a, "*") && strings.HasPrefix(path, strings.TrimRight(a, "*")) {
			return true
		}
	}
	return false
}

// ruleSets makes one ruleSet of rules that are the same: teams are given roles made from
// the same templates. It forgets those that no role has any more.
type ruleSets struct {
	mu     sync.Mutex
	byJSON map[string]weak.Pointer[ruleSet]
}

// noRules are the rules of a role without any.
var noRules = &ruleSet{}

// of decodes the JSON of a role's rules.
func (s *ruleSets) of(data json.RawMessage) (*ruleSet, error) {
	if len(data) == 0 || string(data) == "null" || string(data) == "[]" {
		return noRules, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if known := s.byJSON[string(data)].Value(); known != nil {
		return known, nil
	}
	set := &ruleSet{}
	if err := json.Unmarshal(data, &set.rules); err != nil {
		return nil, fmt.Errorf("rules: %w", err)
	}
	key := string(data)
	pointer := weak.Make(set)
	if s.byJSON == nil {
		s.byJSON = map[string]weak.Pointer[ruleSet]{}
	}
	s.byJSON[key] = pointer
	runtime.AddCleanup(set, func(key string) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.byJSON[key] == pointer {
			delete(s.byJSON, key)
		}
	}, key)
	return set, nil
}
