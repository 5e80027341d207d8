package sync

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/apimachinery/pkg/watch"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/sync/release"
	"github.com/vmesh-io/vmesh/pkg/sync/snapshot"
)

func staged(t *testing.T, name string) *object.Object {
	return parse(t, "root", fmt.Sprintf(`{"metadata":{"name":%q,"uid":"uid-%[1]s"},"spec":{"rollout":{"stages":[{"name":"all","controlPlanes":{}}]}}}`, name))
}

// readyService runs a builder that has read some meshes, with releases that are decided by hand.
func readyService(t *testing.T, meshes ...*object.Object) (s *Service, observe snapshot.Observer, stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	b := snapshot.NewBuilder(nil, nil)
	s = &Service{builder: b, releaser: &release.Releaser{}, now: time.Now}
	go b.Run(ctx)
	if err := s.Ready(); !errors.Is(err, snapshot.ErrNotSynced) {
		t.Errorf("before anything was read: %v", err)
	}
	for _, source := range b.Sources() {
		var items []*object.Object
		if source.Resource.Resource == "meshes" {
			items, observe = meshes, source.Observer
		}
		source.Observer.Replaced(items, 1)
	}
	synctest.Wait()
	return s, observe, cancel
}

func decide(t *testing.T, s *Service, mesh string) {
	t.Helper()
	for _, one := range s.builder.Snapshots() {
		if one.Mesh == mesh {
			s.builder.SetStages(mesh, one.Policy.Epoch, map[string]*snapshot.Snapshot{"all": one})
			return
		}
	}
	t.Fatalf("there is no mesh %s", mesh)
}

func TestItIsReadyWhenEveryMeshCanBeServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		unreadable := staged(t, "unreadable")
		unreadable.Annotations = map[string]string{snapshot.QuarantinedAnnotation: "it is damaged"}
		s, observe, stop := readyService(t, staged(t, "one"), staged(t, "two"), parse(t, "root", `{"metadata":{"name":"plain"}}`), unreadable)
		defer stop()
		if err := s.Ready(); err == nil || !strings.HasSuffix(err.Error(), "of mesh one, two") {
			t.Errorf("with no stage decided: %v", err)
		}
		decide(t, s, "one")
		if err := s.Ready(); err == nil || !strings.HasSuffix(err.Error(), "of mesh two") {
			t.Errorf("with one decided: %v", err)
		}
		decide(t, s, "two")
		if err := s.Ready(); err != nil {
			t.Errorf("with all decided: %v", err)
		}
		observe.Changed(watch.Added, staged(t, "later"), 2)
		synctest.Wait()
		if undecided := fmt.Sprint(s.builder.Undecided()); undecided != "[later]" || s.Ready() != nil {
			t.Errorf("what comes later makes it unready: %s, %v", undecided, s.Ready())
		}
	})
}

func TestAMeshThatCannotBeServedDoesNotKeepItFromBeingReadyForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _, stop := readyService(t, staged(t, "broken"))
		defer stop()
		for range 3 {
			if s.Ready() == nil {
				t.Error("ready at once")
			}
			time.Sleep(readyWithin / 4)
		}
		time.Sleep(readyWithin)
		if err := s.Ready(); err != nil {
			t.Errorf("after %s: %v", readyWithin, err)
		}
	})
}

func TestTheFirstSnapshotsOfAllMeshesAreWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, observe, stop := readyService(t, parse(t, "root", `{"metadata":{"name":"there"}}`))
		defer stop()
		var names atomic.Pointer[[]string]
		names.Store(&[]string{"there", "late", "deleted"})
		done := make(chan error)
		go func() {
			done <- s.WaitBuilt(t.Context(), func(context.Context) ([]string, error) { return *names.Load(), nil })
		}()
		time.Sleep(time.Minute)
		observe.Changed(watch.Added, parse(t, "root", `{"metadata":{"name":"late"}}`), 2)
		time.Sleep(time.Minute)
		select {
		case err := <-done:
			t.Fatalf("one is missing: %v", err)
		default:
		}
		names.Store(&[]string{"there", "late"})
		if err := <-done; err != nil {
			t.Error(err)
		}
		away := errors.New("away")
		if err := s.WaitBuilt(t.Context(), func(context.Context) ([]string, error) { return nil, away }); !errors.Is(err, away) {
			t.Errorf("when they cannot be listed: %v", err)
		}
	})
}
