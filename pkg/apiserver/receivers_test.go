package apiserver

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	grpccredentials "google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/authn"
	"github.com/vmesh-io/vmesh/pkg/registry/vmesh"
)

// names is an authenticator whose tokens say who is who: "name/group", or "name/group@cluster".
type names struct{ gone atomic.Bool }

func (n *names) AuthenticateRequest(req *http.Request) (*authenticator.Response, bool, error) {
	token := strings.TrimPrefix(req.Header.Get("Authorization"), "Bearer ")
	req.Header.Del("Authorization") // as the real one does
	if n.gone.Load() || token == "" || token == "nonsense" {
		return nil, false, errors.New("no such token")
	}
	token, cluster, tenant := strings.Cut(token, "@")
	if !tenant {
		cluster = "root"
	}
	name, group, _ := strings.Cut(token, "/")
	return &authenticator.Response{User: &user.DefaultInfo{Name: name, Groups: []string{group}, Extra: map[string][]string{authn.ExtraCluster: {cluster}}}}, true, nil
}

func receiverMesh(t *testing.T, name string, receivers ...any) *object.Object {
	t.Helper()
	o := &object.Object{}
	o.Name = name
	if err := o.SetContent(map[string]any{"spec": map[string]any{"receivers": receivers}}); err != nil {
		t.Fatal(err)
	}
	o.DropContent()
	return o
}

func subject(kind, name string) any { return map[string]any{"kind": kind, "name": name} }

func shows(token string, certificates ...*x509.Certificate) context.Context {
	ctx := peer.NewContext(context.Background(), &peer.Peer{
		Addr: &net.TCPAddr{}, AuthInfo: grpccredentials.TLSInfo{State: tls.ConnectionState{PeerCertificates: certificates}},
	})
	if token != "" {
		ctx = metadata.NewIncomingContext(ctx, metadata.Pairs("authorization", "Bearer "+token))
	}
	return ctx
}

func TestWhoMayReceiveAMesh(t *testing.T) {
	for _, tt := range []struct {
		name      string
		token     string
		mesh      string
		anonymous bool
		want      codes.Code
		text      string
	}{
		{"a user who is named", "relay-east/x", "east", false, codes.OK, ""},
		{"one of a group that is named", "anybody/relays", "east", false, codes.OK, ""},
		{"an administrator of the root", "admin/system:masters", "east", false, codes.OK, ""},
		{"a user who is not named", "relay-west/x", "east", false, codes.PermissionDenied, "spec.receivers"},
		{"a user named like a group", "relays/x", "east", false, codes.PermissionDenied, "spec.receivers"},
		{"a group named like a user", "x/relay-east", "east", false, codes.PermissionDenied, "spec.receivers"},
		{"a user who is named in another mesh", "relay-east/x", "west", false, codes.PermissionDenied, `"west"`},
		{"a mesh that names nobody", "relay-east/x", "nobody", false, codes.PermissionDenied, "spec.receivers"},
		{"a mesh that is not there", "relay-east/x", "none", false, codes.PermissionDenied, `"none"`},
		{"a user of a virtual cluster named alike", "relay-east/x@shop", "east", false, codes.Unauthenticated, "virtual cluster"},
		{"an administrator of a virtual cluster", "admin/system:masters@shop", "east", false, codes.Unauthenticated, "virtual cluster"},
		{"a token of nobody's", "nonsense", "east", false, codes.Unauthenticated, "no such token"},
		{"a token of nobody's, where identities are not needed", "nonsense", "east", true, codes.Unauthenticated, "no such token"},
		{"a user who is not named, where identities are not needed", "relay-west/x", "east", true, codes.PermissionDenied, "spec.receivers"},
		{"no identity", "", "east", false, codes.Unauthenticated, "vmesh relay"},
		{"no identity, where none is needed", "", "east", true, codes.OK, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newReceivers(&names{}, vmesh.NewKubeconfigs(), tt.anonymous)
			r.Replaced([]*object.Object{
				receiverMesh(t, "east", subject("User", "relay-east"), subject("Group", "relays")),
				receiverMesh(t, "west", subject("User", "relay-west")), receiverMesh(t, "nobody"),
			}, 1)
			_, who, leave, err := r.Enter(shows(tt.token), tt.mesh)
			if status.Code(err) != tt.want || err != nil && !strings.Contains(err.Error(), tt.text) {
				t.Fatalf("got %v, want %s: %s", err, tt.want, tt.text)
			}
			if err == nil {
				defer leave()
				if name, _, _ := strings.Cut(tt.token, "/"); who != name {
					t.Errorf("it is said to be %q", who)
				}
			}
			if err != nil && len(r.open) > 0 {
				t.Error("who was refused is remembered")
			}
		})
	}
}

func TestAStreamEndsWhenItsUserMayNotReceiveTheMeshAnyMore(t *testing.T) {
	east := receiverMesh(t, "east", subject("User", "relay-east"))
	for _, tt := range []struct {
		name string
		end  func(*receivers, *names)
		want codes.Code
	}{
		{"the mesh names others", func(r *receivers, _ *names) {
			r.Changed(watch.Modified, receiverMesh(t, "east", subject("User", "relay-west")), 2)
		}, codes.PermissionDenied},
		{"the mesh is gone", func(r *receivers, _ *names) { r.Changed(watch.Deleted, east, 2) }, codes.PermissionDenied},
		{"the mesh is not among those that there are", func(r *receivers, _ *names) { r.Replaced(nil, 2) }, codes.PermissionDenied},
		{"the token is good no longer", func(_ *receivers, n *names) { n.gone.Store(true) }, codes.Unauthenticated},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := &names{}
			r := newReceivers(n, vmesh.NewKubeconfigs(), false)
			r.askAgain = 10 * time.Millisecond
			r.Replaced([]*object.Object{east}, 1)
			ctx, _, leave, err := r.Enter(shows("relay-east/x"), "east")
			if err != nil {
				t.Fatal(err)
			}
			defer leave()
			r.Changed(watch.Modified, receiverMesh(t, "east", subject("User", "relay-east"), subject("User", "more")), 2)
			time.Sleep(30 * time.Millisecond)
			if ctx.Err() != nil {
				t.Fatalf("it has ended already: %v", context.Cause(ctx))
			}
			tt.end(r, n)
			select {
			case <-ctx.Done():
			case <-time.After(time.Minute):
				t.Fatal("it does not end")
			}
			if got := status.Code(context.Cause(ctx)); got != tt.want {
				t.Errorf("it ended with %v, want %s", context.Cause(ctx), tt.want)
			}
		})
	}
}

func TestNobodyIsJudgedBeforeTheMeshesAreKnown(t *testing.T) {
	r := newReceivers(&names{}, vmesh.NewKubeconfigs(), false)
	entered := make(chan error, 1)
	go func() {
		_, _, leave, err := r.Enter(shows("relay-east/x"), "east")
		if err == nil {
			leave()
		}
		entered <- err
	}()
	select {
	case err := <-entered:
		t.Fatalf("it was judged: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	r.Replaced([]*object.Object{receiverMesh(t, "east", subject("User", "relay-east"))}, 1)
	if err := <-entered; err != nil {
		t.Error(err)
	}
}
