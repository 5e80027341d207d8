package xds

import (
	"time"

	"k8s.io/component-base/metrics"
)

// Metrics are what Prometheus can read of the server. A nil *Metrics counts nothing.
type Metrics struct {
	streams                    *metrics.GaugeVec
	pushes, bytes, acks, nacks *metrics.CounterVec
	slowReceivers              *metrics.CounterVec
	proxyReports               *metrics.CounterVec
	lag                        *metrics.HistogramVec
}

// NewMetrics makes the metrics and registers them, as legacyregistry.MustRegister
// does.
func NewMetrics(register func(...metrics.Registerable)) *Metrics {
	counter := func(name, help string, labels ...string) *metrics.CounterVec {
		return metrics.NewCounterVec(&metrics.CounterOpts{
			Namespace: "vmesh", Subsystem: "xds", Name: name, Help: help, StabilityLevel: metrics.ALPHA,
		}, labels)
	}
	m := &Metrics{
		streams: metrics.NewGaugeVec(&metrics.GaugeOpts{
			Namespace: "vmesh", Subsystem: "xds", Name: "streams", StabilityLevel: metrics.ALPHA,
			Help: "Open xDS streams.",
		}, []string{"mesh", "protocol"}),
		pushes:        counter("pushes_total", "Responses sent, by kind.", "protocol", "kind"),
		bytes:         counter("push_bytes_total", "Size of the responses sent, by kind.", "protocol", "kind"),
		acks:          counter("acks_total", "Responses that were acknowledged, by kind.", "protocol", "kind"),
		nacks:         counter("nacks_total", "Responses that were refused, by kind.", "protocol", "kind"),
		slowReceivers: counter("slow_receivers_total", "Streams ended because the receiver did not take a response in time.", "mesh"),
		proxyReports:  counter("proxy_reports_total", "Reports of relays about proxies: taken, or refused because they are not as they should be.", "result"),
		lag: metrics.NewHistogramVec(&metrics.HistogramOpts{
			Namespace: "vmesh", Subsystem: "xds", Name: "change_lag_seconds", StabilityLevel: metrics.ALPHA,
			Help:    "Time from a change in storage to its acknowledgement by a control plane.",
			Buckets: metrics.ExponentialBuckets(0.001, 2, 15),
		}, []string{"protocol", "kind"}),
	}
	register(m.streams, m.pushes, m.bytes, m.acks, m.nacks, m.slowReceivers, m.proxyReports, m.lag)
	return m
}

func (m *Metrics) streamBegan(mesh, protocol string) {
	if m != nil {
		m.streams.WithLabelValues(mesh, protocol).Inc()
	}
}

func (m *Metrics) streamEnded(mesh, protocol string) {
	if m != nil {
		m.streams.WithLabelValues(mesh, protocol).Dec()
	}
}

func (m *Metrics) pushed(protocol, kind string, bytes int) {
	if m != nil {
		m.pushes.WithLabelValues(protocol, kind).Inc()
		m.bytes.WithLabelValues(protocol, kind).Add(float64(bytes))
	}
}

// answered counts an answer; lag is negative when the response told of no change.
func (m *Metrics) answered(protocol, kind string, refused bool, lag time.Duration) {
	switch {
	case m == nil:
	case refused:
		m.nacks.WithLabelValues(protocol, kind).Inc()
	default:
		m.acks.WithLabelValues(protocol, kind).Inc()
		if lag >= 0 {
			m.lag.WithLabelValues(protocol, kind).Observe(lag.Seconds())
		}
	}
}

func (m *Metrics) slowReceiver(mesh string) {
	if m != nil {
		m.slowReceivers.WithLabelValues(mesh).Inc()
	}
}

func (m *Metrics) proxiesReported(taken bool) {
	if m != nil {
		m.proxyReports.WithLabelValues(map[bool]string{true: "taken", false: "refused"}[taken]).Inc()
	}
}
