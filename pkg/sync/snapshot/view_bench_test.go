package snapshot

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// One change among ten thousand, in a view that leaves out one of four.
func BenchmarkViewFollowsAChange(b *testing.B) {
	kind := &testKinds(1)[0]
	var changes []change
	for i := range 10000 {
		o := text("c", fmt.Sprint("n", i%50), fmt.Sprint(i), strings.Repeat("x", 700))
		if i%4 == 0 {
			o.Labels = map[string]string{revisionLabel: "other"}
		}
		out, _ := renderOne(kind, o, rights{}, key(o.Namespace, o.Name), nil)
		r := out.entry
		if out.err != nil {
			b.Fatal(out.err)
		}
		changes = append(changes, change{key: key(o.Namespace, o.Name), entry: r})
	}
	list := Empty.apply(changes, time.Now())
	v := &view{kinds: testKinds(1), revision: "mine"}
	before := &Snapshot{Lists: []*List{list}}
	before.seal()
	v.of(before, nil)
	var both [2]*rendered
	for i := range both {
		out, _ := renderOne(kind, text("c", "n1", "1", fmt.Sprint(i)), rights{}, "n1/1", nil)
		both[i] = out.entry
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		list = list.apply([]change{{key: "n1/1", entry: both[i%2]}}, time.Now())
		next := &Snapshot{Lists: []*List{list}}
		next.seal()
		v.of(next, nil)
	}
}
