package embedded

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr/funcr"
	"go.uber.org/zap"
)

func TestAFatalMessageEndsItsGoroutineAndIsReported(t *testing.T) {
	var logged []string
	hook := newFatalHook()
	lg := newLogger(funcr.New(func(_, args string) { logged = append(logged, args) }, funcr.Options{}), hook)
	done := make(chan bool, 1)
	go func() {
		returned := false
		defer func() { done <- returned }()
		lg.Fatal("failed to save", zap.Error(errors.New("disk full")))
		returned = true
	}()
	select {
	case returned := <-done:
		if returned {
			t.Error("the goroutine went on")
		}
	case <-time.After(time.Minute):
		t.Fatal("the goroutine hangs")
	}
	if err := <-hook.failed; !strings.Contains(err.Error(), "failed to save") || !strings.Contains(err.Error(), "disk full") {
		t.Errorf("got %v", err)
	}
	if len(logged) != 1 || !strings.Contains(logged[0], "disk full") {
		t.Errorf("logged %q", logged)
	}
}

func TestOnlyWarningsAndWorseAreLogged(t *testing.T) {
	var logged []string
	lg := newLogger(funcr.New(func(_, args string) { logged = append(logged, args) }, funcr.Options{}), newFatalHook())
	lg.Info("chatter")
	lg.With(zap.String("member", "m")).Warn("slow", zap.Int("ms", 300))
	lg.Warn("check file permission")
	if len(logged) != 1 || !strings.Contains(logged[0], `"member"="m"`) || !strings.Contains(logged[0], `"ms"=300`) {
		t.Errorf("logged %q", logged)
	}
}
