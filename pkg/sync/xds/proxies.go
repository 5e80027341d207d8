package xds

import (
	"errors"
	"fmt"
	"math"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

const (
	// proxiesURL is the type URL of a relay's report about the proxies of its control plane.
	// It is no subscription and is not answered; what it says is in the node's metadata.
	proxiesURL      = "vmesh.io/v1alpha1/Proxies"
	proxiesMetadata = "VMESH_PROXIES"

	// maxProxies is more than any control plane has.
	maxProxies = 10_000_000
	// proxiesOlder is by how much the time of a report that says nothing else that is new may
	// lag: each new one is a write of the mesh's status.
	proxiesOlder = 30 * time.Second
	// proxiesKept is how long a report is told of when no other follows.
	proxiesKept = 3 * time.Minute
)

// takeProxies takes in a report about proxies. One that is wrong is dropped: it is no reason
// to end a stream that a mesh is fed by.
func (st *stream) takeProxies(r *request) error {
	if len(st.order) == 0 {
		return status.Errorf(codes.InvalidArgument, "%s: a stream has to ask for something before it reports proxies", proxiesURL)
	}
	report, err := parseProxies(r.node.GetMetadata().GetFields()[proxiesMetadata], time.Now())
	st.server.options.Metrics.proxiesReported(err == nil)
	if err != nil {
		st.log.V(2).Info("A report about proxies was dropped", "node", st.status.ID, "reason", err.Error())
		return nil
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	st.reported = time.Now()
	if st.status.Version != "" {
		// A relay knows lists and no snapshots; this is what it has acknowledged whole.
		report.Version = st.status.Version
	}
	if had := st.status.Proxies; had != nil {
		same := *report
		same.ObservedAt = had.ObservedAt
		if same == *had && report.ObservedAt.Sub(had.ObservedAt.Time) < proxiesOlder {
			return nil
		}
	}
	st.status.Proxies = report
	return nil
}

// parseProxies reads a report. Its time is when it was received, should the relay's clock be
// ahead.
func parseProxies(v *structpb.Value, now time.Time) (*v1alpha1.ProxyStatus, error) {
	if v.GetStructValue() == nil {
		return nil, fmt.Errorf("the node's metadata has no object %s", proxiesMetadata)
	}
	fields := v.GetStructValue().GetFields()
	number := func(name string) (int32, error) {
		n, ok := fields[name].GetKind().(*structpb.Value_NumberValue)
		if !ok || n.NumberValue != math.Trunc(n.NumberValue) || n.NumberValue < 0 || n.NumberValue > maxProxies {
			return 0, fmt.Errorf("%s.%s: must be a whole number from 0 to %d", proxiesMetadata, name, maxProxies)
		}
		return int32(n.NumberValue), nil
	}
	connected, err := number("connected")
	if err != nil {
		return nil, err
	}
	synced, err := number("synced")
	if err != nil {
		return nil, err
	}
	if synced > connected {
		return nil, errors.New(proxiesMetadata + ".synced: is more than connected")
	}
	observed, err := time.Parse(time.RFC3339, fields["observedAt"].GetStringValue())
	if err != nil {
		return nil, errors.New(proxiesMetadata + ".observedAt: must be a time as 2006-01-02T15:04:05Z")
	}
	version := fields["version"].GetStringValue()
	if len(version) > maxText {
		return nil, fmt.Errorf("%s.version: is longer than %d bytes", proxiesMetadata, maxText)
	}
	if observed.After(now) {
		observed = now
	}
	return &v1alpha1.ProxyStatus{
		Connected: connected, Synced: synced, Version: shorten(version), ObservedAt: metav1.NewTime(observed.UTC().Truncate(time.Second)),
	}, nil
}
