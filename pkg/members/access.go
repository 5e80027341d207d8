package members

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/vmesh-io/vmesh/pkg/version"
)

// Fault is why a member cannot be used, in words for people.
type Fault struct {
	// Reason is a word in CamelCase, as conditions have it.
	Reason, Message string
	// Away says that the API does not answer, and not that it answers something unwelcome.
	Away bool
}

func fault(reason, format string, args ...any) *Fault {
	return &Fault{Reason: reason, Message: fmt.Sprintf(format, args...)}
}

// Error implements error.
func (f *Fault) Error() string { return f.Message }

// The reasons for which a Secret gives no access.
const (
	ReasonNoSecret         = "NoSecret"
	ReasonSecretUnreadable = "SecretUnreadable"
	ReasonNoKubeconfig     = "NoKubeconfig"
	ReasonBadKubeconfig    = "BadKubeconfig"
	ReasonUnsafeKubeconfig = "UnsafeKubeconfig"
	ReasonInsecureServer   = "InsecureServer"
	ReasonNoCredential     = "NoCredential"
)

// access is one kubeconfig of a member's Secret.
type access struct {
	key  string // of the Secret
	data []byte
	sum  [sha256.Size]byte // of data
	// shape is a hash of all but the token: accesses of the same shape reach the same API as the same user.
	shape [sha256.Size]byte
	// config has no token: that is given with each request, so that it can be renewed meanwhile.
	config *rest.Config
	bearer *bearer // nil without a token
	client *http.Client
	server *url.URL

	user    string
	expires time.Time // zero: never, or it does not say
	claims  *claims   // of a token of a service account
}

// claims are what a bound service account token says.
type claims struct {
	namespace, name string
	audiences       []string
	issued, expires time.Time
}

func (c *claims) life() time.Duration { return c.expires.Sub(c.issued) }

// parseAccess reads a kubeconfig. What istiod refuses is refused, and besides what would have vmesh read its own
// host's files, run programs, or send a credential to whoever answers. A fault quotes nothing of the
// kubeconfig but names: it is told to people who may not read the Secret.
func parseAccess(key string, data []byte) (*access, *Fault) {
	bad := func(format string, args ...any) (*access, *Fault) {
		return nil, fault(ReasonBadKubeconfig, "the kubeconfig under "+key+" "+format, args...)
	}
	unsafe := func(format string, args ...any) (*access, *Fault) {
		return nil, fault(ReasonUnsafeKubeconfig, "the kubeconfig under "+key+" "+format, args...)
	}
	if len(bytes.TrimSpace(data)) == 0 {
		return nil, fault(ReasonNoKubeconfig, "the kubeconfig under %s is empty", key)
	}
	raw, err := clientcmd.Load(data)
	if err != nil || len(raw.Clusters)+len(raw.Contexts)+len(raw.AuthInfos) == 0 {
		return bad("is none: it must be YAML or JSON of kind Config with clusters, users and contexts")
	}
	const flatten = "write it with: kubectl config view --minify --flatten"
	for _, name := range slices.Sorted(maps.Keys(raw.AuthInfos)) {
		user := raw.AuthInfos[name]
		switch {
		case user.ClientCertificate != "" || user.ClientKey != "":
			return unsafe("has the certificate or key of user %s in a file: %s", name, flatten)
		case user.TokenFile != "":
			return unsafe("has the token of user %s in a file: put it in as token", name)
		case user.Exec != nil:
			return unsafe("runs a program for user %s: use the token of a service account", name)
		case user.AuthProvider != nil:
			return unsafe("has an auth provider for user %s: use the token of a service account", name)
		case user.Impersonate != "" || user.ImpersonateUID != "" || len(user.ImpersonateGroups) > 0 || len(user.ImpersonateUserExtra) > 0:
			return unsafe("impersonates another as user %s: use a credential of who is meant", name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(raw.Clusters)) {
		if raw.Clusters[name].CertificateAuthority != "" {
			return unsafe("has the certificate authority of cluster %s in a file: %s", name, flatten)
		}
	}
	if raw.CurrentContext == "" {
		return bad("has no current context: set current-context")
	}
	context := raw.Contexts[raw.CurrentContext]
	if context == nil {
		return bad("has the current context %s, but no such context", raw.CurrentContext)
	}
	cluster, user := raw.Clusters[context.Cluster], raw.AuthInfos[context.AuthInfo]
	if cluster == nil {
		return bad("has no cluster %s, which its context %s names", context.Cluster, raw.CurrentContext)
	}
	if user == nil {
		return bad("has no user %s, which its context %s names", context.AuthInfo, raw.CurrentContext)
	}
	server, err := url.Parse(cluster.Server)
	if err != nil || server.Host == "" {
		return bad("has no address of an API server for cluster %s: set server to https://HOST:PORT", context.Cluster)
	}
	switch {
	case server.Scheme != "https":
		return nil, fault(ReasonInsecureServer, "the kubeconfig under %s has a server without https, to which no credential is sent: use https://HOST:PORT", key)
	case server.User != nil || server.RawQuery != "" || server.Fragment != "":
		return bad("has an address with more than a host, a port and a path for cluster %s", context.Cluster)
	case cluster.InsecureSkipTLSVerify:
		return nil, fault(ReasonInsecureServer, "the kubeconfig under %s does not verify the server (insecure-skip-tls-verify), so that anyone could take the credential: give its certificate-authority-data instead", key)
	}
	if user.Token == "" && (len(user.ClientCertificateData) == 0 || len(user.ClientKeyData) == 0) {
		return nil, fault(ReasonNoCredential, "the kubeconfig under %s has neither a token nor a client certificate with its key for user %s", key, context.AuthInfo)
	}
	// What this refuses and says may quote the data.
	if err := clientcmd.Validate(*raw); err != nil {
		return bad("is not valid: see kubectl config view")
	}
	config, err := clientcmd.NewDefaultClientConfig(*raw, &clientcmd.ConfigOverrides{}).ClientConfig()
	if err != nil {
		return bad("cannot be used: see kubectl config view")
	}
	a := &access{key: key, data: data, sum: sha256.Sum256(data), server: server}
	if token := config.BearerToken; token != "" {
		a.bearer = &bearer{}
		a.bearer.token.Store(&token)
		a.readToken(token)
	} else if err := a.readCertificate(user.ClientCertificateData); err != nil {
		return bad("has a client certificate that cannot be read: %v", err)
	}
	config.BearerToken, config.Username, config.Password = "", "", ""
	config.QPS, config.Burst = 20, 40
	config.UserAgent = "vmesh/" + version.Version
	config.Wrap(func(next http.RoundTripper) http.RoundTripper { return &guarded{next: next, bearer: a.bearer} })
	if a.client, err = rest.HTTPClientFor(config); err != nil {
		return bad("has certificates or keys that cannot be read, or do not belong together")
	}
	a.config = config
	user.Token = ""
	shape, err := clientcmd.Write(*raw)
	if err != nil {
		return bad("cannot be written: %v", err)
	}
	a.shape = sha256.Sum256(append(shape, a.user...))
	return a, nil
}

// readToken reads what a token says of itself, without believing it: it is the API that does or does not.
func (a *access) readToken(token string) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return
	}
	payload, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(parts[1], "="))
	if err != nil {
		return
	}
	var said struct {
		Subject  string          `json:"sub"`
		Audience json.RawMessage `json:"aud"`
		Issued   int64           `json:"iat"`
		Expires  int64           `json:"exp"`
	}
	if json.Unmarshal(payload, &said) != nil {
		return
	}
	a.user = said.Subject
	if said.Expires <= 0 {
		return
	}
	a.expires = time.Unix(said.Expires, 0)
	account, ok := strings.CutPrefix(said.Subject, "system:serviceaccount:")
	namespace, name, two := strings.Cut(account, ":")
	if !ok || !two || namespace == "" || name == "" || strings.ContainsAny(account, "/?#%") || said.Issued <= 0 || said.Issued >= said.Expires {
		return
	}
	c := &claims{namespace: namespace, name: name, issued: time.Unix(said.Issued, 0), expires: a.expires}
	var one string
	if json.Unmarshal(said.Audience, &one) == nil {
		c.audiences = []string{one}
	} else if json.Unmarshal(said.Audience, &c.audiences) != nil {
		c.audiences = nil // the server chooses its own
	}
	a.claims = c
}

func (a *access) readCertificate(data []byte) error {
	block, _ := pem.Decode(data)
	if block == nil {
		return fmt.Errorf("it is no PEM")
	}
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return fmt.Errorf("it is no certificate")
	}
	a.user, a.expires = certificate.Subject.CommonName, certificate.NotAfter
	return nil
}

// withToken is the kubeconfig with another token for its user.
func (a *access) withToken(token string) ([]byte, error) {
	raw, err := clientcmd.Load(a.data)
	if err != nil {
		return nil, err
	}
	user := raw.AuthInfos[raw.Contexts[raw.CurrentContext].AuthInfo]
	*user = clientcmdapi.AuthInfo{Token: token, Extensions: user.Extensions}
	return clientcmd.Write(*raw)
}

// bearer is a token that can be replaced while it is in use.
type bearer struct{ token atomic.Pointer[string] }

// guarded gives requests their token, and follows no redirects: those would carry it elsewhere.
type guarded struct {
	next   http.RoundTripper
	bearer *bearer
}

// RoundTrip implements http.RoundTripper.
func (g *guarded) RoundTrip(r *http.Request) (*http.Response, error) {
	if g.bearer != nil {
		r = r.Clone(r.Context())
		r.Header.Set("Authorization", "Bearer "+*g.bearer.token.Load())
	}
	response, err := g.next.RoundTrip(r)
	if err == nil && response.StatusCode >= 300 && response.StatusCode < 400 && response.Header.Get("Location") != "" {
		_ = response.Body.Close()
		return nil, errRedirect
	}
	return response, err
}

// WrappedRoundTripper lets idle connections be closed.
func (g *guarded) WrappedRoundTripper() http.RoundTripper { return g.next }

var errRedirect = fmt.Errorf("it answers with a redirect, which is not followed")
