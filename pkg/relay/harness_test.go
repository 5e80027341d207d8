package relay

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	mcp "istio.io/api/mcp/v1alpha1"

	"github.com/vmesh-io/vmesh/pkg/sync/snapshot"
)

const patience = time.Minute

// marshalled is a resource as vmesh sends it.
func marshalled(t testing.TB, name, text string) (version string, body []byte) {
	t.Helper()
	sum := sha256.Sum256([]byte(name + "=" + text))
	version = base64.RawURLEncoding.EncodeToString(sum[:12])
	inner, err := anypb.New(wrapperspb.String(text))
	if err != nil {
		t.Fatal(err)
	}
	outer, err := anypb.New(&mcp.Resource{Metadata: &mcp.Metadata{Name: name, Version: version}, Body: inner})
	if err != nil {
		t.Fatal(err)
	}
	if body, err = proto.Marshal(outer); err != nil {
		t.Fatal(err)
	}
	return version, body
}

func set(t testing.TB, name, text string) snapshot.Update {
	t.Helper()
	version, body := marshalled(t, name, text)
	u, err := snapshot.Received(name, version, body)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// content is what a state holds, by kind and name.
func content(t testing.TB, s *state) []map[string]string {
	t.Helper()
	all := make([]map[string]string, len(s.shards[0]))
	for kind := range all {
		all[kind] = map[string]string{}
		for _, l := range s.kindLists(kind) {
			for e := range l.All() {
				if _, twice := all[kind][e.Name()]; twice {
					t.Fatalf("%s is in two shards", e.Name())
				}
				all[kind][e.Name()] = textOf(t, e.Resource())
			}
		}
	}
	return all
}

func textOf(t testing.TB, body []byte) string {
	t.Helper()
	var outer anypb.Any
	if err := proto.Unmarshal(body, &outer); err != nil {
		t.Fatal(err)
	}
	_, text := decoded(t, &outer)
	return text
}

func decoded(t testing.TB, outer *anypb.Any) (name, text string) {
	t.Helper()
	var resource mcp.Resource
	var value wrapperspb.StringValue
	if err := outer.UnmarshalTo(&resource); err != nil {
		t.Error(err)
		return "", ""
	}
	if err := resource.Body.UnmarshalTo(&value); err != nil {
		t.Error(err)
	}
	return resource.GetMetadata().GetName(), value.Value
}

// model is a mesh as vmesh has it: what a relay must come to hold.
type model struct {
	t     testing.TB
	lists []*snapshot.List
	texts []map[string]string
}

func newModel(t testing.TB, kinds int) *model {
	m := &model{t: t, lists: make([]*snapshot.List, kinds), texts: make([]map[string]string, kinds)}
	for i := range m.lists {
		m.lists[i], m.texts[i] = snapshot.Empty, map[string]string{}
	}
	return m
}

// step makes a random change of a random kind, and gives it as one would come.
func (m *model) step(rnd *rand.Rand, kinds []snapshot.Kind) change {
	kind := rnd.IntN(len(m.lists))
	var updates []snapshot.Update
	for range 1 + rnd.IntN(6) {
		name := fmt.Sprintf("ns-%d/name-%d", rnd.IntN(4), rnd.IntN(30))
		if rnd.IntN(4) == 0 {
			updates = append(updates, snapshot.Removed(name))
			delete(m.texts[kind], name)
			continue
		}
		text := fmt.Sprint(rnd.IntN(1000))
		updates = append(updates, set(m.t, name, text))
		m.texts[kind][name] = text
	}
	m.lists[kind] = m.lists[kind].With(updates, time.Now())
	return change{kind: kind, typeURL: kinds[kind].TypeURL, updates: updates, version: m.lists[kind].Version()}
}

func eventually(t testing.TB, what string, met func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !met(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}
