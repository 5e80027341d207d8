package release

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/storage/embedded"
	"github.com/vmesh-io/vmesh/pkg/sync/snapshot"
	"github.com/vmesh-io/vmesh/test/leak"
)

func TestMain(m *testing.M) { leak.VerifyTestMain(m) }

func testKinds() []snapshot.Kind {
	var kinds []snapshot.Kind
	for _, name := range []string{"Apple", "Pear"} {
		kinds = append(kinds, snapshot.Kind{
			Resource: schema.GroupResource{Group: "test.io", Resource: strings.ToLower(name) + "s"}, Name: name, TypeURL: "test.io/v1/" + name,
			MessageName: "google.protobuf.StringValue",
			AppendMessage: func(dst []byte, o *object.Object) ([]byte, error) {
				return protowire.AppendString(protowire.AppendTag(dst, 1, protowire.BytesType), "="+strings.Trim(string(o.Field("spec")), `"`)), nil
			},
		})
	}
	return kinds
}

func startEtcd(t testing.TB) *clientv3.Client {
	t.Helper()
	etcd, err := embedded.Start(t.Context(), embedded.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = etcd.Close() })
	return etcd.Client()
}

// stored is what all servers of a test see in storage.
type stored struct {
	mu       sync.Mutex
	revision uint64
	apples   map[string]string // namespace/name to text
	mesh     *object.Object
	servers  []*server
}

// server is one vmesh, as far as releases go, with one control plane for each stage.
type server struct {
	t        *testing.T
	stored   *stored
	builder  *snapshot.Builder
	observer map[string]snapshot.Observer
	releaser *Releaser
	planes   map[string]*plane // by stage
	stop     func()
}

// plane is a control plane that has what it is given at once, unless it is stuck.
type plane struct {
	sub   *snapshot.Subscription
	mu    sync.Mutex
	stuck bool
	has   string // version
}

func newStored(bake time.Duration, stages ...string) *stored {
	s := &stored{apples: map[string]string{}, revision: 1}
	s.setStages(bake, stages...)
	return s
}

func (s *stored) setStages(bake time.Duration, stages ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []any
	for _, name := range stages {
		stage := map[string]any{"name": name, "controlPlanes": map[string]any{"matchLabels": map[string]any{"stage": name}}}
		if bake > 0 {
			stage["bake"] = bake.String()
		}
		list = append(list, stage)
	}
	spec := map[string]any{}
	if len(list) > 0 {
		spec["rollout"] = map[string]any{"stages": list}
	}
	s.setMesh(func(o *object.Object) {
		if err := o.SetContent(map[string]any{"spec": spec}); err != nil {
			panic(err)
		}
		o.DropContent()
	})
}

// setMesh must be called with the lock held.
func (s *stored) setMesh(change func(*object.Object)) {
	o := &object.Object{}
	if s.mesh != nil {
		o = s.mesh.DeepCopy()
	}
	o.Name, o.UID = "m", types.UID("uid-m")
	change(o)
	s.revision++
	o.ResourceVersion = fmt.Sprint(s.revision)
	s.mesh = o
	for _, server := range s.servers {
		server.observer["meshes"].Changed(watch.Modified, o, s.revision)
	}
}

func (s *stored) annotate(key, value string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.setMesh(func(o *object.Object) { o.Annotations = map[string]string{key: value} })
}

func (s *stored) apple(name, text string) *object.Object {
	o := &object.Object{}
	o.Namespace, o.Name, _ = strings.Cut(name, "/")
	o.SetCluster("c")
	o.ResourceVersion = fmt.Sprint(s.revision)
	if err := o.SetContent(map[string]any{"spec": text}); err != nil {
		panic(err)
	}
	o.DropContent()
	return o
}

// set writes an apple, or with no text deletes it.
func (s *stored) set(name, text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.revision++
	t, o := watch.Modified, s.apple(name, text)
	if text == "" {
		t = watch.Deleted
		delete(s.apples, name)
	} else {
		s.apples[name] = text
	}
	for _, server := range s.servers {
		server.observer["apples"].Changed(t, o, s.revision)
	}
}

func (s *stored) start(t *testing.T, client *clientv3.Client, shared bool, stages ...string) *server {
	t.Helper()
	kinds := testKinds()
	v := &server{t: t, stored: s, builder: snapshot.NewBuilder(kinds, nil), observer: map[string]snapshot.Observer{}, planes: map[string]*plane{}}
	for _, source := range v.builder.Sources() {
		v.observer[source.Resource.Resource] = source.Observer
	}
	v.releaser = New(Config{
		Builder: v.builder, Store: NewStore(client, "/releases", kinds, nil), Shared: shared,
		ControlPlanes: func(context.Context, string) ([]v1alpha1.ControlPlaneStatus, error) { return v.controlPlanes(), nil },
		HasStages: func(context.Context, string) (bool, error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			return strings.Contains(string(s.mesh.Field("spec")), "stages"), nil
		},
	})
	for _, stage := range stages {
		p := &plane{sub: v.builder.Subscribe("m")}
		p.sub.Select(snapshot.ControlPlane{Labels: map[string]string{"stage": stage}})
		v.planes[stage] = p
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { v.builder.Run(ctx) })
	running.Go(func() { v.releaser.Run(ctx) })
	stopped := false
	v.stop = func() {
		if stopped {
			return
		}
		stopped = true
		s.mu.Lock()
		s.servers = slices.DeleteFunc(s.servers, func(o *server) bool { return o == v })
		s.mu.Unlock()
		cancel()
		running.Wait()
		for _, p := range v.planes {
			p.sub.Close()
		}
	}
	t.Cleanup(v.stop)
	s.mu.Lock()
	defer s.mu.Unlock()
	var apples []*object.Object
	for name, text := range s.apples {
		apples = append(apples, s.apple(name, text))
	}
	c := &object.Object{}
	c.Name = "c"
	if err := c.SetContent(map[string]any{"spec": map[string]any{"mesh": "m", "namespaces": []any{"*"}}}); err != nil {
		t.Fatal(err)
	}
	for resource, items := range map[string][]*object.Object{"meshes": {s.mesh}, "virtualclusters": {c}, "apples": apples, "pears": nil, "namespaces": nil} {
		v.observer[resource].Replaced(items, s.revision)
	}
	s.servers = append(s.servers, v)
	return v
}

func (v *server) controlPlanes() (all []v1alpha1.ControlPlaneStatus) {
	for stage, p := range v.planes {
		p.mu.Lock()
		if now, err := p.sub.Snapshot(); err == nil && !p.stuck {
			p.has = now.Version
		}
		all = append(all, v1alpha1.ControlPlaneStatus{ID: stage, Stage: p.sub.Stage(), Version: p.has, Connected: true})
		p.mu.Unlock()
	}
	return all
}

// shows is what a stage receives, as name=text.
func (v *server) shows(stage string) string {
	s, err := v.planes[stage].sub.Snapshot()
	if err != nil {
		return err.Error()
	}
	var all []string
	for e := range s.Lists[0].All() {
		b := e.Resource()
		all = append(all, e.Name()+string(b[slices.Index(b, '='):]))
	}
	return strings.Join(all, " ")
}

func eventually(t *testing.T, what string, check func() string) {
	t.Helper()
	last := ""
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(2 * time.Millisecond) {
		if last = check(); last == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s: %s", what, last)
		}
	}
}

// have waits until the stages receive this.
func (v *server) have(what string, want map[string]string) {
	v.t.Helper()
	eventually(v.t, what, func() string {
		for stage, w := range want {
			if got := v.shows(stage); got != w {
				return fmt.Sprintf("stage %s has %q, want %q", stage, got, w)
			}
		}
		return ""
	})
}

// pins waits until so many resources are pinned. An object that is written as it was before that
// has been noticed is as it was.
func (v *server) pins(what string, want int32) {
	v.t.Helper()
	eventually(v.t, what, func() string {
		if s := v.releaser.Status("m"); s == nil || s.Pinned != want {
			return fmt.Sprintf("want %d pins, got %+v", want, s)
		}
		return ""
	})
}

// phase waits for a phase, and gives the status.
func (v *server) phase(want v1alpha1.RolloutPhase) *v1alpha1.MeshRolloutStatus {
	v.t.Helper()
	var status *v1alpha1.MeshRolloutStatus
	eventually(v.t, string(want), func() string {
		if status = v.releaser.Status("m"); status == nil || status.Phase != want {
			return fmt.Sprintf("%+v", status)
		}
		return ""
	})
	return status
}

// promote promotes the stage that the rollout has come to, and abort the rollout. What they see
// may be a moment old, and then means nothing.
func (v *server) promote(stage string) {
	v.t.Helper()
	v.ask(v1alpha1.AnnotationPromote, func(s *v1alpha1.MeshRolloutStatus) bool { return s.ID != "" && s.Stage == stage })
}

func (v *server) abort() {
	v.t.Helper()
	v.ask(v1alpha1.AnnotationAbort, func(s *v1alpha1.MeshRolloutStatus) bool { return s.ID != "" })
}

func (v *server) ask(annotation string, stands func(*v1alpha1.MeshRolloutStatus) bool) {
	v.t.Helper()
	asked := ""
	eventually(v.t, annotation, func() string {
		switch s := v.releaser.Status("m"); {
		case s == nil || !stands(s) && asked == "":
			return "nothing to ask for yet"
		case !stands(s):
			return ""
		case s.ID != asked:
			asked = s.ID
			v.stored.annotate(annotation, asked)
		}
		return "asked for " + asked
	})
}

func TestLaterStagesKeepWhatTheyHaveUntilTheyArePromoted(t *testing.T) {
	s := newStored(0, "one", "two", "three")
	s.set("n/a", "1")
	v := s.start(t, startEtcd(t), false, "one", "two", "three")
	v.have("the beginning", map[string]string{"one": "n/a=1", "two": "n/a=1", "three": "n/a=1"})
	s.set("n/b", "1")
	s.set("n/a", "2")
	v.have("the first stage", map[string]string{"one": "n/a=2 n/b=1", "two": "n/a=1", "three": "n/a=1"})
	v.promote("one")
	v.have("the second stage", map[string]string{"one": "n/a=2 n/b=1", "two": "n/a=2 n/b=1", "three": "n/a=1"})
	s.set("n/a", "3") // it joins, from the start
	v.have("the one that joined", map[string]string{"one": "n/a=3 n/b=1", "two": "n/a=2 n/b=1", "three": "n/a=1"})
	v.promote("one")
	v.have("the second stage again", map[string]string{"one": "n/a=3 n/b=1", "two": "n/a=3 n/b=1", "three": "n/a=1"})
	if got := v.phase(v1alpha1.RolloutPaused); got.Changes != 2 || got.Stage != "two" {
		t.Errorf("status = %+v", got)
	}
	v.promote("two")
	v.have("all", map[string]string{"one": "n/a=3 n/b=1", "two": "n/a=3 n/b=1", "three": "n/a=3 n/b=1"})
	v.phase(v1alpha1.RolloutComplete)
}

func TestAnAbortPinsWhatTheRolloutChangedUntilItIsWrittenAgain(t *testing.T) {
	s := newStored(0, "one", "two")
	s.set("n/a", "1")
	s.set("n/b", "1")
	s.set("n/gone", "1")
	client := startEtcd(t)
	v := s.start(t, client, false, "one", "two")
	good := "n/a=1 n/b=1 n/gone=1"
	v.have("the beginning", map[string]string{"one": good, "two": good})
	s.set("n/a", "broken")
	s.set("n/new", "broken")
	s.set("n/gone", "")
	v.have("the first stage", map[string]string{"one": "n/a=broken n/b=1 n/new=broken", "two": good})
	v.abort()
	v.have("the abort", map[string]string{"one": good, "two": good})
	status := v.phase(v1alpha1.RolloutAborted)
	want := []v1alpha1.PinnedResource{
		{Kind: "Apple", Namespace: "n", Name: "a", Held: "Previous"},
		{Kind: "Apple", Namespace: "n", Name: "gone", Held: "Previous"},
		{Kind: "Apple", Namespace: "n", Name: "new", Held: "Absent"},
	}
	if status.Pinned != 3 || !slices.Equal(status.PinnedResources, want) {
		t.Errorf("pinned %d: %+v", status.Pinned, status.PinnedResources)
	}
	// Others go on; the pinned stay, also for a server that knows nothing but etcd.
	s.set("n/b", "2")
	v.have("another change", map[string]string{"one": "n/a=1 n/b=2 n/gone=1", "two": good})
	v.stop()
	v = s.start(t, client, false, "one", "two")
	v.have("the restart", map[string]string{"one": "n/a=1 n/b=2 n/gone=1", "two": good})
	v.promote("one")
	v.have("another change for all", map[string]string{"one": "n/a=1 n/b=2 n/gone=1", "two": "n/a=1 n/b=2 n/gone=1"})
	s.set("n/a", "mended")
	s.set("n/new", "mended")
	v.have("what was written again", map[string]string{"one": "n/a=mended n/b=2 n/gone=1 n/new=mended", "two": "n/a=1 n/b=2 n/gone=1"})
	v.promote("one")
	v.have("what was written again, for all", map[string]string{"two": "n/a=mended n/b=2 n/gone=1 n/new=mended"})
	if status := v.phase(v1alpha1.RolloutComplete); status.Pinned != 1 {
		t.Errorf("still pinned: %+v", status.PinnedResources)
	}
}

func TestAChangeThatIsTakenBackEndsTheRollout(t *testing.T) {
	s := newStored(0, "one", "two")
	s.set("n/a", "1")
	v := s.start(t, startEtcd(t), false, "one", "two")
	v.have("the beginning", map[string]string{"two": "n/a=1"})
	s.set("n/a", "broken")
	v.phase(v1alpha1.RolloutPaused)
	s.set("n/a", "1")
	v.phase(v1alpha1.RolloutComplete)
	v.have("the same", map[string]string{"one": "n/a=1", "two": "n/a=1"})
}

func TestTheNextStageFollowsOnceAllOfTheStageHaveHadItForTheBakeTime(t *testing.T) {
	const bake = 500 * time.Millisecond
	s := newStored(bake, "one", "two")
	v := s.start(t, startEtcd(t), false, "one", "two")
	v.have("the beginning", map[string]string{"one": "", "two": ""})
	v.planes["one"].mu.Lock()
	v.planes["one"].stuck = true
	v.planes["one"].mu.Unlock()
	s.set("n/a", "1")
	v.phase(v1alpha1.RolloutWaiting)
	time.Sleep(2 * bake) // what must not happen has time to
	v.have("nothing", map[string]string{"one": "n/a=1", "two": ""})
	begun := time.Now()
	v.planes["one"].mu.Lock()
	v.planes["one"].stuck = false
	v.planes["one"].mu.Unlock()
	eventually(t, "baking", func() string {
		status := v.releaser.Status("m")
		if status.Phase == v1alpha1.RolloutBaking || status.Phase == v1alpha1.RolloutComplete { // by now, where this test had to wait
			return ""
		}
		return string(status.Phase)
	})
	v.have("the bake time", map[string]string{"two": "n/a=1"})
	if took := time.Since(begun); took < bake {
		t.Errorf("it baked for %s", took)
	}
	v.phase(v1alpha1.RolloutComplete)
}

func TestWithoutAConnectedControlPlaneNothingBakes(t *testing.T) {
	s := newStored(time.Millisecond, "one", "two")
	v := s.start(t, startEtcd(t), false, "two")
	v.have("the beginning", map[string]string{"two": ""})
	s.set("n/a", "1")
	status := v.phase(v1alpha1.RolloutWaiting)
	time.Sleep(2 * look)
	v.have("nothing", map[string]string{"two": ""})
	s.annotate(v1alpha1.AnnotationPromote, status.ID)
	v.have("the promotion", map[string]string{"two": "n/a=1"})
}

func TestAServerThatStartsAmidARolloutServesLaterStagesWhatTheyHad(t *testing.T) {
	s := newStored(0, "one", "two")
	s.set("n/a", "1")
	client := startEtcd(t)
	v := s.start(t, client, false, "one", "two")
	v.have("the beginning", map[string]string{"two": "n/a=1"})
	s.set("n/a", "2")
	v.have("the rollout", map[string]string{"one": "n/a=2", "two": "n/a=1"})
	v.stop()
	s.set("n/a", "3") // nobody saw it come
	s.set("n/b", "3")
	v = s.start(t, client, false, "one", "two")
	eventually(t, "the restart", func() string {
		if got := v.shows("two"); got != "n/a=1" && got != snapshot.ErrHeld.Error() && got != snapshot.ErrNotSynced.Error() {
			t.Fatalf("stage two received %q", got)
		}
		if got := v.shows("one"); got != "n/a=3 n/b=3" {
			return got
		}
		return ""
	})
	v.have("what it had", map[string]string{"two": "n/a=1"})
}

func TestWithoutStagesEverythingIsReleased(t *testing.T) {
	s := newStored(0, "one", "two")
	s.set("n/a", "1")
	client := startEtcd(t)
	v := s.start(t, client, false, "one", "two")
	v.have("the beginning", map[string]string{"two": "n/a=1"})
	s.set("n/a", "2")
	v.have("the rollout", map[string]string{"one": "n/a=2", "two": "n/a=1"})
	s.setStages(0)
	v.have("the end of stages", map[string]string{"one": "n/a=2", "two": "n/a=2"})
	eventually(t, "nothing is left in etcd", func() string {
		r, err := client.Get(t.Context(), "/releases", clientv3.WithPrefix(), clientv3.WithCountOnly())
		if err != nil || r.Count == 0 {
			return ""
		}
		return fmt.Sprint(r.Count, " keys")
	})
	s.setStages(0, "one", "two")
	s.set("n/a", "3")
	v.have("stages again", map[string]string{"one": "n/a=3"})
	if got := v.shows("two"); got != "n/a=2" && got != "n/a=3" { // the change may have come before
		t.Errorf("stage two went back to %q", got)
	}
}

func TestTwoServersServeTheSame(t *testing.T) {
	s := newStored(0, "one", "two")
	s.set("n/a", "1")
	client := startEtcd(t)
	v, w := s.start(t, client, true, "one", "two"), s.start(t, client, true, "one", "two")
	both := func(what string, want map[string]string) {
		t.Helper()
		v.have(what, want)
		w.have(what, want)
	}
	both("the beginning", map[string]string{"one": "n/a=1", "two": "n/a=1"})
	for i := range 30 {
		s.set("n/a", fmt.Sprint("x", i))
	}
	both("the rollout", map[string]string{"one": "n/a=x29", "two": "n/a=1"})
	v.abort()
	both("the abort", map[string]string{"one": "n/a=1", "two": "n/a=1"})
	s.set("n/b", "1")
	both("another", map[string]string{"one": "n/a=1 n/b=1", "two": "n/a=1"})
	w.promote("one")
	both("the promotion", map[string]string{"one": "n/a=1 n/b=1", "two": "n/a=1 n/b=1"})
	v.stop()
	s.set("n/a", "2")
	w.have("without the other", map[string]string{"one": "n/a=2 n/b=1", "two": "n/a=1 n/b=1"})
}

// model is what stages should have, in the most naive way.
type model struct {
	truth    map[string]string
	stages   []map[string]string
	good     map[string]string
	touched  map[string]bool   // by the present rollout
	rejected map[string]string // pinned while the truth is this; "" for an absence
}

func (m *model) head() map[string]string {
	head := maps.Clone(m.truth)
	for name, rejected := range m.rejected {
		if m.truth[name] != rejected {
			delete(m.rejected, name)
			continue
		}
		delete(head, name)
		if text, ok := m.stages[0][name]; ok {
			head[name] = text
		}
	}
	return head
}

// pinned are what is held back and would not be as it is.
func (m *model) pinned() (n int32) {
	for name, rejected := range m.rejected {
		if m.truth[name] == rejected && m.stages[0][name] != rejected {
			n++
		}
	}
	return n
}

func (m *model) absorb() {
	head := m.head()
	for name := range head {
		if m.stages[0][name] != head[name] {
			m.touched[name] = true
		}
	}
	for name := range m.stages[0] {
		if m.stages[0][name] != head[name] {
			m.touched[name] = true
		}
	}
	m.stages[0] = head
	m.settle()
}

func (m *model) settle() {
	for _, s := range m.stages {
		if !maps.Equal(s, m.stages[0]) {
			return
		}
	}
	m.good, m.touched = m.stages[0], map[string]bool{}
}

func (m *model) frontier() int {
	at := 0
	for at+1 < len(m.stages) && maps.Equal(m.stages[at+1], m.stages[0]) {
		at++
	}
	return at
}

func text(of map[string]string) string {
	var all []string
	for _, name := range slices.Sorted(maps.Keys(of)) {
		all = append(all, name+"="+of[name])
	}
	return strings.Join(all, " ")
}

func TestRandomReleasesAreAsInTheNaiveModel(t *testing.T) {
	names := []string{"one", "two", "three"}
	for seed := range uint64(30) {
		two := seed >= 6 // servers on one etcd
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 1))
			s := newStored(0, names...)
			m := &model{truth: map[string]string{}, touched: map[string]bool{}, rejected: map[string]string{}}
			write := func() {
				name, text := fmt.Sprintf("n%d/%d", random.IntN(3), random.IntN(4)), fmt.Sprint(random.IntN(4))
				if text == "0" {
					if _, ok := m.truth[name]; !ok {
						return
					}
					s.set(name, "")
					delete(m.truth, name)
					return
				}
				s.set(name, text)
				m.truth[name] = text
			}
			for range 5 {
				write()
			}
			m.good = maps.Clone(m.truth)
			m.stages = []map[string]string{m.good, m.good, m.good}
			client := startEtcd(t)
			v := s.start(t, client, two, names...)
			var other *server
			if two {
				other = s.start(t, client, two, names...)
			}
			check := func(what string) {
				t.Helper()
				want := map[string]string{}
				for i, name := range names {
					want[name] = text(m.stages[i])
				}
				v.have(what, want)
				v.pins(what, m.pinned())
				if two {
					other.have(what+", of the other server", want)
					other.pins(what+", of the other server", m.pinned())
				}
			}
			check("the beginning")
			for step := range 60 {
				what := fmt.Sprint("step ", step, ": ")
				switch random.IntN(8) {
				case 0:
					if m.frontier() == len(names)-1 {
						continue
					}
					what += "promote"
					v.promote(names[m.frontier()])
					m.stages[m.frontier()+1] = m.stages[0]
					m.settle()
				case 1:
					if m.frontier() == len(names)-1 {
						continue
					}
					what += "abort"
					v.abort()
					for name := range m.touched {
						m.rejected[name] = m.truth[name]
					}
					for i := range m.stages {
						m.stages[i] = m.good
					}
					m.touched = map[string]bool{}
				case 2:
					what += "restart"
					v.stop()
					write()
					if two { // the other one sees each of them
						m.absorb()
						other.have(what, map[string]string{"one": text(m.stages[0])})
						other.pins(what, m.pinned())
					}
					write()
					v = s.start(t, client, two, names...)
					m.absorb()
				default:
					what += "write"
					write()
					m.absorb()
				}
				check(what)
			}
		})
	}
}

func TestAMeshOfThousandsIsReleasedInStages(t *testing.T) {
	s := newStored(0, "one", "two")
	for i := range 3000 {
		s.set(fmt.Sprintf("n%d/%d", i%50, i), strings.Repeat("x", 300))
	}
	client := startEtcd(t)
	v := s.start(t, client, false, "one", "two")
	count := func(stage, part string) int { return strings.Count(v.shows(stage), part) }
	eventually(t, "the beginning", func() string {
		if n := count("two", "=x"); n != 3000 {
			return fmt.Sprint(n)
		}
		return ""
	})
	for i := range 3000 {
		s.set(fmt.Sprintf("n%d/%d", i%50, i), "y")
	}
	eventually(t, "all in the first stage", func() string {
		if n := count("one", "=y"); n != 3000 {
			return fmt.Sprint(n)
		}
		return ""
	})
	if n := count("two", "=x"); n != 3000 {
		t.Fatalf("the second stage has %d of them as they were", n)
	}
	v.stop()
	v = s.start(t, client, false, "one", "two")
	eventually(t, "the restart", func() string {
		if n, m := count("two", "=x"), count("one", "=y"); n != 3000 || m != 3000 {
			return fmt.Sprint(n, m)
		}
		return ""
	})
	v.promote("one")
	eventually(t, "all in the second stage", func() string {
		if n := count("two", "=y"); n != 3000 {
			return fmt.Sprint(n)
		}
		return ""
	})
	v.phase(v1alpha1.RolloutComplete)
}
