package xds

import (
	"fmt"
	"sync/atomic"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
)

// counts are how often something was told.
type counts struct{ connected, acknowledged atomic.Int32 }

func (c *counts) Connected(string)    { c.connected.Add(1) }
func (c *counts) Acknowledged(string) { c.acknowledged.Add(1) }

// shown are the receivers of VirtualServices in words.
func (w *world) shown() string {
	out := ""
	for _, r := range w.server.Receivers("default", 0) {
		text := func(l interface{ Len() int }, name string) string { return fmt.Sprintf(" %s %d", name, l.Len()) }
		out += r.ID + "/" + r.Revision
		if r.Asked {
			out += " asked"
		}
		out += text(r.Due, "wants")
		if r.Acked != nil {
			out += text(r.Acked, "has")
		}
		if !r.Unanswered.IsZero() {
			out += " owes"
		}
		if r.Refusal != "" {
			out += " refuses: " + r.Refusal
		}
		out += "\n"
	}
	return out
}

func (w *world) showsEventually(want string) {
	w.t.Helper()
	got := ""
	eventually(w.t, fmt.Sprintf("%q", want), func() bool {
		got = w.shown()
		if got != want && w.t.Failed() {
			w.t.Log(got)
		}
		return got == want
	})
}

func TestReceiversTellWhatWasAcknowledgedAndNotWhatWasSent(t *testing.T) {
	told := &counts{}
	w := newWorld(t, textKinds(), Options{Follower: told}).start(nil)
	c := w.sotw()
	c.ask(gateways)
	c.expect(gateways, "")
	w.showsEventually("istiod/canary wants 0\n")
	c.ask(virtualServices)
	r := c.receive()
	w.showsEventually("istiod/canary asked wants 0 owes\n")
	c.ack(r)
	w.showsEventually("istiod/canary asked wants 0 has 0\n")
	w.set("shop/a", "1")
	r = c.receive()
	w.set("shop/b", "1") // is held back until the one before is answered
	w.showsEventually("istiod/canary asked wants 2 has 0 owes\n")
	c.ack(r)
	r = c.receive()
	w.showsEventually("istiod/canary asked wants 2 has 1 owes\n")
	before := told.acknowledged.Load()
	c.send(&discovery.DiscoveryRequest{TypeUrl: r.TypeUrl, ResponseNonce: r.Nonce, ErrorDetail: &rpcstatus.Status{Message: "no"}})
	w.showsEventually("istiod/canary asked wants 2 has 1 refuses: no\n")
	eventually(t, "being told", func() bool { return told.acknowledged.Load() == before+1 })
	c.cancel()
	w.showsEventually("")
	if told.connected.Load() != 2 {
		t.Errorf("told %d times of a control plane that came and went", told.connected.Load())
	}
}

func TestReceiversOfDeltaHaveAllOrDoNotCount(t *testing.T) {
	w := newWorld(t, textKinds(), Options{}).start(nil)
	w.set("shop/a", "1")
	all := w.delta()
	all.send(&discovery.DeltaDiscoveryRequest{Node: node("all")})
	all.expect("shop/a=1")
	w.showsEventually("all/canary asked wants 1 has 1\n")
	w.set("shop/b", "1")
	r := all.receive()
	w.showsEventually("all/canary asked wants 2 has 1 owes\n")
	all.ack(r)
	w.showsEventually("all/canary asked wants 2 has 2\n")
	all.send(&discovery.DeltaDiscoveryRequest{ResourceNamesUnsubscribe: []string{"*"}})
	w.showsEventually("all/canary wants 2\n")
	all.send(&discovery.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{"*"}})
	all.expect("shop/a=1 shop/b=1")
	w.showsEventually("all/canary asked wants 2 has 2\n")

	one := w.delta()
	one.send(&discovery.DeltaDiscoveryRequest{Node: node("one"), ResourceNamesSubscribe: []string{"shop/a"}})
	one.expect("shop/a=1")
	w.showsEventually("all/canary asked wants 2 has 2\none/canary wants 2\n")
}

func TestControlPlanesHaveAListWhenEachHasAcknowledgedIt(t *testing.T) {
	w := newWorld(t, textKinds(), Options{}).start(nil)
	have := func() bool {
		t.Helper()
		mesh := w.builder.Subscribe("default")
		defer mesh.Close()
		current, err := mesh.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		return w.server.Have("default", current.Lists)[0]
	}
	expect := func(want bool, when string) {
		t.Helper()
		if have() != want {
			t.Errorf("%s: have is %v", when, !want)
		}
	}
	w.set("shop/a", "1")
	expect(false, "without a control plane")
	one := w.sotw()
	one.ask(gateways)
	one.expect(gateways, "")
	expect(false, "it has not asked for the kind")
	one.ask(virtualServices)
	r := one.receive()
	expect(false, "it was sent the list")
	one.ack(r)
	eventually(t, "what it acknowledged", have)
	two := w.sotw()
	two.ask(virtualServices)
	r = two.receive()
	expect(false, "another one was sent the list")
	two.send(&discovery.DiscoveryRequest{TypeUrl: r.TypeUrl, ResponseNonce: r.Nonce, ErrorDetail: &rpcstatus.Status{Message: "no"}})
	w.showsEventually("istiod/canary asked wants 1 has 1\nistiod#2/canary asked wants 1 refuses: no\n")
	expect(false, "the other refuses it")
	two.cancel()
	eventually(t, "without the other", have)
	w.set("shop/a", "2")
	r = one.receive()
	expect(false, "it was sent another list")
	w.set("shop/a", "1") // what it has, but is about to leave
	w.showsEventually("istiod/canary asked wants 1 has 1 owes\n")
	expect(false, "it is on its way elsewhere")
	one.ack(r)
	one.ack(one.receive())
	eventually(t, "the way back", have)
}
