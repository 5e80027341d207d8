// Package authn says who a caller is and to which virtual cluster that identity
// belongs. An identity is good for one virtual cluster, or for the root.
package authn

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/request/bearertoken"
	"k8s.io/apiserver/pkg/authentication/request/union"
	"k8s.io/apiserver/pkg/authentication/request/websocket"
	x509request "k8s.io/apiserver/pkg/authentication/request/x509"
	"k8s.io/apiserver/pkg/authentication/user"

	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

const (
	// ExtraPrefix begins the keys in a user's extra that only vmesh sets.
	ExtraPrefix = "vmesh.io/"
	// ExtraCluster is the key in a user's extra whose value is the virtual cluster that
	// the identity belongs to.
	ExtraCluster = ExtraPrefix + "virtual-cluster"
	// ExtraClusterUID is the key of that virtual cluster's UID: an identity does not
	// outlive the virtual cluster it was issued for, whatever is later named like it.
	ExtraClusterUID = ExtraPrefix + "virtual-cluster-uid"

	uriScheme = "vmesh"
)

// ClusterURI is what binds a certificate to a virtual cluster, as a URI in its subject
// alternative names. The UID of the root is empty.
func ClusterURI(cluster, uid string) *url.URL {
	u := &url.URL{Scheme: uriScheme, Host: "clusters", Path: "/" + cluster}
	if uid != "" {
		u.Path += "/" + uid
	}
	return u
}

// Clusters knows the virtual clusters that there are.
type Clusters interface {
	// UID is the UID of a virtual cluster; false when there is none of that name.
	UID(ctx context.Context, cluster string) (string, bool)
}

// New authenticates by client certificates of the authorities, then by bearer tokens; who
// has neither is for nobody to judge. An identity that is not bound, or is bound to another
// virtual cluster than the request is for, is refused.
func New(verify x509request.VerifyOptionFunc, clusters Clusters, tokens authenticator.Token, nobody authenticator.Request) authenticator.Request {
	certificates := newVerified(x509request.NewDynamic(verify, x509request.UserConversionFunc(fromCertificate)))
	credentials := union.NewFailOnError(certificates, bearertoken.New(tokens), websocket.NewProtocolAuthenticator(tokens))
	return union.NewFailOnError(&bound{credentials, clusters}, nobody)
}

func fromCertificate(chain []*x509.Certificate) (*authenticator.Response, bool, error) {
	leaf := chain[0]
	if leaf.Subject.CommonName == "" {
		return nil, false, errors.New("the client certificate names no user: its common name is empty")
	}
	for _, uri := range leaf.URIs {
		if uri.Scheme != uriScheme || uri.Host != "clusters" {
			continue
		}
		cluster, uid, _ := strings.Cut(strings.TrimPrefix(uri.Path, "/"), "/")
		return &authenticator.Response{User: &user.DefaultInfo{
			Name:   leaf.Subject.CommonName,
			Groups: append(slices.Clone(leaf.Subject.Organization), user.AllAuthenticated),
			Extra:  map[string][]string{ExtraCluster: {cluster}, ExtraClusterUID: {uid}},
		}}, true, nil
	}
	return nil, false, errors.New("the client certificate is bound to no virtual cluster")
}

// bound refuses identities of other virtual clusters.
type bound struct {
	authenticator.Request
	clusters Clusters
}

func (b *bound) AuthenticateRequest(req *http.Request) (*authenticator.Response, bool, error) {
	resp, ok, err := b.Request.AuthenticateRequest(req)
	if err != nil || !ok {
		return nil, false, err
	}
	here, err := logical.Cluster(req.Context())
	if err != nil {
		return nil, false, err
	}
	of, uid := first(resp.User, ExtraCluster), first(resp.User, ExtraClusterUID)
	switch {
	case of == logical.Root:
		// The root's identities may come in anywhere; what they may do is for authz.
		return resp, true, nil
	case of != here:
		return nil, false, fmt.Errorf("this identity belongs to virtual cluster %q, not to %q", of, here)
	}
	if now, exists := b.clusters.UID(req.Context(), here); !exists || now != uid {
		return nil, false, fmt.Errorf("this identity belongs to an earlier virtual cluster %q", here)
	}
	return resp, true, nil
}

func first(u user.Info, key string) string {
	if v := u.GetExtra()[key]; len(v) == 1 {
		return v[0]
	}
	return ""
}

// Cluster is the virtual cluster that a user's identity belongs to, or empty.
func Cluster(u user.Info) string { return first(u, ExtraCluster) }
