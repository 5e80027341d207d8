package kindtest

import (
	"fmt"
	"math/rand/v2"
	"slices"

	structuralschema "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
)

// Generator makes values that mostly fit a schema, with every kind of fault mixed in.
type Generator struct {
	Rand *rand.Rand
	// Faults is how likely each value is to be a wrong one.
	Faults float64
}

// Object makes the members of an object besides apiVersion, kind and metadata.
func (g *Generator) Object(s *structuralschema.Structural) map[string]any {
	tree, ok := g.value(s, 0).(map[string]any)
	if !ok {
		tree = map[string]any{}
	}
	delete(tree, "apiVersion")
	delete(tree, "kind")
	delete(tree, "metadata")
	return tree
}

func (g *Generator) chance(p float64) bool { return g.Rand.Float64() < p }

func (g *Generator) value(s *structuralschema.Structural, depth int) any {
	if depth > 0 && g.chance(g.Faults) {
		return g.anything(depth)
	}
	if s == nil {
		return g.anything(depth)
	}
	if s.ValueValidation != nil && len(s.ValueValidation.Enum) > 0 && !g.chance(g.Faults) {
		return s.ValueValidation.Enum[g.Rand.IntN(len(s.ValueValidation.Enum))].Object
	}
	switch {
	case s.XIntOrString:
		if g.chance(0.5) {
			return g.integer(s)
		}
		return g.text(s)
	case s.XEmbeddedResource:
		return g.embedded(s, depth)
	}
	switch s.Type {
	case "object":
		return g.members(s, depth)
	case "array":
		items := make([]any, 0, 3)
		for range g.Rand.IntN(4) {
			items = append(items, g.value(s.Items, depth+1))
		}
		if len(items) > 0 && g.chance(g.Faults) {
			items = append(items, items[0]) // lists that must not repeat themselves
		}
		return items
	case "integer":
		return g.integer(s)
	case "number":
		if g.chance(0.5) {
			return g.integer(s)
		}
		return g.Rand.Float64() * 200
	case "boolean":
		return g.chance(0.5)
	case "string":
		return g.text(s)
	}
	return g.anything(depth)
}

func (g *Generator) members(s *structuralschema.Structural, depth int) map[string]any {
	tree := map[string]any{}
	var required []string
	if s.ValueValidation != nil {
		required = s.ValueValidation.Required
	}
	names := make([]string, 0, len(s.Properties))
	for name := range s.Properties {
		names = append(names, name)
	}
	slices.Sort(names)
	share := 0.5
	if depth > 2 && len(names) > 6 {
		share = 2 / float64(len(names))
	}
	for _, name := range names {
		if g.chance(share) || slices.Contains(required, name) && !g.chance(g.Faults) {
			p := s.Properties[name]
			tree[name] = g.value(&p, depth+1)
		}
	}
	if s.AdditionalProperties != nil {
		for i := range g.Rand.IntN(3) {
			tree[fmt.Sprintf("key%d", i)] = g.value(s.AdditionalProperties.Structural, depth+1)
		}
	}
	if depth > 0 && g.chance(g.Faults) {
		tree["unknown"] = g.anything(depth)
	}
	return tree
}

func (g *Generator) embedded(s *structuralschema.Structural, depth int) map[string]any {
	tree := g.members(s, depth)
	if !g.chance(g.Faults) {
		tree["apiVersion"], tree["kind"] = "v1", "ConfigMap"
	}
	if g.chance(0.5) {
		tree["metadata"] = map[string]any{"name": g.word(), "creationTimestamp": nil}
	}
	return tree
}

func (g *Generator) integer(s *structuralschema.Structural) any {
	if v := s.ValueValidation; v != nil && !g.chance(0.2) {
		low, high := int64(0), int64(20)
		if v.Minimum != nil {
			low = int64(*v.Minimum)
			high = low + 20
		}
		if v.Maximum != nil {
			high = int64(*v.Maximum)
		}
		if high > low && high-low > 0 {
			return low + g.Rand.Int64N(high-low)
		}
	}
	return [...]any{int64(0), int64(1), int64(-1), int64(9080), int64(1) << 40, 1.0, 1.5}[g.Rand.IntN(7)]
}

func (g *Generator) text(s *structuralschema.Structural) string {
	if v := s.ValueValidation; v != nil {
		switch v.Format {
		case "date-time":
			return "2026-01-02T03:04:05Z"
		case "byte":
			return "aGVsbG8="
		}
	}
	return g.word()
}

var words = []string{
	"", "a", "b", "reviews", "reviews.shop.svc.cluster.local", "*", "*.example.com", "10s", "1h", "5ms", "80%", "50", "1.2.3.4", "10.0.0.0/8",
	"https://example.com/x", "/api", "GET", "X-Header", "ä", "with \"quotes\" & <tags>", "v1", "MUTUAL", "shop/public", "TLS", "http-80",
}

func (g *Generator) word() string { return words[g.Rand.IntN(len(words))] }

func (g *Generator) anything(depth int) any {
	n := g.Rand.IntN(9)
	if depth > 6 {
		n = g.Rand.IntN(6)
	}
	switch n {
	case 0:
		return nil
	case 1:
		return g.chance(0.5)
	case 2:
		return int64(g.Rand.IntN(100) - 50)
	case 3:
		return g.Rand.Float64()
	case 4, 5:
		return g.word()
	case 6:
		return []any{}
	case 7:
		return []any{g.anything(depth + 1), g.anything(depth + 1)}
	}
	return map[string]any{g.word(): g.anything(depth + 1), "unknown": g.anything(depth + 1)}
}
