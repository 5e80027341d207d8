package serviceaccount

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/cache"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
	testingclock "k8s.io/utils/clock/testing"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// store is the storage of one kind: what is in etcd, and what a watch cache that may lag
// behind has of it.
type store struct {
	mu           sync.Mutex
	etcd, cached map[string]*object.Object
	lagging      bool
	revision     int
	reads        int // of etcd
}

func newStore() *store {
	return &store{etcd: map[string]*object.Object{}, cached: map[string]*object.Object{}}
}

func at(ctx context.Context, name string) string {
	cluster, err := logical.Cluster(ctx)
	if err != nil {
		panic(err) // whoever reads says where
	}
	return cluster + "/" + request.NamespaceValue(ctx) + "/" + name
}

func (s *store) Get(ctx context.Context, name string, options *metav1.GetOptions) (runtime.Object, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	from := s.cached
	if options.ResourceVersion != "0" {
		from = s.etcd
		s.reads++
	}
	if o, ok := from[at(ctx, name)]; ok {
		return o, nil
	}
	return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "objects"}, name)
}

func (s *store) Create(ctx context.Context, obj runtime.Object, _ rest.ValidateObjectFunc, _ *metav1.CreateOptions) (runtime.Object, error) {
	o := obj.(*object.Object)
	s.mu.Lock()
	_, exists := s.etcd[at(ctx, o.Name)]
	s.mu.Unlock()
	if exists {
		return nil, apierrors.NewAlreadyExists(schema.GroupResource{Resource: "objects"}, o.Name)
	}
	s.put(at(ctx, o.Name), o)
	return o, nil
}

// put keeps an object under a key of the form CLUSTER/NAMESPACE/NAME.
func (s *store) put(key string, o *object.Object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.revision++
	kept := o.DeepCopy()
	kept.ResourceVersion = strconv.Itoa(s.revision)
	s.etcd[key] = kept
	if !s.lagging {
		s.cached[key] = kept
	}
}

func (s *store) remove(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.etcd, key)
	delete(s.cached, key)
}

func (s *store) etcdReads() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reads
}

type uids map[string]string

func (u uids) UID(_ context.Context, cluster string) (string, bool) {
	uid, ok := u[cluster]
	return uid, ok
}

// world is a server with two virtual clusters, each with the same service account in name,
// and objects to bind tokens to.
type world struct {
	*Tokens
	clock                                  *testingclock.FakePassiveClock
	clusters                               uids
	accounts, secrets, pods, nodes, spaces *store
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{
		clock: testingclock.NewFakePassiveClock(time.Now().Truncate(time.Second)), clusters: uids{"shop": "uid-shop", "other": "uid-other"},
		accounts: newStore(), secrets: newStore(), pods: newStore(), nodes: newStore(), spaces: newStore(),
	}
	w.Tokens = w.replica()
	for _, cluster := range []string{"shop", "other", logical.Root} {
		w.accounts.put(cluster+"/apps/ci", named("ci", "uid-ci-"+cluster))
		w.secrets.put(cluster+"/apps/lease", named("lease", "uid-lease"))
		w.pods.put(cluster+"/apps/web", named("web", "uid-web"))
		w.nodes.put(cluster+"//n1", named("n1", "uid-n1"))
	}
	return w
}

// replica is another server on the same storage.
func (w *world) replica() *Tokens {
	t := New(Config{
		Clusters: w.clusters, Secrets: w.secrets, Namespaces: w.spaces, ServiceAccounts: w.accounts, Pods: w.pods, Nodes: w.nodes,
		URL: func(cluster string) string {
			if cluster == logical.Root {
				return "https://vmesh"
			}
			return "https://vmesh/clusters/" + cluster
		},
	})
	t.now = w.clock.Now
	t.verified = cache.NewLRUExpireCacheWithClock(verifiedMax, w.clock)
	return t
}

func named(name, uid string) *object.Object {
	o := object.New(schema.GroupVersionKind{Version: "v1", Kind: "ConfigMap"})
	o.Name, o.UID = name, types.UID(uid)
	return o
}

func in(cluster string) context.Context { return logical.WithCluster(context.Background(), cluster) }

func account(cluster string) Bound {
	return Bound{Namespace: "apps", ServiceAccount: Ref{"ci", types.UID("uid-ci-" + cluster)}}
}

// issue makes a token of a virtual cluster's service account for its own API.
func (w *world) issue(t testing.TB, cluster string, adjust ...func(*Bound)) string {
	t.Helper()
	bound := account(cluster)
	for _, a := range adjust {
		a(&bound)
	}
	token, _, err := w.Issue(in(cluster), bound, []string{w.Issuer(cluster)}, w.clock.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// who is the name of whom a token is taken for, or why it is refused.
func who(t *Tokens, ctx context.Context, token string) (string, error) {
	resp, ok, err := t.AuthenticateToken(ctx, token)
	switch {
	case err != nil:
		return "", err
	case !ok:
		return "", errNobody
	}
	return resp.User.GetName(), nil
}

var errNobody = fmt.Errorf("the token is nobody's")

func (w *world) keysSecret(t testing.TB, uid string) *corev1.Secret {
	t.Helper()
	obj, err := w.secrets.Get(inKeys(in("shop")), SecretName(uid), &metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	secret := &corev1.Secret{}
	if err := obj.(*object.Object).Into(secret); err != nil {
		t.Fatal(err)
	}
	return secret
}

func (w *world) writeKeys(t testing.TB, uid string, pem []byte) {
	t.Helper()
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: SecretName(uid)}, Data: map[string][]byte{KeysEntry: pem}}
	o, err := object.From(secret, corev1.SchemeGroupVersion.WithKind("Secret"))
	if err != nil {
		t.Fatal(err)
	}
	w.secrets.put(at(inKeys(in("shop")), secret.Name), o)
}
