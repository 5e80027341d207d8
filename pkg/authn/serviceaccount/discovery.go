package serviceaccount

import (
	"context"
	"encoding/json"
	"net/http"

	"github.com/go-jose/go-jose/v4"
	"k8s.io/klog/v2"

	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

const (
	// ConfigurationPath is where OpenID Connect discovery looks for an issuer's description.
	ConfigurationPath = "/.well-known/openid-configuration"
	// KeysPath is where the public keys of an issuer are.
	KeysPath = "/openid/v1/jwks"
)

// configuration is what relying parties need to know of an issuer.
type configuration struct {
	Issuer        string                    `json:"issuer"`
	JWKSURI       string                    `json:"jwks_uri"`
	ResponseTypes []string                  `json:"response_types_supported"`
	SubjectTypes  []string                  `json:"subject_types_supported"`
	Algorithms    []jose.SignatureAlgorithm `json:"id_token_signing_alg_values_supported"`
}

// Handlers answer discovery for the request's virtual cluster, by path.
func (t *Tokens) Handlers() map[string]http.Handler {
	return map[string]http.Handler{
		ConfigurationPath: answer("application/json", func(_ context.Context, cluster string) (any, error) {
			issuer := t.Issuer(cluster)
			return configuration{issuer, issuer + KeysPath, []string{"id_token"}, []string{"public"}, algorithms}, nil
		}),
		KeysPath: answer("application/jwk-set+json", func(ctx context.Context, cluster string) (any, error) { return t.publicKeys(ctx, cluster) }),
	}
}

// publicKeys are the keys that verify a virtual cluster's tokens; none before its first.
func (t *Tokens) publicKeys(ctx context.Context, cluster string) (*jose.JSONWebKeySet, error) {
	uid, err := t.uid(ctx, cluster)
	if err != nil {
		return nil, err
	}
	held, err := t.keys.known(ctx, uid)
	if err != nil {
		return nil, err
	}
	public := &jose.JSONWebKeySet{Keys: []jose.JSONWebKey{}}
	if held == nil {
		return public, nil
	}
	for _, k := range held.keys {
		public.Keys = append(public.Keys, jose.JSONWebKey{Key: k.public, KeyID: k.id, Algorithm: string(jose.ES256), Use: "sig"})
	}
	return public, nil
}

func answer(contentType string, content func(ctx context.Context, cluster string) (any, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Method != http.MethodGet && req.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "only GET is answered here", http.StatusMethodNotAllowed)
			return
		}
		data, err := func() ([]byte, error) {
			cluster, err := logical.Cluster(req.Context())
			if err != nil {
				return nil, err
			}
			v, err := content(req.Context(), cluster)
			if err != nil {
				return nil, err
			}
			return json.Marshal(v)
		}()
		if err != nil {
			klog.FromContext(req.Context()).Error(err, "Describing the issuer of tokens failed", "path", req.URL.Path)
			http.Error(w, "the issuer of tokens cannot be described: the server's log says why", http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", contentType)
		_, _ = w.Write(data) // a client that went away
	})
}
