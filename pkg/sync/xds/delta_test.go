package xds

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/proto"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/sync/snapshot"
)

type deltaRequest = discovery.DeltaDiscoveryRequest

func TestDeltaGivesAllAndThenWhatChanges(t *testing.T) {
	for name, first := range map[string]*deltaRequest{
		"asked for without a name": {Node: node("relay")},
		"asked for by a star":      {Node: node("relay"), ResourceNamesSubscribe: []string{"*"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, textKinds(), Options{}).start(map[string][]*object.Object{"virtualservices": textObjects("n/a=1", "n/b=1")})
			c := w.delta()
			c.send(first)
			c.expect("n/a=1 n/b=1")
			w.set("n/c", "1")
			c.expect("n/c=1")
			w.set("n/a", "2")
			c.expect("n/a=2")
			w.delete("n/b")
			c.expect("-n/b")
			w.set("n/a", "2") // no change
			w.delete("n/c")
			c.expect("-n/c")
		})
	}
}

func TestDeltaAnswersAKindWithoutResources(t *testing.T) {
	w := newWorld(t, textKinds(), Options{}).start(nil)
	c := w.delta()
	c.send(&deltaRequest{TypeUrl: gateways})
	c.send(&deltaRequest{TypeUrl: meshConfig})
	if r := c.expect(""); r.TypeUrl != gateways {
		t.Errorf("answered %s", r.TypeUrl)
	}
	if r := c.expect(""); r.TypeUrl != meshConfig {
		t.Errorf("answered %s", r.TypeUrl)
	}
}

func TestDeltaGivesAReturningClientWhatItLacks(t *testing.T) {
	w := newWorld(t, textKinds(), Options{}).start(map[string][]*object.Object{"virtualservices": textObjects("n/a=1", "n/b=1", "n/c=1")})
	c := w.delta()
	c.send(&deltaRequest{})
	versions := map[string]string{}
	for _, r := range c.expect("n/a=1 n/b=1 n/c=1").Resources {
		versions[r.Name] = r.Version
	}
	w.set("n/b", "2")
	c.expect("n/b=2")
	w.delete("n/c")
	c.expect("-n/c")

	c = w.delta()
	c.send(&deltaRequest{InitialResourceVersions: versions})
	c.expect("-n/c n/b=2")
	w.set("n/a", "2")
	c.expect("n/a=2")

	c = w.delta()
	c.send(&deltaRequest{ResourceNamesSubscribe: []string{"n/a", "n/b", "n/c", "n/d"}, InitialResourceVersions: map[string]string{
		"n/a": "old", "n/b": w.version("n/b"), "n/c": "old",
	}})
	c.expect("-n/c -n/d n/a=2")
}

func (w *world) version(name string) string {
	for _, s := range w.builder.Snapshots() {
		if e, ok := s.Lists[0].Get(name); ok {
			return e.Version()
		}
	}
	return ""
}

func TestDeltaSubscribesByName(t *testing.T) {
	w := newWorld(t, textKinds(), Options{}).start(map[string][]*object.Object{"virtualservices": textObjects("n/a=1", "n/b=1")})
	c := w.delta()
	c.send(&deltaRequest{ResourceNamesSubscribe: []string{"n/a", "n/z"}})
	c.expect("-n/z n/a=1") // of what does not exist it is told
	w.set("n/b", "2")
	w.set("n/z", "1")
	c.expect("n/z=1")
	c.send(&deltaRequest{ResourceNamesSubscribe: []string{"n/b"}})
	c.expect("n/b=2")
	c.send(&deltaRequest{ResourceNamesSubscribe: []string{"n/b"}}) // asking again is asking
	c.expect("n/b=2")
	c.send(&deltaRequest{ResourceNamesUnsubscribe: []string{"n/a"}, ResourceNamesSubscribe: []string{"n/b"}})
	c.expect("n/b=2")
	w.set("n/a", "2")
	w.delete("n/b")
	c.expect("-n/b")
	w.set("n/b", "3")
	c.expect("n/b=3")

	c.send(&deltaRequest{ResourceNamesSubscribe: []string{"*"}})
	c.expect("n/a=2") // the rest it has
	w.set("n/y", "1")
	c.expect("n/y=1")
	c.send(&deltaRequest{ResourceNamesUnsubscribe: []string{"*"}, ResourceNamesSubscribe: []string{"n/z"}})
	c.expect("n/z=1")
	w.set("n/y", "2")
	w.set("n/z", "2")
	c.expect("n/z=2")
}

func TestDeltaDoesNotRepeatWhatWasRefused(t *testing.T) {
	w := newWorld(t, textKinds(), Options{}).start(map[string][]*object.Object{"virtualservices": textObjects("n/a=1")})
	c := w.delta()
	c.send(&deltaRequest{Node: node("relay")})
	r := c.receive()
	c.send(&deltaRequest{ResponseNonce: r.Nonce, ErrorDetail: &status.Status{Code: 3}})
	eventually(t, "the refusal to be known", func() bool {
		return w.server.ControlPlanes("default")[0].Kinds[0].Error == "refused with code 3"
	})
	w.set("n/b", "1")
	c.expect("n/b=1")
}

func TestDeltaWaitsForAnAcknowledgement(t *testing.T) {
	w := newWorld(t, textKinds(), Options{}).start(map[string][]*object.Object{"virtualservices": textObjects("n/a=0")})
	c := w.delta()
	c.send(&deltaRequest{})
	r := c.receive()
	for i := range 50 {
		w.set("n/a", fmt.Sprint(i))
		w.set(fmt.Sprint("n/b", i), "1")
		w.delete(fmt.Sprint("n/b", i))
	}
	w.set("n/c", "1")
	eventually(t, "the last change to be in the snapshot", func() bool { return w.version("n/c") != "" })
	c.ack(r)
	c.expect("n/a=49 n/c=1")
}

// deltaModel is a client of delta that is driven by a script, with the server's side
// of the protocol but without a network, and what the client must have.
type deltaModel struct {
	t        testing.TB
	interest *interest
	lists    *listMaker
	list     *snapshot.List
	all      bool
	names    map[string]bool
	have     map[string]string // name to version
	nonce    int
}

// listMaker makes lists of a few resources, through a builder.
type listMaker struct {
	world *world
	sub   *snapshot.Subscription
}

func (m *listMaker) list() *snapshot.List {
	s, err := m.sub.Snapshot()
	if err != nil {
		m.world.t.Fatal(err)
	}
	return s.Lists[0]
}

func (m *listMaker) change(name, text string) *snapshot.List {
	before := m.list()
	if text == "" {
		if _, ok := before.Get(name); !ok {
			return before
		}
		m.world.delete(name)
	} else {
		m.world.set(name, text)
	}
	// A change of another kind tells when this one has been taken in.
	m.world.revision++
	marker := fmt.Sprint("n/g", m.world.revision)
	m.world.change("gateways", watch.Added, textObject("c", marker, "1"))
	eventually(m.world.t, "the change", func() bool {
		s, err := m.sub.Snapshot()
		if err != nil {
			return false
		}
		_, ok := s.Lists[1].Get(marker)
		return ok
	})
	return m.list()
}

func newListMaker(t testing.TB) *listMaker {
	w := newWorld(t, textKinds(), Options{}).start(nil)
	sub := w.builder.Subscribe("default")
	t.Cleanup(sub.Close)
	return &listMaker{w, sub}
}

func (m *deltaModel) request(r *request) {
	isNew := m.interest == nil
	if isNew {
		m.interest = &interest{typeURL: virtualServices}
	}
	must, err := delta{}.subscribe(m.interest, r, isNew)
	if err != nil {
		m.t.Fatal(err)
	}
	// What a client has of what it no longer wants it forgets at once.
	for _, name := range r.unsubscribe {
		if name == wildcard {
			m.all = false
		} else {
			delete(m.names, name)
		}
	}
	if isNew && len(r.subscribe) == 0 || slices.Contains(r.subscribe, wildcard) {
		m.all = true
	}
	for _, name := range r.subscribe {
		if name != wildcard {
			m.names[name] = true
		}
	}
	if isNew {
		m.have = maps.Clone(r.initial)
		if m.have == nil {
			m.have = map[string]string{}
		}
	}
	m.forget()
	m.respond(must)
}

func (m *deltaModel) forget() {
	if !m.all {
		maps.DeleteFunc(m.have, func(name, _ string) bool { return !m.names[name] })
	}
}

func (m *deltaModel) respond(must bool) {
	if m.interest == nil || !must && m.interest.list != nil && m.interest.list.Version() == m.list.Version() {
		return
	}
	m.nonce++
	out := delta{}.respond(m.interest, m.list, fmt.Sprint(m.nonce), must)
	m.interest.list = m.list
	if out == nil {
		if must {
			m.t.Fatal("no response though one is owed")
		}
	} else {
		var r discovery.DeltaDiscoveryResponse
		data := out.buffers.Materialize()
		if err := proto.Unmarshal(data, &r); err != nil || len(data) != out.bytes {
			m.t.Fatalf("a response of %d bytes, said to be %d: %v", len(data), out.bytes, err)
		}
		seen := map[string]bool{}
		for _, res := range r.Resources {
			name, _, version := decode(m.t, res.Resource)
			if name != res.Name || version != res.Version || seen[name] {
				m.t.Fatalf("%s is %s %s, or is given twice", res.Name, name, version)
			}
			seen[name] = true
			m.have[name] = version
		}
		for _, name := range r.RemovedResources {
			if seen[name] {
				m.t.Fatalf("%s is given and removed", name)
			}
			delete(m.have, name)
		}
		if r.Nonce != fmt.Sprint(m.nonce) || r.TypeUrl != virtualServices || r.SystemVersionInfo != m.list.Version() {
			m.t.Fatalf("response %v", &r)
		}
	}
	m.forget()
	want := map[string]string{}
	for e := range m.list.All() {
		if name := strings.Clone(e.Name()); m.all || m.names[name] {
			want[name] = e.Version()
		}
	}
	if !maps.Equal(m.have, want) {
		m.t.Fatalf("the client has %v, want %v", m.have, want)
	}
}

// play runs a script: each byte is a step.
func (m *deltaModel) play(script []byte) {
	name := func(b byte) string { return fmt.Sprint("n/", b%6) }
	for len(script) > 1 {
		op, arg := script[0], script[1]
		script = script[2:]
		switch op % 8 {
		case 0, 1:
			m.list = m.lists.change(name(arg), fmt.Sprint(1+arg/6%3))
		case 2:
			m.list = m.lists.change(name(arg), "")
		case 3:
			m.request(&request{subscribe: []string{name(arg), name(arg / 6)}, initial: map[string]string{name(arg / 6): "old"}})
			continue
		case 4:
			m.request(&request{unsubscribe: []string{name(arg)}})
			continue
		case 5:
			m.request(&request{subscribe: []string{wildcard}})
			continue
		case 6:
			m.request(&request{unsubscribe: []string{wildcard, name(arg)}})
			continue
		case 7:
			if m.interest == nil {
				m.request(&request{initial: map[string]string{name(arg): m.lists.world.version(name(arg)), name(arg + 1): "old"}})
			}
			continue
		}
		m.respond(false)
	}
}

func newDeltaModel(t testing.TB, lists *listMaker) *deltaModel {
	return &deltaModel{t: t, lists: lists, list: lists.list(), names: map[string]bool{}, have: map[string]string{}}
}

func TestDeltaClientsAlwaysHaveWhatTheyWant(t *testing.T) {
	lists := newListMaker(t)
	random := rand.New(rand.NewPCG(7, 8))
	deadline := time.Now().Add(20 * time.Second)
	for range 100 {
		script := make([]byte, 80)
		for i := range script {
			script[i] = byte(random.Uint32())
		}
		newDeltaModel(t, lists).play(script)
		if time.Now().After(deadline) {
			break
		}
	}
}

func FuzzDelta(f *testing.F) {
	f.Add([]byte{7, 0, 0, 1, 3, 2, 2, 1, 6, 0, 5, 0})
	f.Add([]byte{3, 1, 0, 1, 5, 0, 2, 1, 6, 1, 0, 13, 4, 1})
	lists := newListMaker(f)
	f.Fuzz(func(t *testing.T, script []byte) {
		lists.world.t = t
		newDeltaModel(t, lists).play(script)
	})
}
