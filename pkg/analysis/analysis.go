// Package analysis runs the analyzers of istioctl analyze over virtual clusters: over one
// as it is, on demand, and over one as it would be after a write, for warnings.
package analysis

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"golang.org/x/time/rate"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/component-base/metrics"
	"k8s.io/klog/v2"

	"istio.io/istio/pkg/config"
	"istio.io/istio/pkg/config/analysis"
	"istio.io/istio/pkg/config/analysis/analyzers"
	"istio.io/istio/pkg/config/analysis/diag"
	"istio.io/istio/pkg/config/resource"
	"istio.io/istio/pkg/config/schema/collections"
	"istio.io/istio/pkg/config/schema/gvk"

	"github.com/vmesh-io/vmesh/pkg/apis/kind"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

// How much of one processor analysis at write time may take, and for how long it may take
// all of it first. People type their writes, and are told; programs write by the thousand,
// and must not be slowed down by warnings that nobody reads.
const (
	peoplesShare, peoplesBurst   = 0.25, 2 * time.Second
	programsShare, programsBurst = 0.05, 500 * time.Millisecond
)

// List lists the objects of a resource in one virtual cluster, not older than any write
// that was answered. They are shared and must not be modified.
type List func(ctx context.Context, gr schema.GroupResource, cluster string) ([]object.Object, error)

// Config is what an Engine is made of.
type Config struct {
	// Kinds are all kinds that virtual clusters serve.
	Kinds []*kind.Kind
	List  List
	// WriteBudget is how long a write may wait for its analysis. Zero is no analysis of writes.
	WriteBudget time.Duration
	// Register registers metrics.
	Register func(...metrics.Registerable)
	// InMembers says whether member clusters have a service of a virtual cluster's mesh. It may be nil.
	InMembers func(cluster, namespace, name string) bool

	// analyzers are Istio's, if nil.
	analyzers []analysis.Analyzer
}

// Engine runs Istio's analyzers. It may be used by several goroutines.
type Engine struct {
	budget   time.Duration
	list     List
	sources  map[config.GroupVersionKind]*source
	kinds    map[schema.GroupKind]*source
	all      []analysis.Analyzer
	relevant map[config.GroupVersionKind]relevant
	cache    *cache
	people   *rate.Limiter // tokens are microseconds
	programs *rate.Limiter
	demand   chan struct{} // one analysis on demand at a time: they are large
	counted  *instruments

	inMembers func(cluster, namespace, name string) bool // nil where there are none
}

// relevant is what a write of one kind is analyzed by.
type relevant struct {
	analyzers []analysis.Analyzer
	inputs    []config.GroupVersionKind
}

// New makes an engine. Run keeps it small.
func New(c Config) *Engine {
	if c.analyzers == nil {
		c.analyzers = analyzers.All()
	}
	e := &Engine{
		budget:   c.WriteBudget,
		list:     c.List,
		sources:  map[config.GroupVersionKind]*source{},
		kinds:    map[schema.GroupKind]*source{},
		all:      c.analyzers,
		relevant: map[config.GroupVersionKind]relevant{},
		cache:    newCache(),
		people:   newLimiter(peoplesShare, peoplesBurst),
		programs: newLimiter(programsShare, programsBurst),
		demand:   make(chan struct{}, 1),
		counted:  newInstruments(c.Register),

		inMembers: c.InMembers,
	}
	kinds := map[schema.GroupKind]*kind.Kind{}
	for _, k := range c.Kinds {
		kinds[k.GroupKind()] = k
	}
	read := map[config.GroupVersionKind]bool{}
	for _, a := range e.all {
		for _, in := range a.Metadata().Inputs {
			read[in] = true
		}
	}
	for _, s := range collections.All.All() {
		gk := schema.GroupKind{Group: s.Group(), Kind: s.Kind()}
		if k := kinds[gk]; k != nil && read[s.GroupVersionKind()] {
			src := newSource(s, k)
			e.sources[src.gvk], e.kinds[gk] = src, src
		}
	}
	for in := range e.sources {
		e.relevant[in] = e.relevantTo(in)
	}
	return e
}

// relevantTo leaves out Istio's validation, which every write has gone through.
func (e *Engine) relevantTo(k config.GroupVersionKind) relevant {
	var r relevant
	for _, a := range e.all {
		m := a.Metadata()
		if strings.HasPrefix(m.Name, "schema.ValidationAnalyzer.") || !slices.Contains(m.Inputs, k) {
			continue
		}
		r.analyzers = append(r.analyzers, a)
		for _, in := range m.Inputs {
			if !slices.Contains(r.inputs, in) {
				r.inputs = append(r.inputs, in)
			}
		}
	}
	if len(r.analyzers) > 0 && !slices.Contains(r.inputs, gvk.Pod) {
		r.inputs = append(r.inputs, gvk.Pod)
	}
	return r
}

func newLimiter(share float64, burst time.Duration) *rate.Limiter {
	return rate.NewLimiter(rate.Limit(share*1e6), int(burst.Microseconds()))
}

// charge takes what was used from a limiter, into debt if need be.
func charge(l *rate.Limiter, used time.Duration) {
	l.ReserveN(time.Now(), min(int(used.Microseconds()), l.Burst()))
}

// Run forgets what is no longer needed, until ctx is done.
func (e *Engine) Run(ctx context.Context) {
	tick := time.NewTicker(keepFor / 2)
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			e.cache.sweep(now)
		case <-ctx.Done():
			return
		}
	}
}

// Analyze runs all analyzers over a virtual cluster as it is.
func (e *Engine) Analyze(ctx context.Context, cluster string) (v1alpha1.AnalysisStatus, error) {
	select {
	case e.demand <- struct{}{}:
		defer func() { <-e.demand }()
	case <-ctx.Done():
		return v1alpha1.AnalysisStatus{}, ctx.Err()
	}
	began := time.Now()
	entry, err := e.cache.take(ctx, cluster)
	if err != nil {
		return v1alpha1.AnalysisStatus{}, err
	}
	s := e.newState(ctx, cluster, entry)
	defer func() { e.cache.give(entry, s.seen) }()
	var inputs []config.GroupVersionKind
	for in := range e.sources {
		inputs = append(inputs, in)
	}
	messages, failed, err := e.run(s, e.all, inputs, nil)
	e.counted.ran(onDemand, began, err == nil)
	if err != nil {
		return v1alpha1.AnalysisStatus{}, fmt.Errorf("analyzing virtual cluster %s: %w", cluster, err)
	}
	return v1alpha1.AnalysisStatus{Findings: findings(messages), Failed: failed}, nil
}

// Write is a write that is about to be done. Old is nil for a creation, New for a deletion.
type Write struct {
	Cluster  string
	Kind     schema.GroupKind
	Old, New *object.Object
	// ByHand says that a person waits for the answer.
	ByHand bool
}

// Added are the findings, warnings and worse, that a virtual cluster would have after a
// write and has not before. There are none when analysis is off, has nothing to do with the
// kind, or would take too much: a write never fails by it, nor waits for longer than
// the budget.
func (e *Engine) Added(ctx context.Context, w Write) []v1alpha1.Finding {
	src := e.kinds[w.Kind]
	if src == nil || e.budget <= 0 || len(e.relevant[src.gvk].analyzers) == 0 || !src.changes(w.Old, w.New) {
		return nil
	}
	limiter := e.programs
	if w.ByHand {
		limiter = e.people
	}
	if limiter.Tokens() <= 0 {
		e.counted.skip(skippedBusy)
		return nil
	}
	if e.cache.isSlow(w.Cluster) {
		e.counted.skip(skippedSlow)
		return nil
	}
	began := time.Now()
	added, err := e.added(ctx, src, w)
	e.counted.ran(atWrite, began, err == nil)
	charge(limiter, time.Since(began))
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		e.counted.skip(skippedSlow)
	case err != nil && ctx.Err() == nil:
		e.counted.skip(skippedFailed)
		klog.FromContext(ctx).Error(err, "Analyzing a write failed", "cluster", w.Cluster)
	}
	return added
}

func (e *Engine) added(ctx context.Context, src *source, w Write) (_ []v1alpha1.Finding, err error) {
	ctx, cancel := context.WithTimeout(ctx, e.budget)
	defer cancel()
	defer func() {
		if err != nil {
			err = errors.Join(err, ctx.Err()) // storage has words of its own for it
		}
	}()
	c := &change{kind: src.gvk}
	for _, o := range []*object.Object{w.Old, w.New} {
		if o != nil {
			c.name = resource.NewFullName(resource.Namespace(o.Namespace), resource.LocalName(o.Name))
		}
	}
	if w.New != nil && src.wants(w.New) {
		to, err := src.instance(w.New)
		if err != nil {
			return nil, err
		}
		c.to = to
	}
	entry, err := e.cache.take(ctx, w.Cluster)
	if err != nil {
		return nil, err
	}
	s := e.newState(ctx, w.Cluster, entry)
	defer func() {
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			e.cache.wasSlow(entry)
		}
		e.cache.give(entry, s.seen)
	}()
	r := e.relevant[src.gvk]
	after, _, err := e.run(s, r.analyzers, r.inputs, c)
	if err != nil {
		return nil, err
	}
	if after = s.worthTelling(after); len(after) == 0 {
		return nil, nil
	}
	before, _, err := e.run(s, r.analyzers, r.inputs, nil)
	if err != nil {
		return nil, err
	}
	return newFindings(findings(without(after, before)), c.name.String(), src.gvk.Kind), nil
}

func (e *Engine) newState(ctx context.Context, cluster string, entry *entry) *state {
	return &state{
		ctx: ctx, engine: e, cluster: cluster, known: entry.decoded, seen: memory{},
		kinds: map[config.GroupVersionKind][]*resource.Instance{},
	}
}

// run runs analyzers over a state, and names those that broke off.
func (e *Engine) run(s *state, as []analysis.Analyzer, inputs []config.GroupVersionKind, c *change) (diag.Messages, []string, error) {
	if err := s.load(inputs); err != nil {
		return nil, nil, err
	}
	var all diag.Messages
	var failed []string
	v := &view{
		state: s, change: c, own: map[config.GroupVersionKind][]*resource.Instance{},
		index: map[config.GroupVersionKind]map[resource.FullName]*resource.Instance{},
	}
	for _, a := range as {
		v.messages = nil
		if e.analyze(a, v) {
			all.Add(v.messages...)
		} else {
			failed = append(failed, a.Metadata().Name)
		}
		if v.Canceled() {
			return nil, nil, errors.Join(v.err, s.ctx.Err())
		}
	}
	return all, failed, nil
}

// analyze tells whether the analyzer came to its end.
func (e *Engine) analyze(a analysis.Analyzer, v *view) (completed bool) {
	defer func() {
		if p := recover(); p != nil {
			name := a.Metadata().Name
			e.counted.panics.WithLabelValues(name).Inc()
			klog.FromContext(v.ctx).Error(fmt.Errorf("panic: %v", p), "An analyzer of Istio's broke off",
				"analyzer", name, "cluster", v.cluster, "stack", string(debug.Stack()))
		}
	}()
	a.Analyze(v)
	return true
}

// worthTelling leaves out what is said for information only, and what is said of
// everything where there are no workloads.
func (s *state) worthTelling(messages diag.Messages) diag.Messages {
	pods := s.kinds[gvk.Pod]
	var kept diag.Messages
	for _, m := range messages {
		if m.Type.Level().IsWorseThanOrEqualTo(diag.Warning) && (len(pods) > 0 || !ofWorkloads(&m)) {
			kept = append(kept, m)
		}
	}
	return kept
}

// without leaves out those messages that say what one of the others says. It comes before
// they are sorted, for which Istio composes the text of each anew at every comparison.
func without(messages, others diag.Messages) diag.Messages {
	type said struct {
		kind         *diag.MessageType
		origin, text string
	}
	of := func(m *diag.Message) said {
		s := said{kind: m.Type, text: fmt.Sprintf(m.Type.Template(), m.Parameters...)}
		if m.Resource != nil {
			s.origin = m.Resource.Origin.FriendlyName()
		}
		return s
	}
	known := make(map[said]bool, len(others))
	for i := range others {
		known[of(&others[i])] = true
	}
	var kept diag.Messages
	for i := range messages {
		if !known[of(&messages[i])] {
			kept = append(kept, messages[i])
		}
	}
	return kept
}

// newFindings are those of a write that are worth telling. Of several that say the same of
// several objects, that of the written object stands for all.
func newFindings(added []v1alpha1.Finding, name, kind string) []v1alpha1.Finding {
	type text struct{ code, message string }
	own := map[text]bool{}
	for _, f := range added {
		if f.Origin == kind+" "+name {
			own[text{f.Code, f.Message}] = true
		}
	}
	return slices.DeleteFunc(added, func(f v1alpha1.Finding) bool {
		return f.Origin != kind+" "+name && own[text{f.Code, f.Message}]
	})
}
