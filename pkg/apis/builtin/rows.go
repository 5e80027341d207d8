package builtin

import (
	"fmt"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	eventsv1 "k8s.io/api/events/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/api/validation/path"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// rows is the table. Names, columns and selectors are those of a kube-apiserver.
func rows() []*row {
	return []*row{
		{
			version: "v1", kind: "Namespace", plural: "namespaces", shortNames: []string{"ns"}, clusterScoped: true, status: true,
			selectable: []string{"status.phase"},
			columns:    columns(nameColumn(), text("Status", "The status of the namespace"), ageColumn()),
			typed: typedAs(actions[*corev1.Namespace]{
				fill: fillNamespace, complete: completeNamespace, validate: validateNamespace, name: apivalidation.NameIsDNSLabel,
				cells: func(o *corev1.Namespace) []any {
					return []any{o.Name, string(o.Status.Phase), age(o.CreationTimestamp)}
				},
			}),
		},
		{
			version: "v1", kind: "ConfigMap", plural: "configmaps", shortNames: []string{"cm"},
			columns: columns(nameColumn(), text("Data", corev1.ConfigMap{}.SwaggerDoc()["data"]), ageColumn()),
			typed: typedAs(actions[*corev1.ConfigMap]{
				fill: fillConfigMap, validate: validateConfigMap,
				cells: func(o *corev1.ConfigMap) []any {
					return []any{o.Name, int64(len(o.Data) + len(o.BinaryData)), age(o.CreationTimestamp)}
				},
			}),
		},
		{
			version: "v1", kind: "Secret", plural: "secrets", selectable: []string{"type"},
			columns: columns(nameColumn(), text("Type", corev1.Secret{}.SwaggerDoc()["type"]), text("Data", corev1.Secret{}.SwaggerDoc()["data"]), ageColumn()),
			typed: typedAs(actions[*corev1.Secret]{
				fill: fillSecret, validate: validateSecret, warn: warnOfSecret,
				cells: func(o *corev1.Secret) []any {
					return []any{o.Name, string(o.Type), int64(len(o.Data)), age(o.CreationTimestamp)}
				},
			}),
		},
		{
			version: "v1", kind: "ServiceAccount", plural: "serviceaccounts", shortNames: []string{"sa"},
			columns: columns(nameColumn(), ageColumn()),
			typed: typedAs(actions[*corev1.ServiceAccount]{
				cells: func(o *corev1.ServiceAccount) []any { return []any{o.Name, age(o.CreationTimestamp)} },
			}),
		},
		{
			version: "v1", kind: "Service", plural: "services", shortNames: []string{"svc"}, categories: []string{"all"}, status: true,
			selectable: []string{"spec.clusterIP", "spec.type"},
			columns: columns(nameColumn(),
				text("Type", corev1.ServiceSpec{}.SwaggerDoc()["type"]), text("Cluster-IP", corev1.ServiceSpec{}.SwaggerDoc()["clusterIP"]),
				text("External-IP", corev1.ServiceSpec{}.SwaggerDoc()["externalIPs"]), text("Port(s)", corev1.ServiceSpec{}.SwaggerDoc()["ports"]),
				ageColumn(), wide("Selector", corev1.ServiceSpec{}.SwaggerDoc()["selector"])),
			typed: typedAs(actions[*corev1.Service]{
				fill: fillService, complete: completeService, validate: validateService, cells: serviceCells, name: apivalidation.NameIsDNSLabel,
			}),
		},
		{
			version: "v1", kind: "Endpoints", plural: "endpoints", shortNames: []string{"ep"},
			deprecation: "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice",
			columns:     columns(nameColumn(), text("Endpoints", corev1.Endpoints{}.SwaggerDoc()["subsets"]), ageColumn()),
			typed: typedAs(actions[*corev1.Endpoints]{
				validate: validateEndpoints,
				cells: func(o *corev1.Endpoints) []any {
					return []any{o.Name, endpointsText(o.Subsets), age(o.CreationTimestamp)}
				},
			}),
		},
		{
			version: "v1", kind: "Pod", plural: "pods", generations: true, shortNames: []string{"po"}, categories: []string{"all"}, status: true,
			selectable: []string{
				"spec.nodeName", "spec.restartPolicy", "spec.schedulerName", "spec.serviceAccountName",
				"status.phase", "status.podIP", "status.nominatedNodeName",
			},
			selectors: map[string]func(map[string]any) string{"spec.hostNetwork": flag("spec", "hostNetwork")},
			columns: columns(nameColumn(),
				text("Ready", "The aggregate readiness state of this pod for accepting traffic."),
				text("Status", "The aggregate status of the containers in this pod."),
				text("Restarts", "The number of times the containers in this pod have been restarted and when the last container in this pod has restarted."),
				ageColumn(),
				wide("IP", corev1.PodStatus{}.SwaggerDoc()["podIP"]), wide("Node", corev1.PodSpec{}.SwaggerDoc()["nodeName"]),
				wide("Nominated Node", corev1.PodStatus{}.SwaggerDoc()["nominatedNodeName"]),
				wide("Readiness Gates", corev1.PodSpec{}.SwaggerDoc()["readinessGates"])),
			typed: typedAs(actions[*corev1.Pod]{fill: fillPod, complete: completePod, validate: validatePod, cells: podCells}),
		},
		{
			version: "v1", kind: "Node", plural: "nodes", shortNames: []string{"no"}, clusterScoped: true, status: true,
			selectors: map[string]func(map[string]any) string{"spec.unschedulable": flag("spec", "unschedulable")},
			columns: columns(nameColumn(), text("Status", "The status of the node"), text("Roles", "The roles of the node"), ageColumn(),
				text("Version", corev1.NodeSystemInfo{}.SwaggerDoc()["kubeletVersion"]),
				wide("Internal-IP", corev1.NodeStatus{}.SwaggerDoc()["addresses"]), wide("External-IP", corev1.NodeStatus{}.SwaggerDoc()["addresses"]),
				wide("OS-Image", corev1.NodeSystemInfo{}.SwaggerDoc()["osImage"]), wide("Kernel-Version", corev1.NodeSystemInfo{}.SwaggerDoc()["kernelVersion"]),
				wide("Container-Runtime", corev1.NodeSystemInfo{}.SwaggerDoc()["containerRuntimeVersion"])),
			typed: typedAs(actions[*corev1.Node]{cells: nodeCells}),
		},
		{
			version: "v1", kind: "Event", plural: "events", shortNames: []string{"ev"},
			selectable: []string{
				"involvedObject.kind", "involvedObject.namespace", "involvedObject.name", "involvedObject.uid", "involvedObject.apiVersion",
				"involvedObject.resourceVersion", "involvedObject.fieldPath", "reason", "reportingComponent", "type",
			},
			selectors: map[string]func(map[string]any) string{"source": eventSource},
			columns: columns(
				text("Last Seen", corev1.Event{}.SwaggerDoc()["lastTimestamp"]), text("Type", corev1.Event{}.SwaggerDoc()["type"]),
				text("Reason", corev1.Event{}.SwaggerDoc()["reason"]), text("Object", corev1.Event{}.SwaggerDoc()["involvedObject"]),
				wide("Subobject", corev1.ObjectReference{}.SwaggerDoc()["fieldPath"]), wide("Source", corev1.Event{}.SwaggerDoc()["source"]),
				text("Message", corev1.Event{}.SwaggerDoc()["message"]),
				wide("First Seen", corev1.Event{}.SwaggerDoc()["firstTimestamp"]), wide("Count", corev1.Event{}.SwaggerDoc()["count"]), wideName()),
			typed: typedAs(actions[*corev1.Event]{validate: validateEvent, cells: eventCells}),
		},
		{
			group: discoveryv1.GroupName, version: "v1", kind: "EndpointSlice", plural: "endpointslices", generations: true,
			columns: columns(nameColumn(),
				text("AddressType", discoveryv1.EndpointSlice{}.SwaggerDoc()["addressType"]), text("Ports", discoveryv1.EndpointSlice{}.SwaggerDoc()["ports"]),
				text("Endpoints", discoveryv1.EndpointSlice{}.SwaggerDoc()["endpoints"]), ageColumn()),
			typed: typedAs(actions[*discoveryv1.EndpointSlice]{validate: validateEndpointSlice, cells: endpointSliceCells}),
		},
		{
			group: eventsv1.GroupName, version: "v1", kind: "Event", plural: "events", shortNames: []string{"ev"},
			selectable: []string{
				"regarding.kind", "regarding.namespace", "regarding.name", "regarding.uid", "regarding.apiVersion",
				"regarding.resourceVersion", "regarding.fieldPath", "reason", "reportingController", "type",
			},
			columns: columns(
				text("Last Seen", eventsv1.Event{}.SwaggerDoc()["deprecatedLastTimestamp"]), text("Type", eventsv1.Event{}.SwaggerDoc()["type"]),
				text("Reason", eventsv1.Event{}.SwaggerDoc()["reason"]), text("Object", eventsv1.Event{}.SwaggerDoc()["regarding"]),
				wide("Subobject", corev1.ObjectReference{}.SwaggerDoc()["fieldPath"]), wide("Source", eventsv1.Event{}.SwaggerDoc()["reportingController"]),
				text("Message", eventsv1.Event{}.SwaggerDoc()["note"]),
				wide("First Seen", eventsv1.Event{}.SwaggerDoc()["deprecatedFirstTimestamp"]), wide("Count", eventsv1.Event{}.SwaggerDoc()["deprecatedCount"]), wideName()),
			typed: typedAs(actions[*eventsv1.Event]{validate: validateGroupEvent, cells: func(o *eventsv1.Event) []any { return eventCells(coreEvent(o)) }}),
		},
		{
			group: coordinationv1.GroupName, version: "v1", kind: "Lease", plural: "leases",
			columns: columns(nameColumn(), text("Holder", coordinationv1.LeaseSpec{}.SwaggerDoc()["holderIdentity"]), ageColumn()),
			typed: typedAs(actions[*coordinationv1.Lease]{
				validate: validateLease,
				cells: func(o *coordinationv1.Lease) []any {
					return []any{o.Name, orEmpty(o.Spec.HolderIdentity), age(o.CreationTimestamp)}
				},
			}),
		},
		{
			group: admissionregistrationv1.GroupName, version: "v1", kind: "MutatingWebhookConfiguration", plural: "mutatingwebhookconfigurations", generations: true,
			clusterScoped: true, categories: []string{"api-extensions"},
			columns: webhookColumns("Webhooks indicates the number of webhooks registered in this configuration"),
			typed: typedAs(actions[*admissionregistrationv1.MutatingWebhookConfiguration]{
				validate: validateMutatingWebhooks,
				cells: func(o *admissionregistrationv1.MutatingWebhookConfiguration) []any {
					return []any{o.Name, int64(len(o.Webhooks)), age(o.CreationTimestamp)}
				},
			}),
		},
		{
			group: admissionregistrationv1.GroupName, version: "v1", kind: "ValidatingWebhookConfiguration", plural: "validatingwebhookconfigurations", generations: true,
			clusterScoped: true, categories: []string{"api-extensions"},
			columns: webhookColumns("Webhooks indicates the number of webhooks registered in this configuration"),
			typed: typedAs(actions[*admissionregistrationv1.ValidatingWebhookConfiguration]{
				validate: validateValidatingWebhooks,
				cells: func(o *admissionregistrationv1.ValidatingWebhookConfiguration) []any {
					return []any{o.Name, int64(len(o.Webhooks)), age(o.CreationTimestamp)}
				},
			}),
		},
		{
			group: networkingv1.GroupName, version: "v1", kind: "Ingress", plural: "ingresses", generations: true, shortNames: []string{"ing"}, status: true,
			columns: columns(nameColumn(),
				text("Class", "The name of the IngressClass that takes care of it"), text("Hosts", "The hosts that its rules match"),
				text("Address", "The entry points of its load balancer"), text("Ports", "The ports that it opens"), ageColumn()),
			typed: typedAs(actions[*networkingv1.Ingress]{validate: validateIngress, cells: ingressCells}),
		},
		{
			group: networkingv1.GroupName, version: "v1", kind: "IngressClass", plural: "ingressclasses", generations: true, clusterScoped: true,
			columns: columns(nameColumn(), text("Controller", "The controller that takes care of the class"),
				text("Parameters", "The object that holds more parameters"), ageColumn()),
			typed: typedAs(actions[*networkingv1.IngressClass]{validate: validateIngressClass, cells: ingressClassCells}),
		},
		{
			group: appsv1.GroupName, version: "v1", kind: "Deployment", plural: "deployments", generations: true,
			shortNames: []string{"deploy"}, categories: []string{"all"}, status: true,
			columns: columns(nameColumn(),
				text("Ready", "Number of the pod with ready state"),
				text("Up-to-date", appsv1.DeploymentStatus{}.SwaggerDoc()["updatedReplicas"]),
				text("Available", appsv1.DeploymentStatus{}.SwaggerDoc()["availableReplicas"]),
				ageColumn(),
				wide("Containers", "Names of each container in the template."), wide("Images", "Images referenced by each container in the template."),
				wide("Selector", appsv1.DeploymentSpec{}.SwaggerDoc()["selector"])),
			typed: typedAs(actions[*appsv1.Deployment]{fill: fillDeployment, validate: validateDeployment, cells: deploymentCells}),
		},
		{
			group: rbacv1.GroupName, version: "v1", kind: "Role", plural: "roles",
			columns: columns(nameColumn(), created()),
			typed: typedAs(actions[*rbacv1.Role]{
				validate: func(o, _ *rbacv1.Role) field.ErrorList { return validatePolicyRules(o.Rules, false) }, name: path.ValidatePathSegmentName,
				cells: func(o *rbacv1.Role) []any { return []any{o.Name, createdAt(o.CreationTimestamp)} },
			}),
		},
		{
			group: rbacv1.GroupName, version: "v1", kind: "RoleBinding", plural: "rolebindings",
			columns: bindingColumns(rbacv1.RoleBinding{}.SwaggerDoc()["roleRef"]),
			typed: typedAs(actions[*rbacv1.RoleBinding]{
				name: path.ValidatePathSegmentName,
				fill: func(o *rbacv1.RoleBinding) { fillBinding(&o.RoleRef, o.Subjects) },
				validate: func(o, old *rbacv1.RoleBinding) field.ErrorList {
					errs := validateBinding(o.RoleRef, o.Subjects, true)
					if old != nil && old.RoleRef != o.RoleRef {
						errs = append(errs, changedRole(o.RoleRef))
					}
					return errs
				},
				cells: func(o *rbacv1.RoleBinding) []any { return bindingCells(o.ObjectMeta, o.RoleRef, o.Subjects) },
			}),
		},
		{
			group: rbacv1.GroupName, version: "v1", kind: "ClusterRole", plural: "clusterroles", clusterScoped: true,
			columns: columns(nameColumn(), created()),
			typed: typedAs(actions[*rbacv1.ClusterRole]{
				name: path.ValidatePathSegmentName, validate: validateClusterRole,
				cells: func(o *rbacv1.ClusterRole) []any { return []any{o.Name, createdAt(o.CreationTimestamp)} },
			}),
		},
		{
			group: rbacv1.GroupName, version: "v1", kind: "ClusterRoleBinding", plural: "clusterrolebindings", clusterScoped: true,
			columns: bindingColumns(rbacv1.ClusterRoleBinding{}.SwaggerDoc()["roleRef"]),
			typed: typedAs(actions[*rbacv1.ClusterRoleBinding]{
				name: path.ValidatePathSegmentName,
				fill: func(o *rbacv1.ClusterRoleBinding) { fillBinding(&o.RoleRef, o.Subjects) },
				validate: func(o, old *rbacv1.ClusterRoleBinding) field.ErrorList {
					errs := validateBinding(o.RoleRef, o.Subjects, false)
					if old != nil && old.RoleRef != o.RoleRef {
						errs = append(errs, changedRole(o.RoleRef))
					}
					return errs
				},
				cells: func(o *rbacv1.ClusterRoleBinding) []any { return bindingCells(o.ObjectMeta, o.RoleRef, o.Subjects) },
			}),
		},
		{
			group: apiextensionsv1.GroupName, version: "v1", kind: "CustomResourceDefinition", plural: "customresourcedefinitions",
			shortNames: []string{"crd", "crds"}, categories: []string{"api-extensions"}, clusterScoped: true, status: true,
			columns: columns(nameColumn(), text("Scope", "Where its objects live"), text("Versions", "The versions that are served"), created(),
				wide("Group", "The API group"), wide("Kind", "The kind of its objects"), wide("ShortNames", "The short names of its resource"),
				metav1.TableColumnDefinition{Name: "Established", Type: "boolean", Priority: 1, Description: "Whether it is served"}),
			typed: typedAs(actions[*apiextensionsv1.CustomResourceDefinition]{cells: definitionCells}),
		},
	}
}

// flag selects by a boolean member, which is left out when false.
func flag(parent, name string) func(map[string]any) string {
	return func(content map[string]any) string {
		members, _ := content[parent].(map[string]any)
		set, _ := members[name].(bool)
		return fmt.Sprint(set)
	}
}

// eventSource is who reported an event, in the old way or the new.
func eventSource(content map[string]any) string {
	source, _ := content["source"].(map[string]any)
	if component, _ := source["component"].(string); component != "" {
		return component
	}
	component, _ := content["reportingComponent"].(string)
	return component
}

func columns(all ...metav1.TableColumnDefinition) []metav1.TableColumnDefinition { return all }

func nameColumn() metav1.TableColumnDefinition {
	return metav1.TableColumnDefinition{Name: "Name", Type: "string", Format: "name", Description: metav1.ObjectMeta{}.SwaggerDoc()["name"]}
}

func wideName() metav1.TableColumnDefinition {
	c := nameColumn()
	c.Priority = 1
	return c
}

func ageColumn() metav1.TableColumnDefinition {
	return text("Age", metav1.ObjectMeta{}.SwaggerDoc()["creationTimestamp"])
}

func created() metav1.TableColumnDefinition {
	return metav1.TableColumnDefinition{
		Name: "Created At", Type: "date", Description: metav1.ObjectMeta{}.SwaggerDoc()["creationTimestamp"],
	}
}

func text(name, description string) metav1.TableColumnDefinition {
	return metav1.TableColumnDefinition{Name: name, Type: "string", Description: description}
}

// wide is a column of kubectl get -o wide.
func wide(name, description string) metav1.TableColumnDefinition {
	c := text(name, description)
	c.Priority = 1
	return c
}

func webhookColumns(description string) []metav1.TableColumnDefinition {
	return columns(nameColumn(), metav1.TableColumnDefinition{Name: "Webhooks", Type: "integer", Description: description}, ageColumn())
}

func bindingColumns(role string) []metav1.TableColumnDefinition {
	return columns(nameColumn(), text("Role", role), ageColumn(),
		wide("Users", "The users that it binds"), wide("Groups", "The groups that it binds"), wide("ServiceAccounts", "The service accounts that it binds"))
}
