// Package authn says who a caller is and to which virtual cluster that identity
// belongs. An identity is good for one virtual cluster, or for the root.
package authn

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
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
	// ExtraKubeconfig is the key of the name of the Kubeconfig that records the
	// certificate: who deletes that revokes it.
	ExtraKubeconfig = ExtraPrefix + "kubeconfig"

	uriScheme = "vmesh"
)

// KubeconfigURI is what binds a certificate to a virtual cluster and to its record, as a
// URI in its subject alternative names. The UID of the root is empty.
func KubeconfigURI(cluster, uid, kubeconfig string) *url.URL {
	return &url.URL{Scheme: uriScheme, Host: "clusters", Path: "/" + cluster + "/" + uid + "/" + kubeconfig}
}

// Clusters knows the virtual clusters that there are.
type Clusters interface {
	// UID is the UID of a virtual cluster; false when there is none of that name.
	UID(ctx context.Context, cluster string) (string, bool)
}

// Kubeconfigs knows the certificates that are recorded, and not revoked.
type Kubeconfigs interface {
	// Good says whether there is a record of that name, of the certificate with that
	// fingerprint (SHA-256 in hexadecimal).
	Good(ctx context.Context, name, fingerprint string) (bool, error)
}

// New authenticates by client certificates of the authorities, then by bearer tokens; who
// has neither is for nobody to judge. A certificate that is not recorded is refused, and so
// is an identity that is not bound, or is bound to another virtual cluster than the request
// is for.
func New(verify x509request.VerifyOptionFunc, clusters Clusters, kubeconfigs Kubeconfigs, tokens authenticator.Token, nobody authenticator.Request) authenticator.Request {
	certificates := &recorded{newVerified(x509request.NewDynamic(verify, x509request.UserConversionFunc(fromCertificate))), kubeconfigs}
	credentials := union.NewFailOnError(certificates, bearertoken.New(tokens), websocket.NewProtocolAuthenticator(tokens))
	return union.NewFailOnError(&bound{credentials, clusters}, nobody)
}

// credentialID begins what Kubernetes, too, calls a certificate in a user's extra.
const credentialID = "X509SHA256="

func fromCertificate(chain []*x509.Certificate) (*authenticator.Response, bool, error) {
	leaf := chain[0]
	if leaf.Subject.CommonName == "" {
		return nil, false, errors.New("the client certificate names no user: its common name is empty")
	}
	binding, err := bindingOf(leaf)
	if err != nil {
		return nil, false, err
	}
	sum := sha256.Sum256(leaf.Raw)
	return &authenticator.Response{User: &user.DefaultInfo{
		Name:   leaf.Subject.CommonName,
		Groups: append(slices.Clone(leaf.Subject.Organization), user.AllAuthenticated),
		Extra: map[string][]string{
			ExtraCluster: {binding[0]}, ExtraClusterUID: {binding[1]}, ExtraKubeconfig: {binding[2]},
			user.CredentialIDKey: {credentialID + hex.EncodeToString(sum[:])},
		},
	}}, true, nil
}

// bindingOf are the virtual cluster, its UID and the record that a certificate is bound to.
func bindingOf(leaf *x509.Certificate) ([]string, error) {
	for _, uri := range leaf.URIs {
		if uri.Scheme != uriScheme || uri.Host != "clusters" {
			continue
		}
		if parts := strings.Split(strings.TrimPrefix(uri.Path, "/"), "/"); len(parts) == 3 {
			return parts, nil
		}
		return nil, errors.New("the client certificate is not recorded: ask for a new kubeconfig")
	}
	return nil, errors.New("the client certificate is bound to no virtual cluster")
}

// RecordOf is the name of the Kubeconfig that records a certificate, or empty.
func RecordOf(leaf *x509.Certificate) string {
	binding, err := bindingOf(leaf)
	if err != nil {
		return ""
	}
	return binding[2]
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

// recorded refuses certificates whose record is gone.
type recorded struct {
	authenticator.Request
	kubeconfigs Kubeconfigs
}

func (r *recorded) AuthenticateRequest(req *http.Request) (*authenticator.Response, bool, error) {
	resp, ok, err := r.Request.AuthenticateRequest(req)
	if err != nil || !ok {
		return nil, false, err
	}
	name := first(resp.User, ExtraKubeconfig)
	good, err := r.kubeconfigs.Good(req.Context(), name, strings.TrimPrefix(first(resp.User, user.CredentialIDKey), credentialID))
	if err != nil {
		return nil, false, fmt.Errorf("looking for kubeconfig %q: %w", name, err)
	}
	if !good {
		return nil, false, fmt.Errorf("kubeconfig %q has been revoked", name)
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

// Kubeconfig is the name of the record of the certificate that a user has shown, or empty.
func Kubeconfig(u user.Info) string { return first(u, ExtraKubeconfig) }
