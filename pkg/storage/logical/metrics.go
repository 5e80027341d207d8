package logical

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	quarantined *prometheus.GaugeVec
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		quarantined: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "vmesh_storage_quarantined_objects",
			Help: "Stored objects that cannot be read, in all virtual clusters.",
		}, []string{"resource"}),
	}
	if r == nil {
		return m, nil
	}
	if err := r.Register(m.quarantined); err != nil {
		return nil, fmt.Errorf("registering the metrics of storage: %w", err)
	}
	return m, nil
}
