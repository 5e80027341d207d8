package discovery

import (
	"k8s.io/component-base/metrics"
)

// Metrics are what Prometheus can read of the services of members. A nil *Metrics counts
// nothing.
type Metrics struct {
	services, endpoints, nodes, trouble *metrics.GaugeVec
	events                              *metrics.CounterVec
}

// NewMetrics makes the metrics and registers them, as legacyregistry.MustRegister does.
func NewMetrics(register func(...metrics.Registerable)) *Metrics {
	gauge := func(name, help string, labels ...string) *metrics.GaugeVec {
		return metrics.NewGaugeVec(&metrics.GaugeOpts{Namespace: "vmesh", Subsystem: "member", Name: name, Help: help, StabilityLevel: metrics.ALPHA}, labels)
	}
	m := &Metrics{
		services:  gauge("services", "Services of a member cluster.", "member"),
		endpoints: gauge("endpoints", "Endpoints of a member cluster's services, by state: ready or not_ready.", "member", "state"),
		nodes:     gauge("nodes", "Nodes of a member cluster.", "member"),
		trouble:   gauge("reads_failing", "1 while some of a member cluster's services, endpoints and nodes cannot be read.", "member"),
		events: metrics.NewCounterVec(&metrics.CounterOpts{
			Namespace: "vmesh", Subsystem: "member", Name: "changes_total", Help: "Changes that were read of all member clusters, by resource.", StabilityLevel: metrics.ALPHA,
		}, []string{"resource"}),
	}
	register(m.services, m.endpoints, m.nodes, m.trouble, m.events)
	return m
}

// observe tells what a member has.
func (m *Metrics) observe(of *member) {
	if m == nil {
		return
	}
	m.services.WithLabelValues(of.Name).Set(float64(of.known))
	m.endpoints.WithLabelValues(of.Name, "ready").Set(float64(of.total.ready))
	m.endpoints.WithLabelValues(of.Name, "not_ready").Set(float64(of.total.endpoints - of.total.ready))
	m.nodes.WithLabelValues(of.Name).Set(float64(len(of.nodes)))
	trouble := 0.0
	for _, t := range of.trouble {
		if t != "" {
			trouble = 1
		}
	}
	m.trouble.WithLabelValues(of.Name).Set(trouble)
}

// forget takes a member out of the metrics.
func (m *Metrics) forget(name string) {
	if m == nil {
		return
	}
	for _, of := range []*metrics.GaugeVec{m.services, m.nodes, m.trouble} {
		of.DeleteLabelValues(name)
	}
	m.endpoints.DeleteLabelValues(name, "ready")
	m.endpoints.DeleteLabelValues(name, "not_ready")
}

// event counts a change.
func (m *Metrics) event(kind int) {
	if m != nil {
		m.events.WithLabelValues(kindNames[kind]).Inc()
	}
}
