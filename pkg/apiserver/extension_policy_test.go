package apiserver

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
)

// policy creates a policy that is about config maps and virtual services, and its binding.
func (w *world) policy(kind, name, spec, annotations, binding string) {
	w.t.Helper()
	w.must(w.post(registrations+strings.ToLower(kind)+"admissionpolicies", fmt.Sprintf(
		`{"apiVersion":"admissionregistration.k8s.io/v1","kind":"%sAdmissionPolicy","metadata":{"name":%q},"spec":{"matchConstraints":{"resourceRules":[
		{"apiGroups":["","networking.istio.io"],"apiVersions":["v1"],"operations":["CREATE","UPDATE","DELETE"],"resources":["configmaps","virtualservices"]}]},%s}}`, kind, name, spec)))
	w.must(w.post(registrations+strings.ToLower(kind)+"admissionpolicybindings", w.binding(kind, name, annotations, binding)))
}

func (w *world) binding(kind, name, annotations, binding string) string {
	return fmt.Sprintf(`{"apiVersion":"admissionregistration.k8s.io/v1","kind":"%sAdmissionPolicyBinding","metadata":{"name":%q,"annotations":{%s}},"spec":{"policyName":%q%s}}`,
		kind, name, annotations, name, binding)
}

// answered repeats a creation under new names until it is answered as wanted.
func (w *world) answered(status int, message, namespace, more string) answer {
	w.t.Helper()
	n := 0
	var got answer
	eventually(w.t, fmt.Sprintf("a creation is answered %d %s", status, message), func() bool {
		n++
		got = w.post("/api/v1/namespaces/"+namespace+"/configmaps?dryRun=All", configMap(fmt.Sprintf("x%d", n), more))
		return got.status == status && strings.Contains(got.message(), message)
	})
	return got
}

const deny = `,"validationActions":["Deny"]`

func TestPoliciesActAsInKubernetes(t *testing.T) {
	root, stop := startExtension(t, nil)
	defer stop()
	clusters := 0
	fresh := func(t *testing.T) *world {
		clusters++
		name := fmt.Sprintf("p%d", clusters)
		createCluster(t, root, name, "{}")
		return newWorld(t, root, name)
	}

	t.Run("what the expressions see", func(t *testing.T) {
		for _, c := range []struct{ name, spec, message string }{
			{"the object", `"validations":[{"expression":"object.metadata.name.startsWith('y')","message":"must begin with y"}]`, "must begin with y"},
			{"no object before", `"validations":[{"expression":"oldObject != null"}]`, "oldObject != null"},
			{"the request", `"validations":[{"expression":"request.operation != 'CREATE' && request.dryRun"}]`, "failed expression"},
			{"the namespace", `"validations":[{"expression":"namespaceObject.metadata.name != 'default'","message":"not here"}]`, "not here"},
			{"variables", `"variables":[{"name":"a","expression":"object.metadata.name"},{"name":"b","expression":"variables.a.size()"}],
				"validations":[{"expression":"variables.b > 100","messageExpression":"'too short: ' + string(variables.b)"}]`, "too short: 2"},
			{"permissions", `"validations":[{"expression":"!authorizer.group('').resource('secrets').namespace('default').check('get').allowed()","message":"you may read secrets"}]`, "you may read secrets"},
			{"permissions of service accounts", `"validations":[{"expression":"authorizer.serviceAccount('default','default').group('').resource('secrets').namespace('default').check('get').allowed()","message":"it may not"}]`, "it may not"},
			{"what is not there", `"validations":[{"expression":"object.data.nothing == 'x'"}]`, "no such key"},
			{"a reason", `"validations":[{"expression":"false","reason":"Invalid","message":"invalid"}]`, "invalid"},
		} {
			t.Run(c.name, func(t *testing.T) {
				w := fresh(t)
				w.policy("Validating", "p", c.spec, "", deny)
				status := 422
				if c.name == "no object before" {
					c.message = "failed expression"
				}
				w.answered(status, c.message, "default", "")
				if got := w.post(configMaps+"?dryRun=All", configMap("x1", "")); !strings.Contains(got.message(), "ValidatingAdmissionPolicy 'p' with binding 'p' denied request") {
					t.Errorf("answered %s", got.body)
				}
			})
		}
	})

	t.Run("actions", func(t *testing.T) {
		w := fresh(t)
		w.policy("Validating", "p", `"validations":[{"expression":"object.metadata.name == 'y'","message":"it had better be y"}],"auditAnnotations":[{"key":"k","valueExpression":"'v'"}]`, "", `,"validationActions":["Warn","Audit"]`)
		n := 0
		eventually(t, "a warning comes", func() bool {
			n++
			got := w.must(w.post(configMaps, configMap(fmt.Sprintf("x%d", n), "")))
			return len(got.warnings) == 1 && strings.Contains(got.warnings[0], "it had better be y")
		})
	})

	t.Run("parameters", func(t *testing.T) {
		w := fresh(t)
		w.must(w.post("/api/v1/namespaces", `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"other"}}`))
		w.policy("Validating", "p", `"paramKind":{"apiVersion":"v1","kind":"ConfigMap"},"validations":[{"expression":"object.metadata.name == params.metadata.name || object.metadata.name.size() <= int(params.data.most)","messageExpression":"'at most ' + params.data.most"}]`,
			"", `,"paramRef":{"name":"limits","namespace":"default","parameterNotFoundAction":"Deny"}`+deny)
		w.answered(422, "no params found", "other", "")
		w.must(w.do(http.MethodDelete, registrations+"validatingadmissionpolicybindings/p", "application/json", ""))
		w.answered(201, "", "other", "")
		w.must(w.post(configMaps, configMap("limits", `,"data":{"most":"1"}`)))
		w.must(w.post(registrations+"validatingadmissionpolicybindings", w.binding("Validating", "p", "", `,"paramRef":{"name":"limits","namespace":"default","parameterNotFoundAction":"Deny"}`+deny)))
		w.answered(422, "at most 1", "other", "")
		w.must(w.do(http.MethodPatch, configMaps+"/limits", string(types.MergePatchType), `{"data":{"most":"40"}}`))
		w.answered(201, "", "other", "")
		// Chosen by labels in the request's own namespace.
		w.must(w.do(http.MethodDelete, registrations+"validatingadmissionpolicybindings/p", "application/json", ""))
		w.must(w.post("/api/v1/namespaces/other/configmaps", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"own","labels":{"limits":"yes"}},"data":{"most":"0"}}`))
		w.must(w.post(registrations+"validatingadmissionpolicybindings", w.binding("Validating", "p", "", `,"paramRef":{"selector":{"matchLabels":{"limits":"yes"}},"parameterNotFoundAction":"Allow"}`+deny)))
		w.answered(422, "at most 0", "other", "")
		w.answered(201, "", "default", "")
	})

	t.Run("versions", func(t *testing.T) {
		w := fresh(t)
		w.policy("Validating", "p", `"validations":[{"expression":"object.apiVersion == 'networking.istio.io/v1' && object.spec.hosts.size() > 1","message":"more hosts"}]`, "", deny)
		n := 0
		eventually(t, "a creation by v1beta1 is refused", func() bool {
			n++
			got := w.post("/apis/networking.istio.io/v1beta1/namespaces/default/virtualservices", virtualService("v1beta1", fmt.Sprintf("a%d", n)))
			return got.status == 422 && strings.Contains(got.message(), "more hosts")
		})
		w.must(w.post("/apis/networking.istio.io/v1beta1/namespaces/default/virtualservices", strings.Replace(virtualService("v1beta1", "two"), `["a"]`, `["a","b"]`, 1)))
	})

	t.Run("mutations", func(t *testing.T) {
		for _, c := range []struct{ name, mutation, want string }{
			{"by a JSON patch", `{"patchType":"JSONPatch","jsonPatch":{"expression":"[JSONPatch{op:'add',path:'/data',value:{'by':object.metadata.name}}]"}}`, `"data":{"by":"x`},
			{"by an apply configuration", `{"patchType":"ApplyConfiguration","applyConfiguration":{"expression":"Object{metadata: Object.metadata{labels: Object.metadata.labels{by: 'policy'}}}"}}`, `"by":"policy"`},
		} {
			t.Run(c.name, func(t *testing.T) {
				w := fresh(t)
				w.policy("Mutating", "m", `"mutations":[`+c.mutation+`],"matchConditions":[{"name":"c","expression":"object.kind == 'ConfigMap'"}]`, "", "")
				n := 0
				eventually(t, "it is changed", func() bool {
					n++
					got := w.must(w.post(configMaps, configMap(fmt.Sprintf("x%d", n), `,"data":{"a":"b"}`)))
					return strings.Contains(got.body, c.want)
				})
			})
		}
		t.Run("of Istio's kinds, in another version", func(t *testing.T) {
			w := fresh(t)
			w.policy("Mutating", "m", `"mutations":[{"patchType":"JSONPatch","jsonPatch":{"expression":"[JSONPatch{op: 'add', path: '/spec/gateways', value: ['mesh']}]"}},{"patchType":"ApplyConfiguration","applyConfiguration":{"expression":"Object{metadata: Object.metadata{annotations: {'by': 'policy'}}}"}}],"matchConditions":[{"name":"c","expression":"object.kind == 'VirtualService'"}]`, "", "")
			n := 0
			eventually(t, "it is changed", func() bool {
				n++
				got := w.must(w.post("/apis/networking.istio.io/v1alpha3/namespaces/default/virtualservices", virtualService("v1alpha3", fmt.Sprintf("a%d", n))))
				return strings.Contains(got.body, `"gateways":["mesh"]`) && strings.Contains(got.body, `"by":"policy"`) && strings.Contains(got.body, `"apiVersion":"networking.istio.io/v1alpha3"`)
			})
		})
	})

	t.Run("a policy whose parameters are of a kind that there is not", func(t *testing.T) {
		w := fresh(t)
		w.policy("Validating", "p", `"paramKind":{"apiVersion":"example.com/v1","kind":"Limit"},"validations":[{"expression":"true"}]`, "", `,"paramRef":{"name":"a","parameterNotFoundAction":"Deny"}`+deny)
		w.answered(422, "there is no kind Limit in example.com/v1", "default", "")
	})

	t.Run("what is wrong with a policy is said when it is written", func(t *testing.T) {
		w := fresh(t)
		for _, c := range []struct{ name, spec, field string }{
			{"an expression that is none", `"validations":[{"expression":"object.metadata.name =="}]`, "spec.validations[0].expression"},
			{"a number", `"validations":[{"expression":"1 + 1"}]`, "spec.validations[0].expression"},
			{"no validations", `"failurePolicy":"Fail"`, "spec.validations"},
			{"an unknown variable", `"validations":[{"expression":"variables.none == 1"}]`, "spec.validations[0].expression"},
			{"a condition", `"validations":[{"expression":"true"}],"matchConditions":[{"name":"a b","expression":"true"}]`, "spec.matchConditions[0].name"},
			{"parameters of nothing", `"paramKind":{"apiVersion":"v1"},"validations":[{"expression":"true"}]`, "spec.paramKind.kind"},
			{"a failure policy", `"failurePolicy":"Maybe","validations":[{"expression":"true"}]`, "spec.failurePolicy"},
		} {
			t.Run(c.name, func(t *testing.T) {
				got := w.post(registrations+"validatingadmissionpolicies", fmt.Sprintf(`{"apiVersion":"admissionregistration.k8s.io/v1","kind":"ValidatingAdmissionPolicy","metadata":{"name":"bad"},"spec":{
					"matchConstraints":{"resourceRules":[{"apiGroups":[""],"apiVersions":["v1"],"operations":["CREATE"],"resources":["configmaps"]}]},%s}}`, c.spec))
				if got.status != 422 || !strings.Contains(got.message(), c.field) {
					t.Errorf("answered %d %s", got.status, got.body)
				}
			})
		}
		got := w.post(registrations+"validatingwebhookconfigurations", `{"apiVersion":"admissionregistration.k8s.io/v1","kind":"ValidatingWebhookConfiguration","metadata":{"name":"bad"},"webhooks":[`+
			hook(`{"url":"https://a.example.com"}`, `{"matchConditions":[{"name":"c","expression":"object."}]}`)+`]}`)
		if got.status != 422 || !strings.Contains(got.message(), "webhooks[0].matchConditions[0].expression") {
			t.Errorf("answered %d %s", got.status, got.body)
		}
	})

	t.Run("nobody has a policy read what they may not", func(t *testing.T) {
		w := fresh(t)
		w.must(w.post("/apis/rbac.authorization.k8s.io/v1/clusterroles", `{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"ClusterRole","metadata":{"name":"policies"},"rules":[
			{"apiGroups":["admissionregistration.k8s.io"],"resources":["*"],"verbs":["*"]},{"apiGroups":[""],"resources":["configmaps"],"verbs":["get","list"]}]}`))
		w.must(w.post("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", `{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"ClusterRoleBinding","metadata":{"name":"policies"},
			"roleRef":{"kind":"ClusterRole","name":"policies","apiGroup":"rbac.authorization.k8s.io"},"subjects":[{"kind":"User","name":"jo","apiGroup":"rbac.authorization.k8s.io"}]}`))
		jo := rest.CopyConfig(root)
		jo.Impersonate = rest.ImpersonationConfig{UserName: "jo"}
		as := newWorld(t, jo, w.name)
		for _, c := range []struct {
			kind   string
			status int
		}{{"ConfigMap", 201}, {"Secret", 403}} {
			got := as.post(registrations+"validatingadmissionpolicies", fmt.Sprintf(`{"apiVersion":"admissionregistration.k8s.io/v1","kind":"ValidatingAdmissionPolicy","metadata":{"name":%q},"spec":{
				"paramKind":{"apiVersion":"v1","kind":%q},"matchConstraints":{"resourceRules":[{"apiGroups":[""],"apiVersions":["v1"],"operations":["CREATE"],"resources":["configmaps"]}]},"validations":[{"expression":"true"}]}}`,
				strings.ToLower(c.kind), c.kind))
			if got.status != c.status {
				t.Errorf("a policy with parameters of kind %s: answered %d %s", c.kind, got.status, got.body)
			}
		}
		w.policy("Validating", "p", `"paramKind":{"apiVersion":"v1","kind":"Secret"},"validations":[{"expression":"true"}]`, "", deny)
		ref := `,"paramRef":{"name":"a","namespace":"default","parameterNotFoundAction":"Deny"}` + deny
		got := as.post(registrations+"validatingadmissionpolicybindings", strings.Replace(w.binding("Validating", "p", "", ref), `"name":"p"`, `"name":"mine"`, 1))
		if got.status != 403 || !strings.Contains(got.message(), "spec.paramRef") {
			t.Errorf("a binding to a secret: answered %d %s", got.status, got.body)
		}
	})
}

func TestGuardRailsOfTheRootGoAroundVirtualClusters(t *testing.T) {
	root, stop := startExtension(t, func(o *Options) { o.TenantWebhookAllow = nil })
	defer stop()
	r := newWorld(t, root, "")
	labelled := func(name, labels string) *world {
		r.must(r.post("/apis/vmesh.io/v1alpha1/virtualclusters", fmt.Sprintf(`{"apiVersion":"vmesh.io/v1alpha1","kind":"VirtualCluster","metadata":{"name":%q,"labels":{%s}},"spec":{}}`, name, labels)))
		return newWorld(t, root, name)
	}
	prod, dev := labelled("prod", `"tier":"production"`), labelled("dev", `"tier":"development"`)

	t.Run("a policy with parameters of the root", func(t *testing.T) {
		r.must(r.post(configMaps, configMap("limits", `,"data":{"forbidden":"x"}`)))
		r.policy("Validating", "names", `"paramKind":{"apiVersion":"v1","kind":"ConfigMap"},"validations":[{"expression":"!object.metadata.name.startsWith(params.data.forbidden)",
			"messageExpression":"'no ' + params.data.forbidden + ' in ' + request.userInfo.extra['vmesh.io/target-virtual-cluster'][0]"}]`,
			`"vmesh.io/applies-to":"tier=production"`, `,"paramRef":{"name":"limits","namespace":"default","parameterNotFoundAction":"Deny"}`+deny)
		got := prod.answered(422, "no x in prod", "default", "")
		if !strings.HasPrefix(got.message(), "by a rule of the platform: ") || !strings.Contains(got.body, `"causes":[{"message":"by a rule of the platform: Validating`) {
			t.Errorf("answered %s", got.body)
		}
		dev.must(dev.post(configMaps, configMap("x1", "")))
		r.must(r.post(configMaps, configMap("x1", "")))
		if got := prod.do(http.MethodGet, registrations+"validatingadmissionpolicies", "", ""); strings.Contains(got.body, "names") {
			t.Errorf("the virtual cluster shows %s", got.body)
		}
		// A virtual cluster comes under the rule when it is labelled so.
		r.must(r.do(http.MethodPatch, "/apis/vmesh.io/v1alpha1/virtualclusters/dev", string(types.MergePatchType), `{"metadata":{"labels":{"tier":"production"}}}`))
		dev.answered(422, "no x in dev", "default", "")
		r.must(r.do(http.MethodPatch, "/apis/vmesh.io/v1alpha1/virtualclusters/dev", string(types.MergePatchType), `{"metadata":{"labels":{"tier":"development"}}}`))
		dev.answered(201, "", "default", "")
	})

	t.Run("webhooks, after the virtual cluster's own", func(t *testing.T) {
		prod.must(prod.post("/api/v1/namespaces", `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"watched","labels":{"watch":"yes"}}}`))
		changes := newWebhook(t, patches(`[{"op":"add","path":"/metadata/labels","value":{"by":"platform"}}]`))
		refuses := newWebhook(t, nil)
		refuses.answer = func(q *admissionv1.AdmissionRequest, resp *admissionv1.AdmissionResponse) {
			resp.Allowed = !strings.Contains(q.Name, "bad")
			resp.Warnings = []string{"the platform watches"}
		}
		r.register("Mutating", "m", `"vmesh.io/applies-to":"all"`, hook(changes.client(), ""))
		r.register("Validating", "v", `"vmesh.io/applies-to":"all"`, hook(refuses.client(), `{"namespaceSelector":{"matchLabels":{"watch":"yes"}}}`)+","+
			hook(refuses.client(), `{"name":"two.example.com","objectSelector":{"matchLabels":{"none":"such"}}}`))
		// The virtual cluster's own comes before, and may not be where the platform's are.
		prod.policy("Mutating", "own", `"mutations":[{"patchType":"JSONPatch","jsonPatch":{"expression":"[JSONPatch{op:'add',path:'/data',value:{'by':'tenant'}}]"}}]`, "", "")
		eventually(t, "all are in force", func() bool {
			prod.post("/api/v1/namespaces/watched/configmaps?dryRun=All", configMap("p", ""))
			calls := changes.calls()
			return len(refuses.calls()) > 0 && len(calls) > 0 && strings.Contains(string(calls[len(calls)-1].Object.Raw), "tenant")
		})
		changes.forget()
		refuses.forget()
		got := prod.must(prod.post("/api/v1/namespaces/watched/configmaps", configMap("good", "")))
		if !strings.Contains(got.body, `"by":"platform"`) || !strings.Contains(got.body, `"by":"tenant"`) || len(got.warnings) != 1 {
			t.Errorf("answered %s %q", got.body, got.warnings)
		}
		if c := changes.calls(); len(c) != 1 || c[0].UserInfo.Extra["vmesh.io/target-virtual-cluster"].String() != "[prod]" {
			t.Errorf("called with %+v", c)
		}
		got = prod.post("/api/v1/namespaces/watched/configmaps", configMap("bad", ""))
		if !strings.HasPrefix(got.message(), `by a rule of the platform: admission webhook "hook.example.com" denied the request`) {
			t.Errorf("answered %d %s", got.status, got.body)
		}
		refuses.forget()
		prod.must(prod.post(configMaps, configMap("bad", "")))
		r.must(r.post(configMaps, configMap("bad", "")))
		if n := len(refuses.calls()); n != 0 {
			t.Errorf("%d calls for another namespace and the root", n)
		}
		r.unregister("Mutating", "m")
		r.unregister("Validating", "v")
	})

	t.Run("that ask for permissions", func(t *testing.T) {
		h := newWebhook(t, nil)
		r.register("Validating", "v", `"vmesh.io/applies-to":"all"`, hook(h.client(), `{"matchConditions":[{"name":"c","expression":"authorizer.group('').resource('secrets').namespace('default').check('get').allowed()"}]}`))
		dev.settled(h)
		r.unregister("Validating", "v")
	})

	t.Run("a webhook that is away", func(t *testing.T) {
		eventually(t, "the webhook before no longer applies", func() bool {
			return prod.post(configMaps+"?dryRun=All", configMap("p", "")).status == http.StatusCreated
		})
		r.register("Validating", "v", `"vmesh.io/applies-to":"tier=development"`, hook(away(t), ""))
		dev.answered(500, `by a rule of the platform: Internal error occurred: failed calling webhook "hook.example.com"`, "default", "")
		prod.must(prod.post(configMaps, configMap("goes-on", "")))
		dev.must(dev.do(http.MethodGet, configMaps, "", ""))
		r.unregister("Validating", "v")
		dev.answered(201, "", "default", "")
	})

	t.Run("where they apply is checked", func(t *testing.T) {
		for _, c := range []struct {
			name   string
			in     *world
			kind   string
			value  string
			status int
			want   string
		}{
			{"no selector", r, "validatingadmissionpolicybindings", "tier in", 422, "must be \\\"root\\\", \\\"all\\\" or a selector"},
			{"on a policy", r, "validatingadmissionpolicies", "all", 422, "set it on the policy's bindings"},
			{"in a virtual cluster", dev, "validatingadmissionpolicybindings", "all", 422, "may be set in the root only"},
			{"the root", r, "validatingadmissionpolicybindings", "root", 201, ""},
		} {
			t.Run(c.name, func(t *testing.T) {
				annotation := fmt.Sprintf(`"vmesh.io/applies-to":%q`, c.value)
				body := r.binding("Validating", "where", annotation, deny)
				if strings.HasSuffix(c.kind, "policies") {
					body = fmt.Sprintf(`{"apiVersion":"admissionregistration.k8s.io/v1","kind":"ValidatingAdmissionPolicy","metadata":{"name":"where","annotations":{%s}},"spec":{
						"matchConstraints":{"resourceRules":[{"apiGroups":[""],"apiVersions":["v1"],"operations":["CREATE"],"resources":["configmaps"]}]},"validations":[{"expression":"true"}]}}`, annotation)
				}
				if got := c.in.post(registrations+c.kind, body); got.status != c.status || !strings.Contains(got.body, c.want) {
					t.Errorf("answered %d %s", got.status, got.body)
				}
			})
		}
	})
}

func TestPoliciesHoldFromTheFirstWriteAfterARestart(t *testing.T) {
	o := NewOptions()
	o.DataDir, o.XDSAddress, o.SecurePort = t.TempDir(), "", freePort(t)
	root, stop := start(t, o)
	createCluster(t, root, "shop", "{}")
	w := newWorld(t, root, "shop")
	w.policy("Validating", "p", `"validations":[{"expression":"!object.metadata.name.startsWith('x')","message":"no x"}]`, "", deny)
	w.answered(422, "no x", "default", "")
	w.client.CloseIdleConnections()
	stop()

	// Writers that try all the while.
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	tried := make(chan answer, 1)
	go func() {
		defer close(tried)
		for n := 0; ctx.Err() == nil; n++ {
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, root.Host+"/clusters/shop"+configMaps, strings.NewReader(configMap(fmt.Sprintf("x-%d", n), "")))
			if err != nil {
				return
			}
			req.Header.Set("Content-Type", "application/json")
			resp, err := w.client.Do(req)
			if err != nil {
				continue // not listening yet
			}
			resp.Body.Close()
			if resp.StatusCode == http.StatusUnprocessableEntity {
				return
			}
			if resp.StatusCode < 300 {
				tried <- answer{status: resp.StatusCode}
				return
			}
		}
	}()
	_, stop = start(t, o)
	defer stop()
	if got, slipped := <-tried; slipped {
		t.Errorf("a write was let in: %d", got.status)
	}
}
