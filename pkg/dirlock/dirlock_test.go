package dirlock

import (
	"errors"
	"path/filepath"
	"testing"
)

func TestADirectoryIsHeldUntilItIsReleased(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "made", "here")
	first, err := Acquire(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Acquire(dir); !errors.Is(err, ErrInUse) {
		t.Errorf("held twice: %v", err)
	}
	if err := first.Release(); err != nil {
		t.Fatal(err)
	}
	again, err := Acquire(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Release(); err != nil {
		t.Error(err)
	}
}

func TestADirectoryThatCannotBeMadeIsAnError(t *testing.T) {
	if _, err := Acquire("/dev/null/below"); err == nil || errors.Is(err, ErrInUse) {
		t.Errorf("got %v", err)
	}
}
