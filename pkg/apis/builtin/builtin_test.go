package builtin

import (
	"testing"
	"time"

	"github.com/vmesh-io/vmesh/pkg/apis/kind"
)

func TestEveryKindCompiles(t *testing.T) {
	start := time.Now()
	kinds, err := Kinds()
	if err != nil {
		t.Fatal(err)
	}
	t.Log("made", time.Since(start))
	for _, k := range kinds {
		start := time.Now()
		if err := k.Warm(t.Context()); err != nil {
			t.Errorf("%s: %v", k, err)
		}
		t.Log(k, time.Since(start))
	}
	_ = kind.Hooks{}
}
