package xds

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/sync/snapshot"
)

func certificate(t *testing.T, names ...string) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "xds"}, DNSNames: names,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(parsed)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

func TestTheNameVerifiedByTLSSaysWhichMesh(t *testing.T) {
	w := newWorld(t, textKinds(), Options{}).start(map[string][]*object.Object{
		"meshes":          {meshObject("default"), meshObject("payments")},
		"virtualclusters": {clusterObject("c", "default"), clusterObject("d", "payments")},
		"virtualservices": append(textObjects("n/a=1"), textObject("d", "n/a", "2")),
	})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cert, pool := certificate(t, "vmesh", "mesh-payments.vmesh")
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	server := New(w.builder, Options{})
	go func() { served <- server.Serve(ctx, nil, listener, &tls.Config{Certificates: []tls.Certificate{cert}}) }()
	defer func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()
	w.address = listener.Addr().String()
	for sni, want := range map[string]string{"vmesh": "n/a=1", "mesh-payments.vmesh": "n/a=2"} {
		c := w.sotw(grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: pool, ServerName: sni})))
		c.ask(virtualServices)
		c.expect(virtualServices, want)
		c.cancel()
	}
}

func TestServeSaysWhyItEnds(t *testing.T) {
	b := snapshot.NewBuilder(textKinds(), nil)
	listen := func() net.Listener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	l := listen()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := New(b, Options{}).Serve(t.Context(), listen(), l, &tls.Config{}); !errors.Is(err, net.ErrClosed) {
		t.Errorf("with a listener that is closed: %v", err)
	}
	if err := New(b, Options{}).Serve(t.Context(), nil, listen(), nil); err == nil {
		t.Error("TLS without a configuration is no error")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := New(b, Options{}).Serve(ctx, listen(), nil, nil); err != nil {
		t.Errorf("at the end of its context: %v", err)
	}
}

func FuzzMeshOf(f *testing.F) {
	for _, seed := range []string{"", "127.0.0.1:1", "[::1]:1", "mesh-a", "mesh-a.b:1", "MESH-A", "mesh-", ":", "[", "mesh-a:b:c"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, authority string) {
		ctx := metadata.NewIncomingContext(context.Background(), metadata.MD{":authority": {authority}})
		mesh := meshOf(ctx)
		if mesh == "" || strings.Contains(mesh, ".") {
			t.Errorf("%q is about %q", authority, mesh)
		}
		if mesh != "default" && !strings.HasPrefix(strings.ToLower(authority), meshPrefix+mesh) && !strings.HasPrefix(authority, "[") {
			t.Errorf("%q is about %q", authority, mesh)
		}
	})
}
