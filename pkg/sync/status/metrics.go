package status

import (
	"time"

	"k8s.io/component-base/metrics"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

// Metrics are what Prometheus can read of the control planes that are connected to this
// server. A nil *Metrics counts nothing.
type Metrics struct {
	controlPlanes, lag, proxies *metrics.GaugeVec
}

// NewMetrics makes the metrics and registers them, as legacyregistry.MustRegister
// does.
func NewMetrics(register func(...metrics.Registerable)) *Metrics {
	gauge := func(name, help string, labels ...string) *metrics.GaugeVec {
		return metrics.NewGaugeVec(&metrics.GaugeOpts{Namespace: "vmesh", Subsystem: "mesh", Name: name, Help: help, StabilityLevel: metrics.ALPHA}, labels)
	}
	m := &Metrics{
		controlPlanes: gauge("control_planes", "Control planes of a mesh that are connected to this server, by state: in_step, behind or refused; and gone, for those that were within the last hour.", "mesh", "state"),
		lag:           gauge("lag_seconds", "How long the control plane that is furthest behind has not acknowledged what it was sent.", "mesh"),
		proxies:       gauge("proxies", "Proxies of a mesh as far as relays report them, by state: synced or behind.", "mesh", "state"),
	}
	register(m.controlPlanes, m.lag, m.proxies)
	return m
}

var controlPlaneStates = []string{"in_step", "behind", "refused", "gone"}

// observe counts the control planes that this server knows.
func (m *Metrics) observe(mesh string, known map[string]v1alpha1.ControlPlaneStatus, now time.Time) {
	if m == nil {
		return
	}
	counts := map[string]int{}
	var lag time.Duration
	var proxies, synced int32
	for _, c := range known {
		switch {
		case !c.Connected:
			counts["gone"]++
			continue
		case c.Refused() != nil:
			counts["refused"]++
		case c.Acknowledged():
			counts["in_step"]++
		default:
			counts["behind"]++
		}
		if c.BehindSince != nil {
			lag = max(lag, now.Sub(c.BehindSince.Time))
		}
		if c.Proxies != nil {
			proxies += c.Proxies.Connected
			synced += c.Proxies.Synced
		}
	}
	for _, state := range controlPlaneStates {
		m.controlPlanes.WithLabelValues(mesh, state).Set(float64(counts[state]))
	}
	m.lag.WithLabelValues(mesh).Set(lag.Seconds())
	m.proxies.WithLabelValues(mesh, "synced").Set(float64(synced))
	m.proxies.WithLabelValues(mesh, "behind").Set(float64(proxies - synced))
}

// forget drops what was counted of a mesh that there no longer is.
func (m *Metrics) forget(mesh string) {
	if m == nil {
		return
	}
	for _, state := range controlPlaneStates {
		m.controlPlanes.DeleteLabelValues(mesh, state)
	}
	m.lag.DeleteLabelValues(mesh)
	m.proxies.DeleteLabelValues(mesh, "synced")
	m.proxies.DeleteLabelValues(mesh, "behind")
}
