package policy

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/ownership"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

// share is what an object of shop or bank says for the hosts that bank grants to shop.
func share(t *testing.T, index *ownership.Index, kind, cluster, namespace, spec string, age int64) *Shared {
	t.Helper()
	o := an(t, kind, namespace, spec)
	o.CreationTimestamp = metav1.Unix(1000-age, 0)
	return Share(kind, o, index.View(cluster, "istio-system"))
}

func TestOnlyHostsThatAreGrantedAreShared(t *testing.T) {
	index := theMesh()
	for _, c := range []struct{ kind, cluster, namespace, spec, hosts string }{
		{serviceEntry, "shop", "shop", `{"hosts":["Open.Bank.example.com"]}`, "open.bank.example.com"},
		{serviceEntry, "bank", "bank", `{"hosts":["x.open.bank.example.com","bank.example.com"]}`, "x.open.bank.example.com"},
		{virtualService, "bank", "bank", `{"hosts":["rates"],"http":[{}]}`, "rates.bank.svc.cluster.local"},
		{virtualService, "bank", "bank", `{"hosts":["rates.bank"],"http":[{}]}`, "rates.bank"},
		{virtualService, "shop", "shop", `{"hosts":["rates.bank.svc.cluster.local","*.open.bank.example.com"],"http":[{}]}`, "*.open.bank.example.com rates.bank.svc.cluster.local"},
		{virtualService, "shop", "shop", `{"hosts":["rates"],"http":[{}]}`, ""}, // rates.shop
		{serviceEntry, "bank", "bank", `{"hosts":["bank.example.com"]}`, ""},
		{serviceEntry, "shop", "shop", `{"hosts":["open.bank.example.com"],"exportTo":["~"]}`, ""},
		{serviceEntry, "edge", "edge", `{"hosts":["edge.example.com"]}`, ""},
		{serviceEntry, "rest", "other", `{"hosts":["open.bank.example.com"]}`, ""}, // nothing is granted
		{destinationRule, "shop", "shop", `{"host":"open.bank.example.com"}`, ""},
		{gateway, "shop", "shop", `{"servers":[{"hosts":["open.bank.example.com"]}]}`, ""},
	} {
		s := share(t, index, c.kind, c.cluster, c.namespace, c.spec, 0)
		got := ""
		if s != nil {
			got = strings.Join(s.Hosts, " ")
		}
		if got != c.hosts {
			t.Errorf("%s of %s %s shares %q, want %q", c.kind, c.cluster, c.spec, got, c.hosts)
		}
	}
}

func TestTheOldestHasAHostWhereBothAreSeenAndNeitherIsNearer(t *testing.T) {
	const host = `"hosts":["open.bank.example.com"]`
	index := theMesh(func(all map[string]*ownership.Claims) {
		all["bank"].Namespaces = append(all["bank"].Namespaces, "bank-2")
	})
	const nothing, inPart, all = "nothing", "a host, and keeps others", "all that it says"
	for _, c := range []struct {
		name, kind, older, younger string
		loses                      string // what the younger loses
	}{
		{"both go everywhere", serviceEntry, `{` + host + `,"exportTo":["*"]}`, `{` + host + `,"exportTo":["*"]}`, all},
		{"without exportTo it is everywhere", serviceEntry, `{` + host + `}`, `{` + host + `}`, all},
		{"upper case is the same", serviceEntry, `{"hosts":["OPEN.bank.example.com"]}`, `{` + host + `}`, all},
		{"ports do not matter", serviceEntry, `{` + host + `,"ports":[{"number":80,"protocol":"HTTP"}]}`, `{` + host + `,"ports":[{"number":443,"protocol":"TLS"}]}`, all},
		{"each keeps to its own", serviceEntry, `{` + host + `,"exportTo":["."]}`, `{` + host + `,"exportTo":["."]}`, nothing},
		{"the younger keeps to its own", serviceEntry, `{` + host + `,"exportTo":["*"]}`, `{` + host + `,"exportTo":["."]}`, nothing},
		{"the older keeps to its own", serviceEntry, `{` + host + `,"exportTo":["."]}`, `{` + host + `,"exportTo":["*"]}`, nothing},
		{"the younger is nearer by name", serviceEntry, `{` + host + `,"exportTo":["*"]}`, `{` + host + `,"exportTo":[".","edge"]}`, nothing},
		{"both go to a third, the older also to the younger's", serviceEntry, `{` + host + `,"exportTo":["shop","edge"]}`, `{` + host + `,"exportTo":[".","edge"]}`, all},
		{"both go to a third, the older not to the younger's", serviceEntry, `{` + host + `,"exportTo":[".","edge"]}`, `{` + host + `,"exportTo":[".","edge"]}`, nothing},
		{"both go to a third alone", serviceEntry, `{` + host + `,"exportTo":["edge"]}`, `{` + host + `,"exportTo":["edge"]}`, all},
		{"one namespace is left to the younger", serviceEntry, `{` + host + `,"exportTo":["edge"]}`, `{` + host + `,"exportTo":["edge","other"]}`, nothing},
		{"what goes to the older's namespace alone", serviceEntry, `{` + host + `}`, `{` + host + `,"exportTo":["bank"]}`, all},
		{"a VirtualService that does so is nearer", virtualService, `{` + host + `,"http":[{}]}`, `{` + host + `,"http":[{}],"exportTo":["bank"]}`, nothing},
		{"the younger has another host as well", serviceEntry, `{` + host + `}`, `{"hosts":["open.bank.example.com","shop.example.com"]}`, inPart},
		{"the older has another host as well", serviceEntry, `{"hosts":["open.bank.example.com","bank.example.com"]}`, `{` + host + `}`, all},

		{"routes for all", virtualService, `{` + host + `,"http":[{}]}`, `{` + host + `,"http":[{}]}`, all},
		{"the older routes by the path", virtualService, `{` + host + `,"http":[{"match":[{"uri":{"prefix":"/a"}}]}]}`, `{` + host + `,"http":[{}]}`, all},
		{"the older is for some callers", virtualService, `{` + host + `,"http":[{"match":[{"sourceNamespace":"edge"}]}]}`, `{` + host + `,"http":[{}]}`, nothing},
		{"the older is for some workloads", virtualService, `{` + host + `,"http":[{"match":[{"sourceLabels":{"a":"b"},"uri":{"prefix":"/a"}}]}]}`, `{` + host + `,"http":[{}]}`, nothing},
		{"the older is for one port", virtualService, `{` + host + `,"http":[{"match":[{"port":80}]}]}`, `{` + host + `,"http":[{}]}`, nothing},
		{"the older is for some callers, then for all", virtualService, `{` + host + `,"http":[{"match":[{"port":80}]},{"route":[]}]}`, `{` + host + `,"http":[{}]}`, all},
		{"the older delegates", virtualService, `{` + host + `,"http":[{"delegate":{"name":"x"}}]}`, `{` + host + `,"http":[{}]}`, nothing},
		{"the older has no routes of HTTP", virtualService, `{` + host + `,"tls":[{}]}`, `{` + host + `,"http":[{}]}`, nothing},
		{"the younger has other routes too", virtualService, `{` + host + `,"http":[{}]}`, `{` + host + `,"http":[{}],"tls":[{}]}`, nothing},
		{"at a gateway they are merged", virtualService, `{` + host + `,"http":[{}],"gateways":["edge/public"]}`, `{` + host + `,"http":[{}],"gateways":["edge/public"]}`, nothing},
		{"the younger is at a gateway too", virtualService, `{` + host + `,"http":[{}]}`, `{` + host + `,"http":[{}],"gateways":["mesh","edge/public"]}`, inPart},
		{"the older is at a gateway too", virtualService, `{` + host + `,"http":[{}],"gateways":["mesh","edge/public"]}`, `{` + host + `,"http":[{}]}`, all},
		{"the younger's domain is wider", serviceEntry, `{` + host + `}`, `{"hosts":["*.open.bank.example.com"]}`, nothing},
	} {
		t.Run(c.name, func(t *testing.T) {
			older, younger := share(t, index, c.kind, "bank", "bank", c.older, 9), share(t, index, c.kind, "shop", "shop", c.younger, 5)
			if older == nil {
				if c.loses != nothing {
					t.Fatal("the older says nothing")
				}
				return
			}
			if younger == nil {
				if c.loses != nothing {
					t.Fatal("the younger says nothing")
				}
				return
			}
			shared := false
			for _, h := range younger.Hosts {
				for _, o := range older.Hosts {
					shared = shared || h == o
				}
			}
			got := nothing
			if shared && older.TakesFrom(younger) {
				if got = inPart; younger.Alone() {
					got = all
				}
			}
			if got != c.loses {
				t.Errorf("the younger loses %s, want %s", got, c.loses)
			}
			if younger.TakesFrom(older) {
				t.Error("the younger takes from the older")
			}
			own := share(t, index, c.kind, "bank", "bank-2", c.younger, 1)
			if own != nil && older.TakesFrom(own) {
				t.Error("a virtual cluster takes from itself")
			}
		})
	}
}

func TestOfOneAgeNamesDecideAsTheyDoForControlPlanes(t *testing.T) {
	at := func(kind, namespace, name string) *Shared {
		return &Shared{kind: kind, namespace: namespace, name: name, created: time.Now().Unix()}
	}
	if at(virtualService, "b", "a").Compare(at(virtualService, "a", "b")) >= 0 {
		t.Error("of VirtualServices the name comes first")
	}
	if at(serviceEntry, "b", "a").Compare(at(serviceEntry, "a", "b")) <= 0 {
		t.Error("of ServiceEntries the namespace comes first")
	}
}

func TestTheLoserIsToldWhoHasItsHost(t *testing.T) {
	s := share(t, theMesh(), serviceEntry, "bank", "bank", `{"hosts":["open.bank.example.com"]}`, 1)
	v := s.Taken("open.bank.example.com")
	if v.Reason != ReasonHostTaken || !strings.Contains(v.Message, `ServiceEntry bank/it of virtual cluster "bank"`) || !strings.Contains(v.Message, `"open.bank.example.com" is taken`) {
		t.Errorf("it is told %+v", v)
	}
}

func BenchmarkShareWithoutGrants(b *testing.B) {
	index := theMesh(func(all map[string]*ownership.Claims) { all["bank"].Grants = []v1alpha1.VirtualClusterGrant{} })
	o := an(b, serviceEntry, "bank", `{"hosts":["open.bank.example.com"]}`)
	v := index.View("bank", "istio-system")
	for b.Loop() {
		if Share(serviceEntry, o, v) != nil {
			b.Fatal("shared")
		}
	}
}

func FuzzShare(f *testing.F) {
	f.Add(`{"hosts":["open.bank.example.com"],"http":[{"match":[{"uri":{"prefix":"/"}}]}],"exportTo":[".","*"]}`)
	f.Add(`{"hosts":["a"],"tls":[{}],"tcp":null,"http":[{"delegate":{}},null]}`)
	index := theMesh()
	f.Fuzz(func(t *testing.T, spec string) {
		var content any
		if json.Unmarshal([]byte(spec), &content) != nil {
			t.Skip()
		}
		if _, is := content.(map[string]any); !is {
			t.Skip()
		}
		for _, kind := range []string{virtualService, serviceEntry} {
			s := share(t, index, kind, "shop", "shop", spec, 1)
			if s == nil {
				continue
			}
			if len(s.Hosts) == 0 || !slices.IsSorted(s.Hosts) || !s.takes && !s.yields || !s.all && len(s.exportTo) == 0 {
				t.Errorf("%s shares %+v", spec, s)
			}
			if s.TakesFrom(s) {
				t.Error("it takes from itself")
			}
		}
	})
}
