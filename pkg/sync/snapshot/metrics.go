package snapshot

import (
	"k8s.io/component-base/metrics"
)

// Metrics are what Prometheus can read of the snapshots.
type Metrics struct {
	resources, quarantined, heldBack *metrics.GaugeVec
	marshalled                       *metrics.CounterVec
}

// NewMetrics makes the metrics and registers them, as legacyregistry.MustRegister
// does.
func NewMetrics(register func(...metrics.Registerable)) *Metrics {
	m := &Metrics{
		resources: metrics.NewGaugeVec(&metrics.GaugeOpts{
			Namespace: "vmesh", Subsystem: "snapshot", Name: "resources", StabilityLevel: metrics.ALPHA,
			Help: "Resources in the snapshot of a mesh, by kind.",
		}, []string{"mesh", "kind"}),
		quarantined: metrics.NewGaugeVec(&metrics.GaugeOpts{
			Namespace: "vmesh", Subsystem: "snapshot", Name: "quarantined", StabilityLevel: metrics.ALPHA,
			Help: "Stored objects that cannot be rendered for the control planes of a mesh.",
		}, []string{"mesh"}),
		heldBack: metrics.NewGaugeVec(&metrics.GaugeOpts{
			Namespace: "vmesh", Subsystem: "snapshot", Name: "held_back", StabilityLevel: metrics.ALPHA,
			Help: "Stored objects that do not reach a mesh because they may not, by the reason.",
		}, []string{"mesh", "reason"}),
		marshalled: metrics.NewCounterVec(&metrics.CounterOpts{
			Namespace: "vmesh", Subsystem: "snapshot", Name: "entries_marshalled_total", StabilityLevel: metrics.ALPHA,
			Help: "Snapshot entries that were marshalled, by kind.",
		}, []string{"kind"}),
	}
	register(m.resources, m.quarantined, m.heldBack, m.marshalled)
	return m
}

func (m *Metrics) rendered(kinds []Kind) func(kind, count int) {
	return func(kind, count int) {
		if m != nil && count > 0 {
			m.marshalled.WithLabelValues(kinds[kind].Name).Add(float64(count))
		}
	}
}

func (m *Metrics) published(kinds []Kind, s *Snapshot, before *HeldBack) {
	if m == nil {
		return
	}
	for i, l := range s.Lists {
		m.resources.WithLabelValues(s.Mesh, kinds[i].Name).Set(float64(l.Len()))
	}
	m.quarantined.WithLabelValues(s.Mesh).Set(float64(len(s.Quarantined)))
	// What was held back for reasons that are none any more stays, as 0.
	for reason := range before.Reasons() {
		m.heldBack.WithLabelValues(s.Mesh, reason).Set(0)
	}
	for reason, n := range s.HeldBack.Reasons() {
		m.heldBack.WithLabelValues(s.Mesh, reason).Set(float64(n))
	}
}

func (m *Metrics) vanished(kinds []Kind, mesh string) {
	if m == nil {
		return
	}
	for i := range kinds {
		m.resources.DeleteLabelValues(mesh, kinds[i].Name)
	}
	m.quarantined.DeleteLabelValues(mesh)
	m.heldBack.DeletePartialMatch(map[string]string{"mesh": mesh})
}
