package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

func TestAMemberIsGivenRightsByNameAndVerb(t *testing.T) {
	objects, err := memberManifests("east", []string{"canary", "default", ""}, true)
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	if err := printManifests(&text, objects); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(text.String(), "*") {
		t.Errorf("there is a wildcard: %s", text.String())
	}
	for _, o := range objects {
		labels := o.object.GetLabels()
		if labels[v1alpha1.LabelManagedBy] != v1alpha1.ManagedBy || labels[v1alpha1.LabelMember] != "east" {
			t.Errorf("the labels of %s are %v", o, labels)
		}
	}
	for _, r := range append(rightsOf(vmeshRules(), ""), rightsOf(istiodRules([]string{"canary"}, true), "")...) {
		review := r.verb == "create" && slices.Contains([]string{"tokenreviews", "subjectaccessreviews"}, r.resource)
		if !review && !slices.Contains([]string{"get", "list", "watch"}, r.verb) {
			t.Errorf("there is a right to %s", r)
		}
	}
	settings := map[string]bool{}
	for _, r := range rightsOf(istiodRules([]string{"canary", "default", ""}, false), "") {
		if r.resource == "secrets" {
			t.Errorf("without Secrets there is a right to %s", r)
		}
		if r.resource == "configmaps" {
			settings[r.name] = true
		}
	}
	if len(settings) != 2 || !settings["istio"] || !settings["istio-canary"] {
		t.Errorf("istiod may read the config maps %v", settings)
	}
}

func TestWhatWasChangedInAMemberIsMended(t *testing.T) {
	objects, err := memberManifests("east", nil, true)
	if err != nil {
		t.Fatal(err)
	}
	binding := func(t *testing.T) (want, present *unstructured.Unstructured) {
		i := slices.IndexFunc(objects, func(o *memberObject) bool { return o.object.GetKind() == "ClusterRoleBinding" })
		want = objects[i].object
		present = want.DeepCopy()
		// As a server answers.
		present.SetUID("1")
		present.SetResourceVersion("2")
		subjects := present.Object["subjects"].([]any)
		subjects[0].(map[string]any)["apiGroup"] = ""
		return want, present
	}
	for _, c := range []struct {
		name   string
		change func(*unstructured.Unstructured)
		mended bool
	}{
		{"nothing", func(*unstructured.Unstructured) {}, false},
		{"a label of others", func(u *unstructured.Unstructured) { u.SetLabels(with(u.GetLabels(), "owner", "alice")) }, false},
		{"an annotation", func(u *unstructured.Unstructured) { u.SetAnnotations(map[string]string{"a": "b"}) }, false},
		{"a subject more", func(u *unstructured.Unstructured) {
			u.Object["subjects"] = append(u.Object["subjects"].([]any), map[string]any{"kind": "User", "name": "eve"})
		}, true},
		{"no subject", func(u *unstructured.Unstructured) { delete(u.Object, "subjects") }, true},
		{"rules from others", func(u *unstructured.Unstructured) { u.Object["aggregationRule"] = map[string]any{} }, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			want, present := binding(t)
			c.change(present)
			labels := present.GetLabels()
			after := merged(present, want)
			before, _ := json.Marshal(ownPart(present.Object))
			then, _ := json.Marshal(ownPart(after.Object))
			if mended := string(before) != string(then); mended != c.mended {
				t.Errorf("mended: %v: %s and then %s", mended, before, then)
			}
			wanted, _ := json.Marshal(ownPart(want.Object)["subjects"])
			if got, _ := json.Marshal(ownPart(after.Object)["subjects"]); string(got) != string(wanted) {
				t.Errorf("the subjects are %s", got)
			}
			if after.GetResourceVersion() != "2" || after.GetLabels()["owner"] != labels["owner"] {
				t.Errorf("what is not a join's has changed: %v", after.Object["metadata"])
			}
		})
	}
}

func with(labels map[string]string, key, value string) map[string]string {
	labels[key] = value
	return labels
}

func memberNamed(name, mesh, uid string) v1alpha1.MemberCluster {
	m := v1alpha1.MemberCluster{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.MemberClusterSpec{Mesh: mesh}}
	if uid != "" {
		m.Annotations = map[string]string{v1alpha1.AnnotationClusterUID: uid}
	}
	return m
}

func TestANameIsOfOneClusterAndAClusterHasOneName(t *testing.T) {
	leaving := memberNamed("east", "default", "1")
	leaving.DeletionTimestamp = &metav1.Time{}
	for _, c := range []struct {
		name    string
		members []v1alpha1.MemberCluster
		uid     string
		want    string // of the error
	}{
		{"the first", nil, "1", ""},
		{"again", []v1alpha1.MemberCluster{memberNamed("east", "default", "1"), memberNamed("west", "default", "2")}, "1", ""},
		{"one that nobody knew", []v1alpha1.MemberCluster{memberNamed("east", "default", "")}, "1", ""},
		{"one that may not be known yet", []v1alpha1.MemberCluster{memberNamed("east", "default", "1"), memberNamed("west", "default", "")}, unknownUID, ""},
		{"another cluster", []v1alpha1.MemberCluster{memberNamed("east", "default", "2")}, "1", "vmesh leave east"},
		{"another name", []v1alpha1.MemberCluster{memberNamed("west", "default", "1")}, "1", `member "west"`},
		{"another mesh", []v1alpha1.MemberCluster{memberNamed("east", "prod", "1")}, "1", "--mesh"},
		{"one that leaves", []v1alpha1.MemberCluster{leaving}, "1", "is leaving"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := (&joinOptions{name: "east", mesh: "default"}).checkName(c.members, c.uid)
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("the error is %v", err)
			}
		})
	}
}

func TestAJoinChangesWhatFlagsSay(t *testing.T) {
	present := v1alpha1.MemberCluster{Spec: v1alpha1.MemberClusterSpec{
		Mesh: "default", Network: "one", Discovery: v1alpha1.DiscoveryDisabled, Locality: &v1alpha1.Locality{Region: "r", Zone: "z", SubZone: "s"},
	}}
	for _, c := range []struct {
		name  string
		given []string
		o     joinOptions
		drain string
		want  string // NETWORK REGION/ZONE/SUBZONE DISCOVERY DRAIN
	}{
		{"nothing", nil, joinOptions{}, "", "one r/z/s Disabled -"},
		{"a network", []string{"network"}, joinOptions{network: "two"}, "", "two r/z/s Disabled -"},
		{"no network any more", []string{"network"}, joinOptions{}, "", " r/z/s Disabled -"},
		{"a zone", []string{"zone"}, joinOptions{zone: "y"}, "", "one r/y/s Disabled -"},
		{"discovery", []string{"no-discovery"}, joinOptions{}, "", "one r/z/s Enabled -"},
		{"one who was leaving", nil, joinOptions{}, v1alpha1.ReasonLeaving, "one r/z/s Disabled -"},
		{"one who is drained for another reason", nil, joinOptions{}, "upgrade", "one r/z/s Disabled upgrade"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, o := present.DeepCopy(), c.o
			if c.drain != "" {
				m.Spec.Drain = &v1alpha1.MemberClusterDrain{Reason: c.drain}
			}
			o.name, o.mesh = "east", "default"
			o.given = func(flag string) bool { return slices.Contains(c.given, flag) }
			o.fill(m, "1", false)
			drain := "-"
			if m.Spec.Drain != nil {
				drain = m.Spec.Drain.Reason
			}
			l := m.Spec.Locality
			if got := fmt.Sprintf("%s %s/%s/%s %s %s", m.Spec.Network, l.Region, l.Zone, l.SubZone, m.Spec.Discovery, drain); got != c.want {
				t.Errorf("the member is %s, not %s", got, c.want)
			}
		})
	}
	nowhere := v1alpha1.MemberCluster{Spec: v1alpha1.MemberClusterSpec{Locality: &v1alpha1.Locality{Region: "r"}}}
	(&joinOptions{name: "east", given: func(flag string) bool { return flag == "region" }}).fill(&nowhere, "1", false)
	if nowhere.Spec.Locality != nil {
		t.Errorf("a member that is nowhere is in %+v", nowhere.Spec.Locality)
	}
	var m v1alpha1.MemberCluster
	(&joinOptions{name: "east", mesh: "prod", noDiscovery: true, given: func(string) bool { return false }}).fill(&m, "1", true)
	if m.Spec.Mesh != "prod" || m.Spec.Discovery != v1alpha1.DiscoveryDisabled || m.Annotations[v1alpha1.AnnotationClusterUID] != "1" || m.Spec.Access.Secret != "east" || m.Spec.Locality != nil {
		t.Errorf("the new member is %+v", m)
	}
}

func TestAMemberIsReadyWhenItsPresentSpecIs(t *testing.T) {
	condition := func(status metav1.ConditionStatus, generation int64, message string) []metav1.Condition {
		return []metav1.Condition{{Type: v1alpha1.ConditionReady, Status: status, ObservedGeneration: generation, Reason: "Reason", Message: message}}
	}
	until := time.Unix(1000, 0)
	for _, c := range []struct {
		name       string
		conditions []metav1.Condition
		want       string
	}{
		{"no condition", nil, "no condition Ready yet"},
		{"ready", condition(metav1.ConditionTrue, 2, ""), ""},
		{"ready, of an older spec", condition(metav1.ConditionTrue, 1, ""), "not looked at yet"},
		{"not ready", condition(metav1.ConditionFalse, 2, "why"), "Reason: why"},
		{"unknown", condition(metav1.ConditionUnknown, 0, ""), "Reason"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := v1alpha1.MemberCluster{ObjectMeta: metav1.ObjectMeta{Generation: 2}, Status: v1alpha1.MemberClusterStatus{Conditions: c.conditions}}
			m.Status.Credentials = []v1alpha1.MemberCredential{{Key: v1alpha1.MemberKubeconfigKey, ExpiresAt: &metav1.Time{Time: until}}}
			if later := notReadyYet(&m, until.Add(time.Second)); later == "" {
				t.Error("it is ready by an access that was not looked at")
			}
			if got := notReadyYet(&m, until); (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
				t.Errorf("it is not ready for %q", got)
			}
		})
	}
}

func TestARegionAndAZoneAreNamedByFlagsOfTheirOwn(t *testing.T) {
	for _, c := range []struct{ region, zone, says string }{
		{"eu", "eu-a", ""}, {"eu/eu-a", "", "--region: "}, {"eu", "eu-a/1", "--zone: "},
	} {
		err := (&joinOptions{name: "east", region: c.region, zone: c.zone, tokenTTL: time.Hour, timeout: time.Minute}).check()
		if (c.says == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%q and %q: %v", c.region, c.zone, err)
		}
	}
}

func TestTheKubeconfigOfAMemberHoldsAllItNeeds(t *testing.T) {
	ca := filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(ca, []byte("pem"), 0o600); err != nil {
		t.Fatal(err)
	}
	member := &memberClient{config: &rest.Config{
		Host: "https://east:6443", BearerToken: "the administrator's", TLSClientConfig: rest.TLSClientConfig{CAFile: ca, ServerName: "kubernetes", CertData: []byte("c"), KeyData: []byte("k")},
	}}
	for _, c := range []struct{ server, want string }{{"", "https://east:6443"}, {"https://10.0.0.1:6443", "https://10.0.0.1:6443"}} {
		data, err := member.kubeconfigOf("east", "istiod", c.server, "token")
		if err != nil {
			t.Fatal(err)
		}
		config, err := clientcmd.Load(data)
		if err != nil {
			t.Fatal(err)
		}
		cluster, user := config.Clusters["east"], config.AuthInfos["istiod"]
		if cluster.Server != c.want || string(cluster.CertificateAuthorityData) != "pem" || cluster.CertificateAuthority != "" || cluster.TLSServerName != "kubernetes" {
			t.Errorf("the cluster is %+v", cluster)
		}
		if user.Token != "token" || len(user.ClientCertificateData)+len(user.ClientKeyData) > 0 || strings.Contains(string(data), "administrator") {
			t.Errorf("the user is %+v", user)
		}
	}
}

func TestAnAddressOnLoopbackIsKnown(t *testing.T) {
	for server, want := range map[string]bool{"https://127.0.0.1:6443": true, "https://localhost:1": true, "https://[::1]:1": true, "https://10.0.0.1": false, "https://east.example.com": false} {
		if onLoopback(server) != want {
			t.Errorf("%s on loopback: %v", server, !want)
		}
	}
}

func TestWhatDependsOnAMemberIsTold(t *testing.T) {
	answers := map[string]string{
		"/apis/vmesh.io/v1alpha1/meshes/default": `{"metadata": {"name": "default"}, "spec": {"home": {"virtualCluster": "home"}, "networks": [
			{"name": "one", "gateways": [{"service": {"member": "east", "namespace": "istio-system", "name": "eastwest"}}, {"address": "1.2.3.4"}]},
			{"name": "two", "gateways": [{"service": {"member": "west", "namespace": "istio-system", "name": "eastwest"}}]}]}}`,
		"/apis/vmesh.io/v1alpha1/virtualclusters": `{"items": [{"metadata": {"name": "shop"}, "spec": {"mesh": "default"}}, {"metadata": {"name": "other"}, "spec": {"mesh": "other"}}]}`,
		"/clusters/shop/apis/networking.istio.io/v1/destinationrules": `{"items": [
			{"metadata": {"namespace": "shop", "name": "a"}, "spec": {"subsets": [{"name": "east", "labels": {"topology.istio.io/cluster": "east"}}]}},
			{"metadata": {"namespace": "shop", "name": "b"}, "spec": {"subsets": [{"name": "east", "labels": {"topology.istio.io/cluster": "west", "app": "east"}}]}}]}`,
		"/clusters/shop/apis/networking.istio.io/v1/virtualservices": `{"items": [
			{"metadata": {"namespace": "shop", "name": "c"}, "spec": {"http": [{"match": [{"sourceLabels": {"topology.istio.io/cluster": "east"}}]}]}}]}`,
	}
	east, west := memberNamed("east", "default", "1"), memberNamed("west", "default", "2")
	east.Spec.Network, west.Spec.Network = "one", "two"
	east.Status.OnlyHere = &v1alpha1.MemberOnlyHere{Services: 12, Names: []string{"shop/only", "shop/other"}}
	for _, c := range []struct {
		name    string
		members []v1alpha1.MemberCluster
		lacks   string // the answer that there is not
		want    []string
		not     []string
	}{
		{"all there is", []v1alpha1.MemberCluster{east, west}, "", []string{
			"last member of network one", "network one of mesh default has a gateway in it: service istio-system/eastwest", "only it has these services: shop/only, shop/other and 10 more",
			"destinationrule shop/a of virtual cluster shop", "virtualservice shop/c of virtual cluster shop",
		}, []string{"network two", "shop/b ", "not found out", "last member of mesh"}},
		{"the last member", []v1alpha1.MemberCluster{east}, "", []string{"last member of mesh default"}, []string{"last member of network"}},
		{"routes that may not be read", []v1alpha1.MemberCluster{east, west}, "destinationrules", []string{"which objects name it was not found out", "virtualservice shop/c"}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				answer, ok := answers[r.URL.Path]
				if !ok || c.lacks != "" && strings.HasSuffix(r.URL.Path, c.lacks) {
					http.NotFound(w, r)
					return
				}
				w.Header().Set("Content-Type", "application/json")
				fmt.Fprint(w, answer)
			}))
			defer server.Close()
			access := rootAccess{kubeconfig: filepath.Join(t.TempDir(), "kubeconfig")}
			text := fmt.Sprintf("apiVersion: v1\nkind: Config\ncurrent-context: r\nclusters: [{name: r, cluster: {server: %q}}]\ncontexts: [{name: r, context: {cluster: r}}]\n", server.URL)
			if err := os.WriteFile(access.kubeconfig, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			root, err := access.all()
			if err != nil {
				t.Fatal(err)
			}
			got := strings.Join((&leaveOptions{name: "east", errOut: t.Output()}).dependents(t.Context(), root, &east, c.members), "\n")
			for _, want := range c.want {
				if !strings.Contains(got, want) {
					t.Errorf("%q is not in: %s", want, got)
				}
			}
			for _, not := range c.not {
				if strings.Contains(got, not) {
					t.Errorf("%q is in: %s", not, got)
				}
			}
		})
	}
}
