package builtin

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/yaml"

	"github.com/vmesh-io/vmesh/pkg/apis/kind"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

// shared spares the tests that only use kinds to compile them again.
var shared = sync.OnceValues(Kinds)

func find(t testing.TB, resource string) *kind.Kind {
	t.Helper()
	kinds, err := shared()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(kinds, func(k *kind.Kind) bool {
		return k.Resource() == resource && k.Group() != "events.k8s.io"
	})
	if i < 0 {
		t.Fatalf("no resource %s", resource)
	}
	return kinds[i]
}

// read decodes YAML as a body of the kind.
func read(t testing.TB, k *kind.Kind, text string) *object.Object {
	t.Helper()
	data, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	o, _, err := k.Decode(k.StorageVersion(), data, false)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// write does what the registry does to an object before it is stored.
func write(t testing.TB, k *kind.Kind, o, old *object.Object) field.ErrorList {
	t.Helper()
	if k.Hooks.Prepare != nil {
		if err := k.Hooks.Prepare(o, old); err != nil {
			t.Fatal(err)
		}
	}
	if old != nil && o.ResourceVersion == "" {
		o.ResourceVersion = "1"
	}
	_, errs := k.Validate(context.Background(), k.StorageVersion(), o, old)
	return errs
}

// cpu is what this process has used: unlike wall time it means something on a busy machine.
func cpu(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func TestKindsAreCheapUntilTheyAreUsed(t *testing.T) {
	start := cpu(t)
	kinds := allKinds(t)
	if took := cpu(t) - start; took > 500*time.Millisecond {
		t.Errorf("making the table took %v", took)
	}
	seen := map[string]bool{}
	for _, k := range kinds {
		if seen[k.String()] {
			t.Errorf("%s is there twice", k)
		}
		seen[k.String()] = true
		if !k.Hooks.Builtin || k.Hooks.NewTyped == nil || k.Hooks.Load == nil {
			t.Errorf("%s lacks hooks", k)
		}
	}
	if last := kinds[len(kinds)-1]; last.Resource() != "customresourcedefinitions" {
		t.Errorf("the last kind is %s", last)
	}
}

func TestEveryKindCompiles(t *testing.T) {
	for _, k := range allKinds(t) {
		if err := k.Warm(t.Context()); err != nil {
			t.Errorf("%s: %v", k, err)
		}
	}
}

func TestDefaultsAreFilledInAsByKubernetes(t *testing.T) {
	for _, c := range []struct {
		name, resource, body, want string
	}{
		{
			"a service gets a type, policies and target ports", "services",
			`{metadata: {name: a, namespace: b}, spec: {ports: [{port: 80}, {name: x, port: 81, protocol: UDP, targetPort: web}]}}`,
			`{spec: {internalTrafficPolicy: Cluster, sessionAffinity: None, type: ClusterIP, ports: [
				{port: 80, protocol: TCP, targetPort: 80}, {name: x, port: 81, protocol: UDP, targetPort: web}]}, status: {loadBalancer: {}}}`,
		},
		{
			"a load balancer allocates node ports", "services",
			`{metadata: {name: a, namespace: b}, spec: {type: LoadBalancer, ports: [{port: 80}]}}`,
			`{spec: {allocateLoadBalancerNodePorts: true, externalTrafficPolicy: Cluster, internalTrafficPolicy: Cluster, sessionAffinity: None,
				type: LoadBalancer, ports: [{port: 80, protocol: TCP, targetPort: 80}]}, status: {loadBalancer: {}}}`,
		},
		{
			"sticky sessions last three hours", "services",
			`{metadata: {name: a, namespace: b}, spec: {sessionAffinity: ClientIP, ports: [{port: 80}]}}`,
			`{spec: {internalTrafficPolicy: Cluster, sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 10800}}, type: ClusterIP,
				ports: [{port: 80, protocol: TCP, targetPort: 80}]}, status: {loadBalancer: {}}}`,
		},
		{
			"a secret is opaque, and its text becomes data", "secrets",
			`{metadata: {name: a, namespace: b}, data: {x: MQ==, z: MQ==}, stringData: {x: "2"}}`,
			`{type: Opaque, data: {x: Mg==, z: MQ==}}`,
		},
		{
			"keys without a value have the empty value", "configmaps",
			`{metadata: {name: a, namespace: b}, data: {x: null}, binaryData: {z: null}}`,
			`{data: {x: ""}, binaryData: {z: ""}}`,
		},
		{
			"a deployment rolls out by quarters, and its pods get what does not depend on being one", "deployments",
			`{metadata: {name: a, namespace: b}, spec: {selector: {matchLabels: {x: z}}, template: {metadata: {labels: {x: z}},
				spec: {hostNetwork: true, containers: [{name: c, image: "i:1", ports: [{containerPort: 1}], resources: {limits: {cpu: 1}}}]}}}}`,
			`{spec: {replicas: 1, revisionHistoryLimit: 10, progressDeadlineSeconds: 600, selector: {matchLabels: {x: z}},
				strategy: {type: RollingUpdate, rollingUpdate: {maxSurge: 25%, maxUnavailable: 25%}}, template: {metadata: {labels: {x: z}},
				spec: {hostNetwork: true, dnsPolicy: ClusterFirst, restartPolicy: Always, schedulerName: default-scheduler, securityContext: {},
					terminationGracePeriodSeconds: 30, containers: [{name: c, image: "i:1", imagePullPolicy: IfNotPresent,
					ports: [{containerPort: 1, protocol: TCP}], resources: {limits: {cpu: "1"}},
					terminationMessagePath: /dev/termination-log, terminationMessagePolicy: File}]}}}, status: {}}`,
		},
		{
			"a webhook fails, matches equivalents and has ten seconds", "validatingwebhookconfigurations",
			`{metadata: {name: a}, webhooks: [{name: a.b.c, clientConfig: {service: {name: svc, namespace: ns}}, rules: [{operations: [CREATE]}]}]}`,
			`{webhooks: [{name: a.b.c, clientConfig: {service: {name: svc, namespace: ns, port: 443}}, rules: [{operations: [CREATE], scope: "*"}],
				failurePolicy: Fail, matchPolicy: Equivalent, namespaceSelector: {}, objectSelector: {}, timeoutSeconds: 10, sideEffects: null,
				admissionReviewVersions: null}]}`,
		},
		{
			"a slice's port has an empty name and TCP", "endpointslices",
			`{metadata: {name: a, namespace: b}, addressType: IPv4, endpoints: [{addresses: [10.0.0.1]}], ports: [{port: 1}]}`,
			`{addressType: IPv4, endpoints: [{addresses: [10.0.0.1], conditions: {}}], ports: [{name: "", port: 1, protocol: TCP}]}`,
		},
		{
			"a binding's role and users are of the RBAC group", "rolebindings",
			`{metadata: {name: a, namespace: b}, roleRef: {kind: Role, name: r}, subjects: [{kind: User, name: u}, {kind: ServiceAccount, name: s}]}`,
			`{roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: r},
				subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: u}, {kind: ServiceAccount, name: s}]}`,
		},
		{
			"quantities take their one form", "nodes",
			`{metadata: {name: a}, status: {capacity: {cpu: 0.5, memory: 1024Mi}}}`,
			`{spec: {}, status: {capacity: {cpu: 500m, memory: 1Gi}, daemonEndpoints: {kubeletEndpoint: {Port: 0}}, nodeInfo: {architecture: "", bootID: "",
				containerRuntimeVersion: "", kernelVersion: "", kubeProxyVersion: "", kubeletVersion: "", machineID: "", operatingSystem: "", osImage: "",
				systemUUID: ""}}}`,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := read(t, find(t, c.resource), c.body)
			want := map[string]any{}
			if err := yaml.Unmarshal([]byte(c.want), &want); err != nil {
				t.Fatal(err)
			}
			dropNulls(want)
			got := map[string]any{}
			if err := json.Unmarshal([]byte("{"+string(o.Body())+"}"), &got); err != nil {
				t.Fatal(err)
			}
			dropNulls(got)
			w, _ := json.Marshal(want)
			g, _ := json.Marshal(got)
			if string(w) != string(g) {
				t.Errorf("got  %s\nwant %s", g, w)
			}
		})
	}
}

func dropNulls(v any) {
	switch v := v.(type) {
	case map[string]any:
		for key, member := range v {
			if member == nil {
				delete(v, key)
			}
			dropNulls(member)
		}
	case []any:
		for _, item := range v {
			dropNulls(item)
		}
	}
}

func TestPodsAreFilledInAsByKubernetes(t *testing.T) {
	k := find(t, "pods")
	o := read(t, k, `
metadata: {name: a, namespace: b}
spec:
  serviceAccount: old-name
  hostNetwork: true
  volumes: [{name: v}, {name: s, secret: {secretName: x}}]
  containers:
  - {name: latest, image: "registry:5000/nginx", ports: [{containerPort: 80}], resources: {limits: {cpu: 1}}}
  - {name: tagged, image: "nginx:1", livenessProbe: {httpGet: {port: http}}}
  - {name: digest, image: "nginx@sha256:0", env: [{name: e, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]}`)
	if errs := write(t, k, o, nil); len(errs) > 0 {
		t.Fatal(errs)
	}
	var pod corev1.Pod
	if err := o.Into(&pod); err != nil {
		t.Fatal(err)
	}
	s := pod.Spec
	for what, ok := range map[string]bool{
		"restart policy":      s.RestartPolicy == corev1.RestartPolicyAlways,
		"DNS policy":          s.DNSPolicy == corev1.DNSClusterFirst,
		"service account":     s.ServiceAccountName == "old-name",
		"grace period":        s.TerminationGracePeriodSeconds != nil && *s.TerminationGracePeriodSeconds == 30,
		"security context":    s.SecurityContext != nil,
		"empty volume":        s.Volumes[0].EmptyDir != nil,
		"secret's mode":       s.Volumes[1].Secret.DefaultMode != nil && *s.Volumes[1].Secret.DefaultMode == 0o644,
		"latest is pulled":    s.Containers[0].ImagePullPolicy == corev1.PullAlways,
		"a tag is kept":       s.Containers[1].ImagePullPolicy == corev1.PullIfNotPresent,
		"a digest is kept":    s.Containers[2].ImagePullPolicy == corev1.PullIfNotPresent,
		"host port":           s.Containers[0].Ports[0].HostPort == 80,
		"requests":            s.Containers[0].Resources.Requests.Cpu().Value() == 1,
		"probe":               s.Containers[1].LivenessProbe.PeriodSeconds == 10 && s.Containers[1].LivenessProbe.HTTPGet.Path == "/",
		"field's API version": s.Containers[2].Env[0].ValueFrom.FieldRef.APIVersion == "v1",
		"phase":               pod.Status.Phase == corev1.PodPending,
		"generation":          pod.Generation == 1,
	} {
		if !ok {
			t.Errorf("the %s is not as expected: %s", what, o.Body())
		}
	}
}

func TestANamespaceKeepsItsLabel(t *testing.T) {
	k := find(t, "namespaces")
	old := read(t, k, `{metadata: {name: shop}}`)
	if errs := write(t, k, old, nil); len(errs) > 0 {
		t.Fatal(errs)
	}
	if got := string(old.Body()); got != `"spec":{"finalizers":["kubernetes"]},"status":{"phase":"Active"}` {
		t.Errorf("a new namespace is %s", got)
	}
	next := read(t, k, `{metadata: {name: shop, labels: {a: b}}, status: {phase: Active}}`)
	next.UID = old.UID
	if errs := write(t, k, next, old); len(errs) > 0 {
		t.Fatal(errs)
	}
	if next.Labels[corev1.LabelMetadataName] != "shop" || next.Labels["a"] != "b" {
		t.Errorf("labels are %v", next.Labels)
	}
}

func TestGenerationsCountChangesOfTheSpec(t *testing.T) {
	k := find(t, "ingressclasses")
	step := func(body string, old *object.Object) *object.Object {
		o := read(t, k, body)
		if old != nil {
			o.Generation = old.Generation // as the API machinery has it
		}
		write(t, k, o, old)
		return o
	}
	first := step(`{metadata: {name: a}, spec: {controller: x.io/y}}`, nil)
	same := step(`{metadata: {name: a, labels: {c: d}}, spec: {controller: x.io/y}}`, first)
	changed := step(`{metadata: {name: a}, spec: {controller: x.io/y, parameters: {kind: K, name: one}}}`, same)
	if first.Generation != 1 || same.Generation != 1 || changed.Generation != 2 {
		t.Errorf("generations are %d, %d, %d", first.Generation, same.Generation, changed.Generation)
	}
}

func TestUpdatesOfAServiceKeepItsAddress(t *testing.T) {
	k := find(t, "services")
	old := read(t, k, `{metadata: {name: a, namespace: b}, spec: {clusterIP: 10.0.0.1, ports: [{port: 80}]}}`)
	if errs := write(t, k, old, nil); len(errs) > 0 {
		t.Fatal(errs)
	}
	next := read(t, k, `{metadata: {name: a, namespace: b}, spec: {ports: [{port: 81}]}}`)
	if errs := write(t, k, next, old); len(errs) > 0 {
		t.Fatal(errs)
	}
	var s corev1.Service
	if err := next.Into(&s); err != nil {
		t.Fatal(err)
	}
	if s.Spec.ClusterIP != "10.0.0.1" || !slices.Equal(s.Spec.ClusterIPs, []string{"10.0.0.1"}) {
		t.Errorf("the address became %q, %q", s.Spec.ClusterIP, s.Spec.ClusterIPs)
	}
}

func TestSelectors(t *testing.T) {
	for _, c := range []struct {
		resource, body, label, want string
	}{
		{"pods", `{spec: {nodeName: one}}`, "spec.nodeName", "one"},
		{"pods", `{spec: {}, status: {phase: Running}}`, "status.phase", "Running"},
		{"pods", `{spec: {}}`, "spec.hostNetwork", "false"},
		{"pods", `{spec: {hostNetwork: true}}`, "spec.hostNetwork", "true"},
		{"secrets", `{type: istio/x}`, "type", "istio/x"},
		{"events", `{involvedObject: {kind: Pod}, source: {component: c}}`, "involvedObject.kind", "Pod"},
		{"events", `{source: {component: c}, reportingComponent: d}`, "source", "c"},
		{"events", `{reportingComponent: d}`, "source", "d"},
		{"namespaces", `{status: {phase: Terminating}}`, "status.phase", "Terminating"},
		{"nodes", `{spec: {unschedulable: true}}`, "spec.unschedulable", "true"},
		{"services", `{spec: {type: NodePort}}`, "spec.type", "NodePort"},
	} {
		k := find(t, c.resource)
		if !k.SelectableField("v1", c.label) {
			t.Errorf("%s cannot be selected by %s", c.resource, c.label)
		}
		if got := k.Fields(read(t, k, c.body))[c.label]; got != c.want {
			t.Errorf("%s of %s is %q, not %q", c.label, c.body, got, c.want)
		}
	}
	if find(t, "configmaps").SelectableField("v1", "data") {
		t.Error("config maps can be selected by their data")
	}
}

func TestDefinitionsAreShownAsAccepted(t *testing.T) {
	source, err := find(t, "leases").CRD()
	if err != nil {
		t.Fatal(err)
	}
	k, err := kind.New(source, kind.Hooks{})
	if err != nil {
		t.Fatal(err)
	}
	first, err := CRDObjects([]*kind.Kind{k, find(t, "endpointslices")})
	if err != nil {
		t.Fatal(err)
	}
	if first[0].Name != "endpointslices.discovery.k8s.io" || first[1].Name != "leases.coordination.k8s.io" {
		t.Fatalf("names are %s, %s", first[0].Name, first[1].Name)
	}
	var crd apiextensionsv1.CustomResourceDefinition
	if err := first[1].Into(&crd); err != nil {
		t.Fatal(err)
	}
	var conditions []string
	for _, c := range crd.Status.Conditions {
		conditions = append(conditions, string(c.Type)+"="+string(c.Status))
	}
	if got := strings.Join(conditions, ","); got != "NamesAccepted=True,Established=True" {
		t.Errorf("conditions are %s", got)
	}
	if !slices.Equal(crd.Status.StoredVersions, []string{"v1"}) || crd.Status.AcceptedNames.ListKind != "LeaseList" || crd.Spec.Names.Singular != "lease" {
		t.Errorf("status is %+v", crd.Status)
	}
	if len(crd.Status.Conditions) != 0 && source.Status.Conditions != nil {
		t.Error("the definition that was given has changed")
	}
	again, err := CRDObjects([]*kind.Kind{k})
	if err != nil {
		t.Fatal(err)
	}
	if again[0].UID != first[1].UID || again[0].UID == "" {
		t.Errorf("the UID is %q, then %q", first[1].UID, again[0].UID)
	}
}

// istiod makes its secret with keys that have no value yet.
func TestAKeyMayHaveNoBytes(t *testing.T) {
	k := find(t, "secrets")
	o := read(t, k, `{apiVersion: v1, kind: Secret, metadata: {name: a, namespace: b}, data: {cert.pem: "", key.pem: MQ==}}`)
	if errs := write(t, k, o, nil); len(errs) > 0 {
		t.Error(errs)
	}
}

// Errors end in logs and audit events.
func TestErrorsAboutASecretDoNotQuoteIt(t *testing.T) {
	k := find(t, "secrets")
	for _, body := range []string{
		`"data":{"x":"canary is not base64"}`, `"data":["canary"]`, `"data":"canary"`, `"data":{"x":["canary"]}`, `"data":{"x":{"canary":"canary"}}`,
		`"stringData":{"x":["canary"]}`, `"immutable":"canary"`, `"type":"kubernetes.io/dockerconfigjson","stringData":{".dockerconfigjson":"canary"}`,
	} {
		tree := read(t, k, `{"apiVersion":"v1","kind":"Secret","metadata":{"name":"x","namespace":"default"},`+body+`}`)
		_, errs := k.Validate(t.Context(), "v1", tree, nil)
		if len(errs) == 0 {
			t.Errorf("%s: it was accepted", body)
		}
		for _, err := range errs {
			if strings.Contains(err.Error(), "canary") {
				t.Errorf("%s: %v", body, err)
			}
		}
	}
}
