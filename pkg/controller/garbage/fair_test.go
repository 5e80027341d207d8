package garbage

import (
	"fmt"
	"slices"
	"testing"

	"k8s.io/apimachinery/pkg/types"
)

func TestVirtualClustersTakeTurns(t *testing.T) {
	f := newFair()
	for i := range 4 {
		f.Push(key{"noisy", types.UID(fmt.Sprint(i))})
	}
	f.Push(key{"quiet", "a"})
	f.Push(key{"quiet", "b"})
	var got []string
	pop := func() {
		k := f.Pop()
		got = append(got, k.cluster+string(k.uid))
	}
	pop()
	f.Push(key{"late", "z"})
	for f.Len() > 0 {
		pop()
	}
	if want := []string{"noisy0", "quieta", "noisy1", "latez", "quietb", "noisy2", "noisy3"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if len(f.waiting) != 0 || len(f.turns) != 0 {
		t.Errorf("%v and %v are left", f.waiting, f.turns)
	}
}
