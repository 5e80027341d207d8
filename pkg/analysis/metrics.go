package analysis

import (
	"time"

	"k8s.io/component-base/metrics"
)

// Why a write was answered without analysis.
const (
	skippedBusy   = "busy"   // the share of the processors that analysis may take is used up
	skippedSlow   = "slow"   // it took, or is known to take, longer than a write may wait
	skippedFailed = "failed" // the virtual cluster could not be read
)

type instruments struct {
	runs    *metrics.CounterVec
	seconds *metrics.HistogramVec
	skipped *metrics.CounterVec
	panics  *metrics.CounterVec
}

func newInstruments(register func(...metrics.Registerable)) *instruments {
	counter := func(name, help string, labels ...string) *metrics.CounterVec {
		return metrics.NewCounterVec(&metrics.CounterOpts{
			Namespace: "vmesh", Subsystem: "analysis", Name: name, Help: help, StabilityLevel: metrics.ALPHA,
		}, labels)
	}
	i := &instruments{
		runs: counter("runs_total", "Analyses that were completed, at write time or on demand.", "when"),
		seconds: metrics.NewHistogramVec(&metrics.HistogramOpts{
			Namespace: "vmesh", Subsystem: "analysis", Name: "seconds", StabilityLevel: metrics.ALPHA,
			Help:    "How long analyses took, those that were given up included.",
			Buckets: metrics.ExponentialBuckets(0.0005, 2, 16),
		}, []string{"when"}),
		skipped: counter("skipped_total", "Writes that were answered without analysis, by reason.", "reason"),
		panics:  counter("panics_total", "Analyzers that broke off.", "analyzer"),
	}
	register(i.runs, i.seconds, i.skipped, i.panics)
	return i
}

const (
	atWrite  = "write"
	onDemand = "demand"
)

func (i *instruments) ran(when string, began time.Time, completed bool) {
	i.seconds.WithLabelValues(when).Observe(time.Since(began).Seconds())
	if completed {
		i.runs.WithLabelValues(when).Inc()
	}
}

func (i *instruments) skip(reason string) { i.skipped.WithLabelValues(reason).Inc() }
