package serviceaccount

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/utils/lru"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

const (
	// KeysNamespace is the namespace of the root that holds the keys of all virtual clusters.
	KeysNamespace = "vmesh-system"
	// KeysType is the type of the Secrets that hold them.
	KeysType corev1.SecretType = "vmesh.io/token-keys"
	// KeysEntry is the member of such a Secret that holds the keys, in PEM, one after the
	// other. The first private key signs; all verify, public keys included.
	KeysEntry = "keys.pem"
	// LabelCluster is the label of such a Secret with the virtual cluster's name.
	LabelCluster = "vmesh.io/virtual-cluster"

	// keysMax bounds how many virtual clusters' keys are held decoded.
	keysMax = 2000
	// keysRetry is how often, at most, etcd is asked for a key that the watch cache lacks.
	keysRetry = time.Second
)

// Getter reads objects of one kind.
type Getter interface {
	Get(ctx context.Context, name string, options *metav1.GetOptions) (runtime.Object, error)
}

// Storage reads and makes objects of one kind.
type Storage interface {
	Getter
	Create(ctx context.Context, obj runtime.Object, validate rest.ValidateObjectFunc, options *metav1.CreateOptions) (runtime.Object, error)
}

// key verifies tokens and, if it is private, signs them.
type key struct {
	id      string
	public  *ecdsa.PublicKey
	private *ecdsa.PrivateKey
}

// keySet is what a Secret holds.
type keySet struct {
	version string // the Secret's resource version
	keys    []key
	asked   time.Time // when etcd was last asked for something newer
}

func (s *keySet) byID(id string) *key {
	if s == nil {
		return nil
	}
	for i := range s.keys {
		if s.keys[i].id == id {
			return &s.keys[i]
		}
	}
	return nil
}

// signer is the key that signs, or nil.
func (s *keySet) signer() *key {
	if s == nil {
		return nil
	}
	for i := range s.keys {
		if s.keys[i].private != nil {
			return &s.keys[i]
		}
	}
	return nil
}

// keys are the signing keys of all virtual clusters: a Secret in the root for each that
// has ever issued a token, named by the virtual cluster's UID, so that a later one of the
// same name has others. It is safe for concurrent use.
type keys struct {
	secrets, namespaces Storage

	mu   sync.Mutex
	sets *lru.Cache // of *keySet by the name of the Secret
}

func newKeys(secrets, namespaces Storage) *keys {
	return &keys{secrets: secrets, namespaces: namespaces, sets: lru.New(keysMax)}
}

// SecretName is the name of the Secret with the keys of a virtual cluster, by its UID; the
// root's is empty.
func SecretName(uid string) string {
	if uid == "" {
		uid = logical.Root
	}
	return "token-keys-" + uid
}

func inKeys(ctx context.Context) context.Context {
	return request.WithNamespace(logical.WithCluster(ctx, logical.Root), KeysNamespace)
}

// known gives a virtual cluster's keys; nil when it has none.
func (k *keys) known(ctx context.Context, uid string) (*keySet, error) {
	return k.read(ctx, uid, &metav1.GetOptions{ResourceVersion: "0"})
}

// find gives the key with an ID. The watch cache may lack one that another replica has
// just made; etcd is asked for that once a second, however many strange tokens there are.
func (k *keys) find(ctx context.Context, uid, id string) (*key, error) {
	set, err := k.known(ctx, uid)
	if err != nil {
		return nil, err
	}
	if found := set.byID(id); found != nil {
		return found, nil
	}
	if !k.mayAsk(SecretName(uid)) {
		return nil, nil
	}
	set, err = k.read(ctx, uid, &metav1.GetOptions{})
	return set.byID(id), err
}

// mayAsk says whether it is time to ask etcd again, and notes that it was.
func (k *keys) mayAsk(name string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := time.Now()
	set := &keySet{}
	if held, ok := k.sets.Get(name); ok {
		*set = *held.(*keySet)
	}
	if now.Sub(set.asked) < keysRetry {
		return false
	}
	set.asked = now
	k.sets.Add(name, set)
	return true
}

func (k *keys) read(ctx context.Context, uid string, options *metav1.GetOptions) (*keySet, error) {
	name := SecretName(uid)
	obj, err := k.secrets.Get(inKeys(ctx), name, options)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the keys of tokens: %w", err)
	}
	o := obj.(*object.Object)
	k.mu.Lock()
	defer k.mu.Unlock()
	asked := time.Time{}
	if held, ok := k.sets.Get(name); ok {
		set := held.(*keySet)
		if set.version == o.ResourceVersion {
			return set, nil
		}
		asked = set.asked
	}
	set, err := readKeys(o)
	if err != nil {
		return nil, err
	}
	set.asked = asked
	k.sets.Add(name, set)
	return set, nil
}

// signing gives the keys of a virtual cluster, one of which signs. They are made when
// there are none: what replicas make at the same time is told apart by etcd, and all use
// what is there then.
func (k *keys) signing(ctx context.Context, cluster, uid string) (*key, error) {
	set, err := k.known(ctx, uid)
	if err != nil {
		return nil, err
	}
	if set == nil {
		if err := k.make(ctx, cluster, uid); err != nil {
			return nil, err
		}
		if set, err = k.read(ctx, uid, &metav1.GetOptions{}); err != nil {
			return nil, err
		}
	}
	if signer := set.signer(); signer != nil {
		return signer, nil
	}
	return nil, fmt.Errorf("secret %s/%s of the root: %s holds no private key, which signing needs", KeysNamespace, SecretName(uid), KeysEntry)
}

func (k *keys) make(ctx context.Context, cluster, uid string) error {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("making a key for tokens: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return fmt.Errorf("encoding a key for tokens: %w", err)
	}
	secret := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: SecretName(uid), Namespace: KeysNamespace, Labels: map[string]string{LabelCluster: cluster}},
		Type:       KeysType,
		Data:       map[string][]byte{KeysEntry: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})},
	}
	if uid != "" {
		// It goes with its virtual cluster.
		secret.OwnerReferences = []metav1.OwnerReference{{
			APIVersion: v1alpha1.GroupVersion.String(), Kind: "VirtualCluster", Name: cluster, UID: types.UID(uid),
		}}
	}
	o, err := object.From(secret, corev1.SchemeGroupVersion.WithKind("Secret"))
	if err != nil {
		return err
	}
	namespace := object.New(schema.GroupVersionKind{Version: "v1", Kind: "Namespace"})
	namespace.Name = KeysNamespace
	if _, err := k.namespaces.Create(request.WithNamespace(inKeys(ctx), metav1.NamespaceNone), namespace, rest.ValidateAllObjectFunc, &metav1.CreateOptions{}); err != nil &&
		!apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("making the namespace of keys: %w", err)
	}
	if _, err := k.secrets.Create(inKeys(ctx), o, rest.ValidateAllObjectFunc, &metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("keeping a key for tokens: %w", err)
	}
	return nil
}

// readKeys reads the keys of a Secret. What is in it and is no key for tokens is an error:
// who rotates keys is to learn of it, and not of tokens that nobody can verify.
func readKeys(o *object.Object) (*keySet, error) {
	var secret corev1.Secret
	if err := o.Into(&secret); err != nil {
		return nil, fmt.Errorf("reading the keys of tokens: %w", err)
	}
	set, err := parseKeys(secret.Data[KeysEntry])
	if err != nil {
		return nil, fmt.Errorf("secret %s/%s of the root: %s: %w", KeysNamespace, o.Name, KeysEntry, err)
	}
	set.version = o.ResourceVersion
	return set, nil
}

func parseKeys(data []byte) (*keySet, error) {
	set := &keySet{}
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		var parsed any
		var err error
		switch block.Type {
		case "PRIVATE KEY":
			parsed, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		case "EC PRIVATE KEY":
			parsed, err = x509.ParseECPrivateKey(block.Bytes)
		case "PUBLIC KEY":
			parsed, err = x509.ParsePKIXPublicKey(block.Bytes)
		default:
			continue // openssl writes the curve apart
		}
		if err != nil {
			return nil, fmt.Errorf("key %d: %w", len(set.keys)+1, err)
		}
		next := key{}
		switch parsed := parsed.(type) {
		case *ecdsa.PrivateKey:
			next.private, next.public = parsed, &parsed.PublicKey
		case *ecdsa.PublicKey:
			next.public = parsed
		}
		if next.public == nil || next.public.Curve != elliptic.P256() {
			return nil, fmt.Errorf("key %d is none of the curve P-256, which ES256 needs", len(set.keys)+1)
		}
		der, err := x509.MarshalPKIXPublicKey(next.public)
		if err != nil {
			return nil, fmt.Errorf("key %d: %w", len(set.keys)+1, err)
		}
		sum := sha256.Sum256(der)
		next.id = base64.RawURLEncoding.EncodeToString(sum[:])
		set.keys = append(set.keys, next)
	}
	if len(set.keys) == 0 {
		return nil, errors.New("no key in PEM")
	}
	return set, nil
}
