// Package oidc knows the tokens of other issuers: those of an AuthenticationConfiguration
// of upstream's, which is read again when its file changes. Who comes with such a token is
// an identity of the root.
package oidc

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	apiequality "k8s.io/apimachinery/pkg/api/equality"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apiserver/pkg/apis/apiserver"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	authenticationcel "k8s.io/apiserver/pkg/authentication/cel"
	"k8s.io/apiserver/pkg/authentication/request/anonymous"
	tokencache "k8s.io/apiserver/pkg/authentication/token/cache"
	tokenunion "k8s.io/apiserver/pkg/authentication/token/union"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/server/options/authenticationconfig/metrics"
	"k8s.io/apiserver/pkg/util/filesystem"
	"k8s.io/apiserver/plugin/pkg/authenticator/token/oidc"
	"k8s.io/client-go/util/cert"
	"k8s.io/klog/v2"

	"github.com/vmesh-io/vmesh/pkg/authn"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

const (
	// verifiedFor is how long a token is not verified again.
	verifiedFor = 10 * time.Second
	// settleTime is how long a changed issuer may take to answer before what was configured
	// for it until then ends all the same.
	settleTime = 10 * time.Second
	// fillTime is how long a file that is empty may be about to be written.
	fillTime = time.Second
	// pollInterval is how often the file is read where its changes are not told.
	pollInterval = time.Minute
	// requestTimeout is how long an issuer may take to answer.
	requestTimeout = 10 * time.Second

	metricsID = "vmesh"
)

// Authenticator knows the tokens of the issuers that a file lists, and says who may be
// anonymous. It is safe for concurrent use.
type Authenticator struct {
	file     string
	url      func(cluster string) string
	lifetime context.Context // of what fetches keys
	end      context.CancelFunc
	compiler authenticationcel.Compiler
	seen     string // the file's content that was last judged

	now atomic.Pointer[state]
}

// state is a configuration in effect.
type state struct {
	issuers   []*issuer
	tokens    authenticator.Token
	anonymous authenticator.Request // nil: nobody may be
}

// issuer is one that is trusted, and what fetches its keys.
type issuer struct {
	config apiserver.JWTAuthenticator
	oidc.AuthenticatorTokenWithHealthCheck
	stop func()
}

// New reads the file; an issuer that does not answer is no error. url gives the address of
// a virtual cluster's API, or of the root's: these cannot be issuers. Close ends what it began.
func New(file string, url func(cluster string) string) (*Authenticator, error) {
	config, content, err := load(file, url(logical.Root))
	if err != nil {
		return nil, err
	}
	a := &Authenticator{file: file, url: url, compiler: authenticationcel.NewDefaultCompiler(), seen: content}
	a.lifetime, a.end = context.WithCancel(context.Background())
	next, err := a.assemble(config)
	if err != nil {
		a.end()
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	a.now.Store(next)
	metrics.RegisterMetrics()
	metrics.RecordAuthenticationConfigLastConfigInfo(metricsID, content)
	return a, nil
}

// Close ends the fetching of keys. Tokens are not to be asked about any more.
func (a *Authenticator) Close() {
	a.end()
	for _, i := range a.now.Load().issuers {
		i.stop()
	}
}

// Run reads the file again whenever it changes, until ctx is done. What is wrong with it is
// logged and counted, and what was in effect remains.
func (a *Authenticator) Run(ctx context.Context) error {
	log := klog.FromContext(ctx).WithValues("file", a.file)
	filesystem.WatchUntil(ctx, pollInterval, a.file, func() {
		changed, err := a.reload(ctx)
		switch {
		case err != nil:
			metrics.RecordAuthenticationConfigAutomaticReloadFailure(metricsID)
			log.Error(err, "The authentication configuration cannot be used: what was in effect remains")
		case changed:
			metrics.RecordAuthenticationConfigAutomaticReloadSuccess(metricsID, a.seen)
			log.Info("The authentication configuration was read again", "issuers", len(a.now.Load().issuers))
		}
	}, func(err error) {
		log.Error(err, "Watching the authentication configuration failed: it is read every minute")
	})
	return nil
}

// reload reads the file again if it is another one than before.
func (a *Authenticator) reload(ctx context.Context) (changed bool, err error) {
	data, err := os.ReadFile(a.file)
	for until := time.Now().Add(fillTime); err == nil && len(data) == 0 && time.Now().Before(until) && ctx.Err() == nil; {
		time.Sleep(fillTime / 100) // who writes it in place has emptied it, and is about to fill it
		data, err = os.ReadFile(a.file)
	}
	if err != nil {
		return false, err
	}
	if string(data) == a.seen {
		return false, nil
	}
	a.seen = string(data) // what is wrong with it stays wrong, and is said once
	config, err := parse(data, a.url(logical.Root))
	if err != nil {
		return false, err
	}
	next, err := a.assemble(config)
	if err != nil {
		return false, err
	}
	a.settle(ctx, next)
	before := a.now.Swap(next)
	for _, i := range before.issuers {
		if !next.has(i) {
			i.stop()
		}
	}
	return true, nil
}

func (s *state) has(i *issuer) bool { return slices.Contains(s.issuers, i) }

// settle waits a while until the issuers have answered of which only the configuration is
// new: their tokens have been good, and are not to be refused meanwhile.
func (a *Authenticator) settle(ctx context.Context, s *state) {
	var changed []*issuer
	for _, i := range s.issuers {
		if current := a.now.Load(); !current.has(i) && slices.ContainsFunc(current.issuers, func(other *issuer) bool { return other.config.Issuer.URL == i.config.Issuer.URL }) {
			changed = append(changed, i)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	poll := time.NewTicker(100 * time.Millisecond)
	defer poll.Stop()
	for {
		healthy := true
		for _, i := range changed {
			healthy = healthy && i.HealthCheck() == nil
		}
		if healthy {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-poll.C:
		}
	}
}

// assemble makes what a configuration asks for. Issuers for which nothing has changed stay
// as they are, with the keys that are known of them.
func (a *Authenticator) assemble(config *apiserver.AuthenticationConfiguration) (*state, error) {
	next := &state{anonymous: anonymous.NewAuthenticator(nil)}
	if c := config.Anonymous; c != nil {
		next.anonymous = nil
		if c.Enabled {
			next.anonymous = anonymous.NewAuthenticator(c.Conditions)
		}
	}
	var tokens []authenticator.Token
	for _, c := range config.JWT {
		i := a.held(c)
		if i == nil {
			var err error
			if i, err = a.open(c); err != nil {
				for _, made := range next.issuers {
					if current := a.now.Load(); current == nil || !current.has(made) {
						made.stop()
					}
				}
				return nil, fmt.Errorf("issuer %s: %w", c.Issuer.URL, err)
			}
		}
		next.issuers = append(next.issuers, i)
		tokens = append(tokens, i)
	}
	next.tokens = tokencache.New(ofRoot{tokenunion.NewFailOnError(tokens...)}, false, verifiedFor, 0)
	return next, nil
}

func (a *Authenticator) held(c apiserver.JWTAuthenticator) *issuer {
	if current := a.now.Load(); current != nil {
		for _, i := range current.issuers {
			if apiequality.Semantic.DeepEqual(i.config, c) {
				return i
			}
		}
	}
	return nil
}

func (a *Authenticator) open(c apiserver.JWTAuthenticator) (*issuer, error) {
	var roots *x509.CertPool // the machine's own
	if authority := c.Issuer.CertificateAuthority; authority != "" {
		var err error
		if roots, err = cert.NewPoolFromBytes([]byte(authority)); err != nil {
			return nil, fmt.Errorf("certificateAuthority: %w", err)
		}
	}
	transport := utilnet.SetTransportDefaults(&http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}})
	ctx, cancel := context.WithCancel(a.lifetime)
	verifier, err := oidc.New(ctx, oidc.Options{
		JWTAuthenticator: c, Compiler: a.compiler, SupportedSigningAlgs: oidc.AllValidSigningAlgorithms(), DisallowedIssuers: []string{a.url(logical.Root)},
		Client: &http.Client{Transport: transport, Timeout: requestTimeout}, APIServerID: metricsID,
	})
	if err != nil {
		cancel()
		return nil, err
	}
	return &issuer{c, verifier, func() {
		cancel()
		transport.CloseIdleConnections()
	}}, nil
}

// AuthenticateToken implements authenticator.Token. A token of no issuer is nobody's. Such
// tokens are for whatever API they are shown to: the audiences that the configuration asks
// of an issuer's tokens are vmesh's, so who asks for audiences gets that API's alone.
func (a *Authenticator) AuthenticateToken(ctx context.Context, token string) (*authenticator.Response, bool, error) {
	asked, hasAudiences := authenticator.AudiencesFrom(ctx)
	if !hasAudiences {
		return a.now.Load().tokens.AuthenticateToken(ctx, token)
	}
	here, err := logical.Cluster(ctx)
	if err != nil {
		return nil, false, err
	}
	audiences := asked.Intersect(authenticator.Audiences{a.url(here)})
	if len(audiences) == 0 {
		return nil, false, nil
	}
	resp, ok, err := a.now.Load().tokens.AuthenticateToken(ctx, token)
	if err != nil || !ok {
		return nil, false, err
	}
	return &authenticator.Response{User: resp.User, Audiences: audiences}, true, nil
}

// AuthenticateRequest implements authenticator.Request for callers without credentials.
func (a *Authenticator) AuthenticateRequest(req *http.Request) (*authenticator.Response, bool, error) {
	if nobody := a.now.Load().anonymous; nobody != nil {
		return nobody.AuthenticateRequest(req)
	}
	return nil, false, nil
}

// ofRoot makes identities the root's. What begins with "system:" is not for an issuer to
// give: neither system:masters nor the name of a service account.
type ofRoot struct{ authenticator.Token }

const systemPrefix = "system:"

func (o ofRoot) AuthenticateToken(ctx context.Context, token string) (*authenticator.Response, bool, error) {
	resp, ok, err := o.Token.AuthenticateToken(ctx, token)
	if err != nil || !ok {
		return nil, false, err
	}
	u := resp.User
	if u.GetName() == "" {
		return nil, false, errors.New("the token's claims make no user name")
	}
	if strings.HasPrefix(u.GetName(), systemPrefix) {
		return nil, false, fmt.Errorf("the token's claims make user %q: names that begin with %q are not for issuers to give, map them to others", u.GetName(), systemPrefix)
	}
	info := &user.DefaultInfo{Name: u.GetName(), UID: u.GetUID(), Extra: map[string][]string{}}
	for _, group := range u.GetGroups() {
		if strings.HasPrefix(group, systemPrefix) {
			return nil, false, fmt.Errorf("the token's claims make %q a member of %q: groups that begin with %q are not for issuers to give, map them to others",
				u.GetName(), group, systemPrefix)
		}
		info.Groups = append(info.Groups, group)
	}
	info.Groups = append(info.Groups, user.AllAuthenticated)
	for key, values := range u.GetExtra() {
		info.Extra[key] = values
	}
	info.Extra[authn.ExtraCluster], info.Extra[authn.ExtraClusterUID] = []string{logical.Root}, []string{""}
	return &authenticator.Response{User: info}, true, nil
}
