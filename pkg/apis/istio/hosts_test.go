package istio_test

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/vmesh-io/vmesh/pkg/apis/istio"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

func TestShortNamesAreSentWrittenOut(t *testing.T) {
	for _, c := range []struct{ resource, spec, want string }{
		{"destinationrules", `{"host":"reviews"}`, `{"host":"reviews.shop.svc.cluster.local"}`},
		{"destinationrules", `{"host":"reviews.bank"}`, `{"host":"reviews.bank"}`},
		{"destinationrules", `{"host":"*"}`, `{"host":"*"}`},
		{"virtualservices", `{"hosts":["reviews","*","10.0.0.1","fd00::1","*.example.com"],` +
			`"http":[{"route":[{"destination":{"host":"v1"}},{"destination":{"host":"v2.example.com"}}],"mirror":{"host":"m"},"mirrors":[{"destination":{"host":"n"}}]},{"redirect":{"uri":"/"}}],` +
			`"tcp":[{"route":[{"destination":{"host":"t"}}]}],"tls":[{"match":[{"sniHosts":["reviews"]}],"route":[{"destination":{"host":"s"}}]}]}`,
			`{"hosts":["reviews.shop.svc.cluster.local","*","10.0.0.1","fd00::1","*.example.com"],` +
				`"http":[{"route":[{"destination":{"host":"v1.shop.svc.cluster.local"}},{"destination":{"host":"v2.example.com"}}],` +
				`"mirror":{"host":"m.shop.svc.cluster.local"},"mirrors":[{"destination":{"host":"n.shop.svc.cluster.local"}}]},{"redirect":{"uri":"/"}}],` +
				`"tls":[{"match":[{"sniHosts":["reviews"]}],"route":[{"destination":{"host":"s.shop.svc.cluster.local"}}]}],"tcp":[{"route":[{"destination":{"host":"t.shop.svc.cluster.local"}}]}]}`},
		// Istio does not complete these.
		{"serviceentries", `{"hosts":["reviews"]}`, `{"hosts":["reviews"]}`},
	} {
		r, err := istio.ResourceOf(find(t, c.resource))
		if err != nil {
			t.Fatal(err)
		}
		o := &object.Object{}
		if err := o.UnmarshalJSON([]byte(`{"metadata":{"name":"x","namespace":"shop"},"spec":` + c.spec + `}`)); err != nil {
			t.Fatal(err)
		}
		data, err := r.AppendMessage(nil, o)
		if err != nil {
			t.Fatal(err)
		}
		instance, err := r.Schema.NewInstance()
		if err != nil {
			t.Fatal(err)
		}
		got := instance.(proto.Message)
		if err := proto.Unmarshal(data, got); err != nil {
			t.Fatal(err)
		}
		want := got.ProtoReflect().New().Interface()
		if err := protojson.Unmarshal([]byte(c.want), want); err != nil {
			t.Fatal(err)
		}
		if !proto.Equal(got, want) {
			t.Errorf("%s of %s: sent is %v", c.resource, c.spec, got)
		}
		if body := string(o.Body()); !strings.Contains(body, c.spec) {
			t.Errorf("what is stored has changed: %s", body)
		}
	}
}
