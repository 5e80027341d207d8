package apiserver

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	grpccredentials "google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/klog/v2"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/authn"
	"github.com/vmesh-io/vmesh/pkg/registry/vmesh"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// askAgain is how often it is asked whether a stream's credentials are good still. A kubeconfig that
// is revoked ends its streams at once; a token that has expired, or whose account is gone, as late as this.
const askAgain = 30 * time.Second

// receivers decides who may receive which mesh over xDS: those users of the root whom the mesh's
// spec.receivers name, and the root's administrators. It is a logical.Observer of the meshes, and an xds.Gate.
type receivers struct {
	authenticator authenticator.Request
	kubeconfigs   *vmesh.Kubeconfigs
	anonymous     bool // who shows no identity may receive all
	askAgain      time.Duration

	mu     sync.Mutex
	known  chan struct{} // closed when the meshes have been read
	meshes map[string]*receiversOf
	open   map[*receiving]struct{}
}

// receiversOf is a mesh's spec.receivers.
type receiversOf struct {
	spec     []byte
	subjects []v1alpha1.AccessSubject
}

// receiving is one stream.
type receiving struct {
	mesh string
	user user.Info
	end  context.CancelCauseFunc
}

func newReceivers(a authenticator.Request, kubeconfigs *vmesh.Kubeconfigs, anonymous bool) *receivers {
	return &receivers{
		authenticator: a, kubeconfigs: kubeconfigs, anonymous: anonymous, askAgain: askAgain,
		known: make(chan struct{}), meshes: map[string]*receiversOf{}, open: map[*receiving]struct{}{},
	}
}

// Enter implements xds.Gate.
func (r *receivers) Enter(ctx context.Context, mesh string) (_ context.Context, name string, leave func(), err error) {
	req, shows, err := credentialsOf(ctx)
	if err != nil {
		return nil, "", nil, err
	}
	if !shows {
		if r.anonymous {
			return ctx, "", func() {}, nil
		}
		return nil, "", nil, status.Error(codes.Unauthenticated, "meshes are served here to who shows an identity: a client certificate or a bearer token of a user of the root. istiod cannot: "+
			"connect it through vmesh relay, or start the server with --xds-allow-anonymous")
	}
	who, err := r.authenticate(req)
	if err != nil {
		return nil, "", nil, err
	}
	select {
	case <-r.known:
	case <-ctx.Done():
		return nil, "", nil, status.FromContextError(ctx.Err()).Err()
	}
	ctx, end := context.WithCancelCause(ctx)
	s := &receiving{mesh, who, end}
	leaving := []func(){func() { end(nil) }}
	if record := authn.Kubeconfig(who); record != "" {
		r.kubeconfigs.Used(record, time.Now(), false)
		while, done := r.kubeconfigs.While(ctx, record)
		stop := context.AfterFunc(while, func() {
			if cause := context.Cause(while); errors.Is(cause, vmesh.ErrRevoked) || errors.Is(cause, vmesh.ErrExpired) {
				end(status.Error(codes.Unauthenticated, cause.Error()))
			}
		})
		leaving = append(leaving, func() { stop(); done() })
	} else {
		stop := r.keepAsking(ctx, s, req)
		leaving = append(leaving, stop)
	}
	leave = func() {
		r.mu.Lock()
		delete(r.open, s)
		r.mu.Unlock()
		for _, f := range slices.Backward(leaving) {
			f()
		}
	}
	r.mu.Lock()
	err = r.refusal(mesh, who)
	if err == nil {
		r.open[s] = struct{}{}
	}
	r.mu.Unlock()
	if err != nil {
		leave()
		return nil, "", nil, err
	}
	return ctx, who.GetName(), leave, nil
}

// credentialsOf is a request to the root with what a stream shows, if it shows anything.
func credentialsOf(ctx context.Context) (_ *http.Request, shows bool, err error) {
	req, err := http.NewRequestWithContext(logical.WithCluster(ctx, logical.Root), http.MethodGet, "/", nil)
	if err != nil {
		return nil, false, status.Error(codes.Internal, err.Error())
	}
	if from, ok := peer.FromContext(ctx); ok {
		if info, ok := from.AuthInfo.(grpccredentials.TLSInfo); ok {
			req.TLS = &info.State
			shows = len(info.State.PeerCertificates) > 0
		}
		req.RemoteAddr = from.Addr.String()
	}
	md, _ := metadata.FromIncomingContext(ctx)
	for _, value := range md.Get("authorization") {
		req.Header.Add("Authorization", value)
		shows = true
	}
	return req, shows, nil
}

func (r *receivers) authenticate(req *http.Request) (user.Info, error) {
	// What authenticators take from a request they may take off it.
	resp, ok, err := r.authenticator.AuthenticateRequest(req.Clone(req.Context()))
	switch {
	case err != nil:
		return nil, status.Errorf(codes.Unauthenticated, "the identity that is shown is not known: %v", err)
	case !ok || resp.User.GetName() == user.Anonymous:
		return nil, status.Error(codes.Unauthenticated, "the identity that is shown is not known: show a client certificate or a bearer token of a user of the root")
	case authn.Cluster(resp.User) != logical.Root:
		return nil, status.Error(codes.Unauthenticated, "the identity that is shown belongs to a virtual cluster: meshes are for users of the root")
	}
	return resp.User, nil
}

// keepAsking ends a stream whose credentials are good no longer.
func (r *receivers) keepAsking(ctx context.Context, s *receiving, req *http.Request) (stop func()) {
	var mu sync.Mutex
	var timer *time.Timer
	mu.Lock()
	defer mu.Unlock()
	timer = time.AfterFunc(r.askAgain, func() {
		_, err := r.authenticate(req)
		if err != nil {
			s.end(err)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		if ctx.Err() == nil {
			timer.Reset(r.askAgain)
		}
	})
	return func() {
		mu.Lock()
		defer mu.Unlock()
		timer.Stop()
	}
}

// refusal is why a user may not receive a mesh, or nil. It must be called with the lock held.
func (r *receivers) refusal(mesh string, who user.Info) error {
	if slices.Contains(who.GetGroups(), user.SystemPrivilegedGroup) {
		return nil
	}
	if of := r.meshes[mesh]; of != nil {
		for _, subject := range of.subjects {
			switch subject.Kind {
			case v1alpha1.UserSubject:
				if subject.Name == who.GetName() {
					return nil
				}
			case v1alpha1.GroupSubject:
				if slices.Contains(who.GetGroups(), subject.Name) {
					return nil
				}
			}
		}
	}
	return status.Errorf(codes.PermissionDenied, "user %q may not receive mesh %q: the spec.receivers of that Mesh, if there is one, name neither the user nor a group of it: "+
		"add {kind: User, name: %s} there", who.GetName(), mesh, who.GetName())
}

// Replaced implements logical.Observer.
func (r *receivers) Replaced(items []*object.Object, _ uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	present := map[string]struct{}{}
	for _, o := range items {
		present[o.Name] = struct{}{}
		r.set(o)
	}
	for name := range r.meshes {
		if _, ok := present[name]; !ok {
			delete(r.meshes, name)
		}
	}
	r.enforce()
	select {
	case <-r.known:
	default:
		close(r.known)
	}
}

// Changed implements logical.Observer.
func (r *receivers) Changed(t watch.EventType, o *object.Object, _ uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if t == watch.Deleted {
		delete(r.meshes, o.Name)
	} else if !r.set(o) {
		return
	}
	r.enforce()
}

// Progressed implements logical.Observer.
func (r *receivers) Progressed(uint64) {}

// set takes in a mesh, and says whether that may change who receives it. Of one that cannot be
// read nobody is a receiver.
func (r *receivers) set(o *object.Object) bool {
	spec := o.Field("spec")
	if old := r.meshes[o.Name]; old != nil && bytes.Equal(old.spec, spec) {
		return false
	}
	var decoded v1alpha1.MeshSpec
	if len(spec) > 0 {
		if err := json.Unmarshal(spec, &decoded); err != nil {
			klog.Background().Error(err, "A mesh cannot be read, and has no receivers", "mesh", o.Name)
		}
	}
	r.meshes[o.Name] = &receiversOf{bytes.Clone(spec), decoded.Receivers}
	return true
}

// enforce ends the streams of who may not receive any more.
func (r *receivers) enforce() {
	for s := range r.open {
		if err := r.refusal(s.mesh, s.user); err != nil {
			s.end(err)
			delete(r.open, s)
		}
	}
}

// xdsTLS is what control planes are served with: the certificate is asked for at each handshake,
// so that a renewed one needs no restart, and theirs is judged by the gate.
func xdsTLS(creds *credentials) *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, GetCertificate: creds.certificate, ClientAuth: tls.RequestClientCert}
}

// isLoopback says whether an address, HOST:PORT, is reached from this machine only.
func isLoopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// validateXDS says what is wrong with where control planes are served.
func (o *Options) validateXDS() error {
	if o.XDSAddress != "" && !isLoopback(o.XDSAddress) && !o.XDSAllowAnonymous {
		return fmt.Errorf("--xds-address: %s is reached from other machines, and plain text is for everybody: serve relays on --xds-tls-address, "+
			"or accept it with --xds-allow-anonymous", o.XDSAddress)
	}
	return nil
}
