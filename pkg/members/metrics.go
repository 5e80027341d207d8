package members

import (
	"time"

	"k8s.io/component-base/metrics"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

// keeperMetrics are what Prometheus can read of members: a few values for each.
type keeperMetrics struct {
	up, latency, expiry, given *metrics.GaugeVec
	renewals                   *metrics.CounterVec
}

func newMetrics(register func(...metrics.Registerable)) *keeperMetrics {
	gauge := func(name, help string, labels ...string) *metrics.GaugeVec {
		return metrics.NewGaugeVec(&metrics.GaugeOpts{Namespace: "vmesh", Subsystem: "member", Name: name, Help: help, StabilityLevel: metrics.ALPHA}, labels)
	}
	m := &keeperMetrics{
		up:      gauge("up", "Whether the API of a member cluster answers this server, with the access that it has: 1 or 0.", "member"),
		latency: gauge("latency_seconds", "How long the API of a member cluster took to answer, at the last look that succeeded.", "member"),
		expiry:  gauge("credential_expiry_timestamp_seconds", "When the access to a member cluster under a key of its Secret ends, as Unix time.", "member", "key"),
		given:   gauge("access_given", "Whether control planes have access to a member cluster: 1 or 0. Only of the server that sees to it.", "member"),
		renewals: metrics.NewCounterVec(&metrics.CounterOpts{Namespace: "vmesh", Subsystem: "member", Name: "renewals_total",
			Help: "Renewals of tokens for a member cluster, by result: success or failure.", StabilityLevel: metrics.ALPHA}, []string{"member", "result"}),
	}
	if register != nil {
		register(m.up, m.latency, m.expiry, m.given, m.renewals)
	}
	return m
}

var credentialKeys = []string{v1alpha1.MemberKubeconfigKey, v1alpha1.MemberIstiodKubeconfigKey}

// measure sets the metrics of a member.
func (w *worker) measure() {
	m := w.keeper.metrics
	up := 0.0
	if w.down == nil {
		up = 1
		m.latency.WithLabelValues(w.name).Set(w.last.latency.Seconds())
	}
	m.up.WithLabelValues(w.name).Set(up)
	ends := map[string]time.Time{}
	for _, a := range w.accesses() {
		ends[a.key] = a.expires
	}
	for _, key := range credentialKeys {
		if end := ends[key]; !end.IsZero() {
			m.expiry.WithLabelValues(w.name, key).Set(float64(end.Unix()))
		} else {
			m.expiry.DeleteLabelValues(w.name, key)
		}
	}
}

func (m *keeperMetrics) renewed(member, result string) {
	m.renewals.WithLabelValues(member, result).Inc()
}

// access sets whether control planes have access; nil for another server's part.
func (m *keeperMetrics) access(member string, given *bool) {
	if given == nil {
		m.given.DeleteLabelValues(member)
		return
	}
	value := 0.0
	if *given {
		value = 1
	}
	m.given.WithLabelValues(member).Set(value)
}

func (m *keeperMetrics) forget(member string) {
	m.up.DeleteLabelValues(member)
	m.latency.DeleteLabelValues(member)
	m.access(member, nil)
	for _, key := range credentialKeys {
		m.expiry.DeleteLabelValues(member, key)
	}
	if m.renewals.IsCreated() { // it does not ask itself, as the gauges do
		for _, result := range []string{"success", "failure"} {
			m.renewals.DeleteLabelValues(member, result)
		}
	}
}
