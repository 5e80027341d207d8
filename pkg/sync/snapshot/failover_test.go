package snapshot

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"
	istiotype "istio.io/api/type/v1beta1"
	"istio.io/istio/pkg/util/protomarshal"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/settings"
)

// failoverKinds are testKinds of which the last is DestinationRule.
func failoverKinds(n int) []Kind {
	kinds := testKinds(n)
	k := &kinds[n-1]
	k.Name, k.MessageName, k.AppendMessage = failoverKind, "istio.networking.v1alpha3.DestinationRule", renderRule
	return kinds
}

// renderRule makes a DestinationRule of an object whose spec is a text, its host and words about the
// rest, and of one whose spec is a spec.
func renderRule(dst []byte, o *object.Object) ([]byte, error) {
	message := &networking.DestinationRule{}
	var text string
	if json.Unmarshal(o.Field("spec"), &text) == nil {
		words := strings.Fields(text)
		message.Host = words[0]
		for _, word := range words[1:] {
			switch word {
			case "private":
				message.ExportTo = []string{"."}
			case "exported":
				message.ExportTo = []string{"*"}
			case "selects":
				message.WorkloadSelector = &istiotype.WorkloadSelector{}
			}
		}
	} else if err := protomarshal.ApplyYAMLStrict(string(o.Field("spec")), message); err != nil {
		return nil, err
	}
	return proto.MarshalOptions{Deterministic: true}.MarshalAppend(dst, message)
}

func meshOf(spec string) *object.Object {
	o := meshObject("m")
	var content any
	if err := json.Unmarshal([]byte(spec), &content); err != nil {
		panic(err)
	}
	if err := o.SetContent(map[string]any{"spec": content}); err != nil {
		panic(err)
	}
	return o
}

// rules are the DestinationRules of a snapshot, with the consecutive errors of outlier detection.
func rules(s *Snapshot) string {
	var all []string
	for e := range s.Lists[0].All() {
		var rule networking.DestinationRule
		if err := proto.Unmarshal(field(field(field(e.Resource(), anyValue), resourceBody), anyValue), &rule); err != nil {
			return err.Error()
		}
		line := e.Name() + "=" + rule.Host
		if o := rule.GetTrafficPolicy().GetOutlierDetection(); o != nil {
			line += fmt.Sprintf("/%d", o.Consecutive_5XxErrors.Value)
		}
		all = append(all, line)
	}
	return strings.Join(all, " ")
}

func TestALocalityPolicyHasItsOutlierDetection(t *testing.T) {
	f := newFixture(t, failoverKinds(1))
	s := f.builder.Subscribe("m")
	defer s.Close()
	f.start(map[string][]*object.Object{"meshes": {meshObject("m")}, "virtualclusters": {clusterObject("c", "m", 0, "*")}})
	const standing = "istio-system/" + FailoverName + "=" + settings.FailoverHost
	mesh := func(spec string) func() {
		return func() { f.observers["meshes"].Changed(watch.Modified, meshOf(spec), 2) }
	}
	rule := func(namespace, name, text string) func() {
		return func() { f.kind(0).Changed(watch.Modified, testObject("c", namespace, name, text), 2) }
	}
	gone := func(namespace, name string) func() {
		return func() { f.kind(0).Changed(watch.Deleted, testObject("c", namespace, name, "x"), 2) }
	}
	const local = `{"rootNamespace":"istio-system","locality":{}}`
	for _, step := range []struct {
		name string
		do   func()
		want string
	}{
		{"without a policy there is none", mesh(`{}`), ""},
		{"with one there is one", mesh(local), standing + "/5"},
		{"which follows it", mesh(`{"locality":{"outlierDetection":{"consecutiveErrors":2}}}`), standing + "/2"},
		{"one without preference needs none", mesh(`{"locality":{"localFirst":false}}`), ""},
		{"and again", mesh(local), standing + "/5"},
		{"another namespace's rule is its own", rule("shop", "all", "*.svc.cluster.local"), standing + "/5 shop/all=*.svc.cluster.local"},
		{"gone", gone("shop", "all"), standing + "/5"},
		{"a rule for one service is its own", rule("istio-system", "a", "a.shop.svc.cluster.local"), "istio-system/a=a.shop.svc.cluster.local " + standing + "/5"},
		{"as for a namespace's", rule("istio-system", "a", "*.shop.svc.cluster.local"), "istio-system/a=*.shop.svc.cluster.local " + standing + "/5"},
		{"a rule for all services stands for it", rule("istio-system", "a", "*.svc.cluster.local"), "istio-system/a=*.svc.cluster.local"},
		{"as for more than those", rule("istio-system", "a", "*.local"), "istio-system/a=*.local"},
		{"and for everything", rule("istio-system", "a", "* exported"), "istio-system/a=*"},
		{"but not for its own namespace", rule("istio-system", "a", "*.local private"), "istio-system/a=*.local " + standing + "/5"},
		{"nor for some workloads", rule("istio-system", "a", "*.local selects"), "istio-system/a=*.local " + standing + "/5"},
		{"a change of the policy keeps away from it", rule("istio-system", "a", "*.local"), "istio-system/a=*.local"},
		{"so", mesh(`{"locality":{"outlierDetection":{"consecutiveErrors":3}}}`), "istio-system/a=*.local"},
		{"and comes into force when it goes", gone("istio-system", "a"), standing + "/3"},
		{"it moves with the root namespace", mesh(`{"rootNamespace":"mesh","locality":{}}`), "mesh/" + FailoverName + "=" + settings.FailoverHost + "/5"},
		{"and is gone with the policy", mesh(`{"rootNamespace":"mesh"}`), ""},
	} {
		step.do()
		f.wait(s, step.name+": "+step.want, func(s *Snapshot, err error) bool { return err == nil && rules(s) == step.want })
	}
}

func TestAMeshThatCannotBeReadKeepsItsOutlierDetection(t *testing.T) {
	f := newFixture(t, failoverKinds(1))
	s := f.builder.Subscribe("m")
	defer s.Close()
	f.start(map[string][]*object.Object{"meshes": {meshOf(`{"locality":{}}`)}, "virtualclusters": {clusterObject("c", "m", 0, "*")}})
	const standing = "istio-system/" + FailoverName + "=" + settings.FailoverHost + "/5"
	f.wait(s, standing, func(s *Snapshot, err error) bool { return err == nil && rules(s) == standing })
	lost := meshObject("m")
	lost.Annotations = map[string]string{QuarantinedAnnotation: "it is bad"}
	f.observers["meshes"].Changed(watch.Modified, lost, 2)
	f.kind(0).Changed(watch.Modified, testObject("c", "shop", "a", "a"), 3)
	f.wait(s, "what comes after", func(s *Snapshot, err error) bool { return err == nil && rules(s) == standing+" shop/a=a" })
}

// A filter by virtual clusters leaves out what is theirs, and not what is the mesh's.
func TestAFilterByVirtualClustersLeavesTheOutlierDetection(t *testing.T) {
	f := newFixture(t, failoverKinds(1))
	s := f.builder.Subscribe("m")
	defer s.Close()
	s.Select(ControlPlane{Labels: map[string]string{"for": "b"}})
	filters := `"filters":[{"name":"b","controlPlanes":{"matchLabels":{"for":"b"}},"virtualClusters":{"matchLabels":{"is":"b"}}}]`
	f.start(map[string][]*object.Object{"meshes": {meshOf(`{` + filters + `}`)}, "virtualclusters": {clusterObject("c", "m", 0, "*")}})
	f.wait(s, "nothing", func(s *Snapshot, err error) bool { return err == nil && rules(s) == "" })
	f.kind(0).Changed(watch.Modified, testObject("c", "shop", "a", "a"), 2)
	f.observers["meshes"].Changed(watch.Modified, meshOf(`{`+filters+`,"locality":{}}`), 3)
	const standing = "istio-system/" + FailoverName + "=" + settings.FailoverHost + "/5"
	f.wait(s, standing, func(s *Snapshot, err error) bool { return err == nil && rules(s) == standing })
}
