package relay

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/vmesh-io/vmesh/pkg/sync/snapshot"
	"github.com/vmesh-io/vmesh/pkg/sync/xds"
	"github.com/vmesh-io/vmesh/test/harness"
	"github.com/vmesh-io/vmesh/test/leak"
)

// vmeshes are xDS servers of one mesh, "east", which come and go.
type vmeshes struct {
	t       testing.TB
	kinds   []snapshot.Kind
	tls     *tls.Config
	mu      sync.Mutex
	lists   []*snapshot.List
	running map[string]*vmeshServer
}

type vmeshServer struct {
	builder *snapshot.Builder
	server  *xds.Server
	stop    func()
}

// newVmeshes gives the identity that relays use with them, too.
func newVmeshes(t testing.TB) (*vmeshes, Identity) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "vmesh"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	ca, token := filepath.Join(dir, "ca.crt"), filepath.Join(dir, "token")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(token, []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	v := &vmeshes{
		t: t, kinds: meshKinds(), running: map[string]*vmeshServer{},
		tls: &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}},
	}
	v.lists = slices.Repeat([]*snapshot.List{snapshot.Empty}, len(v.kinds))
	t.Cleanup(func() {
		for _, s := range v.running {
			s.stop()
		}
	})
	return v, Identity{CertificateAuthority: ca, TokenFile: token}
}

// start serves on an address; an empty one is chosen.
func (v *vmeshes) start(address string, options xds.Options) string {
	v.t.Helper()
	if address == "" {
		// Not one that the kernel may give to the relay's next connection while nothing listens.
		ports, err := harness.FreePorts(1)
		if err != nil {
			v.t.Fatal(err)
		}
		address = fmt.Sprintf("127.0.0.1:%d", ports[0])
	}
	var l net.Listener
	eventually(v.t, "the port", func() (free bool) {
		var err error
		l, err = net.Listen("tcp", address)
		return err == nil
	})
	b := snapshot.NewBuilder(v.kinds, nil)
	s := &vmeshServer{builder: b, server: xds.New(b, options)}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := s.server.Serve(ctx, nil, l, v.tls); err != nil {
			v.t.Error(err)
		}
	}()
	s.stop = func() {
		cancel()
		<-ended
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.running[l.Addr().String()] = s
	b.Put(&snapshot.Snapshot{Mesh: "east", Lists: slices.Clone(v.lists)})
	return l.Addr().String()
}

func (v *vmeshes) end(address string) {
	v.mu.Lock()
	s := v.running[address]
	delete(v.running, address)
	v.mu.Unlock()
	s.stop()
}

// put changes one resource of the first kind.
func (v *vmeshes) put(name, text string) {
	v.t.Helper()
	u := snapshot.Removed(name)
	if text != "" {
		u = set(v.t, name, text)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.lists[0] = v.lists[0].With([]snapshot.Update{u}, time.Now())
	for _, s := range v.running {
		s.builder.Put(&snapshot.Snapshot{Mesh: "east", Lists: slices.Clone(v.lists)})
	}
}

// behind says whether some relay has yet to acknowledge what it was sent.
func (v *vmeshes) acknowledged(address string) bool {
	v.mu.Lock()
	s := v.running[address]
	v.mu.Unlock()
	relays := s.server.ControlPlanes("east")
	for _, r := range relays {
		for _, k := range r.Kinds {
			if k.SentVersion != k.AckedVersion {
				return false
			}
		}
		if len(r.Kinds) < len(v.kinds) {
			return false
		}
	}
	return len(relays) > 0
}

// startRelay runs a relay until stop is called, or the test ends.
func startRelay(t testing.TB, o *Options) (r *Relay, stop func()) {
	t.Helper()
	o.HealthAddress = ""
	o.Name, o.Mesh = "relay", "east"
	r, err := New(t.Context(), o, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-ended; err != nil {
				t.Errorf("Run: %v", err)
			}
		})
	}
	t.Cleanup(stop)
	return r, stop
}

// istiod is a client of some sources that keeps all it is told, of the first kind.
type istiod struct {
	t      testing.TB
	cancel context.CancelFunc
	ended  sync.WaitGroup
	mute   chan struct{} // while it can be received from nothing is acknowledged

	mu       sync.Mutex
	has      map[string]map[string]string // by source
	received int
}

// connect is an istiod with streams to all shards of a relay that it was told of.
func connect(t testing.TB, o *Options, shards int) *istiod {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	i := &istiod{t: t, cancel: cancel, has: map[string]map[string]string{}, mute: make(chan struct{})}
	close(i.mute)
	t.Cleanup(i.stop)
	for shard := range shards {
		conn, err := grpc.NewClient("passthrough:///"+o.address(shard), grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		stream, err := discovery.NewAggregatedDiscoveryServiceClient(conn).StreamAggregatedResources(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range meshKinds() {
			if err := stream.Send(&discovery.DiscoveryRequest{TypeUrl: k.TypeURL, ResponseNonce: "x", Node: &core.Node{Id: "istiod"}}); err != nil {
				t.Fatal(err)
			}
		}
		i.ended.Go(func() {
			defer conn.Close()
			for {
				r, err := stream.Recv()
				if err != nil {
					return
				}
				i.mu.Lock()
				i.received++
				if r.TypeUrl == meshKinds()[0].TypeURL {
					now := map[string]string{}
					for _, body := range r.Resources {
						name, text := decoded(t, body)
						now[name] = text
					}
					i.has[o.address(shard)] = now
				}
				mute := i.mute
				i.mu.Unlock()
				select {
				case <-mute:
				case <-ctx.Done():
					return
				}
				if err := stream.Send(&discovery.DiscoveryRequest{TypeUrl: r.TypeUrl, ResponseNonce: r.Nonce, VersionInfo: r.VersionInfo}); err != nil {
					return
				}
			}
		})
	}
	return i
}

func (i *istiod) stop() {
	i.cancel()
	i.ended.Wait()
}

// all is what it has, as name=text, sorted.
func (i *istiod) all() string {
	i.mu.Lock()
	defer i.mu.Unlock()
	var all []string
	for _, has := range i.has {
		for name, text := range has {
			all = append(all, name+"="+text)
		}
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

func (i *istiod) expect(want string) {
	i.t.Helper()
	eventually(i.t, fmt.Sprintf("istiod to have %q", want), func() bool { return i.all() == want })
}

func options(t testing.TB, identity Identity, upstream ...string) *Options {
	t.Helper()
	base, err := harness.FreePortRange(4) // as many as any test has shards
	if err != nil {
		t.Fatal(err)
	}
	o := NewOptions()
	o.Upstream, o.Identity, o.CacheDir, o.ListenBase, o.Shards = upstream, identity, t.TempDir(), fmt.Sprintf("127.0.0.1:%d", base), "1"
	return o
}

// soon is a moment, by far the most of which a busy machine may need.
const soon = 15 * time.Second

func leaks(t *testing.T) {
	ignore := goleak.IgnoreCurrent()
	t.Cleanup(func() { leak.VerifyNone(t, ignore) })
}

func TestIstiodIsServedFromTheCacheWhileNoVmeshAnswers(t *testing.T) {
	leaks(t)
	v, identity := newVmeshes(t)
	v.put("ns/a", "1")
	address := v.start("", xds.Options{})
	o := options(t, identity, address)
	_, stop := startRelay(t, o)
	first := connect(t, o, 1)
	first.expect("ns/a=1")
	v.put("ns/b", "2")
	first.expect("ns/a=1 ns/b=2")
	first.stop()
	stop()
	v.end(address)

	r, _ := startRelay(t, o)
	second := connect(t, o, 1)
	second.expect("ns/a=1 ns/b=2")
	if stale, serves := r.staleness(); !serves || stale == 0 || stale > patience {
		t.Errorf("what is served is %s old", stale)
	}
	// What changed meanwhile is there soon after vmesh, and only that was sent.
	v.put("ns/a", "")
	v.put("ns/c", "3")
	v.start(address, xds.Options{})
	began := time.Now()
	second.expect("ns/b=2 ns/c=3")
	if took := time.Since(began); took > soon {
		t.Errorf("it took %s after vmesh's return", took)
	}
	eventually(t, "the relay to be in step", r.isInStep)
}

func TestVmeshIsToldWhatIstiodHasAndNotWhatTheRelayHas(t *testing.T) {
	leaks(t)
	v, identity := newVmeshes(t)
	v.put("ns/a", "1")
	address := v.start("", xds.Options{})
	o := options(t, identity, address)
	o.Shards = "3"
	r, _ := startRelay(t, o)
	eventually(t, "the relay to have all", func() bool { return r.current() != nil })
	if v.acknowledged(address) {
		t.Error("vmesh was told that istiod has what no istiod has been given")
	}
	i := connect(t, o, 3)
	i.expect("ns/a=1")
	eventually(t, "vmesh to be told", func() bool { return v.acknowledged(address) })

	mute := make(chan struct{})
	i.mu.Lock()
	i.mute = mute
	i.mu.Unlock()
	v.put("ns/b", "1")
	i.expect("ns/a=1 ns/b=1")
	if v.acknowledged(address) {
		t.Error("vmesh was told of a list that istiod has not acknowledged")
	}
	close(mute)
	eventually(t, "vmesh to be told of the change", func() bool { return v.acknowledged(address) })
}

func TestNothingIsAnsweredBeforeIstiodHasAskedEveryShard(t *testing.T) {
	leaks(t)
	v, identity := newVmeshes(t)
	for n := range 20 {
		v.put(fmt.Sprintf("ns/%d", n), "1")
	}
	o := options(t, identity, v.start("", xds.Options{}))
	o.Shards = "4"
	r, _ := startRelay(t, o)
	eventually(t, "the relay to have all", func() bool { return r.current() != nil })
	some := connect(t, o, 3)
	eventually(t, "the streams", func() bool { return len(r.sources.missing()) == 1 })
	time.Sleep(50 * time.Millisecond) // for what must not come
	some.mu.Lock()
	if some.received > 0 {
		t.Errorf("an istiod with three of four sources was answered %d times", some.received)
	}
	some.mu.Unlock()
	all := connect(t, o, 4)
	eventually(t, "all to be answered", func() bool { return strings.Count(all.all(), "=") == 20 })
}

func TestAnotherVmeshTakesOverWithoutAGap(t *testing.T) {
	leaks(t)
	v, identity := newVmeshes(t)
	v.put("ns/a", "1")
	one, two := v.start("", xds.Options{}), v.start("", xds.Options{})
	o := options(t, identity, one, two)
	r, _ := startRelay(t, o)
	i := connect(t, o, 1)
	i.expect("ns/a=1")
	for n, next := range []string{one, two, one, two} {
		v.end(next)
		text := fmt.Sprint("after-", n)
		v.put("ns/a", text)
		began := time.Now()
		i.expect("ns/a=" + text)
		if took := time.Since(began); took > soon {
			t.Errorf("failing over took %s", took)
		}
		v.start(next, xds.Options{})
	}
	eventually(t, "the relay to be in step", r.isInStep)
}

func TestTheRelayIsNotReadyBeforeItHasSomethingNorBeyondTheLimit(t *testing.T) {
	leaks(t)
	v, identity := newVmeshes(t)
	address := v.start("", xds.Options{})
	v.end(address)
	o := options(t, identity, address)
	o.MaxStaleness = time.Millisecond
	r, _ := startRelay(t, o)
	if err := r.NotReady(); err == nil {
		t.Error("it is ready without anything to serve")
	}
	v.start(address, xds.Options{})
	eventually(t, "readiness", func() bool { return r.NotReady() == nil })
	i := connect(t, o, 1)
	v.put("ns/a", "1")
	i.expect("ns/a=1")
	v.end(address)
	eventually(t, "unreadiness", func() bool {
		err := r.NotReady()
		return err != nil && strings.Contains(err.Error(), "--max-staleness")
	})
	late := connect(t, o, 1)
	late.expect("ns/a=1") // it is served all the same
}

func TestWhatAutoHasChosenStays(t *testing.T) {
	leaks(t)
	v, identity := newVmeshes(t)
	v.put("ns/a", "1")
	o := options(t, identity, v.start("", xds.Options{}))
	o.Shards, o.WriteMeshConfig = "auto", filepath.Join(t.TempDir(), "mesh.yaml")
	if _, err := MeshConfig(o); err != ErrNoShards {
		t.Errorf("before the choice: got %v", err)
	}
	r, stop := startRelay(t, o)
	select {
	case <-r.ready:
	case <-time.After(patience):
		t.Fatal("nothing was chosen")
	}
	data, err := os.ReadFile(o.WriteMeshConfig)
	if err != nil || strings.Count(string(data), "xds://127.0.0.1:") != 4 {
		t.Errorf("istiod is told %s, %v", data, err)
	}
	stop()
	if err := keepShards(o, 2, 1); err != nil { // as if it had been fewer
		t.Fatal(err)
	}
	startRelay(t, o)
	i := connect(t, o, 2)
	i.expect("ns/a=1")
	if data, err := MeshConfig(o); err != nil || strings.Count(string(data), "xds://") != 2 {
		t.Errorf("it prints %s, %v", data, err)
	}
}

// In another pod, or after another boot, no istiod can be there that was told of what was chosen before.
func TestAutoChoosesAnewWhereNoIstiodWasTold(t *testing.T) {
	here := loopback()
	if here == "" {
		t.Skip("there is no telling here where an istiod is")
	}
	for _, tt := range []struct {
		name, shards, loopback string
		want                   int
	}{
		{"where it was chosen", "auto", here, 2},
		{"elsewhere", "auto", "another boot net:[1]", 0},
		{"by a relay that did not say where", "auto", "", 2},
		{"a number that was given", "3", "another boot net:[1]", 3},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := options(t, Identity{}, "127.0.0.1:1")
			o.Shards = tt.shards
			data, err := json.Marshal(choice{2, 1, tt.loopback})
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(o.CacheDir, shardsFile), data, 0o600); err != nil {
				t.Fatal(err)
			}
			if got, err := shardsToServe(o); err != nil || got != tt.want {
				t.Errorf("it serves %d shards, %v; want %d", got, err, tt.want)
			}
		})
	}
}

func TestAutoChoosesAnewFromTheCache(t *testing.T) {
	leaks(t)
	v, identity := newVmeshes(t)
	v.put("ns/a", "1")
	address := v.start("", xds.Options{})
	o := options(t, identity, address)
	o.Shards = "2"
	_, stop := startRelay(t, o)
	first := connect(t, o, 2)
	first.expect("ns/a=1")
	first.stop()
	stop()
	v.end(address)
	if err := os.WriteFile(filepath.Join(o.CacheDir, shardsFile), []byte(`{"shards":2,"resources":1,"loopback":"another boot net:[1]"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	o.Shards, o.ListenBase = "auto", "127.0.0.1:"+fmt.Sprint(20000+os.Getpid()%10000)
	startRelay(t, o) // while no vmesh is there
	second := connect(t, o, 4)
	second.expect("ns/a=1")
}

func TestOptionsThatAreWrongAreNamed(t *testing.T) {
	_, identity := newVmeshes(t)
	for _, tt := range []struct {
		name   string
		change func(*Options)
		want   string
	}{
		{"all is right", func(*Options) {}, ""},
		{"no upstream", func(o *Options) { o.Upstream = nil }, "--upstream"},
		{"an upstream without a port", func(o *Options) { o.Upstream = []string{"vmesh"} }, "--upstream"},
		{"no mesh", func(o *Options) { o.Mesh = "" }, "--mesh"},
		{"no identity", func(o *Options) { o.Identity = Identity{} }, "vmesh kubeconfig create"},
		{"two identities", func(o *Options) { o.Identity.Kubeconfig = "x" }, "not both"},
		{"a certificate without a key", func(o *Options) { o.Identity.ClientCertificate = "x" }, "--client-key"},
		{"a file that is not there", func(o *Options) { o.Identity.TokenFile = "/nowhere" }, "--token-file"},
		{"a label that is none", func(o *Options) { o.Labels = map[string]string{"a b": "c"} }, "--labels"},
		{"a label of vmesh's", func(o *Options) { o.Labels = map[string]string{"vmesh.io/pod": "c"} }, "--labels"},
		{"shards that are no number", func(o *Options) { o.Shards = "many" }, "--shards"},
		{"too many shards", func(o *Options) { o.Shards = "1000" }, "--shards"},
		{"shards beyond the last port", func(o *Options) { o.Shards, o.ListenBase = "16", "127.0.0.1:65530" }, "--listen-base"},
		{"sources for everybody", func(o *Options) { o.ListenBase = "0.0.0.0:15100" }, "loopback"},
		{"no cache", func(o *Options) { o.CacheDir = "" }, "--cache-dir"},
		{"a staleness below zero", func(o *Options) { o.MaxStaleness = -1 }, "--max-staleness"},
		{"a mesh configuration for nothing", func(o *Options) { o.MeshConfig = "mesh.yaml" }, "--write-mesh-config"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := options(t, identity, "127.0.0.1:1")
			tt.change(o)
			err := o.Validate()
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestWhatIstiodHasWholeIsKnownForReports(t *testing.T) {
	leaks(t)
	v, identity := newVmeshes(t)
	v.put("ns/a", "1")
	o := options(t, identity, v.start("", xds.Options{}))
	r, _ := startRelay(t, o)
	eventually(t, "the relay to have all", func() bool { return r.current() != nil })
	if version, _ := r.acknowledged(); version != "" {
		t.Errorf("without an istiod version %s is acknowledged", version)
	}
	i := connect(t, o, 1)
	for _, text := range []string{"1", "2"} {
		v.put("ns/a", text)
		i.expect("ns/a=" + text)
		eventually(t, "the acknowledgement", func() bool {
			version, at := r.acknowledged()
			return version == snapshot.VersionOf(v.lists...) && time.Since(at) < patience
		})
	}
	// vmesh passes over an answer to what it never sent, as it does not answer a report.
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	r.report(ctx, &discovery.DeltaDiscoveryRequest{TypeUrl: meshKinds()[0].TypeURL, ResponseNonce: "never"})
	if ctx.Err() != nil || !r.isInStep() {
		t.Error("a report was not sent, or has ended the stream")
	}
}
