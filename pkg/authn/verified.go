package authn

import (
	"net/http"
	"time"

	"k8s.io/apimachinery/pkg/util/cache"
	"k8s.io/apiserver/pkg/authentication/authenticator"
)

const (
	// verifiedFor is how long a certificate that was verified is not verified again. An
	// authority that is taken away is noticed as late as that.
	verifiedFor = 10 * time.Second
	// verifiedMax bounds how many are remembered.
	verifiedMax = 10_000
)

// verified remembers which certificates were good, since a client sends many requests
// with one, and checking its signature takes longer than answering most of them. What
// the identity may do, and whether its virtual cluster still exists, is not remembered.
type verified struct {
	next authenticator.Request
	good *cache.LRUExpireCache
}

func newVerified(next authenticator.Request) *verified {
	return &verified{next: next, good: cache.NewLRUExpireCache(verifiedMax)}
}

// AuthenticateRequest implements authenticator.Request.
func (v *verified) AuthenticateRequest(req *http.Request) (*authenticator.Response, bool, error) {
	if req.TLS == nil || len(req.TLS.PeerCertificates) != 1 {
		return v.next.AuthenticateRequest(req) // a chain is rare, and its links decide as well
	}
	leaf := req.TLS.PeerCertificates[0]
	key := string(leaf.Raw)
	if resp, ok := v.good.Get(key); ok {
		return resp.(*authenticator.Response), true, nil
	}
	resp, ok, err := v.next.AuthenticateRequest(req)
	if err == nil && ok {
		v.good.Add(key, resp, min(verifiedFor, time.Until(leaf.NotAfter)))
	}
	return resp, ok, err
}
