package kind

import (
	"math"
	"regexp"
	"unicode/utf8"

	structuralschema "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/kube-openapi/pkg/validation/spec"
	"k8s.io/kube-openapi/pkg/validation/strfmt"
)

// node is a compiled schema node. It answers two questions, fast and on the safe
// side: is a value left alone by pruning and defaulting, and is it valid. On any
// answer but a clear yes, upstream's code does the work and words the errors.
type node struct {
	name string // in its parent, so that decoded trees share one copy of it

	// Shape: what pruning and defaulting look at.
	props      map[string]*node
	additional *additional
	items      *node
	preserve   bool // x-kubernetes-preserve-unknown-fields
	embedded   bool // x-kubernetes-embedded-resource
	nullable   bool
	hasDefault bool
	defaulted  []string // the properties that have defaults

	// Validity.
	types    jsonType // those accepted without a question; 0 accepts all
	doubtful jsonType // those that upstream must judge
	bounds   *bounds  // nil when only the type matters
	listType string
	listKeys []string
}

// additional is the schema of members that are not listed, nil for any.
type additional struct{ schema *node }

type jsonType uint8

const (
	nullType jsonType = 1 << iota
	boolType
	intType
	floatType
	stringType
	arrayType
	objectType
	allTypes = nullType | boolType | intType | floatType | stringType | arrayType | objectType
)

// bounds are the value validations of a node.
type bounds struct {
	enum                   map[string]bool // nil for none
	minLength, maxLength   int64           // maxLength < 0 for none
	pattern                *regexp.Regexp
	format                 string
	minimum, maximum       *float64
	aboveMin, belowMax     bool // the bound itself is excluded
	int32                  bool
	minItems, maxItems     int64
	minMembers, maxMembers int64
	required               []string
	closed                 bool // additionalProperties: false
	allOf, anyOf, oneOf    []*node
	not                    *node
}

// verdict is the answer of a check. Unknown leaves it to upstream.
type verdict uint8

const (
	valid verdict = iota
	invalid
	unknown
)

// newNode compiles a node. The structural schema, nil inside allOf and the like,
// says what is pruned and defaulted, the other what upstream would validate by.
func newNode(s *structuralschema.Structural, v *spec.Schema) *node {
	n := &node{}
	if s != nil {
		n.preserve, n.embedded, n.nullable = s.XPreserveUnknownFields, s.XEmbeddedResource, s.Nullable
		n.hasDefault = s.Default.Object != nil
		if s.XListType != nil {
			n.listType, n.listKeys = *s.XListType, s.XListMapKeys
		}
		if s.AdditionalProperties != nil {
			n.additional = &additional{}
		}
	}
	n.setTypes(v)
	n.setBounds(v)
	if v.Items != nil && v.Items.Schema != nil {
		var items *structuralschema.Structural
		if s != nil {
			items = s.Items
		}
		n.items = newNode(items, v.Items.Schema)
	}
	if v.AdditionalProperties != nil && v.AdditionalProperties.Schema != nil {
		var rest *structuralschema.Structural
		if s != nil && s.AdditionalProperties != nil {
			rest = s.AdditionalProperties.Structural
		}
		n.additional = &additional{schema: newNode(rest, v.AdditionalProperties.Schema)}
	}
	if len(v.Properties) > 0 {
		n.props = make(map[string]*node, len(v.Properties))
	}
	for name := range v.Properties {
		p := v.Properties[name]
		var prop *structuralschema.Structural
		if s != nil {
			if sp, ok := s.Properties[name]; ok {
				prop = &sp
			}
		}
		child := newNode(prop, &p)
		child.name = name
		n.props[name] = child
		if child.hasDefault {
			n.defaulted = append(n.defaulted, name)
		}
	}
	return n
}

func (n *node) setTypes(v *spec.Schema) {
	for _, t := range v.Type {
		switch t {
		case "boolean":
			n.types |= boolType
		case "integer":
			n.types |= intType
			n.doubtful |= floatType // 1.0 passes for an integer
		case "number":
			n.types |= intType | floatType
		case "string":
			n.types |= stringType
		case "array":
			n.types |= arrayType
		case "object":
			n.types |= objectType
		default:
			n.doubtful = allTypes
		}
	}
	if len(v.Type) > 0 && v.Nullable {
		n.types |= nullType
	}
	if v.Format != "" {
		if len(v.Type) != 1 {
			n.doubtful = allTypes
		}
		n.doubtful |= arrayType // upstream takes a list for any string that has a format
	}
	n.doubtful &^= n.types
	if n.types == 0 {
		n.types = allTypes &^ n.doubtful
	}
}

func (n *node) setBounds(v *spec.Schema) {
	b := &bounds{maxLength: -1, maxItems: -1, maxMembers: -1}
	used := false
	set := func(dst *int64, src *int64) {
		if src != nil {
			*dst, used = *src, true
		}
	}
	doubt := func(t jsonType) {
		n.doubtful |= t
		n.types &^= t
	}
	set(&b.minLength, v.MinLength)
	set(&b.maxLength, v.MaxLength)
	set(&b.minItems, v.MinItems)
	set(&b.maxItems, v.MaxItems)
	set(&b.minMembers, v.MinProperties)
	set(&b.maxMembers, v.MaxProperties)
	if v.Pattern != "" {
		re, err := regexp.Compile(v.Pattern)
		if err != nil {
			doubt(stringType)
		}
		b.pattern, used = re, true
	}
	if v.Format != "" && strfmt.Default.ContainsName(v.Format) {
		b.format, used = v.Format, true
	}
	if v.Format == "int32" {
		b.int32, used = true, true
	}
	if v.Format == "float" {
		doubt(floatType | intType)
	}
	if v.Minimum != nil || v.Maximum != nil {
		b.minimum, b.maximum, b.aboveMin, b.belowMax = v.Minimum, v.Maximum, v.ExclusiveMinimum, v.ExclusiveMaximum
		used = true
		for _, limit := range []*float64{v.Minimum, v.Maximum} {
			// Upstream checks the bound itself against the type.
			integer := len(v.Type) == 1 && v.Type[0] == "integer"
			if limit != nil && (math.Abs(*limit) >= 1<<53 || integer && !fitsInteger(*limit, v.Format == "int32")) {
				doubt(intType | floatType)
			}
		}
	}
	if v.MultipleOf != nil {
		doubt(intType | floatType)
	}
	if v.UniqueItems {
		doubt(arrayType)
	}
	if len(v.Enum) > 0 {
		used = true
		b.enum = make(map[string]bool, len(v.Enum))
		for _, e := range v.Enum {
			if value, ok := e.(string); ok {
				b.enum[value] = true
			} else {
				doubt(allTypes &^ nullType)
			}
		}
		doubt(allTypes &^ (stringType | nullType))
		n.types &^= nullType // null is never one of an enumeration
	}
	if len(v.Required) > 0 {
		b.required, used = v.Required, true
	}
	if v.AdditionalProperties != nil && !v.AdditionalProperties.Allows {
		b.closed, used = true, true
	}
	if len(v.PatternProperties) > 0 || len(v.Dependencies) > 0 || v.AdditionalItems != nil || v.Items != nil && len(v.Items.Schemas) > 0 {
		doubt(allTypes)
	}
	nested := func(schemas []spec.Schema) []*node {
		var nodes []*node
		for i := range schemas {
			nodes, used = append(nodes, newNode(nil, &schemas[i])), true
		}
		return nodes
	}
	b.allOf, b.anyOf, b.oneOf = nested(v.AllOf), nested(v.AnyOf), nested(v.OneOf)
	if v.Not != nil {
		b.not, used = newNode(nil, v.Not), true
	}
	if used {
		n.bounds = b
	}
}

func fitsInteger(f float64, narrow bool) bool {
	if f != math.Trunc(f) {
		return false
	}
	if narrow {
		return f >= math.MinInt32 && f <= math.MaxInt32
	}
	return true
}

// settled tells whether decoding leaves a value as it is: nothing unknown to
// prune, no null to drop, no default to fill in, no embedded object to coerce.
func (n *node) settled(v any, preserve bool) bool {
	switch v := v.(type) {
	case map[string]any:
		if n == nil {
			return preserve || len(v) == 0
		}
		if n.embedded {
			return false
		}
		preserve = preserve || n.preserve
		for key, member := range v {
			child, known := n.props[key]
			if !known {
				if n.additional == nil {
					if !preserve {
						return false
					}
					continue
				}
				child = n.additional.schema
			}
			if member == nil {
				if child != nil && !child.nullable {
					return false
				}
			} else if !child.settled(member, false) {
				return false
			}
		}
		for _, key := range n.defaulted {
			if _, ok := v[key]; !ok {
				return false
			}
		}
	case []any:
		if n == nil {
			for _, item := range v {
				if !n.settled(item, preserve) {
					return false
				}
			}
			return true
		}
		preserve = preserve || n.preserve
		for _, item := range v {
			if item == nil && n.items != nil && n.items.hasDefault {
				return false
			}
			if !n.items.settled(item, preserve) {
				return false
			}
		}
	}
	return true
}

// check tells whether a value is valid, list types included.
func (n *node) check(v any) verdict {
	t := typeOf(v)
	if n.doubtful&t != 0 || t == 0 {
		return unknown
	}
	if n.types&t == 0 {
		return invalid
	}
	if t == nullType {
		return valid
	}
	worst := valid
	switch v := v.(type) {
	case map[string]any:
		worst = n.checkObject(v)
	case []any:
		worst = n.checkArray(v)
	}
	if worst == invalid || n.bounds == nil {
		return worst
	}
	return max(worst, n.bounds.check(v))
}

func (n *node) checkObject(v map[string]any) verdict {
	if n.embedded {
		return unknown
	}
	worst := valid
	for key, member := range v {
		child, known := n.props[key]
		if !known {
			if n.bounds != nil && n.bounds.closed {
				return invalid
			}
			if n.additional == nil || n.additional.schema == nil {
				continue
			}
			child = n.additional.schema
		}
		switch child.check(member) {
		case invalid:
			return invalid
		case unknown:
			worst = unknown
		}
	}
	return worst
}

func (n *node) checkArray(v []any) verdict {
	worst := valid
	if n.items != nil {
		for _, item := range v {
			switch n.items.check(item) {
			case invalid:
				return invalid
			case unknown:
				worst = unknown
			}
		}
	}
	if len(v) == 0 {
		return worst
	}
	switch n.listType {
	case "set":
		return max(worst, distinct(len(v), func(i int) (string, bool) {
			s, ok := v[i].(string)
			return s, ok
		}))
	case "map":
		if len(n.listKeys) != 1 {
			return unknown
		}
		return max(worst, distinct(len(v), func(i int) (string, bool) {
			item, ok := v[i].(map[string]any)
			if !ok {
				return "", false
			}
			s, ok := item[n.listKeys[0]].(string)
			return s, ok
		}))
	}
	return worst
}

// distinct is valid when all keys are strings and differ; anything else is
// upstream's to judge.
func distinct(count int, key func(int) (string, bool)) verdict {
	seen := make(map[string]bool, count)
	for i := range count {
		k, ok := key(i)
		if !ok || seen[k] {
			return unknown
		}
		seen[k] = true
	}
	return valid
}

func (b *bounds) check(v any) verdict {
	switch v := v.(type) {
	case string:
		if verdict := b.checkString(v); verdict != valid {
			return verdict
		}
	case int64:
		if !b.holdsInt(v) {
			return invalid
		}
	case float64:
		if !b.holdsFloat(v) {
			return invalid
		}
	case []any:
		if size := int64(len(v)); size < b.minItems || b.maxItems >= 0 && size > b.maxItems {
			return invalid
		}
	case map[string]any:
		if size := int64(len(v)); size < b.minMembers || b.maxMembers >= 0 && size > b.maxMembers {
			return invalid
		}
		for _, name := range b.required {
			if _, ok := v[name]; !ok {
				return invalid
			}
		}
	}
	return b.checkNested(v)
}

func (b *bounds) checkString(v string) verdict {
	if b.enum != nil && !b.enum[v] {
		return invalid
	}
	if size := int64(len(v)); size < b.minLength || b.maxLength >= 0 && size > b.maxLength {
		runes := int64(utf8.RuneCountInString(v))
		if runes < b.minLength || b.maxLength >= 0 && runes > b.maxLength {
			return invalid
		}
	} else if b.minLength > 0 && size < 4*b.minLength && int64(utf8.RuneCountInString(v)) < b.minLength {
		return invalid
	}
	if b.pattern != nil && !b.pattern.MatchString(v) {
		return invalid
	}
	if b.format != "" && !strfmt.Default.Validates(b.format, v) {
		return invalid
	}
	return valid
}

func (b *bounds) holdsInt(v int64) bool {
	if b.int32 && (v < math.MinInt32 || v > math.MaxInt32) {
		return false
	}
	if b.minimum != nil {
		if limit := int64(*b.minimum); v < limit || b.aboveMin && v == limit {
			return false
		}
	}
	if b.maximum != nil {
		if limit := int64(*b.maximum); v > limit || b.belowMax && v == limit {
			return false
		}
	}
	return true
}

func (b *bounds) holdsFloat(v float64) bool {
	if b.minimum != nil && (v < *b.minimum || b.aboveMin && v == *b.minimum) {
		return false
	}
	return b.maximum == nil || v < *b.maximum || !b.belowMax && v == *b.maximum
}

func (b *bounds) checkNested(v any) verdict {
	worst := valid
	for _, n := range b.allOf {
		worst = max(worst, n.check(v))
	}
	if len(b.anyOf) > 0 {
		best := invalid
		for _, n := range b.anyOf {
			if got := n.check(v); got == valid {
				best = valid
				break
			} else if got == unknown {
				best = unknown
			}
		}
		worst = max(worst, best)
	}
	if len(b.oneOf) > 0 {
		matches := 0
		for _, n := range b.oneOf {
			switch n.check(v) {
			case valid:
				matches++
			case unknown:
				return unknown
			}
		}
		if matches != 1 {
			worst = max(worst, invalid)
		}
	}
	if b.not != nil {
		switch b.not.check(v) {
		case valid:
			worst = max(worst, invalid)
		case unknown:
			return unknown
		}
	}
	return worst
}

func typeOf(v any) jsonType {
	switch v.(type) {
	case nil:
		return nullType
	case bool:
		return boolType
	case int64:
		return intType
	case float64:
		return floatType
	case string:
		return stringType
	case []any:
		return arrayType
	case map[string]any:
		return objectType
	}
	return 0
}
