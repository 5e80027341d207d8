package builtin

import "maps"

// typeFacts are what the comments of a Go type say and its declaration does not.
type typeFacts struct {
	atomic bool // replaced as a whole
	fields map[string]fieldFacts
}

// fieldFacts are the same for a field, by its JSON name.
type fieldFacts struct {
	atomic   bool     // a list or map that is replaced as a whole
	set      bool     // a list of values that do not repeat
	keys     []string // a list whose items are known by these fields
	optional bool     // although it is always written
	required bool     // although it is left out when empty
	value    any      // the default, as JSON
	fill     any      // the default that Kubernetes fills in without publishing it
}

// The packages of the models.
const (
	admission     = "io.k8s.api.admissionregistration.v1."
	apps          = "io.k8s.api.apps.v1."
	core          = "io.k8s.api.core.v1."
	discovery     = "io.k8s.api.discovery.v1."
	events        = "io.k8s.api.events.v1."
	networking    = "io.k8s.api.networking.v1."
	rbac          = "io.k8s.api.rbac.v1."
	apiextensions = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1."
	meta          = "io.k8s.apimachinery.pkg.apis.meta.v1."
)

// knownFacts is the whole table of facts, by model name.
func knownFacts() map[string]typeFacts {
	facts := publishedFacts()
	for model, fields := range fills() {
		f := facts[model]
		f.fields = maps.Clone(f.fields)
		if f.fields == nil {
			f.fields = map[string]fieldFacts{}
		}
		for name, value := range fields {
			known := f.fields[name]
			known.fill = value
			f.fields[name] = known
		}
		facts[model] = f
	}
	return facts
}

// fills are the defaults that Kubernetes fills in by code and does not publish, by
// model and field, as far as they depend on nothing else in the object. The others
// are in the rows of the table.
func fills() map[string]map[string]any {
	return map[string]map[string]any{
		apps + "DeploymentSpec": {
			"replicas":                int64(1),
			"revisionHistoryLimit":    int64(10),
			"progressDeadlineSeconds": int64(600),
		},
		core + "ConfigMapVolumeSource": {
			"defaultMode": int64(420),
		},
		core + "Container": {
			"terminationMessagePath":   "/dev/termination-log",
			"terminationMessagePolicy": "File",
		},
		core + "DownwardAPIVolumeSource": {
			"defaultMode": int64(420),
		},
		core + "EndpointPort": {
			"protocol": "TCP",
		},
		core + "EphemeralContainer": {
			"terminationMessagePath":   "/dev/termination-log",
			"terminationMessagePolicy": "File",
		},
		core + "HTTPGetAction": {
			"path":   "/",
			"scheme": "HTTP",
		},
		core + "HostPathVolumeSource": {
			"type": "",
		},
		core + "ObjectFieldSelector": {
			"apiVersion": "v1",
		},
		core + "PodSpec": {
			"dnsPolicy":                     "ClusterFirst",
			"restartPolicy":                 "Always",
			"securityContext":               map[string]any{},
			"terminationGracePeriodSeconds": int64(30),
			"schedulerName":                 "default-scheduler",
		},
		core + "Probe": {
			"timeoutSeconds":   int64(1),
			"periodSeconds":    int64(10),
			"successThreshold": int64(1),
			"failureThreshold": int64(3),
		},
		core + "ProjectedVolumeSource": {
			"defaultMode": int64(420),
		},
		core + "Secret": {
			"type": "Opaque",
		},
		core + "SecretVolumeSource": {
			"defaultMode": int64(420),
		},
		core + "ServiceAccountTokenProjection": {
			"expirationSeconds": int64(3600),
		},
		core + "ServiceSpec": {
			"type":            "ClusterIP",
			"sessionAffinity": "None",
		},
		discovery + "EndpointPort": {
			"name":     "",
			"protocol": "TCP",
		},
		networking + "IngressClassParametersReference": {
			"scope": "Cluster",
		},
		admission + "MutatingWebhook": {
			"failurePolicy":      "Fail",
			"matchPolicy":        "Equivalent",
			"namespaceSelector":  map[string]any{},
			"objectSelector":     map[string]any{},
			"timeoutSeconds":     int64(10),
			"reinvocationPolicy": "Never",
		},
		admission + "MatchResources": {
			"matchPolicy":       "Equivalent",
			"namespaceSelector": map[string]any{},
			"objectSelector":    map[string]any{},
		},
		admission + "MutatingAdmissionPolicySpec": {
			"failurePolicy":      "Fail",
			"reinvocationPolicy": "Never",
		},
		admission + "NamedRuleWithOperations": {
			"scope": "*",
		},
		admission + "RuleWithOperations": {
			"scope": "*",
		},
		admission + "ServiceReference": {
			"port": int64(443),
		},
		admission + "ValidatingAdmissionPolicySpec": {
			"failurePolicy": "Fail",
		},
		admission + "ValidatingWebhook": {
			"failurePolicy":     "Fail",
			"matchPolicy":       "Equivalent",
			"namespaceSelector": map[string]any{},
			"objectSelector":    map[string]any{},
			"timeoutSeconds":    int64(10),
		},
	}
}

// publishedFacts are what a kube-apiserver of the same version publishes, less what the
// declarations tell. A test holds them against client-go's own table.
func publishedFacts() map[string]typeFacts {
	return map[string]typeFacts{
		admission + "MatchResources":          {atomic: true},
		admission + "NamedRuleWithOperations": {atomic: true},
		admission + "ParamKind":               {atomic: true},
		admission + "ParamRef":                {atomic: true},
		admission + "ValidatingAdmissionPolicyBindingSpec": {fields: map[string]fieldFacts{
			"validationActions": {set: true},
		}},
		admission + "ValidatingAdmissionPolicyStatus": {fields: map[string]fieldFacts{
			"conditions": {keys: []string{"type"}},
		}},
		admission + "Variable": {atomic: true},
		apps + "Deployment": {fields: map[string]fieldFacts{
			"spec": {required: true},
		}},
		apps + "DeploymentCondition": {fields: map[string]fieldFacts{
			"status": {optional: true},
			"type":   {optional: true},
		}},
		core + "AzureDiskVolumeSource": {fields: map[string]fieldFacts{
			"cachingMode": {value: "ReadWrite"},
			"fsType":      {value: "ext4"},
			"kind":        {value: "Shared"},
		}},
		core + "ConfigMapKeySelector": {atomic: true},
		core + "Container": {fields: map[string]fieldFacts{
			"ports": {keys: []string{"containerPort", "protocol"}},
		}},
		core + "ContainerImage": {fields: map[string]fieldFacts{
			"names": {optional: true},
		}},
		core + "ContainerPort": {fields: map[string]fieldFacts{
			"protocol": {value: "TCP"},
		}},
		core + "ContainerRestartRule": {fields: map[string]fieldFacts{
			"action": {required: true},
		}},
		core + "ContainerRestartRuleOnExitCodes": {fields: map[string]fieldFacts{
			"operator": {required: true},
			"values":   {set: true},
		}},
		core + "EndpointAddress": {atomic: true},
		core + "EndpointPort":    {atomic: true},
		core + "EphemeralContainer": {fields: map[string]fieldFacts{
			"ports": {keys: []string{"containerPort", "protocol"}},
		}},
		core + "Event": {fields: map[string]fieldFacts{
			"reportingComponent": {optional: true},
			"reportingInstance":  {optional: true},
		}},
		core + "EvictionResponder": {atomic: true},
		core + "FileKeySelector":   {atomic: true},
		core + "GRPCAction": {fields: map[string]fieldFacts{
			"service": {optional: true},
		}},
		core + "ISCSIVolumeSource": {fields: map[string]fieldFacts{
			"iscsiInterface": {value: "default"},
		}},
		core + "ImageVolumeStatus": {fields: map[string]fieldFacts{
			"imageRef": {required: true},
		}},
		core + "LocalObjectReference": {atomic: true},
		core + "NodeAllocatableResourceClaimStatus": {fields: map[string]fieldFacts{
			"containers": {set: true},
		}},
		core + "NodePodPreemptionPolicy": {fields: map[string]fieldFacts{
			"disableResizePreemption": {set: true},
		}},
		core + "NodeRuntimeHandler": {fields: map[string]fieldFacts{
			"name": {optional: true},
		}},
		core + "NodeSelector":        {atomic: true},
		core + "NodeSelectorTerm":    {atomic: true},
		core + "ObjectFieldSelector": {atomic: true},
		core + "ObjectReference":     {atomic: true},
		core + "PodCertificateProjection": {fields: map[string]fieldFacts{
			"keyType":    {required: true},
			"signerName": {required: true},
		}},
		core + "PodSpec": {fields: map[string]fieldFacts{
			"nodeSelector":              {atomic: true},
			"topologySpreadConstraints": {keys: []string{"topologyKey", "whenUnsatisfiable"}},
		}},
		core + "PodStatus": {fields: map[string]fieldFacts{
			"hostIPs":      {atomic: true},
			"volumeHealth": {keys: []string{"name"}},
		}},
		core + "PodVolumeHealth": {fields: map[string]fieldFacts{
			"healthConditions": {keys: []string{"status", "reason"}},
		}},
		core + "ProjectedVolumeSource": {fields: map[string]fieldFacts{
			"sources": {optional: true},
		}},
		core + "RBDVolumeSource": {fields: map[string]fieldFacts{
			"keyring": {value: "/etc/ceph/keyring"},
			"pool":    {value: "rbd"},
			"user":    {value: "admin"},
		}},
		core + "ResourceFieldSelector": {atomic: true},
		core + "ResourceRequirements": {fields: map[string]fieldFacts{
			"claims": {keys: []string{"name"}},
		}},
		core + "ResourceStatus": {fields: map[string]fieldFacts{
			"resources": {keys: []string{"resourceID"}},
		}},
		core + "ScaleIOVolumeSource": {fields: map[string]fieldFacts{
			"fsType":      {value: "xfs"},
			"storageMode": {value: "ThinProvisioned"},
		}},
		core + "SecretKeySelector": {atomic: true},
		core + "ServicePort": {fields: map[string]fieldFacts{
			"protocol": {value: "TCP"},
		}},
		core + "ServiceSpec": {fields: map[string]fieldFacts{
			"ports":    {keys: []string{"port", "protocol"}},
			"selector": {atomic: true},
		}},
		core + "TypedLocalObjectReference": {atomic: true, fields: map[string]fieldFacts{
			"apiGroup": {optional: true},
		}},
		core + "TypedObjectReference": {fields: map[string]fieldFacts{
			"apiGroup": {optional: true},
		}},
		core + "VolumeMount": {fields: map[string]fieldFacts{
			"bindMountOptions": {set: true},
		}},
		discovery + "Endpoint": {fields: map[string]fieldFacts{
			"addresses": {set: true},
		}},
		discovery + "EndpointPort": {atomic: true},
		discovery + "EndpointSlice": {fields: map[string]fieldFacts{
			"endpoints": {optional: true},
			"ports":     {optional: true},
		}},
		events + "Event": {fields: map[string]fieldFacts{
			"metadata": {optional: true},
		}},
		networking + "IngressClassParametersReference": {fields: map[string]fieldFacts{
			"scope": {optional: true},
		}},
		networking + "ServiceBackendPort": {atomic: true},
		rbac + "ClusterRole": {fields: map[string]fieldFacts{
			"rules": {optional: true},
		}},
		rbac + "Role": {fields: map[string]fieldFacts{
			"rules": {optional: true},
		}},
		rbac + "RoleRef": {atomic: true, fields: map[string]fieldFacts{
			"apiGroup": {optional: true},
		}},
		rbac + "Subject": {atomic: true},
		apiextensions + "CustomResourceDefinitionStatus": {fields: map[string]fieldFacts{
			"acceptedNames":  {optional: true},
			"conditions":     {keys: []string{"type"}, optional: true},
			"storedVersions": {optional: true},
		}},
		meta + "LabelSelector":  {atomic: true},
		meta + "OwnerReference": {atomic: true},
	}
}
