package kind

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"sync"

	structuralschema "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel/model"
	"k8s.io/apimachinery/pkg/util/validation/field"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	apiservercel "k8s.io/apiserver/pkg/cel"
	"k8s.io/apiserver/pkg/cel/common"
)

// RuleCache keeps compiled rules for all kinds that share it. Definitions repeat
// the same few rules dozens of times, and a compiled one is large and slow to make.
// It is safe for concurrent use.
type RuleCache struct {
	mu       sync.Mutex
	compiled map[[sha256.Size]byte]func() *cel.Validator
}

// NewRuleCache returns an empty cache.
func NewRuleCache() *RuleCache {
	return &RuleCache{compiled: map[[sha256.Size]byte]func() *cel.Validator{}}
}

// compile returns the validator for the rules of one schema node alone.
func (c *RuleCache) compile(s *structuralschema.Structural, isRoot bool) (*cel.Validator, error) {
	s = withoutRulesBelow(s)
	text, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("reading a schema with rules: %w", err)
	}
	key := sha256.Sum256(fmt.Appendf(text, "%t", isRoot))
	c.mu.Lock()
	build := c.compiled[key]
	if build == nil {
		build = sync.OnceValue(func() *cel.Validator { return cel.NewValidator(s, isRoot, celconfig.PerCallLimit) })
		c.compiled[key] = build
	}
	c.mu.Unlock()
	return build(), nil
}

// rules are those of a schema node and of the nodes below it. Nodes without any
// are nil, so that only what rules apply to is walked.
type rules struct {
	self       *cel.Validator // the node's own; nil without
	schema     *structuralschema.Structural
	props      map[string]*rules
	additional *rules
	items      *rules
}

// newRules compiles the rules of a whole schema.
func newRules(s *structuralschema.Structural, cache *RuleCache) (*rules, error) {
	if s == nil {
		return nil, nil
	}
	if hasRulesInside(s) {
		// Not to be had in a definition of kube-apiserver's making; left to upstream as a whole.
		if v := cel.NewValidator(s, true, celconfig.PerCallLimit); v != nil {
			return &rules{self: v, schema: s}, nil
		}
		return nil, nil
	}
	return compileRules(s, model.SchemaDeclType(s, true), true, cache)
}

// compileRules descends where upstream's compiler would: not into values whose type
// the rules' language cannot tell.
func compileRules(s *structuralschema.Structural, decl *apiservercel.DeclType, isRoot bool, cache *RuleCache) (*rules, error) {
	r := &rules{schema: s}
	var err error
	if len(s.XValidations) > 0 {
		if r.self, err = cache.compile(s, isRoot); err != nil {
			return nil, err
		}
	}
	var element *apiservercel.DeclType
	if decl != nil {
		element = decl.ElemType
	}
	if s.Items != nil {
		if r.items, err = compileRules(s.Items, element, s.Items.XEmbeddedResource, cache); err != nil {
			return nil, err
		}
	}
	if s.AdditionalProperties != nil && s.AdditionalProperties.Structural != nil {
		rest := s.AdditionalProperties.Structural
		if r.additional, err = compileRules(rest, element, rest.XEmbeddedResource, cache); err != nil {
			return nil, err
		}
	}
	for name := range s.Properties {
		p := s.Properties[name]
		declared := declaredType(decl, name, &p)
		if declared == nil {
			continue
		}
		child, err := compileRules(&p, declared, p.XEmbeddedResource, cache)
		if err != nil {
			return nil, err
		}
		if child == nil {
			continue
		}
		if r.props == nil {
			r.props = map[string]*rules{}
		}
		r.props[name] = child
	}
	if r.self == nil && r.items == nil && r.additional == nil && r.props == nil {
		return nil, nil
	}
	return r, nil
}

func declaredType(parent *apiservercel.DeclType, name string, s *structuralschema.Structural) *apiservercel.DeclType {
	escaped, ok := apiservercel.Escape(name)
	if !ok {
		return model.SchemaDeclType(s, s.XEmbeddedResource)
	}
	if parent == nil || parent.Fields[escaped] == nil {
		return nil
	}
	return parent.Fields[escaped].Type
}

// hold tells whether all rules hold.
func (r *rules) hold(ctx context.Context, v, old any) bool {
	run := ruleRun{ctx: ctx, budget: celconfig.RuntimeCELCostBudget, stopEarly: true}
	run.node(r, nil, v, old, ratchet{})
	return len(run.errs) == 0
}

// validate returns the errors of all rules that do not hold, without those that an
// update, described by the correlation, has not caused.
func (r *rules) validate(ctx context.Context, v, old any, correlated *common.CorrelatedObject) field.ErrorList {
	run := ruleRun{ctx: ctx, budget: celconfig.RuntimeCELCostBudget}
	run.node(r, nil, v, old, ratchet{current: correlated})
	return run.errs
}

// ruleRun is one evaluation of the rules for an object.
type ruleRun struct {
	ctx       context.Context
	budget    int64
	stopEarly bool // no more is asked than whether there are errors, so paths are left out
	errs      field.ErrorList
}

func (r *ruleRun) done() bool { return r.budget < 0 || r.stopEarly && len(r.errs) > 0 }

func (r *ruleRun) node(n *rules, path *field.Path, v, old any, from ratchet) {
	if n == nil || v == nil || r.done() {
		return
	}
	if n.self != nil {
		var errs field.ErrorList
		errs, r.budget = n.self.Validate(r.ctx, path, nil, v, old, r.budget, from.options()...)
		r.errs = append(r.errs, errs...)
	}
	switch v := v.(type) {
	case []any:
		r.list(n, path, v, old, from)
	case map[string]any:
		r.members(n, path, v, old, from)
	}
}

func (r *ruleRun) list(n *rules, path *field.Path, v []any, old any, from ratchet) {
	if n.items == nil {
		return
	}
	before, _ := old.([]any)
	matches := common.MakeMapList(&model.Structural{Structural: n.schema}, before)
	for i, item := range v {
		if r.done() {
			return
		}
		var at *field.Path
		if !r.stopEarly {
			at = path.Index(i)
		}
		r.node(n.items, at, item, matches.Get(item), from.index(i))
	}
}

func (r *ruleRun) members(n *rules, path *field.Path, v map[string]any, old any, from ratchet) {
	var before map[string]any
	if cel.MapIsCorrelatable(n.schema.XMapType) {
		before, _ = old.(map[string]any)
	}
	if n.additional != nil {
		for name, member := range v {
			var at *field.Path
			if !r.stopEarly {
				at = path.Key(name)
			}
			r.node(n.additional, at, member, before[name], from.key(name))
		}
	}
	for name, child := range n.props {
		member, ok := v[name]
		if !ok {
			continue
		}
		var at *field.Path
		if !r.stopEarly {
			at = path.Child(name)
		}
		r.node(child, at, member, before[name], from.key(name))
	}
}

// ratchet finds the old value that a node's errors are forgiven by: its own, or if
// it has none, that of the nearest node above which has one.
type ratchet struct {
	current, above *common.CorrelatedObject
}

func (r ratchet) options() []cel.Option {
	nearest := r.current
	if nearest == nil {
		nearest = r.above
	}
	if nearest == nil {
		return nil
	}
	return []cel.Option{cel.WithRatcheting(nearest)}
}

func (r ratchet) key(name string) ratchet {
	if r.current == nil {
		return r
	}
	if r.above == nil && (name == "apiVersion" || name == "kind") {
		return ratchet{} // both objects are converted to one version, so these never differ
	}
	return ratchet{current: r.current.Key(name), above: r.current}
}

func (r ratchet) index(i int) ratchet {
	if r.current == nil {
		return r
	}
	return ratchet{current: r.current.Index(i), above: r.current}
}

// withoutRulesBelow is a schema with only the rules of its own node.
func withoutRulesBelow(s *structuralschema.Structural) *structuralschema.Structural {
	if !hasRulesBelow(s) {
		return s
	}
	own := *s
	own.Items = withoutRules(s.Items)
	if s.AdditionalProperties != nil && s.AdditionalProperties.Structural != nil {
		own.AdditionalProperties = &structuralschema.StructuralOrBool{Structural: withoutRules(s.AdditionalProperties.Structural), Bool: s.AdditionalProperties.Bool}
	}
	if s.Properties != nil { // a map has none, and must not come out as an object without fields
		own.Properties = make(map[string]structuralschema.Structural, len(s.Properties))
	}
	for name, p := range s.Properties {
		own.Properties[name] = *withoutRules(&p)
	}
	return &own
}

func withoutRules(s *structuralschema.Structural) *structuralschema.Structural {
	if !hasRules(s) {
		return s
	}
	bare := *withoutRulesBelow(s)
	bare.XValidations = nil
	return &bare
}

func hasRules(s *structuralschema.Structural) bool {
	return s != nil && (len(s.XValidations) > 0 || hasRulesBelow(s))
}

func hasRulesBelow(s *structuralschema.Structural) bool {
	if hasRules(s.Items) || s.AdditionalProperties != nil && hasRules(s.AdditionalProperties.Structural) {
		return true
	}
	for _, p := range s.Properties {
		if hasRules(&p) {
			return true
		}
	}
	return false
}

// hasRulesInside tells whether allOf and the like hold rules, anywhere in a schema.
func hasRulesInside(s *structuralschema.Structural) bool {
	if s == nil {
		return false
	}
	if s.ValueValidation != nil && nestedRules(s.ValueValidation) {
		return true
	}
	if hasRulesInside(s.Items) || s.AdditionalProperties != nil && hasRulesInside(s.AdditionalProperties.Structural) {
		return true
	}
	for _, p := range s.Properties {
		if hasRulesInside(&p) {
			return true
		}
	}
	return false
}

func nestedRules(v *structuralschema.ValueValidation) bool {
	for i := range v.AllOf {
		if nestedRulesOf(&v.AllOf[i]) {
			return true
		}
	}
	return false
}

func nestedRulesOf(n *structuralschema.NestedValueValidation) bool {
	if n == nil {
		return false
	}
	if len(n.XValidations) > 0 || nestedRules(&n.ValueValidation) || nestedRulesOf(n.Items) || nestedRulesOf(n.AdditionalProperties) {
		return true
	}
	for _, p := range n.Properties {
		if nestedRulesOf(&p) {
			return true
		}
	}
	return false
}
