package vmesh

import (
	"slices"
	"strings"
	"testing"

	apimeta "k8s.io/apimachinery/pkg/api/meta"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

func virtualCluster(t *testing.T, members string) *object.Object {
	t.Helper()
	o := &object.Object{}
	if err := o.UnmarshalJSON([]byte(`{"apiVersion":"vmesh.io/v1alpha1","kind":"VirtualCluster","metadata":{"name":"shop","resourceVersion":"7"},` + members + `}`)); err != nil {
		t.Fatal(err)
	}
	return o
}

func TestWhatEveryRequestAsksOfAVirtualCluster(t *testing.T) {
	lost := &object.Object{}
	lost.Name, lost.ResourceVersion, lost.Annotations = "shop", "7", map[string]string{logical.QuarantineAnnotation: "not JSON"}
	for _, c := range []struct {
		name    string
		object  *object.Object
		frozen  string
		objects int64 // -1 is no quota
	}{
		{"one as most are", virtualCluster(t, `"spec":{"mesh":"default"}`), "", -1},
		{"a frozen one", virtualCluster(t, `"spec":{"freeze":{"reason":"an inquiry"}}`), "an inquiry", -1},
		{"one that was frozen without a reason", virtualCluster(t, `"spec":{"freeze":{}}`), "no reason is given", -1},
		{"one with a quota", virtualCluster(t, `"spec":{"quota":{"objects":3}}`), "", 3},
		{"one with both", virtualCluster(t, `"spec":{"quota":{"objects":3},"freeze":{"reason":"x"}}`), "x", 3},
		{"one with an empty quota", virtualCluster(t, `"spec":{"quota":{}}`), "", -1},
		{"one of a mesh with a name like that", virtualCluster(t, `"spec":{"mesh":"quota","namespaces":["freeze"]}`), "", -1},
		{"one that storage has quarantined may be frozen", lost, "its VirtualCluster cannot be read, and may say so", -1},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := stateOf(c.object)
			objects := int64(-1)
			if s.limits != nil && s.limits.Objects != nil {
				objects = *s.limits.Objects
			}
			if s.frozen != c.frozen || objects != c.objects || c.objects < 0 && s.limits != nil || s.revision != 7 {
				t.Errorf("got %+v", s)
			}
		})
	}
}

func TestReadySaysWhetherWritesAreTaken(t *testing.T) {
	o := virtualCluster(t, `"spec":{"freeze":{"reason":"an inquiry"}},"status":{"url":"https://a","usage":{"objects":3}}`)
	ready := func() string {
		t.Helper()
		if err := setReady(o); err != nil {
			t.Fatal(err)
		}
		vc, err := Decode(o)
		if err != nil {
			t.Fatal(err)
		}
		if vc.Status.URL != "https://a" || *vc.Status.Usage.Objects != 3 {
			t.Errorf("the status became %+v", vc.Status)
		}
		c := apimeta.FindStatusCondition(vc.Status.Conditions, v1alpha1.ConditionReady)
		return string(c.Status) + " " + c.Reason + " " + c.Message
	}
	if got := ready(); got != "True Frozen The virtual cluster answers reads and refuses writes: an inquiry" {
		t.Errorf("frozen: %s", got)
	}
	before := o.Body()
	if ready(); &before[0] != &o.Body()[0] {
		t.Error("written anew without a change")
	}
	content, err := o.Content()
	if err != nil {
		t.Fatal(err)
	}
	if err := o.SetContent(map[string]any{"spec": map[string]any{}, "status": content["status"]}); err != nil {
		t.Fatal(err)
	}
	if got := ready(); !strings.HasPrefix(got, "True Serving ") {
		t.Errorf("thawed: %s", got)
	}
}

func TestAQuotaNamesWhatCounts(t *testing.T) {
	c := &Clusters{counted: []string{"configmaps", "virtualservices.networking.istio.io"}}
	for _, x := range []struct {
		name, quota string
		old         *object.Object
		want        []string // fields
	}{
		{"what counts", `{"kinds":{"configmaps":1,"virtualservices.networking.istio.io":0}}`, nil, nil},
		{"what does not", `{"bytes":"-1Ki","kinds":{"events":1,"virtualservices":1}}`, nil,
			[]string{"spec.quota.bytes", "spec.quota.kinds[events]", "spec.quota.kinds[virtualservices]"}},
		{"what an earlier vmesh took", `{"kinds":{"old":1,"older":1}}`, virtualCluster(t, `"spec":{"quota":{"kinds":{"old":2}}}`), []string{"spec.quota.kinds[older]"}},
	} {
		t.Run(x.name, func(t *testing.T) {
			vc, err := Decode(virtualCluster(t, `"spec":{"quota":`+x.quota+`}`))
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, e := range c.validateQuota(vc, x.old) {
				got = append(got, e.Field)
			}
			if slices.Sort(got); !slices.Equal(got, x.want) {
				t.Errorf("got %v", got)
			}
		})
	}
}
