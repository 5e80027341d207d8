package authn

import (
	"crypto/x509"
	"maps"
	"net/http"
	"slices"
	"strings"

	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/authenticatorfactory"
	"k8s.io/apiserver/pkg/authentication/request/headerrequest"
	"k8s.io/apiserver/pkg/authentication/user"

	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// ExtraHost is the key in the extra of users whom the host cluster's front proxy vouches
// for: they are users of the host, and identities of the root here.
const ExtraHost = ExtraPrefix + "host"

// FromHost says whether the host cluster's front proxy vouches for a user.
func FromHost(u user.Info) bool { return first(u, ExtraHost) != "" }

// frontProxy takes the word of a proxy that shows a certificate of its own authority.
type frontProxy struct {
	headers *authenticatorfactory.RequestHeaderConfig
	proxy   authenticator.Request
	next    authenticator.Request
}

// WithFrontProxy authenticates requests of a front proxy, which names the user in
// headers, and leaves all others to next. Only a client certificate of the front proxy's
// authority, with a name that is allowed, makes the headers count; without one they are
// nobody's word and are passed over. What the proxy says never decides to which virtual
// cluster an identity belongs: it is always the root's.
func WithFrontProxy(next authenticator.Request, headers *authenticatorfactory.RequestHeaderConfig) authenticator.Request {
	verify := func() (x509.VerifyOptions, bool) { return headers.CAContentProvider.VerifyOptions() }
	return &frontProxy{headers: headers, next: next, proxy: headerrequest.NewDynamicVerifyOptionsSecure(verify, headers.AllowedClientNames,
		headers.UsernameHeaders, headers.UIDHeaders, headers.GroupHeaders, headers.ExtraHeaderPrefixes)}
}

// AuthenticateRequest implements authenticator.Request.
func (f *frontProxy) AuthenticateRequest(req *http.Request) (*authenticator.Response, bool, error) {
	// A direct client's certificate is not held against an authority that did not sign it.
	names := func(header string) bool { return req.Header.Get(header) != "" }
	if !slices.ContainsFunc(f.headers.UsernameHeaders.Value(), names) {
		return f.next.AuthenticateRequest(req)
	}
	resp, ok, err := f.proxy.AuthenticateRequest(req)
	if err != nil || !ok {
		return f.next.AuthenticateRequest(req) // not the proxy's certificate, or none
	}
	return &authenticator.Response{Audiences: resp.Audiences, User: hostUser(resp.User)}, true, nil
}

// hostUser is a user of the host as an identity of the root.
func hostUser(of user.Info) user.Info {
	u := &user.DefaultInfo{Name: of.GetName(), UID: of.GetUID(), Groups: slices.Clone(of.GetGroups()), Extra: maps.Clone(of.GetExtra())}
	if u.Extra == nil {
		u.Extra = map[string][]string{}
	}
	// Keys come out of headers with any capitals.
	maps.DeleteFunc(u.Extra, func(key string, _ []string) bool { return strings.HasPrefix(strings.ToLower(key), ExtraPrefix) })
	u.Extra[ExtraCluster], u.Extra[ExtraClusterUID], u.Extra[ExtraHost] = []string{logical.Root}, []string{""}, []string{"true"}
	// The aggregator's own requests name no groups.
	if u.Name != user.Anonymous && !slices.Contains(u.Groups, user.AllAuthenticated) && !slices.Contains(u.Groups, user.AllUnauthenticated) {
		u.Groups = append(u.Groups, user.AllAuthenticated)
	}
	return u
}
