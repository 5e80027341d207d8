package vmesh

import (
	"context"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/registry/rest"

	vmeshkinds "github.com/vmesh-io/vmesh/pkg/apis/vmesh"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"

	"github.com/vmesh-io/vmesh/pkg/apis/kind"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/authn"
	"github.com/vmesh-io/vmesh/pkg/pki"
	"github.com/vmesh-io/vmesh/pkg/registry/resource"
	"github.com/vmesh-io/vmesh/pkg/storage/embedded"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// world is an index over a store of its own, without a watch.
type world struct {
	*Kubeconfigs
	t      *testing.T
	signer *pki.Authority
}

func newWorld(t *testing.T) *world {
	t.Helper()
	etcd, err := embedded.Start(t.Context(), embedded.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = etcd.Close() })
	backend, err := logical.NewBackend(logical.BackendConfig{Client: etcd.Client(), Prefix: "/registry", CompactionInterval: -1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(backend.Close)
	k := NewKubeconfigs()
	root, err := vmeshkinds.Kinds(kind.Hooks{}, k.Hooks(), nil)
	if err != nil {
		t.Fatal(err)
	}
	store, err := resource.NewStore(root.Kubeconfigs, backend)
	if err != nil {
		t.Fatal(err)
	}
	if err := backend.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	k.Attach(store)
	signer, err := pki.LoadOrCreateAuthority(t.TempDir(), "client-ca")
	if err != nil {
		t.Fatal(err)
	}
	return &world{k, t, signer}
}

func (w *world) issue(user string, ttl time.Duration, options *metav1.CreateOptions) *v1alpha1.Kubeconfig {
	w.t.Helper()
	key, _, err := pki.NewKey()
	if err != nil {
		w.t.Fatal(err)
	}
	certPEM, record, err := w.Issue(w.t.Context(), w.signer, key.Public(), "shop", "uid", pki.Client{User: user, Groups: []string{"g"}, TTL: ttl}, options)
	if err != nil {
		w.t.Fatal(err)
	}
	if len(certPEM) == 0 {
		w.t.Fatal("there is no certificate")
	}
	return record
}

func (w *world) good(record *v1alpha1.Kubeconfig) bool {
	w.t.Helper()
	good, err := w.Good(w.t.Context(), record.Name, record.Spec.Fingerprint)
	if err != nil {
		w.t.Fatal(err)
	}
	return good
}

func (w *world) stored(record *v1alpha1.Kubeconfig) *v1alpha1.Kubeconfig {
	w.t.Helper()
	obj, err := w.store.Get(RootContext(w.t.Context()), record.Name, &metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		w.t.Fatal(err)
	}
	found, err := decodeKubeconfig(obj.(*object.Object))
	if err != nil {
		w.t.Fatal(err)
	}
	return found
}

func TestWhatIsSignedIsRecorded(t *testing.T) {
	w := newWorld(t)
	record := w.issue("Alice <alice@example.com>", time.Hour, &metav1.CreateOptions{})
	if !strings.HasPrefix(record.Name, "shop-alice--alice-example-com-") || !w.good(record) {
		t.Errorf("%s is good: %t", record.Name, w.good(record))
	}
	if stored := w.stored(record); stored == nil || stored.Spec.User != "Alice <alice@example.com>" || stored.OwnerReferences[0].UID != "uid" {
		t.Errorf("stored is %+v", stored)
	}
	dry := w.issue("bob", time.Hour, &metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	if w.good(dry) {
		t.Error("what a dry run has signed is good")
	}
	// Another server, whose watch has shown nothing yet.
	fresh := NewKubeconfigs()
	fresh.store = w.store
	if good, err := fresh.Good(t.Context(), record.Name, record.Spec.Fingerprint); !good || err != nil {
		t.Errorf("on another server it is good: %t, %v", good, err)
	}
	if good, err := fresh.Good(t.Context(), record.Name, dry.Spec.Fingerprint); good || err != nil {
		t.Errorf("another certificate is good by its record on another server: %t, %v", good, err)
	}
	if good, err := fresh.Good(t.Context(), "", ""); good || err != nil {
		t.Errorf("no name is good: %t, %v", good, err)
	}
	if uri := authn.KubeconfigURI("shop", "uid", record.Name).String(); uri != "vmesh://clusters/shop/uid/"+record.Name {
		t.Error(uri)
	}
}

func TestDeletingARecordRevokesAtOnceWithoutAWatch(t *testing.T) {
	w := newWorld(t)
	record := w.issue("alice", time.Hour, &metav1.CreateOptions{})
	ctx, done := w.While(t.Context(), record.Name)
	defer done()
	dry := &metav1.DeleteOptions{DryRun: []string{metav1.DryRunAll}}
	if _, _, err := w.store.Delete(RootContext(t.Context()), record.Name, rest.ValidateAllObjectFunc, dry); err != nil || !w.good(record) || ctx.Err() != nil {
		t.Errorf("a dry run has revoked it: %v", err)
	}
	if _, _, err := w.store.Delete(RootContext(t.Context()), record.Name, rest.ValidateAllObjectFunc, &metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if w.good(record) || ctx.Err() == nil {
		t.Error("it is good, or its watch goes on")
	}
}

func TestUsesAreWritten(t *testing.T) {
	w := newWorld(t)
	record, gone := w.issue("alice", time.Hour, &metav1.CreateOptions{}), w.issue("bob", time.Hour, &metav1.CreateOptions{})
	now := time.Now().Truncate(time.Second)
	w.Used(record.Name, now, true)
	w.Used(gone.Name, now, true)
	if _, _, err := w.store.Delete(RootContext(t.Context()), gone.Name, rest.ValidateAllObjectFunc, &metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w.writeUsed(t.Context())
	used := w.stored(record).Status.LastUsed
	if used == nil || !used.Time.Equal(now) {
		t.Errorf("it was used %v", used)
	}
	// An earlier use, of another server, does not turn it back.
	if err := w.writeLastUsed(t.Context(), record.Name, now.Add(-time.Minute)); err != nil || !w.stored(record).Status.LastUsed.Time.Equal(now) {
		t.Errorf("it was used %v, %v", w.stored(record).Status.LastUsed, err)
	}
	if err := w.writeLastUsed(t.Context(), gone.Name, now); err != nil {
		t.Error(err)
	}
}

func TestExpiredRecordsAreRemovedAWeekLater(t *testing.T) {
	w := newWorld(t)
	const day = 24 * time.Hour
	short, long, unused := w.issue("alice", time.Hour, &metav1.CreateOptions{}), w.issue("bob", 100*day, &metav1.CreateOptions{}), w.issue("carol", 100*day, &metav1.CreateOptions{})
	w.Used(long.Name, time.Now(), true)
	var told []string
	w.Record = func(_ context.Context, o *object.Object, reason, message string) {
		told = append(told, o.Name+" "+reason+" "+message)
	}
	for _, c := range []struct {
		after time.Duration
		left  []*v1alpha1.Kubeconfig
		told  int
	}{
		{0, []*v1alpha1.Kubeconfig{short, long, unused}, 0},
		{6 * day, []*v1alpha1.Kubeconfig{short, long, unused}, 0},
		{8 * day, []*v1alpha1.Kubeconfig{long, unused}, 0},
		{91 * day, []*v1alpha1.Kubeconfig{long, unused}, 1},
		{91*day + time.Hour, []*v1alpha1.Kubeconfig{long, unused}, 1},
		{93 * day, []*v1alpha1.Kubeconfig{long, unused}, 2},
		{108 * day, nil, 2},
	} {
		w.sweep(t.Context(), time.Now().Add(c.after))
		left := map[string]bool{}
		for _, r := range c.left {
			left[r.Name] = true
		}
		for _, r := range []*v1alpha1.Kubeconfig{short, long, unused} {
			if is := w.stored(r) != nil; is != left[r.Name] {
				t.Errorf("after %s there is %s: %t", c.after, r.Name, is)
			}
		}
		if len(told) != c.told {
			t.Errorf("after %s it was told %q", c.after, told)
		}
	}
}
