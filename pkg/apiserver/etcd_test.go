package apiserver

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

func TestWhatNeedsEtcdIsTriedUntilEtcdAnswers(t *testing.T) {
	for _, c := range []struct {
		name string
		err  error
		away bool
	}{
		{"the connection was lost", status.Error(codes.Unavailable, "error reading from server: EOF"), true},
		{"the leader was lost", rpctypes.Error(rpctypes.ErrGRPCTimeoutDueToLeaderFail), true},
		{"there is no leader", rpctypes.ErrNoLeader, true},
		{"it takes too long", context.DeadlineExceeded, true},
		{"a watch cache is being filled", apierrors.NewTooManyRequests("storage is (re)initializing", 1), true},
		{"a read timed out", apierrors.NewTimeoutError("too large resource version", 1), true},
		{"there is no room", rpctypes.ErrNoSpace, false},
		{"access is denied", rpctypes.ErrPermissionDenied, false},
		{"the object is not as it must be", apierrors.NewInvalid(schema.GroupKind{Kind: "Mesh"}, "default", nil), false},
		{"a file cannot be written", errors.New("open admin.kubeconfig: read-only file system"), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := fmt.Errorf("creating namespace default: %w", c.err)
			tries := 0
			got := untilAnswered(t.Context(), func(context.Context) error {
				if tries++; tries == 1 {
					return err
				}
				return nil
			})
			switch {
			case c.away && (tries != 2 || got != nil):
				t.Errorf("%d tries gave %v", tries, got)
			case !c.away && (tries != 1 || !errors.Is(got, c.err)):
				t.Errorf("%d tries gave %v, want %v at once", tries, got, err)
			}
		})
	}
}

func TestWaitingForEtcdEndsWithTheServer(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	err := untilAnswered(ctx, func(context.Context) error {
		stop()
		return rpctypes.ErrNoLeader
	})
	if !errors.Is(err, rpctypes.ErrNoLeader) {
		t.Errorf("got %v", err)
	}
}
