// Package serviceaccount issues and verifies the tokens of service accounts. Each virtual
// cluster, and the root, is an issuer of its own: with its own keys, its own URL, and
// nothing in common with an earlier virtual cluster of its name.
package serviceaccount

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/google/uuid"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/cache"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/serviceaccount"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/endpoints/request"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/authn"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

const (
	// verifiedFor is how long the signature of a token is not verified again. A key that is
	// taken away is noticed as late as that.
	verifiedFor = 10 * time.Second
	// verifiedMax bounds how many are remembered.
	verifiedMax = 10_000
	// maxLength is the longest token that is looked at, in bytes.
	maxLength = 16 << 10
	// skew is how far the clocks of replicas may be apart.
	skew = 10 * time.Second
)

// The only algorithm there is: a token cannot choose how it is verified.
var algorithms = []jose.SignatureAlgorithm{jose.ES256}

// Ref names an object that a token is bound to.
type Ref struct {
	Name string    `json:"name,omitempty"`
	UID  types.UID `json:"uid,omitempty"`
}

// Bound is what a token is bound to: it ends with the service account and with what else
// is named. Node goes with Pod as where the pod runs, and does not end the token then.
type Bound struct {
	Namespace      string `json:"namespace,omitempty"`
	ServiceAccount Ref    `json:"serviceaccount,omitempty"`
	Pod            *Ref   `json:"pod,omitempty"`
	Secret         *Ref   `json:"secret,omitempty"`
	Node           *Ref   `json:"node,omitempty"`
}

// claims are what a token says, in the form of Kubernetes.
type claims struct {
	jwt.Claims
	Audience []string `json:"aud"` // always a list, as in Kubernetes
	Bound    Bound    `json:"kubernetes.io"`
	Origin   origin   `json:"vmesh.io"`
}

// origin is the virtual cluster that a token is of, beyond its name.
type origin struct {
	ClusterUID string `json:"virtual-cluster-uid,omitempty"`
}

// Config is what the tokens of all virtual clusters need.
type Config struct {
	Clusters authn.Clusters
	// URL is the address of a virtual cluster's API, or of the root's: its issuer.
	URL func(cluster string) string
	// Where the keys are kept.
	Secrets, Namespaces Storage
	// What tokens are bound to; Secrets too.
	ServiceAccounts, Pods, Nodes Getter
}

// Tokens issues and verifies tokens. It is safe for concurrent use.
type Tokens struct {
	config   Config
	keys     *keys
	verified *cache.LRUExpireCache // of *claims
	now      func() time.Time
}

var _ authenticator.Token = (*Tokens)(nil)

// New makes the issuer of all virtual clusters.
func New(c Config) *Tokens {
	return &Tokens{config: c, keys: newKeys(c.Secrets, c.Namespaces), verified: cache.NewLRUExpireCache(verifiedMax), now: time.Now}
}

// Issuer is the URL that issues a virtual cluster's tokens, and the audience that its API
// answers to.
func (t *Tokens) Issuer(cluster string) string { return t.config.URL(cluster) }

// uid is the UID of a virtual cluster; the root's is empty.
func (t *Tokens) uid(ctx context.Context, cluster string) (string, error) {
	if cluster == logical.Root {
		return "", nil
	}
	uid, ok := t.config.Clusters.UID(ctx, cluster)
	if !ok || uid == "" {
		return "", fmt.Errorf("there is no virtual cluster %q", cluster)
	}
	return uid, nil
}

// Issue makes a token of the context's virtual cluster, and says by which ID it is known.
func (t *Tokens) Issue(ctx context.Context, bound Bound, audiences []string, from time.Time, ttl time.Duration) (token, id string, err error) {
	cluster, err := logical.Cluster(ctx)
	if err != nil {
		return "", "", err
	}
	uid, err := t.uid(ctx, cluster)
	if err != nil {
		return "", "", err
	}
	signing, err := t.keys.signing(ctx, cluster, uid)
	if err != nil {
		return "", "", err
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: signing.private, KeyID: signing.id}}, nil)
	if err != nil {
		return "", "", fmt.Errorf("signing a token: %w", err)
	}
	id = uuid.NewString()
	token, err = jwt.Signed(signer).Claims(claims{
		Claims: jwt.Claims{
			Issuer: t.Issuer(cluster), Subject: serviceaccount.MakeUsername(bound.Namespace, bound.ServiceAccount.Name), ID: id,
			IssuedAt: jwt.NewNumericDate(from), NotBefore: jwt.NewNumericDate(from), Expiry: jwt.NewNumericDate(from.Add(ttl)),
		},
		Audience: audiences, Bound: bound, Origin: origin{uid},
	}).Serialize()
	if err != nil {
		return "", "", fmt.Errorf("signing a token: %w", err)
	}
	return token, id, nil
}

// unverified is a token that has been read and not verified.
type unverified struct {
	signed *jwt.JSONWebToken
	key    string // the ID of the key that it says it is signed by
	claims claims
}

// parse reads a token. An error says that it is none of ours, whatever it is.
func parse(token string) (*unverified, error) {
	if len(token) > maxLength {
		return nil, errors.New("the token is too long")
	}
	signed, err := jwt.ParseSigned(token, algorithms)
	if err != nil {
		return nil, err
	}
	if len(signed.Headers) != 1 || signed.Headers[0].KeyID == "" {
		return nil, errors.New("the token names no key")
	}
	u := &unverified{signed: signed, key: signed.Headers[0].KeyID}
	if err := signed.UnsafeClaimsWithoutVerification(&u.claims); err != nil {
		return nil, err
	}
	return u, nil
}

// AuthenticateToken implements authenticator.Token: it verifies the tokens of the
// context's virtual cluster and, unless it is asked for an audience, those of the root,
// whose identities may come in anywhere. Of other tokens it knows nothing. What a
// signature says is remembered for a moment; whether the virtual cluster, the service
// account and what the token is bound to are still there is asked each time.
func (t *Tokens) AuthenticateToken(ctx context.Context, token string) (*authenticator.Response, bool, error) {
	here, err := logical.Cluster(ctx)
	if err != nil {
		return nil, false, err
	}
	asked, hasAudiences := authenticator.AudiencesFrom(ctx)
	homes := []string{here}
	if here != logical.Root && !hasAudiences {
		homes = append(homes, logical.Root)
	}
	home, c, err := t.verify(ctx, homes, token)
	if err != nil || c == nil {
		return nil, false, err
	}
	accepted := authenticator.Audiences{t.Issuer(home)}
	if hasAudiences {
		accepted = asked
	}
	audiences := accepted.Intersect(c.Audience)
	if len(audiences) == 0 {
		return nil, false, fmt.Errorf("the token is for the audiences %q, not for %q", c.Audience, accepted)
	}
	if err := t.current(logical.WithCluster(ctx, home), home, c); err != nil {
		return nil, false, err
	}
	return &authenticator.Response{Audiences: audiences, User: userOf(home, c)}, true, nil
}

// verify gives what a token says that is of one of the virtual clusters; nothing for a
// token of another issuer.
func (t *Tokens) verify(ctx context.Context, homes []string, token string) (string, *claims, error) {
	sum := sha256.Sum256([]byte(token))
	for _, home := range homes {
		if held, ok := t.verified.Get(verifiedKey{home, sum}); ok {
			c := held.(*claims)
			return home, c, t.inTime(c)
		}
	}
	u, err := parse(token)
	if err != nil {
		return "", nil, nil //nolint:nilerr // another issuer's may have any form
	}
	i := slices.IndexFunc(homes, func(home string) bool { return t.Issuer(home) == u.claims.Issuer })
	if i < 0 {
		if root := t.Issuer(logical.Root); u.claims.Issuer == root || strings.HasPrefix(u.claims.Issuer, root+"/clusters/") {
			return "", nil, fmt.Errorf("the token belongs to %s, and not to %s", u.claims.Issuer, t.Issuer(homes[0]))
		}
		return "", nil, nil
	}
	home := homes[i]
	uid, err := t.uid(ctx, home)
	if err != nil {
		return "", nil, err
	}
	by, err := t.keys.find(ctx, uid, u.key)
	if err != nil {
		return "", nil, err
	}
	if by == nil {
		return "", nil, fmt.Errorf("the token is signed by none of the keys of %s", u.claims.Issuer)
	}
	c := &claims{}
	if err := u.signed.Claims(by.public, c); err != nil {
		return "", nil, fmt.Errorf("the token's signature: %w", err)
	}
	switch {
	case c.Origin.ClusterUID != uid:
		return "", nil, fmt.Errorf("the token belongs to an earlier virtual cluster %q", home)
	case c.Subject != serviceaccount.MakeUsername(c.Bound.Namespace, c.Bound.ServiceAccount.Name), c.Expiry == nil, c.Bound.ServiceAccount.UID == "":
		return "", nil, errors.New("the token lacks what every token of a service account has")
	}
	if err := t.inTime(c); err != nil {
		return "", nil, err
	}
	t.verified.Add(verifiedKey{home, sum}, c, verifiedFor)
	return home, c, nil
}

// verifiedKey is a token of a virtual cluster, without the token.
type verifiedKey struct {
	cluster string
	sum     [sha256.Size]byte
}

func (t *Tokens) inTime(c *claims) error {
	now := t.now()
	switch {
	case !now.Before(c.Expiry.Time()):
		return errors.New("the token has expired")
	case c.NotBefore != nil && now.Add(skew).Before(c.NotBefore.Time()):
		return errors.New("the token is not valid yet")
	}
	return nil
}

// current is why a token of a virtual cluster is good no more, or nil. The context is of
// that virtual cluster.
func (t *Tokens) current(ctx context.Context, home string, c *claims) error {
	if uid, err := t.uid(ctx, home); err != nil {
		return err
	} else if uid != c.Origin.ClusterUID {
		return fmt.Errorf("the token belongs to an earlier virtual cluster %q", home)
	}
	b := c.Bound
	if err := t.there(ctx, t.config.ServiceAccounts, "service account", b.Namespace, b.ServiceAccount); err != nil {
		return err
	}
	switch {
	case b.Secret != nil:
		return t.there(ctx, t.config.Secrets, "secret", b.Namespace, *b.Secret)
	case b.Pod != nil:
		return t.there(ctx, t.config.Pods, "pod", b.Namespace, *b.Pod)
	case b.Node != nil:
		return t.there(ctx, t.config.Nodes, "node", metav1.NamespaceNone, *b.Node)
	}
	return nil
}

// there is why an object is not what a token is bound to, or nil. The watch cache may be
// a moment old: before a token is refused, etcd is asked.
func (t *Tokens) there(ctx context.Context, objects Getter, kind, namespace string, ref Ref) error {
	ctx = request.WithNamespace(ctx, namespace)
	if t.is(ctx, objects, kind, ref, "0") == nil {
		return nil
	}
	return t.is(ctx, objects, kind, ref, "")
}

func (t *Tokens) is(ctx context.Context, objects Getter, kind string, ref Ref, version string) error {
	obj, err := objects.Get(ctx, ref.Name, &metav1.GetOptions{ResourceVersion: version})
	if apierrors.IsNotFound(err) {
		return fmt.Errorf("the %s %q that the token is bound to is gone", kind, ref.Name)
	}
	if err != nil {
		return fmt.Errorf("reading the %s that a token is bound to: %w", kind, err)
	}
	o := obj.(*object.Object)
	switch {
	case o.UID != ref.UID:
		return fmt.Errorf("the token is bound to an earlier %s %q", kind, ref.Name)
	case o.DeletionTimestamp != nil && !o.DeletionTimestamp.After(t.now()):
		// A pod has until then to end.
		return fmt.Errorf("the %s %q that the token is bound to is being deleted", kind, ref.Name)
	}
	return nil
}

func userOf(home string, c *claims) user.Info {
	info := serviceaccount.ServiceAccountInfo{
		Namespace: c.Bound.Namespace, Name: c.Bound.ServiceAccount.Name, UID: string(c.Bound.ServiceAccount.UID),
	}
	if c.ID != "" {
		info.CredentialID = CredentialID(c.ID)
	}
	if pod := c.Bound.Pod; pod != nil {
		info.PodName, info.PodUID = pod.Name, string(pod.UID)
	}
	if node := c.Bound.Node; node != nil {
		info.NodeName, info.NodeUID = node.Name, string(node.UID)
	}
	u := info.UserInfo().(*user.DefaultInfo)
	u.Groups = append(u.Groups, user.AllAuthenticated)
	if u.Extra == nil {
		u.Extra = map[string][]string{}
	}
	u.Extra[authn.ExtraCluster], u.Extra[authn.ExtraClusterUID] = []string{home}, []string{c.Origin.ClusterUID}
	return u
}

// CredentialID is how a token is named in audit logs and in its user's extra.
func CredentialID(id string) string { return "JTI=" + id }
