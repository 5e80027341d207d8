package snapshot

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	mcp "istio.io/api/mcp/v1alpha1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

const messageName = "google.protobuf.StringValue"

// testObject is an object whose spec is a string; renderText makes a StringValue of it.
func testObject(cluster, namespace, name, text string) *object.Object {
	o := &object.Object{}
	o.Namespace, o.Name = namespace, name
	o.SetCluster(cluster)
	if err := o.SetContent(map[string]any{"spec": text}); err != nil {
		panic(err)
	}
	o.DropContent()
	return o
}

func renderText(dst []byte, o *object.Object) ([]byte, error) {
	text := strings.Trim(string(o.Field("spec")), `"`)
	switch text {
	case "bad":
		return nil, fmt.Errorf("it is bad")
	case "panic":
		panic("it is very bad")
	}
	return proto.MarshalOptions{}.MarshalAppend(dst, wrapperspb.String(text))
}

func renderTest(o *object.Object) *rendered {
	message, err := renderText(nil, o)
	if err != nil {
		panic(err)
	}
	r := render(o, key(o.Namespace, o.Name), typePrefix+messageName, message)
	return &r
}

func TestRenderIsWhatProtobufReads(t *testing.T) {
	o := testObject("c", "shop", "web", "hello")
	o.CreationTimestamp = metav1.Unix(1700000000, 5000)
	o.Labels = map[string]string{"b": "2", "a": "1", "empty": ""}
	o.Annotations = map[string]string{"x": "y", lastApplied: strings.Repeat("z", 1000)}
	r := renderTest(o)

	tag, _, n := protowire.ConsumeTag(r.data)
	body, m := protowire.ConsumeBytes(r.data[n:])
	if tag != responseResources || n+m != len(r.data) || !bytes.Equal(body, r.data[r.body:]) {
		t.Fatalf("not one resources field: tag %d, %d+%d of %d bytes", tag, n, m, len(r.data))
	}
	var outer anypb.Any
	if err := proto.Unmarshal(body, &outer); err != nil {
		t.Fatal(err)
	}
	var resource mcp.Resource
	if err := outer.UnmarshalTo(&resource); err != nil {
		t.Fatal(err)
	}
	spec, err := resource.Body.UnmarshalNew()
	if err != nil {
		t.Fatal(err)
	}
	if got := spec.(*wrapperspb.StringValue).Value; got != "hello" {
		t.Errorf("body %q", got)
	}
	md := resource.Metadata
	if md.Name != "shop/web" || md.Version != r.sum.String() || !md.CreateTime.AsTime().Equal(o.CreationTimestamp.Time) {
		t.Errorf("metadata %v, version %s", md, r.sum)
	}
	if !maps.Equal(md.Labels, o.Labels) || !maps.Equal(md.Annotations, map[string]string{"x": "y"}) {
		t.Errorf("labels %v, annotations %v", md.Labels, md.Annotations)
	}
	if name := string(r.data[r.name:][:r.nameLength]); name != "shop/web" {
		t.Errorf("the name is found as %q", name)
	}
}

func TestVersionFollowsWhatControlPlanesRead(t *testing.T) {
	base := func() *object.Object {
		o := testObject("c", "shop", "web", "hello")
		o.CreationTimestamp = metav1.Unix(1700000000, 0)
		o.Labels = map[string]string{"a": "1"}
		o.Annotations = map[string]string{"x": "y"}
		return o
	}
	tests := []struct {
		name   string
		change func(*object.Object)
		same   bool
	}{
		{"nothing", func(*object.Object) {}, true},
		{"the resource version", func(o *object.Object) { o.ResourceVersion = "7" }, true},
		{"the generation", func(o *object.Object) { o.Generation = 7 }, true},
		{"managed fields", func(o *object.Object) { o.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "m"}} }, true},
		{"finalizers", func(o *object.Object) { o.Finalizers = []string{"f"} }, true},
		{"the status", func(o *object.Object) {
			_ = o.SetContent(map[string]any{"spec": "hello", "status": map[string]any{"a": "b"}})
		}, true},
		{"what kubectl applied last", func(o *object.Object) { o.Annotations[lastApplied] = "{}" }, true},
		{"the spec", func(o *object.Object) { _ = o.SetContent(map[string]any{"spec": "bye"}) }, false},
		{"a label's value", func(o *object.Object) { o.Labels["a"] = "2" }, false},
		{"one more label", func(o *object.Object) { o.Labels["b"] = "" }, false},
		{"no label", func(o *object.Object) { o.Labels = nil }, false},
		{"an annotation's value", func(o *object.Object) { o.Annotations["x"] = "z" }, false},
		{"another annotation", func(o *object.Object) { o.Annotations = map[string]string{"z": "y"} }, false},
		{"the creation time", func(o *object.Object) { o.CreationTimestamp = metav1.Unix(1, 0) }, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			a, b := base(), base()
			test.change(b)
			if same := sameToReader(a, b); same != test.same {
				t.Errorf("sameToReader = %v", same)
			}
			if same := renderTest(a).sum == renderTest(b).sum; same != test.same {
				t.Errorf("the version is the same: %v", same)
			}
		})
	}
}

func checkList(t *testing.T, l *List, want map[string]*rendered) {
	t.Helper()
	names := slices.Sorted(maps.Keys(want))
	var got []string
	var data []byte
	var total sum
	for e := range l.All() {
		got = append(got, e.Name())
		r := want[e.Name()]
		if r == nil {
			t.Fatalf("%s should not be there", e.Name())
		}
		if e.Version() != r.sum.String() || !bytes.Equal(e.Resource(), r.data[r.body:]) {
			t.Fatalf("%s is not what was put there", e.Name())
		}
		if found, ok := l.Get(e.Name()); !ok || found != e {
			t.Fatalf("Get(%s) = %v, %v", e.Name(), found, ok)
		}
		if _, ok := l.Get(e.Name() + "!"); ok {
			t.Fatalf("Get(%s!) found something", e.Name())
		}
		data = append(data, r.data...)
		total = total.plus(r.sum)
	}
	if !slices.Equal(got, names) {
		t.Fatalf("names %v, want %v", got, names)
	}
	if l.Len() != len(want) || l.Bytes() != len(data) || l.Version() != total.String() || l.sum != total {
		t.Fatalf("Len %d, Bytes %d, Version %s, want %d, %d, %s", l.Len(), l.Bytes(), l.Version(), len(want), len(data), total)
	}
	if !bytes.Equal(l.AppendBuffers(mem.BufferSlice{}).Materialize(), data) {
		t.Fatal("the buffers are not the entries one after the other")
	}
	for i, c := range l.chunks {
		if len(c.entries) == 0 || len(c.entries) > chunkEntries || len(c.data) > chunkBytes && len(c.entries) > 1 || cap(c.data) != len(c.data) {
			t.Fatalf("chunk %d of %d has %d entries, %d bytes", i, len(l.chunks), len(c.entries), len(c.data))
		}
	}
	if n := len(l.chunks); n > 1 && n > 8+8*len(want)/chunkEntries+8*len(data)/chunkBytes {
		t.Fatalf("%d chunks for %d entries of %d bytes", n, len(want), len(data))
	}
}

func TestListTakesChanges(t *testing.T) {
	entry := func(name string, size int) *rendered {
		return renderTest(testObject("c", "n", name, strings.Repeat("x", size)))
	}
	tests := []struct {
		name  string
		steps [][]change
	}{
		{"nothing", [][]change{{}}},
		{"the first", [][]change{{{"n/a", entry("a", 1)}}}},
		{"the last goes", [][]change{{{"n/a", entry("a", 1)}}, {{"n/a", nil}}}},
		{"what is not there goes", [][]change{{{"n/a", nil}}, {{"n/b", entry("b", 1)}}, {{"n/a", nil}, {"n/c", nil}}}},
		{"before the first and behind the last", [][]change{{{"n/m", entry("m", 1)}}, {{"n/z", entry("z", 1)}, {"n/a", entry("a", 1)}}}},
		{"one is larger than a chunk", [][]change{{{"n/a", entry("a", 3*chunkBytes)}, {"n/b", entry("b", 1)}}, {{"n/c", entry("c", 2*chunkBytes)}}, {{"n/b", nil}}}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			l, want := Empty, map[string]*rendered{}
			for _, step := range test.steps {
				for _, c := range step {
					if want[c.key] = c.entry; c.entry == nil {
						delete(want, c.key)
					}
				}
				l = l.apply(step, time.Time{})
				checkList(t, l, want)
			}
		})
	}
}

// TestListAgreesWithAMap drives a list with random changes, few and many, and with
// phases of growth and decline; and compares Diff with what was done.
func TestListAgreesWithAMap(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	l, want := Empty, map[string]*rendered{}
	for round := range 160 {
		growing := round/40%2 == 0
		before, was := l, maps.Clone(want)
		n := 1
		if random.IntN(3) == 0 {
			n = 1 + random.IntN(200)
		}
		todo := map[string]*rendered{}
		for range n {
			name := fmt.Sprintf("%04d", random.IntN(600))
			k := key("n", name)
			switch {
			case random.IntN(10) == 0 && want[k] != nil:
				todo[k] = want[k] // no change
			case random.IntN(10) < 7 == growing:
				size := random.IntN(30)
				if random.IntN(200) == 0 {
					size = random.IntN(2 * chunkBytes)
				}
				todo[k] = renderTest(testObject("c", "n", name, strings.Repeat("x", size)))
			default:
				todo[k] = nil
			}
		}
		var changes []change
		for k, r := range todo {
			changes = append(changes, change{k, r})
			if want[k] = r; r == nil {
				delete(want, k)
			}
		}
		l = l.apply(changes, time.Time{})
		checkList(t, l, want)
		if round%10 == 0 {
			checkList(t, before, was)
		}
		checkDiff(t, l, before, want, was)
		checkDiff(t, before, l, was, want)
		checkDiff(t, l, nil, want, nil)

		shared := 0
		for _, c := range l.chunks {
			if slices.Contains(before.chunks, c) {
				shared++
			}
		}
		if touched := len(l.chunks) - shared; touched > 3*len(changes) {
			t.Fatalf("%d changes made %d chunks", len(changes), touched)
		}
	}
}

func checkDiff(t *testing.T, l, old *List, want, was map[string]*rendered) {
	t.Helper()
	got := map[string]string{}
	l.Diff(old, func(e Entry) { got[e.Name()] = e.Version() }, func(name string) { got[name] = "" })
	diff := map[string]string{}
	for k, r := range want {
		if was[k] == nil || was[k].sum != r.sum {
			diff[k] = r.sum.String()
		}
	}
	for k := range was {
		if want[k] == nil {
			diff[k] = ""
		}
	}
	if !maps.Equal(got, diff) {
		t.Fatalf("Diff = %v, want %v", got, diff)
	}
}

func TestListIsItselfWhenNothingChanges(t *testing.T) {
	a := renderTest(testObject("c", "n", "a", "x"))
	l := Empty.apply([]change{{a.key, a}}, time.Time{})
	if again := l.apply([]change{{a.key, a}, {"n/b", nil}}, time.Time{}); again != l {
		t.Error("a list was made anew without a change")
	}
}

func TestListVersionDependsOnContentAlone(t *testing.T) {
	var changes []change
	for i := range 500 {
		r := renderTest(testObject("c", "n", fmt.Sprint(i), "x"))
		changes = append(changes, change{r.key, r})
	}
	atOnce := Empty.apply(slices.Clone(changes), time.Time{})
	oneByOne := Empty
	for _, c := range changes {
		extra := renderTest(testObject("c", "n", "extra-"+c.key[2:], "x"))
		oneByOne = oneByOne.apply([]change{c, {extra.key, extra}}, time.Time{})
	}
	for e := range oneByOne.All() {
		if strings.Contains(e.Name(), "extra") {
			oneByOne = oneByOne.apply([]change{{strings.Clone(e.Name()), nil}}, time.Time{})
		}
	}
	if atOnce.Version() != oneByOne.Version() {
		t.Errorf("versions %s and %s", atOnce.Version(), oneByOne.Version())
	}
}
