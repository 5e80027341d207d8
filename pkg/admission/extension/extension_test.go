package extension

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/admission"
	auditinternal "k8s.io/apiserver/pkg/apis/audit"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/component-base/metrics/legacyregistry"
	"sigs.k8s.io/yaml"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// allNamespaces are namespaces that there are everywhere.
type allNamespaces struct{}

func (allNamespaces) Get(ctx context.Context, name string, _ *metav1.GetOptions) (apiruntime.Object, error) {
	cluster, err := logical.Cluster(ctx)
	if err != nil {
		return nil, err
	}
	return object.From(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"of": cluster}}}, schema.GroupVersionKind{Version: "v1", Kind: "Namespace"})
}

type nobody struct{}

func (nobody) Authorize(context.Context, authorizer.Attributes) (authorizer.Decision, string, error) {
	return authorizer.DecisionDeny, "", nil
}

// fixture is a plugin that is fed by hand.
type fixture struct {
	*Plugin
	t         testing.TB
	observers map[schema.GroupResource]logical.Observer
	revision  int
}

func newFixture(t testing.TB) *fixture {
	t.Helper()
	egress, err := NewEgress(nil, DefaultDeny())
	if err != nil {
		t.Fatal(err)
	}
	p := New(Config{Authorizer: nobody{}, Namespaces: allNamespaces{}, Egress: egress,
		Labels: func(_ context.Context, cluster string) (map[string]string, error) {
			if cluster == "nowhere" {
				return nil, errors.New("no such virtual cluster")
			}
			return map[string]string{"name": cluster}, nil
		}})
	return &fixture{Plugin: p, t: t, observers: p.Observers()}
}

func (f *fixture) feed() *fixture {
	for _, o := range f.observers {
		o.Replaced(nil, 1)
	}
	return f
}

// change tells of an object's creation, change or deletion.
func (f *fixture) change(t watch.EventType, cluster, manifest string) {
	f.t.Helper()
	data, err := yaml.YAMLToJSON([]byte(manifest))
	if err != nil {
		f.t.Fatal(err)
	}
	o := &object.Object{}
	if err := o.UnmarshalJSON(data); err != nil {
		f.t.Fatal(err)
	}
	f.revision++
	o.SetCluster(cluster)
	o.UID, o.ResourceVersion = types.UID(fmt.Sprint(f.revision)), fmt.Sprint(f.revision)
	plural := strings.ToLower(o.Kind) + "s"
	if strings.HasSuffix(plural, "ys") {
		plural = strings.TrimSuffix(plural, "ys") + "ies"
	}
	observer := f.observers[schema.GroupResource{Group: ownGroup, Resource: plural}]
	if observer == nil {
		f.t.Fatalf("nobody observes %s", plural)
	}
	observer.Changed(t, o, uint64(f.revision))
}

// create validates the creation of a config map.
func (f *fixture) create(cluster, name string) error {
	return f.validateCreation(cluster, name, &user.DefaultInfo{Name: "jo"})
}

func (f *fixture) validateCreation(cluster, name string, u user.Info) error {
	f.t.Helper()
	gvk := schema.GroupVersionKind{Version: "v1", Kind: "ConfigMap"}
	o := object.New(gvk)
	o.Name, o.Namespace = name, "default"
	a := admission.NewAttributesRecord(o, nil, gvk, "default", name, schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}, "",
		admission.Create, &metav1.CreateOptions{}, false, u)
	ctx := logical.WithCluster(context.Background(), cluster)
	if err := f.Admit(ctx, a, interfaces{}); err != nil {
		return err
	}
	return f.Validate(ctx, a, interfaces{})
}

// interfaces are enough for objects that are not converted.
type interfaces struct{ admission.ObjectInterfaces }

func (interfaces) GetEquivalentResourceMapper() apiruntime.EquivalentResourceMapper {
	return apiruntime.NewEquivalentResourceRegistry()
}

const policyManifest = `
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: names}
spec:
  failurePolicy: Fail
  matchConstraints:
    matchPolicy: Equivalent
    namespaceSelector: {}
    objectSelector: {}
    resourceRules: [{apiGroups: [""], apiVersions: [v1], operations: ["*"], resources: [configmaps], scope: "*"}]
  variables: [{name: forbidden, expression: "'bad'"}]
  validations: [{expression: "object.metadata.name != variables.forbidden", messageExpression: "'no ' + object.metadata.name + ' in ' + namespaceObject.metadata.labels.of"}]
`

func bindingManifest(annotations string) string {
	return `
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: names, annotations: {` + annotations + `}}
spec: {policyName: names, validationActions: [Deny]}
`
}

func webhookManifest(name string) string {
	return `
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: ` + name + `}
webhooks:
- name: hook.example.com
  admissionReviewVersions: [v1]
  sideEffects: None
  failurePolicy: Fail
  matchPolicy: Equivalent
  namespaceSelector: {}
  objectSelector: {matchLabels: {none: such}}
  timeoutSeconds: 10
  clientConfig: {url: "https://hooks.example.com/review"}
  rules: [{apiGroups: ["*"], apiVersions: ["*"], operations: ["*"], resources: ["*/*"], scope: "*"}]
`
}

func TestNothingIsAdmittedBeforeEverythingHasBeenRead(t *testing.T) {
	f := newFixture(t)
	n := 0
	for _, o := range f.observers {
		if err := f.create("shop", "a"); !apierrors.IsServiceUnavailable(err) || !errors.Is(f.Ready(), ErrNotReady) {
			t.Errorf("after %d of %d: %v", n, len(f.observers), err)
		}
		o.Replaced(nil, 1)
		o.Replaced(nil, 2) // once more is not one more
		n++
	}
	if err := f.create("shop", "a"); err != nil || f.Ready() != nil {
		t.Errorf("after all: %v, %v", err, f.Ready())
	}
}

func TestRulesHoldInTheirVirtualClusterAlone(t *testing.T) {
	f := newFixture(t).feed()
	f.change(watch.Added, "shop", policyManifest)
	if err := f.create("shop", "bad"); err != nil {
		t.Errorf("a policy without a binding: %v", err)
	}
	f.change(watch.Added, "shop", bindingManifest(""))
	if err := f.create("shop", "bad"); !strings.Contains(fmt.Sprint(err), "no bad in shop") {
		t.Errorf("got %v", err)
	}
	for _, c := range []struct{ cluster, name string }{{"shop", "good"}, {"bank", "bad"}, {logical.Root, "bad"}} {
		if err := f.create(c.cluster, c.name); err != nil {
			t.Errorf("%s in %s: %v", c.name, c.cluster, err)
		}
	}
	// An annotation of the root's means nothing elsewhere.
	f.change(watch.Modified, "shop", bindingManifest(v1alpha1.AnnotationAppliesTo+": all"))
	if err := f.create("bank", "bad"); err != nil {
		t.Error(err)
	}
	f.change(watch.Deleted, "shop", bindingManifest(""))
	if err := f.create("shop", "bad"); err != nil {
		t.Errorf("after the binding's deletion: %v", err)
	}
}

func TestGuardRailsGoAroundTheVirtualClustersThatTheySelect(t *testing.T) {
	for _, c := range []struct {
		where, cluster string
		holds          bool
	}{
		{"all", "shop", true}, {"all", logical.Root, false}, {"root", "shop", false}, {"root", logical.Root, true},
		{"name=shop", "shop", true}, {"name=shop", "bank", false}, {"'name in (shop, bank)'", "bank", true}, {"'!name'", "bank", false},
	} {
		t.Run(c.where+" "+c.cluster, func(t *testing.T) {
			f := newFixture(t).feed()
			f.change(watch.Added, logical.Root, policyManifest)
			f.change(watch.Added, logical.Root, bindingManifest(v1alpha1.AnnotationAppliesTo+": "+c.where))
			err := f.create(c.cluster, "bad")
			if (err != nil) != c.holds {
				t.Fatalf("got %v", err)
			}
			if c.holds && !strings.Contains(err.Error(), "no bad in "+c.cluster) {
				t.Errorf("the namespace is another's: %v", err)
			}
			if c.holds && strings.HasPrefix(err.Error(), "by a rule of the platform: ") != (c.cluster != logical.Root) {
				t.Errorf("got %v", err)
			}
		})
	}
	t.Run("whose labels cannot be found out", func(t *testing.T) {
		f := newFixture(t).feed()
		f.change(watch.Added, logical.Root, policyManifest)
		f.change(watch.Added, logical.Root, bindingManifest(v1alpha1.AnnotationAppliesTo+": name=shop"))
		if err := f.create("nowhere", "good"); !apierrors.IsInternalError(err) {
			t.Errorf("got %v", err)
		}
	})
}

func TestWhatCannotBeReadRefusesAllButItsRepair(t *testing.T) {
	for _, in := range []string{"shop", logical.Root} {
		t.Run(in, func(t *testing.T) {
			f := newFixture(t).feed()
			f.change(watch.Added, in, bindingManifest(""))
			broken := "{apiVersion: admissionregistration.k8s.io/v1, kind: ValidatingWebhookConfiguration, metadata: {name: broken, annotations: {" + logical.QuarantineAnnotation + ": \"it is damaged\"}}}"
			f.change(watch.Added, in, broken)
			err := f.create("shop", "good")
			if !apierrors.IsInternalError(err) || !strings.Contains(err.Error(), `validatingwebhookconfigurations.admissionregistration.k8s.io "broken" cannot be read`) {
				t.Errorf("got %v", err)
			}
			if err := f.create("bank", "good"); (err != nil) != (in == logical.Root) {
				t.Errorf("another virtual cluster: %v", err)
			}
			gvk := schema.GroupVersionKind{Group: ownGroup, Version: "v1", Kind: "ValidatingWebhookConfiguration"}
			a := admission.NewAttributesRecord(nil, object.New(gvk), gvk, "", "broken", schema.GroupVersionResource{Group: ownGroup, Version: "v1", Resource: "validatingwebhookconfigurations"}, "",
				admission.Delete, &metav1.DeleteOptions{}, false, &user.DefaultInfo{})
			if err := f.Validate(logical.WithCluster(t.Context(), in), a, interfaces{}); err != nil {
				t.Errorf("its deletion: %v", err)
			}
			f.change(watch.Deleted, in, broken)
			if err := f.create("shop", "good"); err != nil {
				t.Errorf("after its deletion: %v", err)
			}
		})
	}
}

func TestGuardRailsAreToldWhereAWriteGoes(t *testing.T) {
	of := admission.NewAttributesRecord(nil, nil, schema.GroupVersionKind{}, "", "", schema.GroupVersionResource{}, "", admission.Create, nil, false,
		&user.DefaultInfo{Name: "jo", Groups: []string{"g"}, Extra: map[string][]string{"a": {"b"}, ExtraTarget: {"forged"}}})
	a := seen(of, "shop", 3)
	u := a.GetUserInfo()
	if u.GetName() != "jo" || len(u.GetGroups()) != 1 || u.GetExtra()["a"][0] != "b" || strings.Join(u.GetExtra()[ExtraTarget], ",") != "shop" {
		t.Errorf("the user is %+v", u)
	}
	if of.GetUserInfo().GetExtra()[ExtraTarget][0] != "forged" {
		t.Error("the user of the virtual cluster's own rules has changed")
	}
	of.GetReinvocationContext().SetValue("p", 1)
	a.GetReinvocationContext().SetValue("p", 2)
	if of.GetReinvocationContext().Value("p") != 1 || a.GetReinvocationContext().Value("p") != 2 {
		t.Error("plugins of one name share what they remember")
	}
	for _, err := range []error{
		of.AddAnnotation("mutation.webhook.admission.k8s.io/round_0_index_0", "own"), a.AddAnnotation("mutation.webhook.admission.k8s.io/round_0_index_0", "third"),
		seen(of, "shop", 4).AddAnnotationWithLevel("mutation.webhook.admission.k8s.io/round_0_index_0", "fourth", auditinternal.LevelMetadata),
		a.AddAnnotation("hook.example.com/key", "v"),
	} {
		if err != nil {
			t.Error(err)
		}
	}
}

// annotated records the audit annotations of a write.
type annotated struct {
	admission.Attributes
	annotations map[string]string
}

func (a annotated) AddAnnotation(key, value string) error {
	if _, twice := a.annotations[key]; twice {
		return fmt.Errorf("%s is there already", key)
	}
	a.annotations[key] = value
	return nil
}

func TestAuditAnnotationsOfTeamAndPlatformStandSideBySide(t *testing.T) {
	f := newFixture(t).feed()
	noted := strings.Replace(policyManifest, "  validations:", "  auditAnnotations: [{key: note, valueExpression: \"'to ' + object.metadata.name\"}]\n  validations:", 1)
	audit := func(annotations string) string {
		return strings.Replace(bindingManifest(annotations), "[Deny]", "[Audit]", 1)
	}
	f.change(watch.Added, "shop", noted)
	f.change(watch.Added, "shop", audit(""))
	f.change(watch.Added, logical.Root, noted)
	f.change(watch.Added, logical.Root, audit(v1alpha1.AnnotationAppliesTo+": all"))
	gvk := schema.GroupVersionKind{Version: "v1", Kind: "ConfigMap"}
	o := object.New(gvk)
	o.Name, o.Namespace = "bad", "default"
	a := annotated{admission.NewAttributesRecord(o, nil, gvk, "default", "bad", schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}, "",
		admission.Create, &metav1.CreateOptions{}, false, &user.DefaultInfo{}), map[string]string{}}
	if err := f.Validate(logical.WithCluster(t.Context(), "shop"), a, interfaces{}); err != nil {
		t.Fatal(err)
	}
	const failure = "validation.policy.admission.k8s.io/validation_failure"
	if a.annotations["names/note"] != "to bad" || a.annotations["platform.names/note"] != "to bad" ||
		!strings.Contains(a.annotations[failure], "no bad in shop") || !strings.Contains(a.annotations["platform."+failure], "no bad in shop") {
		t.Errorf("annotations are %v", a.annotations)
	}
}

func TestUnchangedRulesAreNotMadeAnew(t *testing.T) {
	f := newFixture(t).feed()
	f.change(watch.Added, "shop", policyManifest)
	f.change(watch.Added, "shop", bindingManifest(""))
	f.change(watch.Added, "shop", webhookManifest("a"))
	before := f.rules("shop")
	if f.rules("shop") != before {
		t.Error("rules were made twice")
	}
	f.change(watch.Modified, "shop", bindingManifest("a: b"))
	after := f.rules("shop")
	if before == after || before.validating != after.validating || before.validatingPolicies[0].Evaluator != after.validatingPolicies[0].Evaluator {
		t.Error("a change of a binding made other things anew, or changed nothing")
	}
	f.change(watch.Modified, "shop", webhookManifest("a"))
	if f.rules("shop").validating == after.validating {
		t.Error("a change of a configuration changed nothing")
	}
}

// TestNothingStaysOfVirtualClustersWhoseRulesAreGone also holds the goroutines: rules have none.
func TestNothingStaysOfVirtualClustersWhoseRulesAreGone(t *testing.T) {
	f := newFixture(t).feed()
	goroutines := runtime.NumGoroutine()
	const clusters = 50
	for i := range clusters {
		cluster := fmt.Sprintf("c%d", i)
		f.change(watch.Added, cluster, policyManifest)
		f.change(watch.Added, cluster, bindingManifest(""))
		f.change(watch.Added, cluster, webhookManifest("a"))
		if err := f.create(cluster, "bad"); err == nil {
			t.Fatal("the policy does not hold")
		}
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) { // what a write has begun may be ending
		n := runtime.NumGoroutine()
		if n <= goroutines {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines more", n-goroutines)
		}
	}
	for i := range clusters {
		cluster := fmt.Sprintf("c%d", i)
		f.change(watch.Deleted, cluster, policyManifest)
		f.change(watch.Deleted, cluster, bindingManifest(""))
		if i%2 == 0 {
			f.change(watch.Deleted, cluster, webhookManifest("a"))
		}
	}
	for gr, o := range f.observers {
		if gr.Resource == resources[validatingWebhooks] {
			o.Replaced(nil, 1000) // as if the deletions of the others had been missed
		}
	}
	f.clusters.Range(func(cluster, _ any) bool {
		t.Errorf("something is kept for %s", cluster)
		return true
	})
}

func TestRulesOutOfUseAreLetGoOfAndMadeAgain(t *testing.T) {
	f := newFixture(t).feed()
	holds := func(cluster string) {
		t.Helper()
		if err := f.create(cluster, "bad"); err == nil {
			t.Errorf("the policy does not hold in %q", cluster)
		}
	}
	clusters := []string{"a", "b", logical.Root}
	for _, cluster := range clusters {
		f.change(watch.Added, cluster, policyManifest)
		f.change(watch.Added, cluster, bindingManifest(""))
		holds(cluster)
	}
	kept := func(cluster string) bool {
		h, _ := f.clusters.Load(cluster)
		return h.(*holdings).rules.Load() != nil || h.(*holdings).last != nil
	}
	f.dropIdle(time.Now().Add(idleAfter / 2))
	if !kept("a") || !kept("b") || f.made.Load() != 2 {
		t.Errorf("too soon: %d kept", f.made.Load())
	}
	f.dropIdle(time.Now().Add(2 * idleAfter))
	if kept("a") || kept("b") || !kept(logical.Root) || f.made.Load() != 0 {
		t.Errorf("%d kept", f.made.Load())
	}
	for _, cluster := range clusters {
		holds(cluster)
	}
	// More than there may be: the one longest out of use has to go.
	f.made.Store(maxMade)
	h, _ := f.clusters.Load("a")
	h.(*holdings).used.Store(1)
	f.change(watch.Added, "c", policyManifest)
	f.change(watch.Added, "c", bindingManifest(""))
	holds("c")
	if kept("a") || !kept("b") || !kept("c") || f.made.Load() != maxMade {
		t.Errorf("%d kept", f.made.Load())
	}
	holds("a")
}

func TestEgress(t *testing.T) {
	for _, c := range []struct {
		name        string
		allow, deny []string
		address     string
		allowed     bool
	}{
		{"a public address", nil, DefaultDeny(), "93.184.216.34", true},
		{"a private address", nil, DefaultDeny(), "10.1.2.3", true},
		{"loopback", nil, DefaultDeny(), "127.0.0.1", false},
		{"loopback by IPv6", nil, DefaultDeny(), "::1", false},
		{"loopback in IPv6's clothes", nil, DefaultDeny(), "::ffff:127.0.0.1", false},
		{"loopback behind NAT64", nil, DefaultDeny(), "64:ff9b::7f00:1", false},
		{"a cloud's credentials", nil, DefaultDeny(), "169.254.169.254", false},
		{"a cloud's credentials by IPv6", nil, DefaultDeny(), "fd00:ec2::254", false},
		{"the link", nil, DefaultDeny(), "fe80::1%eth0", false},
		{"this machine", nil, DefaultDeny(), "0.0.0.0", false},
		{"an exception", []string{"127.0.0.0/8"}, DefaultDeny(), "127.0.0.1", true},
		{"nothing but", []string{"10.1.0.0/16"}, []string{"0.0.0.0/0", "::/0"}, "10.1.2.3", true},
		{"nothing but, elsewhere", []string{"10.1.0.0/16"}, []string{"0.0.0.0/0", "::/0"}, "10.2.2.3", false},
		{"nothing but, elsewhere by IPv6", []string{"10.1.0.0/16"}, []string{"0.0.0.0/0", "::/0"}, "2001:db8::1", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			e, err := NewEgress(c.allow, c.deny)
			if err != nil {
				t.Fatal(err)
			}
			if err := e.control("tcp", net.JoinHostPort(c.address, "443"), nil); (err == nil) != c.allowed {
				t.Errorf("got %v", err)
			}
		})
	}
	for _, bad := range []string{"10.0.0.0", "10.0.0.0/33", "example.com"} {
		if _, err := NewEgress([]string{bad}, nil); err == nil || !strings.Contains(err.Error(), bad) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func TestWebhooksMayNotRedirect(t *testing.T) {
	reached := false
	inside := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached = true }))
	defer inside.Close()
	outside := httptest.NewServer(http.RedirectHandler(inside.URL, http.StatusTemporaryRedirect))
	defer outside.Close()
	client := &http.Client{Transport: careful(http.DefaultTransport)}
	resp, err := client.Post(outside.URL, "application/json", nil)
	if err == nil {
		resp.Body.Close()
	}
	if err == nil || reached || !strings.Contains(err.Error(), "may not redirect") {
		t.Errorf("got %v, reached: %v", err, reached)
	}
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
}

func TestWebhooksMayNotAnswerWithoutEnd(t *testing.T) {
	for _, c := range []struct {
		name string
		size int64
		ok   bool
	}{{"little", 100, true}, {"all there may be", maxAnswer, true}, {"one byte more", maxAnswer + 1, false}, {"much", 10 * maxAnswer, false}} {
		t.Run(c.name, func(t *testing.T) {
			body := &limitedBody{io.NopCloser(io.LimitReader(zeros{}, c.size)), maxAnswer}
			n, err := io.Copy(io.Discard, body)
			if (err == nil) != c.ok || c.ok && n != c.size || n > maxAnswer {
				t.Errorf("read %d, %v", n, err)
			}
		})
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestMetricsDoNotKeepTheNamesOfPolicies(t *testing.T) {
	f := newFixture(t).feed()
	f.change(watch.Added, "shop", strings.ReplaceAll(policyManifest, "names", "chosen-by-a-tenant"))
	f.change(watch.Added, "shop", strings.ReplaceAll(bindingManifest(""), "names", "chosen-by-a-tenant"))
	if err := f.create("shop", "bad"); err == nil {
		t.Fatal("the policy does not hold")
	}
	families, err := legacyregistry.DefaultGatherer.Gather()
	if err != nil {
		t.Fatal(err)
	}
	counted := false
	for _, family := range families {
		counted = counted || family.GetName() == "apiserver_validating_admission_policy_check_total"
		for _, m := range family.GetMetric() {
			for _, l := range m.GetLabel() {
				if strings.Contains(l.GetValue(), "chosen-by-a-tenant") {
					t.Errorf("%s has %s=%s", family.GetName(), l.GetName(), l.GetValue())
				}
			}
		}
	}
	if !counted {
		t.Error("it is not counted at all")
	}
}

// BenchmarkRules is what a virtual cluster with one policy and one webhook costs.
func BenchmarkRules(b *testing.B) {
	for _, c := range []struct {
		name      string
		manifests []string
	}{
		{"webhook", []string{webhookManifest("a")}},
		{"policy", []string{policyManifest, bindingManifest("")}},
		{"both", []string{webhookManifest("a"), policyManifest, bindingManifest("")}},
	} {
		b.Run(c.name, func(b *testing.B) {
			f := newFixture(b).feed()
			for _, m := range c.manifests {
				f.change(watch.Added, "warm", m)
			}
			if err := f.create("warm", "good"); err != nil {
				b.Fatal(err)
			}
			before := heap()
			n := 0
			for b.Loop() {
				cluster := fmt.Sprintf("c%d", n)
				n++
				for _, m := range c.manifests {
					f.change(watch.Added, cluster, m)
				}
				if err := f.create(cluster, "good"); err != nil {
					b.Fatal(err)
				}
			}
			made := heap()
			b.ReportMetric((float64(made)-float64(before))/float64(n)/1024, "KiB/cluster")
			f.dropIdle(time.Now().Add(2 * idleAfter))
			b.ReportMetric((float64(heap())-float64(before))/float64(n)/1024, "KiB/idle")
			runtime.KeepAlive(f)
		})
	}
}

// BenchmarkWrite is what a write pays.
func BenchmarkWrite(b *testing.B) {
	f := newFixture(b).feed()
	f.change(watch.Added, "policy", policyManifest)
	f.change(watch.Added, "policy", bindingManifest(""))
	f.change(watch.Added, "webhook", webhookManifest("a"))
	for _, cluster := range []string{"nothing", "policy", "webhook"} {
		b.Run(cluster, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := f.create(cluster, "good"); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
