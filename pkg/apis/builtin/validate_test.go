package builtin

import (
	"encoding/base64"
	"strings"
	"testing"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

func TestValidation(t *testing.T) {
	big := base64.StdEncoding.EncodeToString(make([]byte, maxData+1))
	const meta = `metadata: {name: a, namespace: b}, `
	for _, c := range []struct {
		name, resource, old, body string
		want                      []string // the fields at fault
	}{
		{"a plain config map", "configmaps", "", `{` + meta + `data: {a: b}, binaryData: {c: MQ==}}`, nil},
		{"a key that is no file name", "configmaps", "", `{` + meta + `data: {"a b": b}}`, []string{"data[a b]"}},
		{"a key in both maps", "configmaps", "", `{` + meta + `data: {a: b}, binaryData: {a: MQ==}}`, []string{"data[a]"}},
		{"more than a mebibyte", "configmaps", "", `{` + meta + `binaryData: {a: ` + big + `}}`, []string{"[]"}},
		{"an immutable config map", "configmaps", `{` + meta + `immutable: true, data: {a: b}}`, `{` + meta + `immutable: true, data: {a: c}}`, []string{"data"}},
		{"an immutable config map made mutable", "configmaps", `{` + meta + `immutable: true}`, `{` + meta + `}`, []string{"immutable"}},
		{"a wrong type", "configmaps", "", `{` + meta + `data: [a]}`, []string{"data"}},

		{"a TLS secret without a key", "secrets", "", `{` + meta + `type: kubernetes.io/tls, stringData: {tls.crt: x}}`, []string{"data[tls.key]"}},
		{"a TLS secret", "secrets", "", `{` + meta + `type: kubernetes.io/tls, stringData: {tls.crt: x, tls.key: z}}`, nil},
		{"registry credentials that are no JSON", "secrets", "", `{` + meta + `type: kubernetes.io/dockerconfigjson, stringData: {.dockerconfigjson: x}}`, []string{"data[.dockerconfigjson]"}},
		{"credentials with a user alone", "secrets", "", `{` + meta + `type: kubernetes.io/basic-auth, stringData: {username: x}}`, nil},
		{"credentials of nobody", "secrets", "", `{` + meta + `type: kubernetes.io/basic-auth}`, []string{"data[username]", "data[password]"}},
		{"an SSH key", "secrets", "", `{` + meta + `type: kubernetes.io/ssh-auth}`, []string{"data[ssh-privatekey]"}},
		{"a token of no account", "secrets", "", `{` + meta + `type: kubernetes.io/service-account-token}`, []string{"metadata.annotations[kubernetes.io/service-account.name]"}},
		{"another type", "secrets", `{` + meta + `type: x/y}`, `{` + meta + `type: x/z}`, []string{"type"}},
		{"data that is not base64", "secrets", "", `{` + meta + `data: {a: "!"}}`, []string{"data.a"}},
		{"an immutable secret", "secrets", `{` + meta + `immutable: true, stringData: {a: b}}`, `{` + meta + `immutable: true, stringData: {a: c}}`, []string{"data"}},

		{"a service", "services", "", `{` + meta + `spec: {ports: [{port: 80}]}}`, nil},
		{"a service without ports", "services", "", `{` + meta + `spec: {}}`, []string{"spec.ports"}},
		{"a headless service without ports", "services", "", `{` + meta + `spec: {clusterIP: None}}`, nil},
		{"a type that is none", "services", "", `{` + meta + `spec: {type: Foo, ports: [{port: 80}]}}`, []string{"spec.type"}},
		{"a port out of range", "services", "", `{` + meta + `spec: {ports: [{port: 0, targetPort: 1}]}}`, []string{"spec.ports[0].port"}},
		{"two ports without names", "services", "", `{` + meta + `spec: {ports: [{port: 1}, {port: 2}]}}`, []string{"spec.ports[0].name", "spec.ports[1].name"}},
		{"two ports of a name", "services", "", `{` + meta + `spec: {ports: [{name: x, port: 1}, {name: x, port: 2}]}}`, []string{"spec.ports[1].name"}},
		{"a port twice", "services", "", `{` + meta + `spec: {ports: [{name: x, port: 1}, {name: z, port: 1}]}}`, []string{"spec.ports[1]"}},
		{"one number, two protocols", "services", "", `{` + meta + `spec: {ports: [{name: x, port: 1}, {name: z, port: 1, protocol: UDP}]}}`, nil},
		{"a protocol that is none", "services", "", `{` + meta + `spec: {ports: [{port: 1, protocol: IPX}]}}`, []string{"spec.ports[0].protocol"}},
		{"a target that is no port name", "services", "", `{` + meta + `spec: {ports: [{port: 1, targetPort: "a b"}]}}`, []string{"spec.ports[0].targetPort"}},
		{"an external name", "services", "", `{` + meta + `spec: {type: ExternalName, externalName: example.com.}}`, nil},
		{"an external name that is missing", "services", "", `{` + meta + `spec: {type: ExternalName}}`, []string{"spec.externalName"}},
		{"an address that is none", "services", "", `{` + meta + `spec: {clusterIP: 1.2.3, ports: [{port: 1}]}}`, []string{"spec.clusterIPs[0]"}},
		{"an address that changes", "services", `{` + meta + `spec: {clusterIP: 10.0.0.1, ports: [{port: 1}]}}`, `{` + meta + `spec: {clusterIP: 10.0.0.2, ports: [{port: 1}]}}`, []string{"spec.clusterIPs[0]"}},
		{"a port of the wrong type", "services", "", `{` + meta + `spec: {ports: [{port: x}]}}`, []string{"spec.ports[0].port"}},
		{"a name with an upper case letter", "services", "", `{metadata: {name: A, namespace: b}, spec: {ports: [{port: 80}]}}`, []string{"metadata.name"}},

		{"a deployment", "deployments", "", `{` + meta + `spec: {selector: {matchLabels: {x: z}}, template: {metadata: {labels: {x: z}}, spec: {containers: [{name: c, image: i}]}}}}`, nil},
		{"a deployment that selects others' pods", "deployments", "", `{` + meta + `spec: {replicas: -1, selector: {matchLabels: {x: z}}, template: {spec: {containers: [{name: c, image: i}]}}}}`,
			[]string{"spec.replicas", "spec.template.metadata.labels"}},
		{"a deployment that selects all", "deployments", "", `{` + meta + `spec: {selector: {}, template: {spec: {containers: [{name: c, image: i}]}}}}`, []string{"spec.selector"}},
		{"a deployment of jobs", "deployments", "", `{` + meta + `spec: {selector: {matchLabels: {x: z}}, template: {metadata: {labels: {x: z}}, spec: {restartPolicy: Never, containers: [{name: c}]}}}}`,
			[]string{"spec.template.spec.containers[0].image", "spec.template.spec.restartPolicy"}},
		{"a deployment that recreates in parts", "deployments", "", `{` + meta + `spec: {strategy: {type: Recreate, rollingUpdate: {maxSurge: 1}}, selector: {matchLabels: {x: z}},
			template: {metadata: {labels: {x: z}}, spec: {containers: [{name: c, image: i}]}}}}`, []string{"spec.strategy.rollingUpdate"}},
		{"a deployment of other pods", "deployments", `{` + meta + `spec: {selector: {matchLabels: {x: z}}, template: {metadata: {labels: {x: z}}, spec: {containers: [{name: c, image: i}]}}}}`,
			`{` + meta + `spec: {selector: {matchLabels: {x: "y"}}, template: {metadata: {labels: {x: "y"}}, spec: {containers: [{name: c, image: i}]}}}}`, []string{"spec.selector"}},

		{"endpoints", "endpoints", "", `{` + meta + `subsets: [{addresses: [{ip: 10.0.0.1}], ports: [{port: 80}]}]}`, nil},
		{"endpoints on loopback", "endpoints", "", `{` + meta + `subsets: [{addresses: [{ip: 127.0.0.1}], ports: [{port: 80}]}]}`, []string{"subsets[0].addresses[0].ip"}},
		{"a subset of nothing", "endpoints", "", `{` + meta + `subsets: [{ports: [{port: 80}]}]}`, []string{"subsets[0]"}},

		{"a slice", "endpointslices", "", `{` + meta + `addressType: IPv4, endpoints: [{addresses: [10.0.0.1]}]}`, nil},
		{"a slice of no kind", "endpointslices", "", `{` + meta + `addressType: IPv5, endpoints: []}`, []string{"addressType"}},
		{"an IPv6 address in an IPv4 slice", "endpointslices", "", `{` + meta + `addressType: IPv4, endpoints: [{addresses: ["2001:db8::1"]}]}`, []string{"endpoints[0].addresses[0]"}},
		{"an endpoint without an address", "endpointslices", "", `{` + meta + `addressType: IPv4, endpoints: [{addresses: []}]}`, []string{"endpoints[0].addresses"}},
		{"a link-local address", "endpointslices", "", `{` + meta + `addressType: IPv4, endpoints: [{addresses: [169.254.1.1]}]}`, []string{"endpoints[0].addresses[0]"}},
		{"a name where a name is due", "endpointslices", "", `{` + meta + `addressType: FQDN, endpoints: [{addresses: [a.example.com]}]}`, nil},
		{"two ports of no name", "endpointslices", "", `{` + meta + `addressType: IPv4, endpoints: [], ports: [{port: 1}, {port: 2}]}`, []string{"ports[1].name"}},
		{"another address type", "endpointslices", `{` + meta + `addressType: IPv4, endpoints: []}`, `{` + meta + `addressType: IPv6, endpoints: []}`, []string{"addressType"}},

		{"a lease", "leases", "", `{` + meta + `spec: {holderIdentity: x, leaseDurationSeconds: 15, renewTime: "2026-01-02T03:04:05.000006Z"}}`, nil},
		{"a lease for no time", "leases", "", `{` + meta + `spec: {leaseDurationSeconds: 0}}`, []string{"spec.leaseDurationSeconds"}},
		{"a lease with a broken time", "leases", "", `{` + meta + `spec: {renewTime: yesterday}}`, []string{"spec.renewTime"}},

		{"an event beside its object", "events", "", `{` + meta + `involvedObject: {kind: Pod, namespace: b}}`, nil},
		{"an event elsewhere", "events", "", `{` + meta + `involvedObject: {kind: Pod, namespace: c}}`, []string{"involvedObject.namespace"}},
		{"an event of what has no namespace", "events", "", `{metadata: {name: a, namespace: default}, involvedObject: {kind: Node}}`, nil},

		{"a pod without containers", "pods", "", `{` + meta + `spec: {containers: []}}`, []string{"spec.containers"}},
		{"a container without an image", "pods", "", `{` + meta + `spec: {containers: [{name: a}]}}`, []string{"spec.containers[0].image"}},
		{"two containers of a name", "pods", "", `{` + meta + `spec: {containers: [{name: a, image: b}, {name: a, image: b}]}}`, []string{"spec.containers[1].name"}},
		{"a quantity that is none", "pods", "", `{` + meta + `spec: {containers: [{name: a, image: b, resources: {limits: {cpu: much}}}]}}`, []string{"spec.containers[0].resources.limits.cpu"}},

		{"an ingress", "ingresses", "", `{` + meta + `spec: {rules: [{host: "*.a.b", http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: s, port: {number: 80}}}}]}}]}}`, nil},
		{"an ingress of nothing", "ingresses", "", `{` + meta + `spec: {}}`, []string{"spec"}},
		{"a relative path", "ingresses", "", `{` + meta + `spec: {rules: [{http: {paths: [{path: x, pathType: Exact, backend: {service: {name: s, port: {name: http}}}}]}}]}}`, []string{"spec.rules[0].http.paths[0].path"}},
		{"a backend without a port", "ingresses", "", `{` + meta + `spec: {defaultBackend: {service: {name: s}}}}`, []string{"spec.defaultBackend.service.port"}},
		{"a class of another controller", "ingressclasses", `{metadata: {name: a}, spec: {controller: x.io/y}}`, `{metadata: {name: a}, spec: {controller: x.io/z}}`, []string{"spec.controller"}},

		{"a role", "roles", "", `{` + meta + `rules: [{verbs: [get], apiGroups: [""], resources: [pods]}]}`, nil},
		{"a role with a colon in its name", "roles", "", `{metadata: {name: "system:x", namespace: b}, rules: []}`, nil},
		{"a rule without verbs", "roles", "", `{` + meta + `rules: [{verbs: [], apiGroups: [""], resources: [pods]}]}`, []string{"rules[0].verbs"}},
		{"a URL in a namespace", "roles", "", `{` + meta + `rules: [{verbs: [get], nonResourceURLs: [/x]}]}`, []string{"rules[0].nonResourceURLs"}},
		{"a URL in a cluster role", "clusterroles", "", `{metadata: {name: a}, rules: [{verbs: [get], nonResourceURLs: [/x]}]}`, nil},
		{"a binding to another role", "rolebindings", `{` + meta + `roleRef: {kind: Role, name: x}}`, `{` + meta + `roleRef: {kind: Role, name: z}}`, []string{"roleRef"}},
		{"a cluster binding to a role", "clusterrolebindings", "", `{metadata: {name: a}, roleRef: {kind: Role, name: x}}`, []string{"roleRef.kind"}},
		{"a subject that is none", "rolebindings", "", `{` + meta + `roleRef: {kind: Role, name: x}, subjects: [{kind: Dog, name: d}]}`, []string{"subjects[0].kind"}},

		{"a namespace whose name is no label", "namespaces", "", `{metadata: {name: a.b}}`, []string{"metadata.name"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := find(t, c.resource)
			var old *object.Object
			if c.old != "" {
				old = read(t, k, c.old)
				if errs := write(t, k, old, nil); len(errs) > 0 {
					t.Fatalf("the old object is invalid: %v", errs)
				}
			}
			var got []string
			for _, err := range write(t, k, read(t, k, c.body), old) {
				got = append(got, err.Field)
			}
			if strings.Join(got, " ") != strings.Join(c.want, " ") {
				t.Errorf("errors are at %q, not %q", got, c.want)
			}
		})
	}
}

func TestValidationOfWebhooks(t *testing.T) {
	const (
		client = `clientConfig: {service: {name: svc, namespace: ns}}, `
		rules  = `rules: [{operations: [CREATE], apiGroups: [""], apiVersions: [v1], resources: [pods]}], `
		rest   = `sideEffects: None, admissionReviewVersions: [v1]`
	)
	for _, c := range []struct {
		name, hook string
		want       []string
	}{
		{"a whole webhook", `name: a.b.c, ` + client + rules + rest, nil},
		{"a name without a domain", `name: a, ` + client + rules + rest, []string{"webhooks[0].name"}},
		{"no client", `name: a.b.c, clientConfig: {}, ` + rules + rest, []string{"webhooks[0].clientConfig"}},
		{"both a URL and a service", `name: a.b.c, clientConfig: {url: "https://x.io", service: {name: svc, namespace: ns}}, ` + rules + rest, []string{"webhooks[0].clientConfig"}},
		{"a URL without TLS", `name: a.b.c, clientConfig: {url: "http://x.io"}, ` + rules + rest, []string{"webhooks[0].clientConfig.url"}},
		{"side effects", `name: a.b.c, ` + client + rules + `sideEffects: Some, admissionReviewVersions: [v1]`, []string{"webhooks[0].sideEffects"}},
		{"side effects untold", `name: a.b.c, ` + client + rules + `admissionReviewVersions: [v1]`, []string{"webhooks[0].sideEffects"}},
		{"a long wait", `name: a.b.c, timeoutSeconds: 31, ` + client + rules + rest, []string{"webhooks[0].timeoutSeconds"}},
		{"no review version that is known", `name: a.b.c, ` + client + rules + `sideEffects: None, admissionReviewVersions: [v7]`, []string{"webhooks[0].admissionReviewVersions"}},
		{"a failure policy that is none", `name: a.b.c, failurePolicy: Maybe, ` + client + rules + rest, []string{"webhooks[0].failurePolicy"}},
		{"every operation and one more", `name: a.b.c, ` + client + `rules: [{operations: ["*", CREATE], apiGroups: [""], apiVersions: [v1], resources: [pods]}], ` + rest, []string{"webhooks[0].rules[0].operations"}},
		{"every resource and one more", `name: a.b.c, ` + client + `rules: [{operations: [CREATE], apiGroups: [""], apiVersions: [v1], resources: ["*", pods]}], ` + rest, []string{"webhooks[0].rules[0].resources"}},
		{"a resource twice over", `name: a.b.c, ` + client + `rules: [{operations: [CREATE], apiGroups: [""], apiVersions: [v1], resources: [pods/*, pods/log]}], ` + rest, []string{"webhooks[0].rules[0].resources[1]"}},
		{"a rule for nothing", `name: a.b.c, ` + client + `rules: [{operations: [CREATE]}], ` + rest, []string{"webhooks[0].rules[0].apiGroups", "webhooks[0].rules[0].apiVersions", "webhooks[0].rules[0].resources"}},
		{"a selector with a bad operator", `name: a.b.c, namespaceSelector: {matchExpressions: [{key: a, operator: Is}]}, ` + client + rules + rest, []string{"webhooks[0].namespaceSelector.matchExpressions[0].operator"}},
		{"a name twice", `name: a.b.c, ` + client + rules + rest + `}, {name: a.b.c, ` + client + rules + rest, []string{"webhooks[1].name"}},
	} {
		for _, resource := range []string{"validatingwebhookconfigurations", "mutatingwebhookconfigurations"} {
			t.Run(c.name+" in "+resource, func(t *testing.T) {
				k := find(t, resource)
				var got []string
				for _, err := range write(t, k, read(t, k, `{metadata: {name: a}, webhooks: [{`+c.hook+`}]}`), nil) {
					got = append(got, err.Field)
				}
				if strings.Join(got, " ") != strings.Join(c.want, " ") {
					t.Errorf("errors are at %q, not %q", got, c.want)
				}
			})
		}
	}
}

// FuzzWrite: no body whatever may bring the way to storage down, and what it lets
// through can be read again.
func FuzzWrite(f *testing.F) {
	resources := []string{"pods", "services", "secrets", "configmaps", "validatingwebhookconfigurations", "endpointslices", "namespaces", "rolebindings", "ingresses"}
	for i := range resources {
		f.Add(uint8(i), []byte(`{"metadata":{"name":"a","namespace":"b"},"spec":{"ports":[{"port":80}],"containers":[null,{"name":"a"}]},"data":{"a":null}}`))
	}
	f.Add(uint8(4), []byte(`{"webhooks":[{"rules":[{"resources":["/",""]}],"clientConfig":{"service":{}}}]}`))
	f.Add(uint8(0), []byte(`{"spec":{"containers":[{"image":":","resources":{"limits":{"cpu":1e400}}}],"volumes":[{}]}}`))
	kinds := map[string]int{}
	all := allKinds(f)
	for i, k := range all {
		kinds[k.Resource()] = i
	}
	f.Fuzz(func(t *testing.T, which uint8, body []byte) {
		k := all[kinds[resources[int(which)%len(resources)]]]
		o, _, err := k.Decode(k.StorageVersion(), body, true)
		if err != nil {
			return
		}
		if k.Namespaced() {
			o.Namespace = "b"
		}
		if errs := write(t, k, o, nil); len(errs) > 0 {
			return
		}
		if k.Hooks.Row != nil {
			if _, err := k.Hooks.Row(o); err != nil {
				t.Fatalf("what was let through cannot be printed: %v", err)
			}
		}
		data, err := o.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		again := &object.Object{}
		if err := again.UnmarshalJSON(data); err != nil {
			t.Fatal(err)
		}
		if string(again.Body()) != string(o.Body()) {
			t.Fatalf("stored as %s, read as %s", o.Body(), again.Body())
		}
	})
}
