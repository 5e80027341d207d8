package relay

import (
	"time"

	"k8s.io/component-base/metrics"
)

// Metrics are what Prometheus can read of a relay. A nil *Metrics counts nothing.
type Metrics struct {
	connected, shards, shardsConnected *metrics.Gauge
	resources, info                    *metrics.GaugeVec
	connects, responses                *metrics.CounterVec
	cacheErrors                        *metrics.Counter
	staleness                          *metrics.Gauge
	versions                           map[string]string
}

// NewMetrics makes the metrics and registers them, as legacyregistry.MustRegister does.
func NewMetrics(register func(...metrics.Registerable)) *Metrics {
	gauge := func(name, help string) *metrics.GaugeOpts {
		return &metrics.GaugeOpts{Namespace: "vmesh", Subsystem: "relay", Name: name, Help: help, StabilityLevel: metrics.ALPHA}
	}
	counter := func(name, help string) *metrics.CounterOpts {
		return &metrics.CounterOpts{Namespace: "vmesh", Subsystem: "relay", Name: name, Help: help, StabilityLevel: metrics.ALPHA}
	}
	m := &Metrics{
		connected:       metrics.NewGauge(gauge("connected", "Whether a vmesh is connected and has told all: 1 or 0.")),
		shards:          metrics.NewGauge(gauge("shards", "Over how many sources istiod is served.")),
		shardsConnected: metrics.NewGauge(gauge("shards_connected", "Of how many of the sources istiod has a stream.")),
		resources:       metrics.NewGaugeVec(gauge("resources", "Resources that are served, by kind."), []string{"kind"}),
		info:            metrics.NewGaugeVec(gauge("version_info", "The version of what is served, by kind: always 1."), []string{"kind", "version"}),
		connects:        metrics.NewCounterVec(counter("upstream_connects_total", "Streams that were begun, by address and by how they ended: answered or failed."), []string{"address", "result"}),
		responses:       metrics.NewCounterVec(counter("upstream_responses_total", "Responses of vmesh, by kind and by what became of them: applied or refused."), []string{"kind", "result"}),
		staleness:       metrics.NewGauge(gauge("staleness_seconds", "How long ago what is served was last known to be all that vmesh has: 0 while it is.")),
		cacheErrors:     metrics.NewCounter(counter("cache_errors_total", "Failures to write the cache.")),
		versions:        map[string]string{},
	}
	register(m.connected, m.shards, m.shardsConnected, m.resources, m.info, m.connects, m.responses, m.cacheErrors, m.staleness)
	return m
}

func (m *Metrics) cacheFailed() {
	if m != nil {
		m.cacheErrors.Inc()
	}
}

func (m *Metrics) began(address, result string) {
	if m != nil {
		m.connects.WithLabelValues(address, result).Inc()
	}
}

func (m *Metrics) responded(kind, result string) {
	if m != nil {
		m.responses.WithLabelValues(kind, result).Inc()
	}
}

func (m *Metrics) isConnected(is bool) {
	if m == nil {
		return
	}
	if is {
		m.connected.Set(1)
	} else {
		m.connected.Set(0)
	}
}

func (m *Metrics) sharded(shards, connected int) {
	if m != nil {
		m.shards.Set(float64(shards))
		m.shardsConnected.Set(float64(connected))
	}
}

// serves is called by one goroutine at a time.
func (m *Metrics) serves(kind string, resources int, version string) {
	if m == nil {
		return
	}
	m.resources.WithLabelValues(kind).Set(float64(resources))
	if old, had := m.versions[kind]; had && old != version {
		m.info.DeleteLabelValues(kind, old)
	}
	m.versions[kind] = version
	m.info.WithLabelValues(kind, version).Set(1)
}

func (m *Metrics) stale(since time.Duration) {
	if m != nil {
		m.staleness.Set(since.Seconds())
	}
}
