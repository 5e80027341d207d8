package members

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
	"github.com/vmesh-io/vmesh/test/leak"
)

func TestMain(m *testing.M) { leak.VerifyTestMain(m) }

// api is a server that speaks as much of Kubernetes as a keeper asks of a member.
type api struct {
	*httptest.Server
	mu        sync.Mutex
	uid       string
	clock     time.Duration // ahead
	status    int           // of all answers, if not zero
	forbidden string        // a path that may not be read
	revoked   map[string]bool
	issued    int
	life      time.Duration // of tokens that are given
	refuse    bool          // to give tokens
	asked     []string      // audiences and lifetimes of tokens
	redirect  string
	broken    string // an answer to everything
	failOnce  bool
}

func newAPI(t *testing.T) *api {
	t.Helper()
	a := &api{uid: "uid-" + strconv.FormatInt(time.Now().UnixNano(), 36), revoked: map[string]bool{}, life: time.Hour}
	a.Server = httptest.NewTLSServer(a)
	a.Server.Config.ErrorLog = log.New(io.Discard, "", 0)
	t.Cleanup(a.Close)
	return a
}

func (a *api) set(change func(*api)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	change(a)
}

func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	w.Header().Set("Date", time.Now().Add(a.clock).UTC().Format(http.TimeFormat))
	token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	switch {
	case a.failOnce && r.URL.Path != "/version": // whose status nobody looks at
		a.failOnce = false
		w.WriteHeader(http.StatusInternalServerError)
	case a.redirect != "":
		http.Redirect(w, r, a.redirect, http.StatusFound)
	case a.broken != "":
		fmt.Fprint(w, a.broken)
	case a.status != 0:
		w.WriteHeader(a.status)
	case r.URL.Path == "/version":
		fmt.Fprint(w, `{"gitVersion":"v1.37.2"}`)
	case token == "" || a.revoked[token]:
		w.WriteHeader(http.StatusUnauthorized)
	case r.URL.Path == a.forbidden:
		w.WriteHeader(http.StatusForbidden)
	case r.URL.Path == "/api/v1/namespaces":
		fmt.Fprintf(w, `{"kind":"NamespaceList","apiVersion":"v1","metadata":{},"items":[{"metadata":{"name":"kube-system","uid":%q}}]}`, a.uid)
	case r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, "/token"):
		if a.refuse {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		var request struct {
			Spec struct {
				Audiences         []string
				ExpirationSeconds int64
			}
		}
		_ = json.NewDecoder(r.Body).Decode(&request)
		a.asked = append(a.asked, fmt.Sprintf("%s %v %d", r.URL.Path, request.Spec.Audiences, request.Spec.ExpirationSeconds))
		a.issued++
		part := strings.Split(r.URL.Path, "/")
		w.WriteHeader(http.StatusCreated)
		fmt.Fprintf(w, `{"status":{"token":%q}}`, jwt("system:serviceaccount:"+part[4]+":"+part[6], time.Now(), time.Now().Add(a.life), strconv.Itoa(a.issued)))
	default:
		fmt.Fprint(w, `{"items":[]}`)
	}
}

// jwt is a token that nobody has signed.
func jwt(subject string, issued, expires time.Time, id string) string {
	payload, _ := json.Marshal(map[string]any{"sub": subject, "iat": issued.Unix(), "exp": expires.Unix(), "aud": []string{"here"}, "jti": id})
	return "e30." + base64.RawURLEncoding.EncodeToString(payload) + ".c2ln"
}

// fresh is a token that has an hour to go.
func fresh(account string) string {
	return jwt("system:serviceaccount:"+account, time.Now(), time.Now().Add(time.Hour), "0")
}

func (a *api) authority() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.Certificate().Raw})
}

// kubeconfig reaches the API with a token.
func (a *api) kubeconfig(token string) []byte { return kubeconfig(a.URL, a.authority(), token, nil) }

func kubeconfig(server string, authority []byte, token string, change func(*clientcmdapi.Config)) []byte {
	c := clientcmdapi.NewConfig()
	c.Clusters["c"] = &clientcmdapi.Cluster{Server: server, CertificateAuthorityData: authority}
	c.AuthInfos["u"] = &clientcmdapi.AuthInfo{Token: token}
	c.Contexts["x"] = &clientcmdapi.Context{Cluster: "c", AuthInfo: "u"}
	c.CurrentContext = "x"
	if change != nil {
		change(c)
	}
	data, err := clientcmd.Write(*c)
	if err != nil {
		panic(err)
	}
	return data
}

func certificate(t *testing.T, until time.Time) (cert, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "someone"}, NotBefore: until.Add(-time.Hour), NotAfter: until}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	encoded, err := x509.MarshalECPrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: encoded})
}

// store is a Storage, and tells a keeper what changes as the server's does.
type store struct {
	t      *testing.T
	keeper *Keeper

	mu         sync.Mutex
	revision   int
	meshes     map[string]*v1alpha1.Mesh
	members    map[string]*v1alpha1.MemberCluster
	secrets    map[placement]*corev1.Secret
	namespaces map[[2]string]bool
	events     []string
	writes     int // of statuses
	failing    map[string]error
	log        []string // writes and deletions of Secrets
	locks      sync.Mutex
}

func newStore(t *testing.T) *store {
	return &store{
		t: t, meshes: map[string]*v1alpha1.Mesh{}, members: map[string]*v1alpha1.MemberCluster{}, secrets: map[placement]*corev1.Secret{},
		namespaces: map[[2]string]bool{}, failing: map[string]error{},
	}
}

func (s *store) fails(what string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failing[what]
}

func (s *store) fail(what string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failing[what] = err
}

func (s *store) Mesh(_ context.Context, name string) (*v1alpha1.Mesh, error) {
	if err := s.fails("mesh"); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.meshes[name].DeepCopy(), nil
}

func (s *store) MemberExists(_ context.Context, name string) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.members[name] != nil, nil
}

func (s *store) Secret(_ context.Context, cluster, namespace, name string, _ bool) (*corev1.Secret, error) {
	if err := s.fails("secrets of " + cluster); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.secrets[placement{cluster, namespace, name}].DeepCopy(), nil
}

func (s *store) WriteSecret(_ context.Context, cluster string, secret *corev1.Secret) error {
	if err := s.fails("secrets of " + cluster); err != nil {
		return err
	}
	at := placement{cluster, secret.Namespace, secret.Name}
	s.mu.Lock()
	defer s.mu.Unlock()
	has := s.secrets[at]
	switch {
	case secret.ResourceVersion == "" && has != nil:
		return errors.NewAlreadyExists(schema.GroupResource{Resource: "secrets"}, secret.Name)
	case secret.ResourceVersion != "" && (has == nil || has.ResourceVersion != secret.ResourceVersion):
		return errors.NewConflict(schema.GroupResource{Resource: "secrets"}, secret.Name, fmt.Errorf("changed"))
	}
	s.put(cluster, secret)
	return nil
}

// putSecret is anybody's write.
func (s *store) putSecret(cluster string, secret *corev1.Secret) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.put(cluster, secret)
}

func (s *store) put(cluster string, secret *corev1.Secret) {
	next := secret.DeepCopy()
	s.revision++
	next.ResourceVersion = strconv.Itoa(s.revision)
	at := placement{cluster, next.Namespace, next.Name}
	kind := watch.Added
	if has := s.secrets[at]; has != nil {
		next.UID, kind = has.UID, watch.Modified
	} else {
		next.UID = types.UID("s" + next.ResourceVersion)
	}
	s.secrets[at] = next
	s.log = append(s.log, "write "+cluster+"/"+next.Name)
	s.tell(kind, cluster, next) // locked, as in all that follow: changes are told in their order
}

func (s *store) tell(kind watch.EventType, cluster string, secret *corev1.Secret) {
	if s.keeper == nil {
		return
	}
	o, err := object.From(secret, corev1.SchemeGroupVersion.WithKind("Secret"))
	if err != nil {
		s.t.Error(err)
		return
	}
	o.SetCluster(cluster)
	s.keeper.Secrets().Changed(kind, o, 0)
}

func (s *store) DeleteSecret(_ context.Context, cluster string, secret *corev1.Secret) error {
	if err := s.fails("secrets of " + cluster); err != nil {
		return err
	}
	s.dropSecret(placement{cluster, secret.Namespace, secret.Name})
	return nil
}

func (s *store) dropSecret(at placement) {
	s.mu.Lock()
	has := s.secrets[at]
	delete(s.secrets, at)
	s.log = append(s.log, "delete "+at.cluster+"/"+at.name)
	if has != nil {
		s.tell(watch.Deleted, at.cluster, has)
	}
	s.mu.Unlock()
}

func (s *store) HasNamespace(_ context.Context, cluster, namespace string) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.namespaces[[2]string{cluster, namespace}], nil
}

func (s *store) UpdateStatus(_ context.Context, name string, uid types.UID, change func(*v1alpha1.MemberClusterStatus)) error {
	s.mu.Lock()
	m := s.members[name].DeepCopy()
	if m == nil || m.UID != uid {
		s.mu.Unlock()
		return nil
	}
	change(&m.Status)
	s.members[name] = m
	s.writes++
	s.tellMember(watch.Modified, m)
	s.mu.Unlock()
	return nil
}

func (s *store) Event(_ context.Context, name string, _ types.UID, kind, reason, message string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = append(s.events, name+" "+kind+" "+reason+": "+message)
}

func (s *store) Lock(context.Context, string) (func(), error) {
	s.locks.Lock()
	return s.locks.Unlock, nil
}

func (s *store) tellMember(kind watch.EventType, m *v1alpha1.MemberCluster) {
	if s.keeper == nil {
		return
	}
	o, err := object.From(m, v1alpha1.GroupVersion.WithKind("MemberCluster"))
	if err != nil {
		s.t.Error(err)
		return
	}
	o.SetCluster(logical.Root)
	s.keeper.Members().Changed(kind, o, 0)
}

// join makes a member with a Secret of those kubeconfigs; without any, it has none.
func (s *store) join(name string, keys map[string][]byte, change ...func(*v1alpha1.MemberCluster)) {
	s.access(name, keys)
	s.mu.Lock()
	s.revision++
	m := &v1alpha1.MemberCluster{
		ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name + "-" + strconv.Itoa(s.revision)), Generation: 1,
			CreationTimestamp: metav1.Time{Time: time.Unix(int64(s.revision), 0)}},
		Spec: v1alpha1.MemberClusterSpec{Mesh: "default", Access: v1alpha1.MemberClusterAccess{Secret: name}, Discovery: v1alpha1.DiscoveryEnabled},
	}
	for _, f := range change {
		f(m)
	}
	s.members[name] = m
	s.tellMember(watch.Added, m)
	s.mu.Unlock()
}

// access writes the Secret of a member.
func (s *store) access(name string, keys map[string][]byte) {
	if keys != nil {
		s.putSecret(logical.Root, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: v1alpha1.MembersNamespace, Name: name}, Data: keys})
	}
}

// change changes the spec of a member.
func (s *store) change(name string, f func(*v1alpha1.MemberCluster)) {
	s.mu.Lock()
	m := s.members[name].DeepCopy()
	f(m)
	m.Generation++
	s.members[name] = m
	s.tellMember(watch.Modified, m)
	s.mu.Unlock()
}

func (s *store) leave(name string) {
	s.mu.Lock()
	m := s.members[name]
	delete(s.members, name)
	s.tellMember(watch.Deleted, m)
	s.mu.Unlock()
}

// mesh changes the mesh default.
func (s *store) mesh(f func(*v1alpha1.MeshSpec)) {
	s.mu.Lock()
	m := s.meshes["default"].DeepCopy()
	if m == nil {
		m = &v1alpha1.Mesh{ObjectMeta: metav1.ObjectMeta{Name: "default"}}
	}
	f(&m.Spec)
	m.Generation++
	s.meshes["default"] = m
	s.mu.Unlock()
	if s.keeper == nil {
		return
	}
	o, err := object.From(m, v1alpha1.GroupVersion.WithKind("Mesh"))
	if err != nil {
		s.t.Error(err)
		return
	}
	o.Generation = m.Generation
	s.keeper.poke(func(c *v1alpha1.MemberCluster) bool { return c.Spec.Mesh == o.Name })
}

func (s *store) home(name string) {
	s.mu.Lock()
	s.namespaces[[2]string{name, "istio-system"}] = true
	s.mu.Unlock()
	s.mesh(func(m *v1alpha1.MeshSpec) {
		m.RootNamespace, m.Home = "istio-system", &v1alpha1.MeshHome{VirtualCluster: name}
	})
}

func (s *store) condition(member, kind string) metav1.Condition {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m := s.members[member]; m != nil {
		if c := meta.FindStatusCondition(m.Status.Conditions, kind); c != nil {
			return *c
		}
	}
	return metav1.Condition{}
}

// remote is the Secret that control planes have of a member.
func (s *store) remote(home, member string) *corev1.Secret {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.secrets[placement{home, "istio-system", "istio-remote-secret-" + member}].DeepCopy()
}

func (s *store) told(part string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.events, func(e string) bool { return strings.Contains(e, part) })
}

// start has a keeper work on the store until the test or stop ends.
func (s *store) start(change ...func(*Config)) (stop func()) {
	s.t.Helper()
	c := Config{Storage: s, Every: 30 * time.Millisecond, Timeout: 5 * time.Second}
	for _, f := range change {
		f(&c)
	}
	keeper := NewKeeper(c)
	if f, ok := c.Reader.(Follower); ok {
		keeper.AddFollower(f)
	}
	var members, secrets []*object.Object
	s.mu.Lock()
	for _, m := range s.members {
		o, err := object.From(m, v1alpha1.GroupVersion.WithKind("MemberCluster"))
		if err != nil {
			s.t.Fatal(err)
		}
		o.SetCluster(logical.Root)
		members = append(members, o)
	}
	for at, secret := range s.secrets {
		o, err := object.From(secret, corev1.SchemeGroupVersion.WithKind("Secret"))
		if err != nil {
			s.t.Fatal(err)
		}
		o.SetCluster(at.cluster)
		secrets = append(secrets, o)
	}
	s.keeper = keeper
	s.mu.Unlock()
	ctx, cancel := context.WithCancel(s.t.Context())
	ended := make(chan struct{})
	go func() { keeper.Run(ctx); close(ended) }()
	keeper.Secrets().Replaced(secrets, 1)
	keeper.Members().Replaced(members, 1)
	stop = sync.OnceFunc(func() { cancel(); <-ended })
	s.t.Cleanup(stop)
	return stop
}

// until waits for something to become so.
func (s *store) until(what string, is func() bool) {
	s.t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !is() {
		if time.Now().After(deadline) {
			s.mu.Lock()
			defer s.mu.Unlock()
			for _, m := range s.members {
				s.t.Logf("%s: %+v", m.Name, m.Status)
			}
			s.t.Fatalf("waiting until %s; events: %q", what, s.events)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func (s *store) untilCondition(member, kind string, status metav1.ConditionStatus, reason string) metav1.Condition {
	s.t.Helper()
	s.until(fmt.Sprintf("%s of %s is %s: %s", kind, member, status, reason), func() bool {
		c := s.condition(member, kind)
		return c.Status == status && c.Reason == reason
	})
	return s.condition(member, kind)
}

// looks waits until all members have been looked at that many times more.
func (s *store) looks(n int) {
	s.t.Helper()
	s.until("all members are looked after", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.keeper.mu.Lock()
		defer s.keeper.mu.Unlock()
		return len(s.keeper.workers) == len(s.members)
	})
	for range n {
		s.keeper.mu.Lock()
		var all []*worker
		for _, w := range s.keeper.workers {
			all = append(all, w)
		}
		s.keeper.mu.Unlock()
		for _, w := range all {
			before := w.steps.Load()
			s.until("it is looked again", func() bool { return w.steps.Load() > before+1 })
		}
	}
}
