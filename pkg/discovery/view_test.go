package discovery

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/discovery/discoverytest"
	"github.com/vmesh-io/vmesh/pkg/members"
)

func ptr[T any](v T) *T { return &v }

func aService(namespace, name string, change ...func(*corev1.Service)) *corev1.Service {
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, CreationTimestamp: metav1.Unix(1000, 0), Labels: map[string]string{"app": name}},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, ClusterIP: "10.0.0.1", Ports: []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}}},
	}
	for _, c := range change {
		c(s)
	}
	return s
}

// ep is an endpoint on a node, that is ready or not.
func ep(address, node string, ready bool) discoveryv1.Endpoint {
	e := discoveryv1.Endpoint{
		Addresses: []string{address}, Conditions: discoveryv1.EndpointConditions{Ready: ptr(ready)}, TargetRef: &corev1.ObjectReference{Kind: "Pod", Name: "p-" + address},
	}
	if node != "" {
		e.NodeName = ptr(node)
	}
	return e
}

func aSlice(namespace, service, name string, endpoints ...discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: discoveryv1.AddressTypeIPv4, Endpoints: endpoints, Ports: []discoveryv1.EndpointPort{{Name: ptr("http"), Port: ptr(int32(8080))}},
	}
	if len(endpoints) > 0 && strings.Contains(endpoints[0].Addresses[0], ":") {
		s.AddressType = discoveryv1.AddressTypeIPv6
	}
	return s
}

func aNode(name, region, zone string) *metav1.PartialObjectMetadata {
	labels := map[string]string{}
	if region != "" {
		labels[corev1.LabelTopologyRegion] = region
	}
	if zone != "" {
		labels[corev1.LabelTopologyZone] = zone
	}
	return &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
}

func aMember(name string, change ...func(*members.Member)) members.Member {
	m := members.Member{Name: name, Mesh: "default", UID: types.UID(name), Discovered: true}
	for _, c := range change {
		c(&m)
	}
	return m
}

// put stores objects as the reflectors would.
func put(v *View, member string, objects ...runtime.Object) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, o := range objects {
		if item := compact(o); item != nil {
			v.set(v.members[member], item)
		}
	}
}

func TestEndpointsAreCountedAsIstioCountsThem(t *testing.T) {
	conditions := func(ready, serving, terminating *bool) discoveryv1.Endpoint {
		return discoveryv1.Endpoint{Addresses: []string{"10.0.0.1"}, Conditions: discoveryv1.EndpointConditions{Ready: ready, Serving: serving, Terminating: terminating}}
	}
	yes, no := ptr(true), ptr(false)
	slice := func(change func(*discoveryv1.EndpointSlice), endpoints ...discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
		s := aSlice("shop", "a", "a-1", endpoints...)
		change(s)
		return s
	}
	asIs := func(*discoveryv1.EndpointSlice) {}
	for name, c := range map[string]struct {
		slices           []runtime.Object
		endpoints, ready int32
	}{
		"ready":                                {[]runtime.Object{slice(asIs, conditions(yes, yes, no))}, 1, 1},
		"readiness unknown":                    {[]runtime.Object{slice(asIs, conditions(nil, nil, nil))}, 1, 1},
		"not ready":                            {[]runtime.Object{slice(asIs, conditions(no, no, no))}, 1, 0},
		"terminating but serving":              {[]runtime.Object{slice(asIs, conditions(no, yes, yes))}, 1, 0},
		"several addresses of one":             {[]runtime.Object{slice(asIs, discoveryv1.Endpoint{Addresses: []string{"10.0.0.1", "10.0.0.2"}})}, 2, 2},
		"without ports":                        {[]runtime.Object{slice(func(s *discoveryv1.EndpointSlice) { s.Ports = nil }, conditions(yes, yes, no))}, 0, 0},
		"names instead of addresses":           {[]runtime.Object{slice(func(s *discoveryv1.EndpointSlice) { s.AddressType = discoveryv1.AddressTypeFQDN }, conditions(yes, yes, no))}, 0, 0},
		"of no service":                        {[]runtime.Object{slice(func(s *discoveryv1.EndpointSlice) { s.Labels = nil }, conditions(yes, yes, no))}, 0, 0},
		"brought from another cluster":         {[]runtime.Object{slice(func(s *discoveryv1.EndpointSlice) { s.Labels[multiClusterService] = "a" }, conditions(yes, yes, no))}, 0, 0},
		"in two slices":                        {[]runtime.Object{aSlice("shop", "a", "a-1", ep("10.0.0.1", "", true)), aSlice("shop", "a", "a-2", ep("10.0.0.2", "", false))}, 2, 1},
		"the same in two slices":               {[]runtime.Object{aSlice("shop", "a", "a-1", ep("10.0.0.1", "", true)), aSlice("shop", "a", "a-2", ep("10.0.0.1", "", true))}, 1, 1},
		"of both families":                     {[]runtime.Object{aSlice("shop", "a", "a-1", ep("fd00::1", "", true)), aSlice("shop", "a", "a-2", ep("10.0.0.1", "", true))}, 1, 1},
		"of both families, one of them empty":  {[]runtime.Object{aSlice("shop", "a", "a-1", ep("fd00::1", "", true)), aSlice("shop", "a", "a-2")}, 1, 1},
		"of another service in the same space": {[]runtime.Object{aSlice("shop", "b", "a-1", ep("10.0.0.1", "", true))}, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			for _, serviceFirst := range []bool{true, false} {
				v := New(nil)
				v.Changed(aMember("east"))
				if serviceFirst {
					put(v, "east", aService("shop", "a"))
				}
				put(v, "east", c.slices...)
				if !serviceFirst {
					put(v, "east", aService("shop", "a"))
				}
				s, found := v.Get("default", "shop", "a")
				if !found || s.Clusters[0].Endpoints != c.endpoints || s.Clusters[0].Ready != c.ready {
					t.Errorf("the service first: %v: got %+v, %v, want %d endpoints, %d ready", serviceFirst, s, found, c.endpoints, c.ready)
				}
				if r := v.Reading("east"); int32(r.Endpoints) != c.endpoints || int32(r.ReadyEndpoints) != c.ready {
					t.Errorf("the service first: %v: the member has %d endpoints, %d ready, want %d, %d", serviceFirst, r.Endpoints, r.ReadyEndpoints, c.endpoints, c.ready)
				}
			}
		})
	}
}

func TestAnEndpointIsWhereItsNodeIs(t *testing.T) {
	zoned := ep("10.0.0.1", "n1", true)
	zoned.Zone = ptr("z")
	for name, c := range map[string]struct {
		member   v1alpha1.Locality
		node     *metav1.PartialObjectMetadata
		endpoint discoveryv1.Endpoint
		want     string
	}{
		"node with labels":                     {v1alpha1.Locality{Region: "m", Zone: "m1"}, aNode("n1", "eu", "eu-a"), zoned, "eu/eu-a"},
		"node without labels, endpoint's zone": {v1alpha1.Locality{Region: "m", Zone: "m1"}, aNode("n1", "", ""), zoned, "m/z"},
		"no node, endpoint's zone":             {v1alpha1.Locality{}, nil, zoned, "/z"},
		"no node, no zone":                     {v1alpha1.Locality{Region: "m", Zone: "m1", SubZone: "r"}, nil, ep("10.0.0.1", "n1", true), "m/m1/r"},
		"nothing known":                        {v1alpha1.Locality{}, nil, ep("10.0.0.1", "", true), ""},
		"region alone":                         {v1alpha1.Locality{}, aNode("n1", "eu", ""), ep("10.0.0.1", "n1", true), "eu"},
	} {
		t.Run(name, func(t *testing.T) {
			v := New(nil)
			v.Changed(aMember("east", func(m *members.Member) { m.Locality = c.member }))
			put(v, "east", aService("shop", "a"), aSlice("shop", "a", "a-1", c.endpoint))
			if c.node != nil {
				put(v, "east", c.node) // nodes may come last
			}
			s, _ := v.Get("default", "shop", "a")
			if got := s.Clusters[0].Localities; len(got) != 1 || got[0].Name != c.want {
				t.Errorf("got %v, want %q", got, c.want)
			}
		})
	}
}

// world is what members have, in Kubernetes' own form.
type world map[string]*struct {
	member  members.Member
	objects map[string]runtime.Object
}

// services is the definition of what a view shows.
func (w world) services(mesh string) map[Key]Service {
	out := map[Key]Service{}
	for _, name := range slices.Sorted(maps.Keys(w)) {
		at := w[name]
		if at.member.Mesh != mesh || !at.member.Discovered {
			continue
		}
		for _, o := range at.objects {
			svc, is := o.(*corev1.Service)
			if !is {
				continue
			}
			key := Key{Namespace: svc.Namespace, Name: svc.Name}
			s, known := out[key]
			if !known {
				s = Service{Namespace: svc.Namespace, Name: svc.Name, Created: svc.CreationTimestamp.UTC(), Labels: maps.Clone(svc.Labels)}
			}
			if svc.CreationTimestamp.Time.Before(s.Created) {
				s.Created = svc.CreationTimestamp.UTC()
			}
			maps.DeleteFunc(s.Labels, func(k, v string) bool { return svc.Labels[k] != v })
			c := Cluster{Member: name, Network: at.member.Network, Drained: at.member.Drained, AwaySince: at.member.AwaySince, Type: string(svc.Spec.Type)}
			for _, p := range svc.Spec.Ports {
				c.Ports = append(c.Ports, Port{Name: p.Name, Port: p.Port, Protocol: string(p.Protocol)})
			}
			seen, localities := map[string]bool{}, map[string]Locality{}
			for _, o := range at.objects {
				slice, is := o.(*discoveryv1.EndpointSlice)
				if !is || slice.Namespace != svc.Namespace || slice.Labels[discoveryv1.LabelServiceName] != svc.Name {
					continue
				}
				for _, e := range slice.Endpoints {
					if seen[e.Addresses[0]] {
						continue
					}
					seen[e.Addresses[0]] = true
					where := ""
					if node, has := at.objects["node/"+*e.NodeName]; has {
						where = node.(*metav1.PartialObjectMetadata).Labels[corev1.LabelTopologyRegion]
					}
					if where == "" {
						where = at.member.Locality.Region
					}
					l := localities[where]
					l.Name = where
					l.Endpoints, c.Endpoints = l.Endpoints+1, c.Endpoints+1
					if *e.Conditions.Ready {
						l.Ready, c.Ready = l.Ready+1, c.Ready+1
					}
					localities[where] = l
				}
			}
			for _, where := range slices.Sorted(maps.Keys(localities)) {
				c.Localities = append(c.Localities, localities[where])
			}
			s.Clusters = append(s.Clusters, c)
			out[key] = s
		}
	}
	return out
}

// TestAViewAgreesWithTheDefinition does what may happen in any order, and compares with what
// follows from the objects that there are. A client that follows changes must have the same.
func TestAViewAgreesWithTheDefinition(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 11))
	v, w := New(nil), world{}
	pick := func(prefix string, n int) string { return fmt.Sprintf("%s%d", prefix, r.IntN(n)) }
	client, alone := map[Key]Service{}, 0
	_, since := v.List("m0", func(string) bool { return false })
	for step := range 3000 {
		name := pick("c", 4)
		at := w[name]
		switch op := r.IntN(100); {
		case at == nil || op < 3:
			m := aMember(name, func(m *members.Member) {
				m.Network, m.Locality.Region, m.Mesh = pick("n", 2), pick("r", 3), "m0"
				m.Discovered, m.Drained = r.IntN(8) > 0, r.IntN(8) == 0
				if r.IntN(6) == 0 {
					m.AwaySince = time.Unix(int64(r.IntN(1000)+1), 0)
				}
			})
			if at == nil {
				w[name] = &struct {
					member  members.Member
					objects map[string]runtime.Object
				}{m, map[string]runtime.Object{}}
			} else {
				at.member = m
			}
			v.Changed(m)
		case op < 4:
			delete(w, name)
			v.Gone(name)
		case op < 6: // all of a kind anew, as after a relist
			objects := map[string]runtime.Object{}
			kind := r.IntN(kinds)
			prefix := []string{"service/", "slice/", "node/"}[kind]
			for k, o := range at.objects {
				if !strings.HasPrefix(k, prefix) || r.IntN(5) > 0 {
					objects[k] = o
				}
			}
			at.objects = objects
			var items []any
			for k, o := range objects {
				if strings.HasPrefix(k, prefix) {
					items = append(items, compact(o))
				}
			}
			v.mu.Lock()
			v.replace(v.members[name], kind, items)
			v.mu.Unlock()
		case op < 25:
			svc := aService(pick("s", 2), pick("a", 4), func(s *corev1.Service) {
				s.CreationTimestamp = metav1.Unix(int64(1000+r.IntN(3)), 0)
				s.Labels["v"] = pick("v", 2)
				s.Spec.Ports[0].Port = int32(80 + r.IntN(2))
			})
			key := "service/" + svc.Namespace + "/" + svc.Name
			if r.IntN(3) == 0 {
				delete(at.objects, key)
				v.mu.Lock()
				v.remove(v.members[name], kindServices, svc.Namespace, svc.Name)
				v.mu.Unlock()
				break
			}
			at.objects[key] = svc
			put(v, name, svc)
		case op < 85:
			var endpoints []discoveryv1.Endpoint
			ready := map[string]bool{}
			for range r.IntN(5) {
				address := fmt.Sprintf("10.0.0.%d", r.IntN(30))
				if _, twice := ready[address]; twice {
					continue
				}
				ready[address] = true
				// The same endpoint is the same in all slices: which one counts does not matter.
				last := int(address[len(address)-1])
				endpoints = append(endpoints, ep(address, fmt.Sprintf("k%d", last%5), last%3 > 0))
			}
			slice := aSlice(pick("s", 2), pick("a", 4), pick("x", 6), endpoints...)
			key := "slice/" + slice.Namespace + "/" + slice.Name
			if r.IntN(4) == 0 {
				delete(at.objects, key)
				v.mu.Lock()
				v.remove(v.members[name], kindSlices, slice.Namespace, slice.Name)
				v.mu.Unlock()
				break
			}
			at.objects[key] = slice
			put(v, name, slice)
		default:
			node := aNode(pick("k", 5), pick("r", 3), "")
			if r.IntN(3) == 0 {
				delete(at.objects, "node/"+node.Name)
				v.mu.Lock()
				v.remove(v.members[name], kindNodes, "", node.Name)
				v.mu.Unlock()
				break
			}
			at.objects["node/"+node.Name] = node
			put(v, name, node)
		}

		want := w.services("m0")
		all, _ := v.List("m0", func(string) bool { return true })
		got := map[Key]Service{}
		for _, s := range all {
			got[Key{Namespace: s.Namespace, Name: s.Name}] = s
		}
		compare(t, step, "the list", got, want)
		if r.IntN(4) == 0 {
			changes, version, _, ok := v.Changes("m0", since)
			if !ok {
				t.Fatalf("step %d: version %d is not known any more", step, since)
			}
			for _, c := range changes {
				s, found := v.Get("m0", c.Namespace, c.Name)
				if delete(client, c.Key); found {
					client[c.Key] = s
				}
			}
			since = version
			compare(t, step, "who follows", client, want)
		}
		if t.Failed() {
			return
		}
		for name, at := range w {
			reading := v.Reading(name)
			endpoints, services := 0, 0
			visible := at.member
			visible.Discovered = true
			for _, s := range (world{name: {visible, at.objects}}).services("m0") {
				endpoints, services = endpoints+int(s.Clusters[0].Endpoints), services+1
			}
			if reading.Endpoints != endpoints || reading.Services != services {
				t.Fatalf("step %d: %s has %d services and %d endpoints, want %d and %d", step, name, reading.Services, reading.Endpoints, services, endpoints)
			}
			checkPlaces(t, v.members[name])

			var only []string
			for key, s := range want {
				has, others := false, false
				for _, c := range s.Clusters {
					has = has || c.Member == name && c.Ready > 0
					others = others || c.Member != name && c.Ready > 0 && !c.Drained && c.AwaySince.IsZero()
				}
				if has && !others {
					only = append(only, key.String())
				}
			}
			slices.Sort(only)
			if n, first := v.OnlyIn(name, 2); n != len(only) || !slices.Equal(first, only[:min(len(only), 2)]) {
				t.Fatalf("step %d: only %s has %d services, first %q, want %q", step, name, n, first, only)
			}
			alone = max(alone, len(only))
		}
		for s := range 2 {
			for a := range 4 {
				key := Key{Namespace: fmt.Sprint("s", s), Name: fmt.Sprint("a", a)}
				if _, has := want[key]; v.Has("m0", key.Namespace, key.Name) != has || v.Has("m1", key.Namespace, key.Name) {
					t.Fatalf("step %d: whether members have %s is told wrongly, it is %v", step, key, has)
				}
			}
		}
	}
	if alone < 3 {
		t.Errorf("no member had more than %d services alone", alone)
	}
}

// checkPlaces finds places that are counted wrongly, and so would be kept or lost.
func checkPlaces(t *testing.T, m *member) {
	t.Helper()
	count := map[uint32]int{}
	for _, s := range m.slices {
		s.each(func(e endpoint) { count[e.place]++ })
	}
	for i, p := range m.places.all {
		if p.endpoints != count[uint32(i)] {
			t.Fatalf("%s: place %d (%v) is counted %d times, and used %d times", m.Name, i, p.place, p.endpoints, count[uint32(i)])
		}
	}
}

func compare(t *testing.T, step int, who string, got, want map[Key]Service) {
	t.Helper()
	for key, s := range got {
		s.Version, s.Born = 0, 0
		if len(s.Labels) == 0 {
			s.Labels = nil
		}
		expected := want[key]
		if len(expected.Labels) == 0 {
			expected.Labels = nil
		}
		if !reflect.DeepEqual(s, expected) {
			t.Errorf("step %d: %s has\n%+v\nwant\n%+v", step, who, s, expected)
		}
	}
	for key := range want {
		if _, has := got[key]; !has {
			t.Errorf("step %d: %s lacks %v", step, who, key)
		}
	}
}

func TestVersionsOfOthersAndOldOnesAreNotKnown(t *testing.T) {
	v, other := New(nil), New(nil)
	other.first = other.first&^processMask | (v.first+1)&processMask
	other.version = other.first
	v.Changed(aMember("east"))
	_, begin := v.List("default", func(string) bool { return true })
	for i := range remembered + 10 {
		s := aService("shop", fmt.Sprintf("a%d", i))
		put(v, "east", s)
		v.mu.Lock()
		v.remove(v.members["east"], kindServices, s.Namespace, s.Name)
		v.mu.Unlock()
	}
	_, now := v.List("default", func(string) bool { return true })
	for name, c := range map[string]struct {
		version uint64
		known   bool
	}{
		"now": {now, true}, "before what is forgotten": {begin, false}, "another process's": {now + 1, false}, "the future": {now + nextVersion, false}, "before the start": {v.first - nextVersion, false},
	} {
		if _, _, _, ok := v.Changes("default", c.version); ok != c.known {
			t.Errorf("%s: known: %v, want %v", name, ok, c.known)
		}
	}
	if n := len(v.meshes["default"].services); n != remembered {
		t.Errorf("%d services are remembered, want %d", n, remembered)
	}
}

func TestMembersOfOneNetworkThatSharePodAddressesAreTold(t *testing.T) {
	v := New(nil)
	external := ep("10.0.0.9", "", true)
	external.TargetRef = nil
	for _, name := range []string{"a", "b", "c"} {
		v.Changed(aMember(name, func(m *members.Member) {
			if name == "c" {
				m.Network = "other"
			}
		}))
		put(v, name, aService("shop", "a"), aSlice("shop", "a", "a-1", ep("10.0.0.1", "", true), external, ep("10.0.1."+fmt.Sprint(int(name[0])), "", true)))
		put(v, name, aSlice("shop", "a", "a-6", ep("fd00::"+name, "", true)))
	}
	for name, want := range map[string]map[string]string{"a": {"b": "10.0.0.1"}, "b": {"a": "10.0.0.1"}, "c": nil} {
		if got := v.Reading(name).Overlaps; !maps.Equal(got, want) {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
	v.Gone("b")
	v.meshes["default"].overlaps.next = time.Time{}
	if got := v.Reading("a").Overlaps; len(got) > 0 {
		t.Errorf("after the other has left: %v", got)
	}
}

func TestGatewaysAreLookedUp(t *testing.T) {
	v := New(nil)
	v.Changed(aMember("east"))
	put(v, "east",
		aService("istio-system", "gw", func(s *corev1.Service) {
			s.Spec.Type = corev1.ServiceTypeLoadBalancer
			s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "192.0.2.1"}, {Hostname: "gw.example.com"}}
			s.Spec.ExternalIPs = []string{"192.0.2.9"}
		}),
		aService("istio-system", "external", func(s *corev1.Service) { s.Spec.ExternalIPs = []string{"192.0.2.2"} }),
		aService("istio-system", "inside"),
	)
	for name, want := range map[string][]string{"gw": {"192.0.2.1", "gw.example.com"}, "external": {"192.0.2.2"}, "inside": nil} {
		addresses, found := v.Addresses("east", "istio-system", name)
		var got []string
		for _, a := range addresses {
			got = append(got, a.Host)
			if !slices.Equal(a.Ports, []int32{80}) {
				t.Errorf("%s: ports %v", name, a.Ports)
			}
		}
		if !found || !slices.Equal(got, want) {
			t.Errorf("%s: %v, %v, want %v", name, got, found, want)
		}
	}
	if _, found := v.Addresses("east", "istio-system", "none"); found {
		t.Error("a service that is not there is found")
	}
	if _, found := v.Addresses("west", "istio-system", "gw"); found {
		t.Error("a service of no member is found")
	}
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

func TestAMemberIsReadAndFollowedThroughTroubles(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	api, second := discoverytest.New(), discoverytest.New()
	// HTTP/1: each watch is a connection of its own, which ends with it.
	one, two := httptest.NewServer(api), httptest.NewServer(second)
	defer one.Close()
	defer two.Close()
	for _, s := range []*discoverytest.Server{api, second} {
		s.Set(aService("shop", "a"))
		s.Set(aNode("n1", "eu", "eu-a"))
		s.Set(aSlice("shop", "a", "a-1", ep("10.0.0.1", "n1", true), ep("10.0.0.2", "n1", false)))
	}
	v := New(nil)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- v.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	config := &rest.Config{Host: one.URL}
	v.Changed(aMember("east", func(m *members.Member) { m.Config = config }))
	endpoints := func(want string) func() bool {
		return func() bool {
			r := v.Reading("east")
			return r.Synced && fmt.Sprintf("%d/%d %d %v", r.ReadyEndpoints, r.Endpoints, r.Nodes, r.Localities) == want
		}
	}
	eventually(t, "all is read", endpoints("1/2 1 [eu/eu-a]"))
	api.Set(aSlice("shop", "a", "a-1", ep("10.0.0.1", "n1", true), ep("10.0.0.2", "n1", true)))
	eventually(t, "a change is read", endpoints("2/2 1 [eu/eu-a]"))

	api.Away(true)
	eventually(t, "it is known that the API is away", func() bool { return v.Reading("east").Trouble != "" })
	if r := v.Reading("east"); r.Endpoints != 2 || !r.Synced {
		t.Errorf("while the API is away: %+v", r)
	}
	api.Set(aSlice("shop", "a", "a-2", ep("10.0.0.3", "n1", true)))
	api.Away(false)
	api.Forget()
	eventually(t, "what changed meanwhile is read", endpoints("3/3 1 [eu/eu-a]"))
	eventually(t, "there is no trouble any more", func() bool { return v.Reading("east").Trouble == "" })

	api.Forbid("nodes", true)
	eventually(t, "it is said what may not be read", func() bool { return strings.Contains(v.Reading("east").Trouble, "nodes is forbidden") })
	if r := v.Reading("east"); r.Nodes != 1 {
		t.Errorf("while nodes may not be read: %+v", r)
	}

	// Another access: what was read stays until the new lists are there.
	second.Away(true)
	v.Changed(aMember("east", func(m *members.Member) { m.Config = &rest.Config{Host: two.URL} }))
	eventually(t, "the new access is tried", func() bool { return second.Requests("services") > 0 })
	if r := v.Reading("east"); r.Endpoints != 3 || !r.Synced {
		t.Errorf("while the new access does not work: %+v", r)
	}
	second.Away(false)
	eventually(t, "the new access is read", endpoints("1/2 1 [eu/eu-a]"))

	v.Gone("east")
	if _, found := v.Get("default", "shop", "a"); found || v.Reading("east").Synced {
		t.Error("a member that has left still has services")
	}
}
