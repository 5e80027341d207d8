package snapshot

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/settings"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

const (
	// FailoverName is the name of the DestinationRule with the outlier detection of a mesh's locality
	// policy, in its root namespace. No object can have it.
	FailoverName = "vmesh:locality"

	// failoverKind is its kind, and the fields of its message that say what a rule is about: of
	// istio.networking.v1alpha3.DestinationRule.
	failoverKind         = "DestinationRule"
	ruleHost             = 1
	ruleExportTo         = 4
	ruleWorkloadSelector = 5
)

// failover is the DestinationRule of a mesh. istiod takes a rule of the root namespace for services for which neither the
// caller's namespace nor the service's has one: so those of teams come first, as a whole.
type failover struct {
	kind    int // -1 for none
	spec    []byte
	created time.Time
	root    string // where it is to be
	placed  string // where it is; empty if it is nowhere
	stale   bool   // where it is to be, or what it is, may be another
}

// readLocality takes in the locality policy of a mesh that can be read.
func (m *model) readLocality(mesh *mesh, o *object.Object) error {
	f := &mesh.failover
	if _, lost := o.Annotations[QuarantinedAnnotation]; lost || f.kind < 0 {
		return nil
	}
	var spec v1alpha1.MeshSpec
	if data := o.Field("spec"); data != nil {
		if err := json.Unmarshal(data, &spec); err != nil {
			return nil // the policy says so
		}
	}
	var message []byte
	if rule := settings.Failover(spec.Locality); rule != nil {
		from := &object.Object{}
		if err := from.SetContent(map[string]any{"spec": rule}); err != nil {
			return err
		}
		var err error
		if message, err = m.kinds[f.kind].AppendMessage(nil, from); err != nil {
			return fmt.Errorf("mesh %s: keeping its outlier detection as it was: %w", mesh.name, err)
		}
	}
	if bytes.Equal(f.spec, message) && f.root == mesh.root && f.created.Equal(o.CreationTimestamp.Time) {
		return nil
	}
	f.spec, f.root, f.created, f.stale = message, mesh.root, o.CreationTimestamp.Time, true
	return nil
}

// note takes note of what is about to change in the list of a kind: in the root namespace, what
// stands for the rule may have come or gone.
func (f *failover) note(kind int, todo map[string]pending) {
	if kind != f.kind || f.spec == nil || f.stale {
		return
	}
	for key := range todo {
		if namespace, _, _ := strings.Cut(key, "/"); namespace == f.root {
			f.stale = true
			return
		}
	}
}

// placeFailover brings the list of DestinationRules to what the policy is, once it has all
// objects.
func (m *mesh) placeFailover(kinds []Kind, observed time.Time, count func(kind, rendered int)) {
	f := &m.failover
	if !f.stale {
		return
	}
	f.stale = false
	list := m.lists[f.kind]
	var changes []change
	to := ""
	if f.spec != nil && !governed(list, f.root) {
		to = f.root
	}
	if f.placed != "" && f.placed != to {
		changes = append(changes, change{key: key(f.placed, FailoverName)})
	}
	if to != "" {
		r := render(f.object(), key(to, FailoverName), typePrefix+kinds[f.kind].MessageName, f.spec)
		changes = append(changes, change{key: r.key, entry: &r})
		count(f.kind, 1)
	}
	f.placed = to
	if next := list.apply(changes, observed); next != list {
		m.lists[f.kind], m.changed = next, true
	}
}

// governed says whether the root namespace has a rule of its own for all services, or for
// more than these: the one for fewer hosts would hide what it says.
func governed(list *List, root string) bool {
	for e := range list.below(root) {
		if e.Name() == key(root, FailoverName) {
			continue
		}
		message := field(field(field(e.Resource(), anyValue), resourceBody), anyValue)
		host := string(field(message, ruleHost))
		if !strings.HasPrefix(host, "*") || !strings.HasSuffix(settings.FailoverHost, host[1:]) {
			continue
		}
		// One that is for some callers alone leaves the others without.
		if exported := string(field(message, ruleExportTo)); field(message, ruleWorkloadSelector) == nil && exported != "." && exported != root {
			return true
		}
	}
	return false
}

// object is the DestinationRule, without its spec.
func (f *failover) object() *object.Object {
	o := &object.Object{}
	o.Namespace, o.Name = f.root, FailoverName
	o.CreationTimestamp = metav1.NewTime(f.created)
	o.Labels = map[string]string{v1alpha1.LabelManagedBy: v1alpha1.ManagedBy}
	return o
}
