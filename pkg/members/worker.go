package members

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

const (
	// defaultRemoveAfter is how long a member's endpoints outlive its API, if they are to be removed at all.
	defaultRemoveAfter = 10 * time.Minute
	// rightsEvery is how many looks there are from one check of what may be read to the next.
	rightsEvery = 20
)

// The reasons why control planes have, or have not, access to a member, besides those of its API.
const (
	ReasonGiven             = "Given"
	ReasonDrained           = "Drained"
	ReasonDiscoveryDisabled = "DiscoveryDisabled"
	ReasonNoMesh            = "NoMesh"
	ReasonMeshUnreadable    = "MeshUnreadable"
	ReasonNoHome            = "NoHome"
	ReasonHomeMissing       = "HomeMissing"
	ReasonHomeUnreadable    = "HomeUnreadable"
	ReasonSecretTaken       = "SecretTaken"
	ReasonRemovedWhileAway  = "RemovedWhileAway"
	ReasonSameCluster       = "SameCluster"
)

// worker looks after one member. What is not under mu belongs to its goroutine.
type worker struct {
	keeper *Keeper
	name   string
	uid    types.UID
	kick   chan struct{}
	stop   context.CancelFunc
	done   chan struct{}
	steps  atomic.Int64 // that are done

	mu       sync.Mutex
	identity types.UID // of the cluster that was seen last

	// The accesses that the Secret gives. istiod is that of control planes, which may be vmesh's own.
	own, istiod *access
	// probe is how the credential of control planes is tried: by their access, or where they reach the API at another address
	// than vmesh does, with their token at vmesh's.
	probe                 *access
	ownFault, istiodFault *Fault
	// verified is the kubeconfig with which control planes were last seen to be able to read.
	verified [sha256.Size]byte
	looks    int

	shape     [sha256.Size]byte // of vmesh's own access
	answered  bool              // the API has, to an access of that shape
	down      *Fault
	istiodBad *Fault
	blip      bool // control planes' access failed at the last look, though vmesh's own did not
	failures  int
	awaySince time.Time
	last      sight
	lastSeen  time.Time

	renewals map[string]*renewal // by key of the Secret
	told     *Member
	written  *v1alpha1.MemberClusterStatus // nil: to be written in any case
	writtenG int64
	softAt   time.Time
	only     *v1alpha1.MemberOnlyHere // nil: not known
	onlyAt   time.Time
	warnedAt map[string]time.Time // of credentials that end soon
}

func newWorker(k *Keeper, m *v1alpha1.MemberCluster) *worker {
	w := &worker{
		keeper: k, name: m.Name, uid: m.UID, kick: make(chan struct{}, 1), done: make(chan struct{}),
		renewals: map[string]*renewal{}, warnedAt: map[string]time.Time{},
	}
	// How long it has been away outlives vmesh.
	if c := meta.FindStatusCondition(m.Status.Conditions, v1alpha1.ConditionReachable); c != nil && c.Status == metav1.ConditionFalse &&
		(c.Reason == ReasonUnreachable || c.Reason == ReasonFailing) {
		w.awaySince = c.LastTransitionTime.Time
	}
	if m.Status.LastSeen != nil {
		w.lastSeen = m.Status.LastSeen.Time
	}
	return w
}

func (w *worker) run(ctx context.Context) {
	defer close(w.done)
	defer w.closeIdle()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.kick:
		case <-timer.C:
		}
		m := w.keeper.member(w.name)
		if m == nil || m.UID != w.uid {
			timer.Reset(w.keeper.config.Every) // the keeper is about to end this
			continue
		}
		timer.Reset(w.step(ctx, m))
		w.steps.Add(1)
	}
}

// closeIdle ends the connections that nobody uses.
func (w *worker) closeIdle() {
	for _, a := range []*access{w.own, w.istiod, w.probe} {
		if a != nil {
			a.client.CloseIdleConnections()
		}
	}
}

// step looks at the member and does what that calls for. It returns when to do so again.
func (w *worker) step(ctx context.Context, m *v1alpha1.MemberCluster) time.Duration {
	k := w.keeper
	responsible := k.config.Responsible()
	secret := w.read(ctx, m)
	w.look(ctx)
	if ctx.Err() != nil {
		return 0
	}
	next := w.nextLook()
	if responsible && secret != nil {
		w.renewAll(ctx, m)
	}
	w.tell(m)
	var given metav1.Condition
	if responsible {
		var until time.Duration
		given, until = w.give(ctx, m)
		if until > 0 {
			next = min(next, until)
		}
		if ctx.Err() != nil {
			return 0
		}
		has := given.Status == metav1.ConditionTrue
		k.metrics.access(w.name, &has)
		if err := w.report(ctx, m, given); err != nil && ctx.Err() == nil {
			w.written = nil
			klog.FromContext(ctx).V(1).Info("Writing the status of a member cluster failed, and is tried again", "member", w.name, "reason", err.Error())
		}
	} else {
		w.written = nil // another writes it
		k.metrics.access(w.name, nil)
	}
	w.measure()
	return next
}

// read reads the Secret of the member.
func (w *worker) read(ctx context.Context, m *v1alpha1.MemberCluster) *corev1.Secret {
	name := m.Spec.Access.Secret
	secret, err := w.keeper.config.Storage.Secret(ctx, logical.Root, v1alpha1.MembersNamespace, name, false)
	if err != nil {
		if ctx.Err() == nil && w.own == nil {
			w.ownFault = fault(ReasonSecretUnreadable, "the Secret %s/%s of the root cannot be read: %v", v1alpha1.MembersNamespace, name, err)
			w.istiodFault = w.ownFault
		}
		return nil // and what is known already stays
	}
	var own, istiod *access
	var ownFault, istiodFault *Fault
	switch {
	case secret == nil:
		ownFault = fault(ReasonNoSecret, "the root has no Secret %s/%s: make it by vmesh join, or with the key %s", v1alpha1.MembersNamespace, name, v1alpha1.MemberKubeconfigKey)
		istiodFault = ownFault
	default:
		if data, ok := secret.Data[v1alpha1.MemberKubeconfigKey]; ok {
			own, ownFault = again(w.own, v1alpha1.MemberKubeconfigKey, data)
		} else {
			ownFault = fault(ReasonNoKubeconfig, "the Secret %s/%s of the root has no key %s", v1alpha1.MembersNamespace, name, v1alpha1.MemberKubeconfigKey)
		}
		if data, ok := secret.Data[v1alpha1.MemberIstiodKubeconfigKey]; ok {
			istiod, istiodFault = again(w.istiod, v1alpha1.MemberIstiodKubeconfigKey, data)
		} else {
			istiod, istiodFault = own, ownFault
		}
	}
	if own != w.own || istiod != w.istiod {
		w.closeIdle() // of those that are another's by now
		w.looks, w.probe = 0, istiod
		if own != nil && istiod != nil && istiod.bearer != nil && istiod.server.Host != own.server.Host {
			if data, err := own.withToken(*istiod.bearer.token.Load()); err == nil {
				if probe, f := parseAccess(istiod.key, data); f == nil {
					w.probe = probe
				}
			}
		}
	}
	if own != nil && own.shape != w.shape {
		w.shape, w.answered, w.failures = own.shape, false, 0
	}
	w.own, w.istiod, w.ownFault, w.istiodFault = own, istiod, ownFault, istiodFault
	return secret
}

// again is the access of a kubeconfig: what was known of it, as far as it is the same.
func again(was *access, key string, data []byte) (*access, *Fault) {
	if was != nil && was.key == key && was.sum == sha256.Sum256(data) {
		return was, nil
	}
	a, f := parseAccess(key, data)
	if f != nil {
		return nil, f
	}
	if was != nil && was.key == key && was.shape == a.shape && was.bearer != nil && a.bearer != nil {
		// The token alone is another. Those who use the config go on with the new one.
		was.bearer.token.Store(a.bearer.token.Load())
		a.bearer, a.config, a.client = was.bearer, was.config, was.client
	}
	return a, nil
}

// look asks the member's API.
func (w *worker) look(ctx context.Context) {
	w.down, w.istiodBad = w.ownFault, w.istiodFault
	if w.own != nil {
		s, f := w.lookWith(ctx, w.own)
		if ctx.Err() != nil {
			return
		}
		switch {
		case f == nil:
			w.failures, w.answered = 0, true
			w.last, w.lastSeen, w.awaySince = s, time.Now(), time.Time{}
			w.identify(s.uid)
		case f.Away:
			w.failures++
			switch {
			case !w.answered || !w.awaySince.IsZero(): // what never answered is rather somewhere else than away
			case w.failures == 1:
				f = nil // once does not count: it is looked at again soon
			default:
				w.awaySince = time.Now()
			}
		default: // it answers, if nothing good
			w.failures, w.awaySince = 0, time.Time{}
			w.last.skew = s.skew
		}
		w.down = f
	}
	if w.own == nil {
		w.awaySince, w.failures = time.Time{}, 0 // who knows
	}
	if w.istiod == nil {
		return
	}
	switch {
	case w.istiod == w.own:
		w.istiodBad = w.down
	case w.own != nil && (w.failures > 0 || !w.awaySince.IsZero()):
		w.istiodBad = w.down // there is nobody to ask
	default:
		_, w.istiodBad = w.lookWith(ctx, w.probe)
	}
	if w.failures > 0 || ctx.Err() != nil {
		return
	}
	if w.istiodBad == nil {
		if w.verified != w.istiod.sum || w.looks%rightsEvery == 0 {
			ctx, cancel := context.WithTimeout(ctx, w.keeper.config.Timeout)
			w.istiodBad = w.probe.mayRead(ctx)
			cancel()
		}
		if w.istiodBad == nil {
			w.verified = w.istiod.sum
			w.looks++
		} else {
			w.looks = 0 // so that it is asked again
		}
	}
	if blip := w.istiodBad != nil && w.istiodBad.Away; blip != w.blip {
		if w.blip = blip; blip {
			w.istiodBad = nil // as with vmesh's own, once does not count
		}
	}
}

func (w *worker) lookWith(ctx context.Context, a *access) (sight, *Fault) {
	ctx, cancel := context.WithTimeout(ctx, w.keeper.config.Timeout)
	defer cancel()
	return a.look(ctx)
}

// identify keeps in mind which cluster the member is, and has others look that are the same.
func (w *worker) identify(uid types.UID) {
	w.mu.Lock()
	was := w.identity
	w.identity = uid
	w.mu.Unlock()
	if was == uid || uid == "" {
		return
	}
	w.keeper.mu.Lock()
	defer w.keeper.mu.Unlock()
	for _, other := range w.keeper.workers {
		if other != w && other.is(uid) {
			select {
			case other.kick <- struct{}{}:
			default:
			}
		}
	}
}

func (w *worker) is(uid types.UID) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.identity == uid
}

// twin is another member of the mesh that is the same cluster, if there is one; the one that has been
// a member for longer, if there are several. first says that this member has been one for longer than that.
func (w *worker) twin(m *v1alpha1.MemberCluster) (twin string, first bool) {
	w.mu.Lock()
	uid := w.identity
	w.mu.Unlock()
	if uid == "" {
		return "", false
	}
	k := w.keeper
	k.mu.Lock()
	defer k.mu.Unlock()
	var found *v1alpha1.MemberCluster
	for name, other := range k.workers {
		o := k.members[name]
		if other == w || o == nil || o.Spec.Mesh != m.Spec.Mesh || !other.is(uid) {
			continue
		}
		if found == nil || before(o, found) {
			found = o
		}
	}
	if found == nil {
		return "", false
	}
	return found.Name, before(m, found)
}

func before(a, b *v1alpha1.MemberCluster) bool {
	if !a.CreationTimestamp.Equal(&b.CreationTimestamp) {
		return a.CreationTimestamp.Before(&b.CreationTimestamp)
	}
	return a.Name < b.Name
}

// nextLook is when to look again: soon after the first failures, and then ever more rarely.
func (w *worker) nextLook() time.Duration {
	every := w.keeper.config.Every
	if w.failures == 0 {
		return jitter(every)
	}
	return jitter(min(every/15<<min(w.failures-1, 16), 4*every))
}

// tell tells followers what is new.
func (w *worker) tell(m *v1alpha1.MemberCluster) {
	now := Member{
		Name: m.Name, Mesh: m.Spec.Mesh, Network: m.Spec.Network, UID: m.UID,
		Drained: m.Spec.Drain != nil, Discovered: m.Spec.Discovery != v1alpha1.DiscoveryDisabled, AwaySince: w.awaySince,
	}
	if m.Spec.Locality != nil {
		now.Locality = *m.Spec.Locality
	}
	if w.own != nil {
		now.Config = w.own.config
	}
	if w.told != nil && *w.told == now {
		return
	}
	w.told = &now
	w.keeper.tell(now)
}

// give sees to it that control planes have the access that they are to have, and says what they have.
// Nothing but what somebody has asked for takes it away: while anything is in doubt, it stays as
// it is. next is when time alone will change something; zero for never.
func (w *worker) give(ctx context.Context, m *v1alpha1.MemberCluster) (c metav1.Condition, next time.Duration) {
	k := w.keeper
	condition := func(status metav1.ConditionStatus, reason, format string, args ...any) metav1.Condition {
		return metav1.Condition{Type: v1alpha1.ConditionAccessGiven, Status: status, Reason: reason, Message: fmt.Sprintf(format, args...)}
	}
	mesh, err := k.config.Storage.Mesh(ctx, m.Spec.Mesh)
	switch {
	case err != nil:
		return condition(metav1.ConditionUnknown, ReasonMeshUnreadable, "mesh %s cannot be read, and what control planes have stays as it is: %v", m.Spec.Mesh, err), 0
	case mesh == nil:
		return condition(metav1.ConditionFalse, ReasonNoMesh, "there is no mesh %s: create it; what control planes have stays as it is", m.Spec.Mesh), 0
	}
	withhold := func(reason, format string, args ...any) (metav1.Condition, time.Duration) {
		if err := w.withhold(ctx, mesh); err != nil {
			return condition(metav1.ConditionUnknown, ReasonHomeUnreadable, "control planes are to have no access any more, but it could not be taken back, which is tried again: %v", err), 0
		}
		return condition(metav1.ConditionFalse, reason, format, args...), 0
	}
	switch {
	case m.Spec.Drain != nil:
		return withhold(ReasonDrained, "the member is drained (%s): take spec.drain away, and control planes read its services again", m.Spec.Drain.Reason)
	case m.Spec.Discovery == v1alpha1.DiscoveryDisabled:
		return withhold(ReasonDiscoveryDisabled, "control planes are not to read the member's services (spec.discovery)")
	case mesh.Spec.Home == nil:
		return withhold(ReasonNoHome, "mesh %s has no home: set its spec.home.virtualCluster to the virtual cluster where its control planes live", mesh.Name)
	}
	if !w.awaySince.IsZero() && mesh.Spec.Members != nil && mesh.Spec.Members.WhenAway == v1alpha1.RemoveWhenAway {
		after := defaultRemoveAfter
		if d := mesh.Spec.Members.RemoveAfter; d != nil {
			after = d.Duration
		}
		if next = time.Until(w.awaySince.Add(after)); next <= 0 {
			return withhold(ReasonRemovedWhileAway, "its API has not answered for %s: its endpoints are removed (spec.members.whenAway of mesh %s), and come back with it", after, mesh.Name)
		}
	}
	home, namespace := homeOf(mesh)
	at := placement{home, namespace, RemoteSecretName(w.name)}
	bad := w.istiodBad
	if bad == nil {
		if twin, first := w.twin(m); twin != "" && !first {
			bad = fault(ReasonSameCluster, "it is the same cluster as member %s, which has been one for longer: delete one of the two", twin)
		}
	}
	if bad == nil && w.istiod.sum != w.verified {
		bad = fault(ReasonUnreachable, "%s did not answer at the last look", w.istiod.server.Host)
	}
	// What was seen to work once is restored although it does not now; what never was is not handed on.
	if bad != nil && (w.istiod == nil || w.istiod.sum != w.verified || bad.Reason == ReasonSameCluster) {
		has, err := k.config.Storage.Secret(ctx, at.cluster, at.namespace, at.name, false)
		switch {
		case err != nil:
			return condition(metav1.ConditionUnknown, ReasonHomeUnreadable, "what virtual cluster %s has cannot be read, and stays as it is: %v", home, err), next
		case has != nil && isOurs(has.Labels, has.Annotations, w.name):
			return condition(metav1.ConditionTrue, bad.Reason, "the control planes of virtual cluster %s keep the access that they have: %s", home, bad.Message), next
		}
		return condition(metav1.ConditionFalse, bad.Reason, "%s; control planes are given access when it works", bad.Message), next
	}
	exists, err := k.config.Storage.HasNamespace(ctx, home, namespace)
	switch {
	case err != nil:
		return condition(metav1.ConditionUnknown, ReasonHomeUnreadable, "virtual cluster %s cannot be read, and what it has stays as it is: %v", home, err), next
	case !exists:
		return condition(metav1.ConditionFalse, ReasonHomeMissing, "there is no virtual cluster %s with the namespace %s: create it, or set spec.home of mesh %s to another", home, namespace, mesh.Name), next
	}
	err = k.place(ctx, home, namespace, w.name, w.istiod.data)
	var taken errTaken
	switch {
	case errors.As(err, &taken):
		return condition(metav1.ConditionFalse, ReasonSecretTaken, "%v", taken), next
	case apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err):
		next = k.config.Every / 15 // the watch cache was behind
		fallthrough
	case err != nil:
		return condition(metav1.ConditionUnknown, ReasonHomeUnreadable, "the Secret %s/%s of virtual cluster %s could not be written, which is tried again: %v", namespace, at.name, home, err), next
	}
	if err := k.takeAllBack(ctx, w.name, at); err != nil {
		return condition(metav1.ConditionTrue, ReasonGiven, "the control planes of virtual cluster %s have access; taking it back elsewhere failed, and is tried again: %v", home, err), next
	}
	if bad != nil {
		return condition(metav1.ConditionTrue, bad.Reason, "the control planes of virtual cluster %s keep the access that they have: %s", home, bad.Message), next
	}
	return condition(metav1.ConditionTrue, ReasonGiven, "the control planes of virtual cluster %s have access", home), next
}

// withhold sees to it that control planes have no access.
func (w *worker) withhold(ctx context.Context, mesh *v1alpha1.Mesh) error {
	if err := w.keeper.takeAllBack(ctx, w.name, placement{}); err != nil {
		return err
	}
	if mesh.Spec.Home == nil {
		return nil
	}
	home, namespace := homeOf(mesh)
	at := placement{home, namespace, RemoteSecretName(w.name)}
	has, err := w.keeper.config.Storage.Secret(ctx, at.cluster, at.namespace, at.name, false)
	if err != nil || has == nil { // what was only just written is seen at the next look
		return err
	}
	return w.keeper.takeBack(ctx, at, w.name)
}

// overlaps are the members with which this one shares addresses, in words.
func overlaps(with map[string]string) string {
	var all []string
	for _, name := range sortedKeys(with) {
		if len(all) == 3 {
			all = append(all, "...")
			break
		}
		all = append(all, fmt.Sprintf("%s (%s)", name, with[name]))
	}
	return strings.Join(all, ", ")
}
