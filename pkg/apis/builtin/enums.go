package builtin

import (
	"reflect"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
)

// enums are the types with a fixed set of values. They are published for people and
// their tools; what is accepted is for the rows' validation to say.
func enums() map[reflect.Type][]any {
	return map[reflect.Type][]any{
		reflect.TypeFor[admissionregistrationv1.FailurePolicyType]():      {"Fail", "Ignore"},
		reflect.TypeFor[admissionregistrationv1.MatchPolicyType]():        {"Equivalent", "Exact"},
		reflect.TypeFor[admissionregistrationv1.OperationType]():          {"*", "CONNECT", "CREATE", "DELETE", "UPDATE"},
		reflect.TypeFor[admissionregistrationv1.PatchType]():              {"ApplyConfiguration", "JSONPatch"},
		reflect.TypeFor[admissionregistrationv1.ReinvocationPolicyType](): {"IfNeeded", "Never"},
		reflect.TypeFor[admissionregistrationv1.SideEffectClass]():        {"None", "NoneOnDryRun", "Some", "Unknown"},
		reflect.TypeFor[admissionregistrationv1.ScopeType]():              {"*", "Cluster", "Namespaced"},
		reflect.TypeFor[appsv1.DeploymentStrategyType]():                  {"Recreate", "RollingUpdate"},
		reflect.TypeFor[corev1.AppArmorProfileType]():                     {"Localhost", "RuntimeDefault", "Unconfined"},
		reflect.TypeFor[corev1.AzureDataDiskCachingMode]():                {"None", "ReadOnly", "ReadWrite"},
		reflect.TypeFor[corev1.AzureDataDiskKind]():                       {"Dedicated", "Managed", "Shared"},
		reflect.TypeFor[corev1.DNSPolicy]():                               {"ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"},
		reflect.TypeFor[corev1.GRPCProbeMode]():                           {"Plaintext", "TLS"},
		reflect.TypeFor[corev1.HTTPProtocol]():                            {"HTTP1", "HTTP2"},
		reflect.TypeFor[corev1.HostPathType]():                            {"", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"},
		reflect.TypeFor[corev1.IPFamily]():                                {"", "IPv4", "IPv6"},
		reflect.TypeFor[corev1.IPFamilyPolicy]():                          {"PreferDualStack", "RequireDualStack", "SingleStack"},
		reflect.TypeFor[corev1.MountPropagationMode]():                    {"Bidirectional", "HostToContainer", "None"},
		reflect.TypeFor[corev1.NamespacePhase]():                          {"Active", "Terminating"},
		reflect.TypeFor[corev1.NodeInclusionPolicy]():                     {"Honor", "Ignore"},
		reflect.TypeFor[corev1.NodePhase]():                               {"Pending", "Running", "Terminated"},
		reflect.TypeFor[corev1.NodeSelectorOperator]():                    {"DoesNotExist", "Exists", "Gt", "In", "Lt", "NotIn"},
		reflect.TypeFor[corev1.PersistentVolumeAccessMode]():              {"ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"},
		reflect.TypeFor[corev1.PersistentVolumeMode]():                    {"Block", "Filesystem"},
		reflect.TypeFor[corev1.PodFSGroupChangePolicy]():                  {"Always", "OnRootMismatch"},
		reflect.TypeFor[corev1.PodPhase]():                                {"Failed", "Pending", "Running", "Succeeded", "Unknown"},
		reflect.TypeFor[corev1.PodQOSClass]():                             {"BestEffort", "Burstable", "Guaranteed"},
		reflect.TypeFor[corev1.PreemptionPolicy]():                        {"Never", "PreemptLowerPriority"},
		reflect.TypeFor[corev1.ProcMountType]():                           {"Default", "Unmasked"},
		reflect.TypeFor[corev1.Protocol]():                                {"SCTP", "TCP", "UDP"},
		reflect.TypeFor[corev1.PullPolicy]():                              {"Always", "IfNotPresent", "Never"},
		reflect.TypeFor[corev1.RestartPolicy]():                           {"Always", "Never", "OnFailure"},
		reflect.TypeFor[corev1.SeccompProfileType]():                      {"Localhost", "RuntimeDefault", "Unconfined"},
		reflect.TypeFor[corev1.ServiceAffinity]():                         {"ClientIP", "None"},
		reflect.TypeFor[corev1.ServiceExternalTrafficPolicy]():            {"Cluster", "Local"},
		reflect.TypeFor[corev1.ServiceInternalTrafficPolicy]():            {"Cluster", "Local"},
		reflect.TypeFor[corev1.ServiceType]():                             {"ClusterIP", "ExternalName", "LoadBalancer", "NodePort"},
		reflect.TypeFor[corev1.Signal](): {
			"SIGABRT", "SIGALRM", "SIGBUS", "SIGCHLD", "SIGCLD", "SIGCONT", "SIGFPE", "SIGHUP", "SIGILL", "SIGINT", "SIGIO",
			"SIGIOT", "SIGKILL", "SIGPIPE", "SIGPOLL", "SIGPROF", "SIGPWR", "SIGQUIT", "SIGRTMAX", "SIGRTMAX-1", "SIGRTMAX-10",
			"SIGRTMAX-11", "SIGRTMAX-12", "SIGRTMAX-13", "SIGRTMAX-14", "SIGRTMAX-2", "SIGRTMAX-3", "SIGRTMAX-4", "SIGRTMAX-5",
			"SIGRTMAX-6", "SIGRTMAX-7", "SIGRTMAX-8", "SIGRTMAX-9", "SIGRTMIN", "SIGRTMIN+1", "SIGRTMIN+10", "SIGRTMIN+11",
			"SIGRTMIN+12", "SIGRTMIN+13", "SIGRTMIN+14", "SIGRTMIN+15", "SIGRTMIN+2", "SIGRTMIN+3", "SIGRTMIN+4", "SIGRTMIN+5",
			"SIGRTMIN+6", "SIGRTMIN+7", "SIGRTMIN+8", "SIGRTMIN+9", "SIGSEGV", "SIGSTKFLT", "SIGSTOP", "SIGSYS", "SIGTERM",
			"SIGTRAP", "SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGURG", "SIGUSR1", "SIGUSR2", "SIGVTALRM", "SIGWINCH", "SIGXCPU",
			"SIGXFSZ",
		},
		reflect.TypeFor[corev1.SupplementalGroupsPolicy]():       {"Merge", "Strict"},
		reflect.TypeFor[corev1.TaintEffect]():                    {"NoExecute", "NoSchedule", "PreferNoSchedule"},
		reflect.TypeFor[corev1.TerminationMessagePolicy]():       {"FallbackToLogsOnError", "File"},
		reflect.TypeFor[corev1.TolerationOperator]():             {"Equal", "Exists", "Gt", "Lt"},
		reflect.TypeFor[corev1.URIScheme]():                      {"HTTP", "HTTPS"},
		reflect.TypeFor[corev1.UnsatisfiableConstraintAction]():  {"DoNotSchedule", "ScheduleAnyway"},
		reflect.TypeFor[corev1.VolumeHealthStatusType]():         {"DataLoss", "Degraded", "Inaccessible"},
		reflect.TypeFor[discoveryv1.AddressType]():               {"FQDN", "IPv4", "IPv6"},
		reflect.TypeFor[networkingv1.PathType]():                 {"Exact", "ImplementationSpecific", "Prefix"},
		reflect.TypeFor[apiextensionsv1.FieldValueErrorReason](): {"FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"},
	}
}
