package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"sigs.k8s.io/yaml"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

// joinManager is the field manager of what vmesh join and leave write.
const joinManager = "vmesh-join"

// The names of what a member is given. The namespace is not vmesh-system: a member may be the cluster that vmesh itself
// runs in, which has one.
const (
	memberNamespace  = "vmesh-member"
	memberAccount    = "vmesh"
	memberIstiod     = "istiod"
	memberRole       = "vmesh-member"
	memberIstiodRole = "vmesh-member-istiod"
	memberTokensRole = "vmesh-member-tokens"
	rbacGroup        = rbacv1.GroupName
)

// memberObject is an object in a member.
type memberObject struct {
	resource schema.GroupVersionResource
	object   *unstructured.Unstructured
}

func (o *memberObject) String() string {
	return o.resource.GroupResource().String() + "/" + o.object.GetName()
}

func (o *memberObject) in(client dynamic.Interface) dynamic.ResourceInterface {
	if ns := o.object.GetNamespace(); ns != "" {
		return client.Resource(o.resource).Namespace(ns)
	}
	return client.Resource(o.resource)
}

// memberResources are the resources of what a member is given, in the order in which they are made.
var memberResources = []schema.GroupVersionResource{
	{Version: "v1", Resource: "namespaces"},
	{Version: "v1", Resource: "serviceaccounts"},
	{Group: rbacGroup, Version: "v1", Resource: "clusterroles"},
	{Group: rbacGroup, Version: "v1", Resource: "clusterrolebindings"},
	{Group: rbacGroup, Version: "v1", Resource: "roles"},
	{Group: rbacGroup, Version: "v1", Resource: "rolebindings"},
}

// vmeshRules are what vmesh itself reads of a member.
func vmeshRules() []rbacv1.PolicyRule {
	read := []string{"list", "watch"}
	return []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"nodes", "services"}, Verbs: read},
		// It gets kube-system, by which it knows the cluster again.
		{APIGroups: []string{""}, Resources: []string{"namespaces"}, Verbs: []string{"get", "list", "watch"}},
		{APIGroups: []string{"discovery.k8s.io"}, Resources: []string{"endpointslices"}, Verbs: read},
	}
}

// istiodRules are what an istiod reads of a member if its configuration comes from elsewhere.
func istiodRules(revisions []string, secrets bool) []rbacv1.PolicyRule {
	read := []string{"list", "watch"}
	settings := []string{"istio"}
	for _, revision := range revisions {
		if revision != "" && revision != "default" {
			settings = append(settings, "istio-"+revision)
		}
	}
	rules := []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"nodes", "pods", "services"}, Verbs: read},
		{APIGroups: []string{"discovery.k8s.io"}, Resources: []string{"endpointslices"}, Verbs: read},
		// One that runs outside of all clusters (EXTERNAL_ISTIOD) gets its own namespace, and asks without end if it may not.
		{APIGroups: []string{""}, Resources: []string{"namespaces"}, Verbs: []string{"get", "list", "watch"}},
		// Whether the member has the kinds of the Gateway API, and if so its gateways, which may be those of its network.
		{APIGroups: []string{"apiextensions.k8s.io"}, Resources: []string{"customresourcedefinitions"}, Verbs: read},
		{APIGroups: []string{"gateway.networking.k8s.io"}, Resources: []string{"gateways"}, Verbs: read},
		// If it has Istio's kinds, it reads this one, and does not become ready before.
		{APIGroups: []string{"networking.istio.io"}, Resources: []string{"workloadentries"}, Verbs: read},
		// It looks for a trust domain of the member's own.
		{APIGroups: []string{""}, Resources: []string{"configmaps"}, ResourceNames: settings, Verbs: read},
		// Proxies show it tokens of the member's service accounts.
		{APIGroups: []string{"authentication.k8s.io"}, Resources: []string{"tokenreviews"}, Verbs: []string{"create"}},
	}
	// It waits for the Secrets, as which gateways of the member may have their certificates, before it calls the member
	// synced, and asks who may read them.
	if secrets {
		rules = append(rules,
			rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"secrets"}, Verbs: read},
			rbacv1.PolicyRule{APIGroups: []string{"authorization.k8s.io"}, Resources: []string{"subjectaccessreviews"}, Verbs: []string{"create"}})
	}
	return rules
}

// memberManifests are the objects that a cluster needs to be the member of that name, in the order in which they are made.
func memberManifests(name string, revisions []string, secrets bool) ([]*memberObject, error) {
	at := func(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Name: name} }
	inside := func(name string) metav1.ObjectMeta {
		return metav1.ObjectMeta{Namespace: memberNamespace, Name: name}
	}
	account := func(name string) []rbacv1.Subject {
		return []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: memberNamespace, Name: name}}
	}
	role := func(kind, name string) rbacv1.RoleRef {
		return rbacv1.RoleRef{APIGroup: rbacGroup, Kind: kind, Name: name}
	}
	never := false
	var all []*memberObject
	for _, o := range []struct {
		resource int
		kind     string
		object   metav1.Object
	}{
		{0, "Namespace", &corev1.Namespace{ObjectMeta: at(memberNamespace)}},
		{1, "ServiceAccount", &corev1.ServiceAccount{ObjectMeta: inside(memberAccount), AutomountServiceAccountToken: &never}},
		{1, "ServiceAccount", &corev1.ServiceAccount{ObjectMeta: inside(memberIstiod), AutomountServiceAccountToken: &never}},
		{2, "ClusterRole", &rbacv1.ClusterRole{ObjectMeta: at(memberRole), Rules: vmeshRules()}},
		{3, "ClusterRoleBinding", &rbacv1.ClusterRoleBinding{ObjectMeta: at(memberRole), RoleRef: role("ClusterRole", memberRole), Subjects: account(memberAccount)}},
		{2, "ClusterRole", &rbacv1.ClusterRole{ObjectMeta: at(memberIstiodRole), Rules: istiodRules(revisions, secrets)}},
		{3, "ClusterRoleBinding", &rbacv1.ClusterRoleBinding{ObjectMeta: at(memberIstiodRole), RoleRef: role("ClusterRole", memberIstiodRole), Subjects: account(memberIstiod)}},
		{4, "Role", &rbacv1.Role{ObjectMeta: inside(memberTokensRole), Rules: []rbacv1.PolicyRule{
			{APIGroups: []string{""}, Resources: []string{"serviceaccounts/token"}, ResourceNames: []string{memberAccount, memberIstiod}, Verbs: []string{"create"}},
		}}},
		{5, "RoleBinding", &rbacv1.RoleBinding{ObjectMeta: inside(memberTokensRole), RoleRef: role("Role", memberTokensRole), Subjects: account(memberAccount)}},
	} {
		o.object.SetLabels(map[string]string{v1alpha1.LabelManagedBy: v1alpha1.ManagedBy, v1alpha1.LabelMember: name})
		content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o.object)
		if err != nil {
			return nil, fmt.Errorf("making %s %s: %w", o.kind, o.object.GetName(), err)
		}
		delete(content, "status")
		delete(content, "spec") // a namespace's, which is empty
		resource := memberResources[o.resource]
		u := &unstructured.Unstructured{Object: content}
		u.SetGroupVersionKind(resource.GroupVersion().WithKind(o.kind))
		unstructured.RemoveNestedField(content, "metadata", "creationTimestamp")
		all = append(all, &memberObject{resource, u})
	}
	return all, nil
}

// printManifests prints objects as kubectl apply takes them.
func printManifests(out io.Writer, objects []*memberObject) error {
	for _, o := range objects {
		data, err := yaml.Marshal(o.object.Object)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(out, "---\n%s", data); err != nil {
			return err
		}
	}
	return nil
}

// step is what is to be done with an object of a member.
type memberStep struct {
	*memberObject
	// present is what there is. unseen says that the kubeconfig may not look.
	present *unstructured.Unstructured
	unseen  bool
	// verbs are what takes the member to what it is to be: none, create, update, or delete and create.
	verbs []string
}

// planMember looks at what a member has of the objects.
func planMember(ctx context.Context, client dynamic.Interface, name string, objects []*memberObject) ([]*memberStep, error) {
	var steps []*memberStep
	for _, o := range objects {
		s := &memberStep{memberObject: o}
		present, err := o.in(client).Get(ctx, o.object.GetName(), metav1.GetOptions{})
		switch {
		case apierrors.IsForbidden(err):
			s.unseen = true
		case apierrors.IsNotFound(err):
			s.verbs = []string{"create"}
		case err != nil:
			return nil, fmt.Errorf("reading %s in the member: %w", o, err)
		case present.GetDeletionTimestamp() != nil:
			return nil, fmt.Errorf("%s is being deleted in the member: run the command again when it is gone", o)
		case present.GetLabels()[v1alpha1.LabelManagedBy] != v1alpha1.ManagedBy || present.GetLabels()[v1alpha1.LabelMember] == "":
			return nil, fmt.Errorf("%s is there in the member and was not made by vmesh join: rename or delete it", o)
		case present.GetLabels()[v1alpha1.LabelMember] != name:
			other := present.GetLabels()[v1alpha1.LabelMember]
			return nil, fmt.Errorf("the label of %s says that the cluster is member %q: if that is a leftover, run vmesh leave %s with the same --kubeconfig first", o, other, other)
		default:
			s.present = present
			if !equality.Semantic.DeepEqual(ownPart(present.Object), ownPart(merged(present, o.object).Object)) {
				s.verbs = []string{"update"}
			}
			// A binding's role cannot be changed.
			if ref, had := o.object.Object["roleRef"]; had && !equality.Semantic.DeepEqual(ref, present.Object["roleRef"]) {
				s.verbs = []string{"delete", "create"}
			}
		}
		steps = append(steps, s)
	}
	return steps, nil
}

// merged is what there is, with all that vmesh cares for as it is to be.
func merged(present, want *unstructured.Unstructured) *unstructured.Unstructured {
	u := present.DeepCopy()
	labels := u.GetLabels()
	maps.Copy(labels, want.GetLabels())
	u.SetLabels(labels)
	for _, field := range ownFields {
		if value, set := want.Object[field]; set {
			u.Object[field] = value
		} else {
			delete(u.Object, field)
		}
	}
	return u
}

// ownFields are those that say what an object may and does, beside its metadata.
var ownFields = []string{"rules", "aggregationRule", "subjects", "automountServiceAccountToken"}

func ownPart(object map[string]any) map[string]any {
	part := map[string]any{"labels": (&unstructured.Unstructured{Object: object}).GetLabels()}
	for _, field := range ownFields {
		part[field] = plainSubjects(object[field])
	}
	return part
}

// plainSubjects takes what a server fills in out of the subjects of a binding.
func plainSubjects(value any) any {
	list, ok := value.([]any)
	if !ok {
		return value
	}
	plain := make([]any, 0, len(list))
	for _, item := range list {
		if m, ok := item.(map[string]any); ok && m["apiGroup"] == "" {
			m = maps.Clone(m)
			delete(m, "apiGroup")
			item = m
		}
		plain = append(plain, item)
	}
	return plain
}

// do takes the object to what it is to be, and says how.
func (s *memberStep) do(ctx context.Context, client dynamic.Interface) (string, error) {
	resource, name := s.in(client), s.object.GetName()
	switch {
	case s.unseen:
		return "not looked at, for lack of rights: taken as it was printed", nil
	case len(s.verbs) == 0:
		return "unchanged", nil
	case s.verbs[0] == "update":
		_, err := resource.Update(ctx, merged(s.present, s.object), metav1.UpdateOptions{FieldManager: joinManager})
		return "mended", err
	case s.verbs[0] == "delete":
		uid := s.present.GetUID()
		err := resource.Delete(ctx, name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}})
		if err != nil && !apierrors.IsNotFound(err) {
			return "", err
		}
		_, err = resource.Create(ctx, s.object, metav1.CreateOptions{FieldManager: joinManager})
		return "mended", err
	}
	_, err := resource.Create(ctx, s.object, metav1.CreateOptions{FieldManager: joinManager})
	return "created", err
}

// right is something that somebody may do in a member.
type right struct {
	verb, group, resource, subresource, namespace, name string
}

func (r right) String() string {
	resource := r.resource
	if r.group != "" {
		resource += "." + r.group
	}
	if r.subresource != "" {
		resource += "/" + r.subresource
	}
	text := r.verb + " " + resource
	if r.name != "" {
		text += " " + r.name
	}
	if r.namespace != "" {
		text += " in namespace " + r.namespace
	}
	return text
}

// rightsOf are the rights that rules grant.
func rightsOf(rules []rbacv1.PolicyRule, namespace string) []right {
	var all []right
	for _, rule := range rules {
		names := rule.ResourceNames
		if len(names) == 0 {
			names = []string{""}
		}
		for _, group := range rule.APIGroups {
			for _, resource := range rule.Resources {
				resource, subresource, _ := strings.Cut(resource, "/")
				for _, name := range names {
					for _, verb := range rule.Verbs {
						all = append(all, right{verb, group, resource, subresource, namespace, name})
					}
				}
			}
		}
	}
	return all
}

// tokenRights are what it takes to make the two tokens.
func tokenRights() []right {
	var all []right
	for _, name := range []string{memberAccount, memberIstiod} {
		all = append(all, right{"create", "", "serviceaccounts", "token", memberNamespace, name})
	}
	return all
}

// rightsFor are what the steps take. unseen are those to look at what could not be looked at, and to make it.
func rightsFor(steps []*memberStep, granted []right) (needed, unseen []right) {
	add := func(to *[]right, r right) {
		if !slices.Contains(*to, r) {
			*to = append(*to, r)
		}
	}
	grants := false
	for _, s := range steps {
		r := right{group: s.resource.Group, resource: s.resource.Resource, namespace: s.object.GetNamespace()}
		for _, verb := range s.verbs {
			r := r
			if r.verb = verb; verb != "create" {
				r.name = s.object.GetName()
			}
			add(&needed, r)
			grants = grants || s.resource.Group == rbacGroup
		}
		if s.unseen {
			create := r
			r.verb, r.name, create.verb = "get", s.object.GetName(), "create"
			add(&unseen, r)
			add(&unseen, create)
		}
	}
	// RBAC lets nobody grant what he does not have.
	if grants {
		for _, r := range granted {
			add(&needed, r)
		}
	}
	return needed, unseen
}
