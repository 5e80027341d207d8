package chaos

import (
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	mcp "istio.io/api/mcp/v1alpha1"

	"github.com/vmesh-io/vmesh/test/harness"
)

// valueAnnotation holds an entry's value.
const valueAnnotation = "chaos"

// observed are the kinds that are written and looked at.
var observed = []string{"DestinationRule", "ServiceEntry", "VirtualService"}

func keyOf(kind, namespace, name string) string { return kind + " " + namespace + "/" + name }

func valueOf(key string, annotations map[string]string) (int, error) {
	value, err := strconv.Atoi(annotations[valueAnnotation])
	if err != nil || value < 1 {
		return 0, fmt.Errorf("%s has no value: its annotations are %v", key, annotations)
	}
	return value, nil
}

// configz is what an istiod holds.
func configz(ctx context.Context, istiod *harness.Istiod) (state, error) {
	objects, err := istiod.Configz(ctx)
	if err != nil {
		return nil, err
	}
	s := state{}
	for _, o := range objects {
		if !slices.Contains(observed, o.GetKind()) || o.GetNamespace() != namespace {
			continue
		}
		key := keyOf(o.GetKind(), o.GetNamespace(), o.GetName())
		if s[key], err = valueOf(key, o.GetAnnotations()); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// watchIstiod looks at an istiod all the time, until ctx ends. While it is being killed or started there is nothing to see.
func watchIstiod(ctx context.Context, istiod *harness.Istiod, v *view) {
	for ctx.Err() == nil {
		if life, whole := v.now(); whole {
			asked, cancel := context.WithTimeout(ctx, 5*time.Second)
			if s, err := configz(asked, istiod); err == nil {
				v.see(life, s)
			}
			cancel()
		}
		pause(ctx, 50*time.Millisecond)
	}
}

// shadow is told by the same config sources what an istiod is told, and holds what istiod would. It sees each single
// response, where istiod shows what is left of several, and never dies.
type shadow struct {
	view    *view
	sources []string

	mu   sync.Mutex
	held map[string]state // by source and kind
}

func newShadow(v *view, sources []string) *shadow {
	return &shadow{view: v, sources: sources, held: map[string]state{}}
}

// run asks all sources until ctx ends, and asks again what fails.
func (s *shadow) run(ctx context.Context) {
	var all sync.WaitGroup
	for _, source := range s.sources {
		all.Go(func() {
			for ctx.Err() == nil {
				_ = s.follow(ctx, source) // the source is down, or was
				pause(ctx, 100*time.Millisecond)
			}
		})
	}
	all.Wait()
}

func (s *shadow) follow(ctx context.Context, source string) error {
	connection, err := grpc.NewClient("passthrough:///"+source, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(math.MaxInt32)))
	if err != nil {
		return err
	}
	defer connection.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := discovery.NewAggregatedDiscoveryServiceClient(connection).StreamAggregatedResources(ctx)
	if err != nil {
		return err
	}
	node := &core.Node{Id: "sidecar~127.0.0.1~" + strings.ReplaceAll(s.view.name, " ", "-") + ".chaos~chaos.svc.cluster.local"}
	for _, kind := range observed {
		if err := stream.Send(&discovery.DiscoveryRequest{Node: node, TypeUrl: typeURL + kind}); err != nil {
			return err
		}
	}
	for {
		r, err := stream.Recv()
		if err != nil {
			return err
		}
		if err := s.take(source, r); err != nil {
			s.view.ledger.violated("%s was told nonsense: %v", s.view.name, err)
		}
		if err := stream.Send(&discovery.DiscoveryRequest{Node: node, TypeUrl: r.TypeUrl, VersionInfo: r.VersionInfo, ResponseNonce: r.Nonce}); err != nil {
			return err
		}
	}
}

const typeURL = "networking.istio.io/v1/"

// take takes in a response: what it leaves out is gone.
func (s *shadow) take(source string, r *discovery.DiscoveryResponse) error {
	kind := strings.TrimPrefix(r.TypeUrl, typeURL)
	told := state{}
	for _, resource := range r.Resources {
		var m mcp.Resource
		if err := resource.UnmarshalTo(&m); err != nil {
			return err
		}
		space, name, _ := strings.Cut(m.GetMetadata().GetName(), "/")
		if space != namespace {
			continue
		}
		key := keyOf(kind, space, name)
		value, err := valueOf(key, m.GetMetadata().GetAnnotations())
		if err != nil {
			return err
		}
		told[key] = value
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held[source+" "+kind] = told
	if len(s.held) < len(s.sources)*len(observed) {
		return nil // it has not been told everything yet
	}
	s.view.ready()
	life, _ := s.view.now()
	s.view.see(life, s.sumLocked())
	return nil
}

// sum is what it holds of all sources.
func (s *shadow) sum() state {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sumLocked()
}

func (s *shadow) sumLocked() state {
	sum := state{}
	for _, part := range s.held {
		maps.Copy(sum, part)
	}
	return sum
}
