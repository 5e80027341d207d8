package distribution

import (
	"time"

	"k8s.io/component-base/metrics"
)

// Metrics are what Prometheus can read of a Tracker. A nil *Metrics counts nothing.
type Metrics struct {
	waiting *metrics.Gauge
	writes  *metrics.CounterVec
	errors  *metrics.Counter
	delay   *metrics.Histogram
}

// NewMetrics makes the metrics and registers them, as legacyregistry.MustRegister does.
func NewMetrics(register func(...metrics.Registerable)) *Metrics {
	m := &Metrics{
		waiting: metrics.NewGauge(&metrics.GaugeOpts{
			Namespace: "vmesh", Subsystem: "distribution", Name: "pending", StabilityLevel: metrics.ALPHA,
			Help: "Objects whose present state has not reached all control planes that are to have it.",
		}),
		writes: metrics.NewCounterVec(&metrics.CounterOpts{
			Namespace: "vmesh", Subsystem: "distribution", Name: "writes_total", StabilityLevel: metrics.ALPHA,
			Help: "Conditions written, by their reason.",
		}, []string{"reason"}),
		errors: metrics.NewCounter(&metrics.CounterOpts{
			Namespace: "vmesh", Subsystem: "distribution", Name: "write_errors_total", StabilityLevel: metrics.ALPHA,
			Help: "Conditions that could not be written; they are tried again.",
		}),
		delay: metrics.NewHistogram(&metrics.HistogramOpts{
			Namespace: "vmesh", Subsystem: "distribution", Name: "seconds", StabilityLevel: metrics.ALPHA,
			Help:    "Time from a change in storage to the condition that says that all control planes have it.",
			Buckets: metrics.ExponentialBuckets(0.001, 2, 18),
		}),
	}
	register(m.waiting, m.writes, m.errors, m.delay)
	return m
}

func (m *Metrics) pending(n int64) {
	if m != nil {
		m.waiting.Set(float64(n))
	}
}

func (m *Metrics) wrote(reason string) {
	if m != nil {
		m.writes.WithLabelValues(reason).Inc()
	}
}

func (m *Metrics) failed() {
	if m != nil {
		m.errors.Inc()
	}
}

func (m *Metrics) distributed(after time.Duration) {
	if m != nil {
		m.delay.Observe(after.Seconds())
	}
}
