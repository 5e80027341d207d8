package vmesh

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	utilrand "k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/util/dryrun"
	"k8s.io/component-base/metrics"
	"k8s.io/klog/v2"

	"github.com/vmesh-io/vmesh/pkg/apis/kind"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/authn"
	"github.com/vmesh-io/vmesh/pkg/pki"
	"github.com/vmesh-io/vmesh/pkg/registry/resource"
)

const (
	// usedEvery is how exact status.lastUsed is.
	usedEvery = 10 * time.Minute
	// usedPause is the time between two writes of a status, so that ten thousand
	// kubeconfigs are ten writes a second.
	usedPause = 100 * time.Millisecond
	// keptExpired is how long the record of an expired certificate is kept.
	keptExpired = 7 * 24 * time.Hour
	// sweepEvery is how often expired records are looked for, and those that expire soon.
	sweepEvery = 10 * time.Minute
	sweepFirst = 10 * time.Second
	// revokedFor is how long it is remembered that a record is gone, lest a watch that is
	// behind brings it back.
	revokedFor = time.Hour
	// warnBefore is the most time before its end at which a kubeconfig is warned about; less
	// for those that are good for less than ten times that.
	warnBefore = 30 * 24 * time.Hour
	warnPart   = 10
	// warnEvery is how often programs other than kubectl are told.
	warnEvery = time.Hour
	// tellEvery is how often there is an event about one that expires soon, and tellMost how
	// many there are of one sweep.
	tellEvery = 24 * time.Hour
	tellMost  = 100
)

// Why the requests that were under way with a kubeconfig have ended.
var (
	ErrRevoked = errors.New("the kubeconfig was revoked")
	ErrExpired = errors.New("the kubeconfig has expired")
)

// Kubeconfigs knows which client certificates are good: those that there is a record of.
// It is a logical.Observer of the records, and safe for concurrent use.
type Kubeconfigs struct {
	store *resource.Store
	// Record writes an event about a kubeconfig into the root. It may be nil.
	Record func(ctx context.Context, o *object.Object, reason, message string)

	known sync.Map // name to *certificate

	mu      sync.Mutex
	revoked map[string]time.Time // gone since when; a name is not given twice
	open    map[string]map[*context.CancelCauseFunc]struct{}
	used    map[string]time.Time // what the statuses lack
	wake    chan struct{}
}

// certificate is what requests ask of a record.
type certificate struct {
	fingerprint          string
	created, expires     time.Time
	revision             uint64 // guarded by Kubeconfigs.mu
	lastUsed, lastWarned sharedTime
	lastTold             sharedTime
}

// NewKubeconfigs makes an index that knows nothing yet.
func NewKubeconfigs() *Kubeconfigs {
	return &Kubeconfigs{
		revoked: map[string]time.Time{}, open: map[string]map[*context.CancelCauseFunc]struct{}{}, used: map[string]time.Time{}, wake: make(chan struct{}, 1),
	}
}

type signing struct{}

// Hooks are what the kind Kubeconfig asks of it.
func (k *Kubeconfigs) Hooks() kind.Hooks { return kind.Hooks{Validate: validateKubeconfig} }

// validateKubeconfig refuses records of nothing.
func validateKubeconfig(ctx context.Context, o, old *object.Object) ([]string, field.ErrorList) {
	spec := field.NewPath("spec")
	switch {
	case old == nil && ctx.Value(signing{}) == nil:
		return nil, field.ErrorList{field.Forbidden(spec, "a kubeconfig is made where its certificate is signed: use vmesh kubeconfig create, or POST a KubeconfigRequest to virtualclusters/NAME/kubeconfig")}
	case old != nil && !bytes.Equal(o.Field("spec"), old.Field("spec")):
		return nil, field.ErrorList{field.Forbidden(spec, "it says what a certificate was signed for and cannot be changed: make another kubeconfig, and delete this one to revoke it")}
	}
	return nil, nil
}

// Attach gives it the storage, before the first request.
func (k *Kubeconfigs) Attach(store *resource.Store) {
	k.store = store
	store.AfterCreate = func(obj runtime.Object, options *metav1.CreateOptions) {
		if !dryrun.IsDryRun(options.DryRun) {
			k.know(obj.(*object.Object))
		}
	}
	store.AfterDelete = func(obj runtime.Object, options *metav1.DeleteOptions) {
		if !dryrun.IsDryRun(options.DryRun) {
			// The watch may show it a moment longer.
			k.revoke(obj.(*object.Object).Name)
		}
	}
}

// Issue signs a certificate for a public key and records it. uid is the virtual
// cluster's, or empty for the root; client's URI is set here.
func (k *Kubeconfigs) Issue(ctx context.Context, signer *pki.Authority, public crypto.PublicKey, cluster, uid string, client pki.Client,
	options *metav1.CreateOptions) (certPEM []byte, record *v1alpha1.Kubeconfig, err error) {
	ctx = context.WithValue(RootContext(ctx), signing{}, true)
	for range 5 { // one name is as good as another
		name := fmt.Sprintf("%s-%s%s", cluster, slug(client.User), utilrand.String(5))
		client.URI = authn.KubeconfigURI(cluster, uid, name)
		var expires time.Time
		if certPEM, expires, err = signer.IssueClient(public, client); err != nil {
			return nil, nil, apierrors.NewInternalError(err)
		}
		block, _ := pem.Decode(certPEM)
		record = &v1alpha1.Kubeconfig{Spec: v1alpha1.KubeconfigSpec{
			VirtualCluster: cluster, User: client.User, Groups: client.Groups, Expires: metav1.NewTime(expires.UTC()), Fingerprint: Fingerprint(block.Bytes),
		}}
		record.Name = name
		o := object.New(k.store.Kind().GVK(Version))
		o.Name = name
		if uid != "" {
			o.OwnerReferences = []metav1.OwnerReference{{APIVersion: v1alpha1.GroupVersion.String(), Kind: "VirtualCluster", Name: cluster, UID: types.UID(uid)}}
		}
		if err := setMember(o, "spec", record.Spec); err != nil {
			return nil, nil, apierrors.NewInternalError(err)
		}
		_, err = k.store.Create(ctx, o, rest.ValidateAllObjectFunc, options)
		if !apierrors.IsAlreadyExists(err) {
			break
		}
	}
	if err != nil {
		return nil, nil, err
	}
	return certPEM, record, nil
}

// slug is what of a user's name can be in an object's, with a dash behind it.
func slug(user string) string {
	s := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, strings.ToLower(user))
	s = strings.Trim(s[:min(len(s), 63)], "-")
	if s == "" {
		return ""
	}
	return s + "-"
}

// Fingerprint is how a record knows its certificate.
func Fingerprint(der []byte) string {
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:])
}

// Good implements authn.Kubeconfigs: it says whether there is a record of a certificate.
// What the watch has not shown yet is looked up in etcd.
func (k *Kubeconfigs) Good(ctx context.Context, name, fingerprint string) (bool, error) {
	if name == "" {
		return false, nil
	}
	if c, ok := k.known.Load(name); ok {
		return c.(*certificate).fingerprint == fingerprint, nil
	}
	k.mu.Lock()
	_, revoked := k.revoked[name]
	k.mu.Unlock()
	if revoked {
		return false, nil
	}
	obj, err := k.store.Get(RootContext(ctx), name, &metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	o := obj.(*object.Object)
	record, err := decodeKubeconfig(o)
	// One that cannot be read vouches for nothing.
	return err == nil && o.DeletionTimestamp == nil && record.Spec.Fingerprint == fingerprint, nil
}

func decodeKubeconfig(o *object.Object) (*v1alpha1.Kubeconfig, error) {
	record := &v1alpha1.Kubeconfig{}
	if err := o.Into(record); err != nil {
		return nil, fmt.Errorf("decoding kubeconfig %s: %w", o.Name, err)
	}
	return record, nil
}

// Replaced implements logical.Observer.
func (k *Kubeconfigs) Replaced(items []*object.Object, revision uint64) {
	gone := map[string]bool{}
	k.known.Range(func(name, c any) bool {
		k.mu.Lock()
		defer k.mu.Unlock()
		gone[name.(string)] = c.(*certificate).revision <= revision
		return true
	})
	for _, o := range items {
		delete(gone, o.Name)
		k.know(o)
	}
	for name, is := range gone {
		if is {
			k.revoke(name)
		}
	}
}

// Changed implements logical.Observer.
func (k *Kubeconfigs) Changed(t watch.EventType, o *object.Object, _ uint64) {
	if t != watch.Deleted {
		k.know(o)
		return
	}
	k.revoke(o.Name)
}

// Progressed implements logical.Observer.
func (k *Kubeconfigs) Progressed(uint64) {}

// know remembers a record. One that is being deleted is worth nothing any more, and so is
// one that cannot be read.
func (k *Kubeconfigs) know(o *object.Object) {
	if o.DeletionTimestamp != nil {
		k.revoke(o.Name)
		return
	}
	record, err := decodeKubeconfig(o)
	if err != nil {
		k.known.Delete(o.Name)
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, revoked := k.revoked[o.Name]; revoked {
		return
	}
	revision, _ := strconv.ParseUint(o.ResourceVersion, 10, 64) // what comes from storage has one
	c := &certificate{fingerprint: record.Spec.Fingerprint, created: o.CreationTimestamp.Time, expires: record.Spec.Expires.Time}
	if had, ok := k.known.Load(o.Name); ok && had.(*certificate).fingerprint == c.fingerprint {
		c = had.(*certificate)
	} else {
		k.known.Store(o.Name, c)
	}
	c.revision = max(c.revision, revision)
	if record.Status.LastUsed != nil {
		c.lastUsed.advance(record.Status.LastUsed.Time)
	}
}

// revoke forgets a record and ends what is under way with it.
func (k *Kubeconfigs) revoke(name string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.known.Delete(name)
	k.revoked[name] = time.Now()
	delete(k.used, name)
	for cancel := range k.open[name] {
		(*cancel)(ErrRevoked)
	}
	delete(k.open, name)
}

// While gives a context that ends when a kubeconfig is revoked or expires. done must be
// called.
func (k *Kubeconfigs) While(ctx context.Context, name string) (_ context.Context, done func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	k.mu.Lock()
	if k.open[name] == nil {
		k.open[name] = map[*context.CancelCauseFunc]struct{}{}
	}
	k.open[name][&cancel] = struct{}{}
	_, revoked := k.revoked[name]
	k.mu.Unlock()
	if revoked { // since it was authenticated
		cancel(ErrRevoked)
	}
	stop := func() bool { return true }
	if c, ok := k.known.Load(name); ok {
		stop = time.AfterFunc(time.Until(c.(*certificate).expires), func() { cancel(ErrExpired) }).Stop
	}
	return ctx, func() {
		stop()
		cancel(nil)
		k.mu.Lock()
		defer k.mu.Unlock()
		if delete(k.open[name], &cancel); len(k.open[name]) == 0 {
			delete(k.open, name)
		}
	}
}

// Used notes that a kubeconfig is being used. To kubectl, and now and then to other
// programs, warning says that it expires soon.
func (k *Kubeconfigs) Used(name string, now time.Time, kubectl bool) (warning string) {
	v, ok := k.known.Load(name)
	if !ok {
		return "" // the next request will do
	}
	c := v.(*certificate)
	if c.lastUsed.passed(now, usedEvery) {
		k.mu.Lock()
		k.used[name] = now
		k.mu.Unlock()
		select {
		case k.wake <- struct{}{}:
		default:
		}
	}
	if c.endsSoon(now) && (kubectl || c.lastWarned.passed(now, warnEvery)) {
		return fmt.Sprintf("this kubeconfig (%s) expires in %s, on %s: ask for a new one", name, roughly(c.expires.Sub(now)), c.expires.UTC().Format("2006-01-02 15:04 MST"))
	}
	return ""
}

func (c *certificate) endsSoon(now time.Time) bool {
	return c.expires.Sub(now) < min(warnBefore, c.expires.Sub(c.created)/warnPart)
}

func roughly(d time.Duration) string {
	switch {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%d days", d/(24*time.Hour))
	case d >= 2*time.Hour:
		return fmt.Sprintf("%d hours", d/time.Hour)
	}
	return fmt.Sprintf("%d minutes", max(d, 0)/time.Minute)
}

// Run writes when kubeconfigs were used, removes what has expired and tells of what is
// about to, until ctx is done.
func (k *Kubeconfigs) Run(ctx context.Context) {
	sweep := time.NewTimer(sweepFirst)
	defer sweep.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-sweep.C:
			k.sweep(ctx, time.Now())
			sweep.Reset(sweepEvery)
		case <-k.wake:
			k.writeUsed(ctx)
		}
	}
}

// writeUsed writes the statuses that are due, one after another.
func (k *Kubeconfigs) writeUsed(ctx context.Context) {
	k.mu.Lock()
	used := k.used
	k.used = map[string]time.Time{}
	k.mu.Unlock()
	pause := time.NewTicker(usedPause)
	defer pause.Stop()
	for name, at := range used {
		if err := k.writeLastUsed(ctx, name, at); err != nil && ctx.Err() == nil {
			// The next use, in ten minutes, writes it.
			klog.FromContext(ctx).Error(err, "Writing when a kubeconfig was used failed", "kubeconfig", name)
		}
		select {
		case <-ctx.Done():
			return
		case <-pause.C:
		}
	}
}

func (k *Kubeconfigs) writeLastUsed(ctx context.Context, name string, at time.Time) error {
	_, _, err := k.store.StatusREST(Version).Update(RootContext(ctx), name,
		rest.DefaultUpdatedObjectInfo(nil, func(_ context.Context, _, old runtime.Object) (runtime.Object, error) {
			o := old.(*object.Object).DeepCopy()
			record, err := decodeKubeconfig(o)
			if err != nil {
				return nil, err
			}
			if was := record.Status.LastUsed; was != nil && !at.After(was.Time) {
				return o, nil // by another server
			}
			used := metav1.NewTime(at.UTC())
			record.Status.LastUsed = &used
			return o, SetStatus(o, record.Status)
		}), rest.ValidateAllObjectFunc, rest.ValidateAllObjectUpdateFunc, false, &metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) {
		return nil // revoked meanwhile
	}
	return err
}

// sweep removes records of what has expired, counts the others, and tells of those that
// are used and expire soon.
func (k *Kubeconfigs) sweep(ctx context.Context, now time.Time) {
	const day = 24 * time.Hour
	count, told := map[string]int{}, 0
	k.known.Range(func(key, v any) bool {
		name, c := key.(string), v.(*certificate)
		left := c.expires.Sub(now)
		switch {
		case left < -keptExpired:
			if _, _, err := k.store.Delete(RootContext(ctx), name, rest.ValidateAllObjectFunc, &metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) && ctx.Err() == nil {
				klog.FromContext(ctx).Error(err, "Removing an expired kubeconfig failed", "kubeconfig", name)
			}
			return ctx.Err() == nil
		case left < 0:
			count["expired"]++
			return true
		case left < day:
			count["day"]++
		case left < 7*day:
			count["week"]++
		case left < 30*day:
			count["month"]++
		default:
			count["later"]++
		}
		// Of one that nobody has used, nobody will miss anything.
		if c.endsSoon(now) && !c.lastUsed.never() && k.Record != nil && told < tellMost && c.lastTold.passed(now, tellEvery) {
			told++
			if obj, err := k.store.Get(RootContext(ctx), name, &metav1.GetOptions{ResourceVersion: "0"}); err == nil {
				k.Record(ctx, obj.(*object.Object), "ExpiresSoon", fmt.Sprintf("The kubeconfig expires on %s: give its user a new one.", c.expires.UTC().Format(time.RFC3339)))
			}
		}
		return ctx.Err() == nil
	})
	for _, within := range expiryLabels {
		kubeconfigCount.WithLabelValues(within).Set(float64(count[within]))
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	maps.DeleteFunc(k.revoked, func(_ string, since time.Time) bool { return now.Sub(since) > revokedFor })
}

// expiryLabels are when kubeconfigs expire.
var expiryLabels = []string{"expired", "day", "week", "month", "later"}

var kubeconfigCount = metrics.NewGaugeVec(&metrics.GaugeOpts{
	Name: "vmesh_kubeconfigs", Help: "Kubeconfigs by when they expire: within a day, a week (and not a day), a month, later, or expired and recorded still.",
	StabilityLevel: metrics.ALPHA,
}, []string{"expires"})

// Metrics are what it counts.
func (k *Kubeconfigs) Metrics() []metrics.Registerable {
	return []metrics.Registerable{kubeconfigCount}
}

// sharedTime is a time that only moves forward.
type sharedTime struct{ nanoseconds atomic.Int64 }

func (t *sharedTime) never() bool { return t.nanoseconds.Load() == 0 }

// advance moves it to a time, unless it is later already.
func (t *sharedTime) advance(to time.Time) {
	for was := t.nanoseconds.Load(); was < to.UnixNano() && !t.nanoseconds.CompareAndSwap(was, to.UnixNano()); was = t.nanoseconds.Load() {
	}
}

// passed says whether now is some time after it, and if so moves it there: of many who
// ask at once, one is told so.
func (t *sharedTime) passed(now time.Time, by time.Duration) bool {
	was := t.nanoseconds.Load()
	return now.UnixNano()-was >= int64(by) && t.nanoseconds.CompareAndSwap(was, now.UnixNano())
}
