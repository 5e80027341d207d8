package clusters

import (
	"context"
	"fmt"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/interop/grpc_testing"
)

func TestAClusterIsDrainedWithoutAFailedCall(t *testing.T) {
	ctx, ns := start(t)
	serve(ctx, t, shared.east, ns, "eu-1")
	serve(ctx, t, shared.west, ns, "eu-2")
	serve(ctx, t, shared.south, ns, "ap-1")
	atEast, atWest, atSouth := from(t, shared.east, ns, "eu-1"), from(t, shared.west, ns, "eu-2"), from(t, shared.south, ns, "ap-1")
	sees(ctx, t, ns, "east=1 south=1 west=1")
	thirds, halves := share{"east": 33.3, "west": 33.3, "south": 33.3}, share{"east": 50, "south": 50}
	for _, c := range []struct {
		name  string
		flags []string
		of    func(caller string) (before, drained share)
	}{
		{"spread", nil, func(string) (share, share) { return thirds, halves }},
		{"by the nearest", []string{"--local-first"}, func(caller string) (share, share) {
			if caller == "west" {
				return share{"west": 100}, halves
			}
			return share{caller: 100}, share{caller: 100}
		}},
		{"drained of the service before", []string{"--drain", "west"}, func(string) (share, share) { return halves, halves }},
	} {
		t.Run(c.name, func(t *testing.T) {
			if len(c.flags) > 0 {
				rule(ctx, t, ns, c.flags...)
				defer rule(ctx, t, ns, "--clear")
			}
			e1, e2 := c.of("east")
			w1, w2 := c.of("west")
			s1, s2 := c.of("south")
			goes(ctx, t, "from east before", atEast, e1)
			goes(ctx, t, "from west before", atWest, w1)
			goes(ctx, t, "from south before", atSouth, s1)
			load := startLoad(ctx, atEast, atWest, atSouth)
			back := drained(ctx, t, shared.west)
			goes(ctx, t, "from east drained", atEast, e2)
			goes(ctx, t, "from west drained", atWest, w2)
			goes(ctx, t, "from south drained", atSouth, s2)
			back()
			goes(ctx, t, "from east after", atEast, e1)
			goes(ctx, t, "from west after", atWest, w1)
			goes(ctx, t, "from south after", atSouth, s1)
			load.none(t)
		})
	}
}

// holding answers once it is released.
type holding struct {
	grpc_testing.UnimplementedTestServiceServer
	held     chan struct{} // one for each call that waits
	released chan struct{}
}

func (h *holding) UnaryCall(ctx context.Context, _ *grpc_testing.SimpleRequest) (*grpc_testing.SimpleResponse, error) {
	h.held <- struct{}{}
	select {
	case <-h.released:
		return &grpc_testing.SimpleResponse{Username: "west"}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// TestCallsUnderWayEndWhereTheyBegan: a client closes its connections to what is drained when its calls have ended.
func TestCallsUnderWayEndWhereTheyBegan(t *testing.T) {
	ctx, ns := start(t)
	serve(ctx, t, shared.east, ns, "eu-1")
	west := serve(ctx, t, shared.west, ns, "eu-2")
	client := from(t, shared.east, ns, "eu-1")
	goes(ctx, t, "before", client, share{"east": 50, "west": 50})
	sees(ctx, t, ns, "east=1 west=1")
	rule(ctx, t, ns, "--prefer", "west")
	goes(ctx, t, "west alone", client, share{"west": 100})

	must(t, west.StopServer())
	listener, err := net.Listen("tcp", west.Address)
	must(t, err)
	const calls = 5
	h := &holding{held: make(chan struct{}, 1000), released: make(chan struct{})}
	server := grpc.NewServer()
	grpc_testing.RegisterTestServiceServer(server, h)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	answers := make(chan error, calls)
	for range calls {
		go func() {
			for {
				answer, err := client.Ask(ctx, nil)
				if err == nil && answer.Cluster == "east" {
					continue // until west is seen to serve again
				}
				answers <- err
				return
			}
		}()
	}
	for range calls {
		select {
		case <-h.held:
		case <-ctx.Done():
			t.Fatal("no call came to west")
		}
	}
	back := drained(ctx, t, shared.west)
	waitFor(ctx, t, "new calls go to east", func() error {
		ctx, cancel := context.WithTimeout(ctx, time.Second) // those that still come to west are held
		defer cancel()
		answer, err := client.Ask(ctx, nil)
		if err == nil && answer.Cluster != "east" {
			err = fmt.Errorf("it went to %s", answer.Cluster)
		}
		return err
	})
	goes(ctx, t, "drained", client, share{"east": 100})
	select {
	case err := <-answers:
		t.Fatalf("a call under way has ended before its time: %v", err)
	default:
	}
	close(h.released)
	for range calls {
		if err := <-answers; err != nil {
			t.Errorf("a call under way has failed: %v", err)
		}
	}
	back()
}

// TestWhatOnlyADrainedClusterServesIsGone is why one looks before.
func TestWhatOnlyADrainedClusterServesIsGone(t *testing.T) {
	ctx, ns := start(t)
	serve(ctx, t, shared.west, ns, "eu-2")
	atWest := from(t, shared.west, ns, "eu-2")
	goes(ctx, t, "before", atWest, share{"west": 100})
	back := drained(ctx, t, shared.west)
	waitFor(ctx, t, "its own callers lose it, too", func() error {
		counts := atWest.Counts(ctx, 20, nil)
		if counts.Failed < 20 {
			return fmt.Errorf("%+v", counts)
		}
		t.Logf("%v", counts.Errors)
		return nil
	})
	back()
	goes(ctx, t, "after", atWest, share{"west": 100})
}
