package apiserver

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/component-base/metrics"
	"k8s.io/component-base/metrics/legacyregistry"
	"k8s.io/klog/v2"
)

// Metrics go to the process's registry, which /metrics shows. A process has one server;
// should it make a second one, as tests do, that one goes uncounted.

func register(all ...metrics.Registerable) {
	for _, m := range all {
		if err := registerOnce(legacyregistry.Register(m)); err != nil {
			klog.Background().Error(err, "Registering a metric failed")
		}
	}
}

// registerer is the registry for plain Prometheus collectors.
type registerer struct{ prometheus.Registerer }

func newRegisterer() prometheus.Registerer { return registerer{legacyregistry.Registerer()} }

// Register implements prometheus.Registerer.
func (r registerer) Register(c prometheus.Collector) error {
	return registerOnce(r.Registerer.Register(c))
}

func registerOnce(err error) error {
	var already prometheus.AlreadyRegisteredError
	if errors.As(err, &already) {
		return nil
	}
	return err
}
