package rbac

import (
	"encoding/json"
	"maps"
	"slices"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/authentication/serviceaccount"
	"k8s.io/apiserver/pkg/authentication/user"
)

// defaults is what every virtual cluster has without storing it, compiled.
type defaults struct {
	roles    map[string]*defaultRole
	bindings []binding
}

type defaultRole struct {
	role
	parts []*ruleSet // its rules, those that it aggregates included
}

func newDefaults(sets *ruleSets) *defaults {
	d := &defaults{roles: map[string]*defaultRole{}}
	var all []*role
	for _, o := range DefaultClusterRoles() {
		data, err := json.Marshal(o.Rules)
		if err != nil {
			panic("encoding a default role: " + err.Error()) // it is in this file
		}
		rules, err := sets.of(data)
		if err != nil {
			panic("decoding a default role: " + err.Error())
		}
		r := &defaultRole{role: role{namespace: noNamespace, name: nameOf(o.Name), rules: [1]*ruleSet{rules}, labels: labelsOf(o.Labels)}}
		if o.AggregationRule != nil {
			for i := range o.AggregationRule.ClusterRoleSelectors {
				selector, err := metav1.LabelSelectorAsSelector(&o.AggregationRule.ClusterRoleSelectors[i])
				if err != nil {
					panic("reading the selector of a default role: " + err.Error())
				}
				r.selectors = append(r.selectors, selector)
			}
		}
		d.roles[o.Name] = r
		all = append(all, &r.role)
	}
	slices.SortFunc(all, func(a, b *role) int { return compareRoles(*a, *b) })
	for _, r := range d.roles {
		r.parts = r.rules[:]
		if r.aggregates() {
			r.parts = aggregateOf(&r.role, all)
		}
	}
	for _, o := range DefaultClusterRoleBindings() {
		d.bindings = append(d.bindings, binding{
			namespace: noNamespace, name: nameOf(o.Name), role: nameOf(o.RoleRef.Name), roleKind: clusterRole, subjects: subjectsOf(o.Subjects, ""),
		})
	}
	return d
}

// selects says whether a default role aggregates another one's rules.
func (d *defaults) selects(other *role) bool {
	for _, r := range d.roles {
		if r.selects(other) {
			return true
		}
	}
	return false
}

var (
	read      = []string{"get", "list", "watch"}
	write     = []string{"create", "update", "patch", "delete", "deletecollection"}
	readWrite = slices.Concat(read, write)
)

const (
	networking = "networking.istio.io"
	security   = "security.istio.io"
	telemetry  = "telemetry.istio.io"
	extensions = "extensions.istio.io"
)

// Istio's resources by what they are for. Those that put code or raw Envoy
// configuration into proxies are apart: an administrator's business.
var (
	trafficResources  = []string{"destinationrules", "gateways", "serviceentries", "sidecars", "virtualservices", "workloadentries", "workloadgroups"}
	securityResources = []string{"authorizationpolicies", "peerauthentications", "requestauthentications"}
)

// IstioGroups are the API groups of Istio's kinds, all of which may be read by whoever
// may view a namespace.
var IstioGroups = []string{networking, security, telemetry, extensions}

func rule(verbs []string, group string, resources ...string) rbacv1.PolicyRule {
	return rbacv1.PolicyRule{Verbs: verbs, APIGroups: []string{group}, Resources: resources}
}

// changes lets read those of the objects that can be read.
func changes() rbacv1.PolicyRule { return rule([]string{"get", "list"}, "vmesh.io", "changes") }

// meshServices lets read what the mesh's member clusters have of the services.
func meshServices() rbacv1.PolicyRule { return rule(read, "vmesh.io", "meshservices") }

func paths(all ...string) rbacv1.PolicyRule {
	return rbacv1.PolicyRule{Verbs: []string{"get"}, NonResourceURLs: all}
}

func withStatus(resources []string) []string {
	out := slices.Clone(resources)
	for _, r := range resources {
		out = append(out, r+"/status")
	}
	return out
}

// viewRules are what a reader of a namespace sees: all but secrets and who may do what.
func viewRules() []rbacv1.PolicyRule {
	return []rbacv1.PolicyRule{
		rule(read, "", "configmaps", "endpoints", "namespaces", "namespaces/status", "pods", "pods/status", "serviceaccounts", "services", "services/status"),
		{Verbs: read, APIGroups: []string{"", "events.k8s.io"}, Resources: []string{"events"}},
		rule(read, "apps", "deployments", "deployments/status"),
		rule(read, "discovery.k8s.io", "endpointslices"),
		rule(read, "networking.k8s.io", "ingresses", "ingresses/status"),
		changes(),
		meshServices(),
		{Verbs: read, APIGroups: IstioGroups, Resources: []string{rbacv1.ResourceAll}},
	}
}

func editRules() []rbacv1.PolicyRule {
	return []rbacv1.PolicyRule{
		rule(readWrite, "", "secrets"),
		rule([]string{"impersonate"}, "", "serviceaccounts"),
		rule(write, "", "configmaps", "pods", "serviceaccounts", "services"),
		rule([]string{"create"}, "", "serviceaccounts/token"),
		{Verbs: write, APIGroups: []string{"", "events.k8s.io"}, Resources: []string{"events"}},
		rule(write, "apps", "deployments"),
		rule(write, "networking.k8s.io", "ingresses"),
		rule(readWrite, "coordination.k8s.io", "leases"),
		rule(write, networking, append(slices.Clone(trafficResources), "proxyconfigs")...),
		rule(write, security, securityResources...),
		rule(write, telemetry, "telemetries"),
	}
}

func adminRules() []rbacv1.PolicyRule {
	return []rbacv1.PolicyRule{
		rule(readWrite, rbacv1.GroupName, "roles", "rolebindings"),
		rule([]string{"create"}, "authorization.k8s.io", "localsubjectaccessreviews"),
		{Verbs: write, APIGroups: IstioGroups, Resources: []string{rbacv1.ResourceAll}},
	}
}

// DefaultClusterRoles are the ClusterRoles that every virtual cluster has. Each call
// returns new ones.
func DefaultClusterRoles() []*rbacv1.ClusterRole {
	const aggregateTo = "rbac.authorization.k8s.io/aggregate-to-"
	yes := func(names ...string) map[string]string {
		out := map[string]string{}
		for _, n := range names {
			out[aggregateTo+n] = "true"
		}
		return out
	}
	collects := func(name string) *rbacv1.AggregationRule {
		return &rbacv1.AggregationRule{ClusterRoleSelectors: []metav1.LabelSelector{{MatchLabels: yes(name)}}}
	}
	all := []*rbacv1.ClusterRole{
		{
			ObjectMeta: metav1.ObjectMeta{Name: "cluster-admin"},
			Rules: []rbacv1.PolicyRule{
				rule([]string{rbacv1.VerbAll}, rbacv1.APIGroupAll, rbacv1.ResourceAll),
				{Verbs: []string{rbacv1.VerbAll}, NonResourceURLs: []string{rbacv1.NonResourceAll}},
			},
		},
		{ObjectMeta: metav1.ObjectMeta{Name: "admin"}, AggregationRule: collects("admin")},
		{ObjectMeta: metav1.ObjectMeta{Name: "edit", Labels: yes("admin")}, AggregationRule: collects("edit")},
		{ObjectMeta: metav1.ObjectMeta{Name: "view", Labels: yes("edit")}, AggregationRule: collects("view")},
		{ObjectMeta: metav1.ObjectMeta{Name: "system:aggregate-to-admin", Labels: yes("admin")}, Rules: adminRules()},
		{ObjectMeta: metav1.ObjectMeta{Name: "system:aggregate-to-edit", Labels: yes("edit")}, Rules: editRules()},
		{ObjectMeta: metav1.ObjectMeta{Name: "system:aggregate-to-view", Labels: yes("view")}, Rules: viewRules()},
		{
			ObjectMeta: metav1.ObjectMeta{Name: "system:basic-user"},
			Rules: []rbacv1.PolicyRule{
				rule([]string{"create"}, "authorization.k8s.io", "selfsubjectaccessreviews", "selfsubjectrulesreviews"),
				rule([]string{"create"}, "authentication.k8s.io", "selfsubjectreviews"),
			},
		},
		{
			ObjectMeta: metav1.ObjectMeta{Name: "system:discovery"},
			Rules: []rbacv1.PolicyRule{
				paths("/livez", "/readyz", "/healthz", "/version", "/version/", "/openapi", "/openapi/*", "/api", "/api/*", "/apis", "/apis/*"),
			},
		},
		{
			ObjectMeta: metav1.ObjectMeta{Name: "system:public-info-viewer"},
			Rules:      []rbacv1.PolicyRule{paths("/livez", "/readyz", "/healthz", "/version", "/version/")},
		},
		{
			ObjectMeta: metav1.ObjectMeta{Name: "system:service-account-issuer-discovery"},
			Rules: []rbacv1.PolicyRule{
				paths("/.well-known/openid-configuration", "/.well-known/openid-configuration/", "/openid/v1/jwks", "/openid/v1/jwks/"),
			},
		},
		{
			ObjectMeta: metav1.ObjectMeta{Name: "system:auth-delegator"},
			Rules: []rbacv1.PolicyRule{
				rule([]string{"create"}, "authentication.k8s.io", "tokenreviews"),
				rule([]string{"create"}, "authorization.k8s.io", "subjectaccessreviews"),
			},
		},
		{
			ObjectMeta: metav1.ObjectMeta{Name: "system:monitoring"},
			Rules:      []rbacv1.PolicyRule{paths("/metrics", "/metrics/slis", "/livez", "/readyz", "/healthz", "/livez/*", "/readyz/*", "/healthz/*")},
		},
		{
			ObjectMeta: metav1.ObjectMeta{Name: "vmesh:traffic-editor"},
			Rules: []rbacv1.PolicyRule{
				rule(readWrite, networking, trafficResources...),
				rule(read, networking, withStatus(trafficResources)...),
				rule(read, "", "namespaces", "services"),
				changes(),
				meshServices(),
			},
		},
		{
			ObjectMeta: metav1.ObjectMeta{Name: "vmesh:security-editor"},
			Rules: []rbacv1.PolicyRule{
				rule(readWrite, security, securityResources...),
				rule(read, security, withStatus(securityResources)...),
				rule(read, "", "namespaces", "serviceaccounts", "services"),
				changes(),
				meshServices(),
			},
		},
		{
			ObjectMeta: metav1.ObjectMeta{Name: "vmesh:read-only"},
			Rules: append(viewRules(),
				rule(read, "", "nodes", "nodes/status"),
				rule(read, "admissionregistration.k8s.io", rbacv1.ResourceAll),
				rule(read, "apiextensions.k8s.io", "customresourcedefinitions"),
				rule(read, "coordination.k8s.io", "leases"),
				rule(read, "networking.k8s.io", "ingressclasses"),
				rule(read, rbacv1.GroupName, rbacv1.ResourceAll),
				rule(read, "vmesh.io", "memberclusters", "memberclusters/status", "meshes", "meshes/status", "virtualclusters", "virtualclusters/status"),
			),
		},
	}
	for _, r := range all {
		addDefaultMetadata(&r.ObjectMeta)
	}
	return all
}

// DefaultClusterRoleBindings are the ClusterRoleBindings that every virtual cluster has.
// Nothing is bound to callers without credentials, as Kubernetes does for health and
// version: the answer would tell anyone which virtual clusters there are.
func DefaultClusterRoleBindings() []*rbacv1.ClusterRoleBinding {
	var all []*rbacv1.ClusterRoleBinding
	for _, b := range []struct{ role, group string }{
		{"cluster-admin", user.SystemPrivilegedGroup},
		{"system:basic-user", user.AllAuthenticated},
		{"system:discovery", user.AllAuthenticated},
		{"system:monitoring", user.MonitoringGroup},
		{"system:public-info-viewer", user.AllAuthenticated},
		{"system:service-account-issuer-discovery", serviceaccount.AllServiceAccountsGroup},
	} {
		o := &rbacv1.ClusterRoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: b.role},
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: b.role},
			Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.GroupKind, Name: b.group}},
		}
		addDefaultMetadata(&o.ObjectMeta)
		all = append(all, o)
	}
	return all
}

func addDefaultMetadata(m *metav1.ObjectMeta) {
	labels := map[string]string{"kubernetes.io/bootstrapping": "rbac-defaults"}
	maps.Copy(labels, m.Labels)
	m.Labels = labels
}
