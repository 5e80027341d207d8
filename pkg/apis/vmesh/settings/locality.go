package settings

import (
	"cmp"
	"strconv"
	"time"

	"k8s.io/utils/ptr"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

// FailoverHost is the host of the DestinationRule with the outlier detection of a mesh's
// locality policy: all services of Kubernetes, and none of what ServiceEntries bring in.
const FailoverHost = "*.svc.cluster.local"

// localityLB is a mesh's LocalityLoadBalancerSetting.
func localityLB(l *v1alpha1.MeshLocality) map[string]any {
	out := map[string]any{"enabled": ptr.Deref(l.LocalFirst, true)}
	if len(l.Failover) > 0 {
		var list []any
		for _, f := range l.Failover {
			list = append(list, map[string]any{"from": f.From, "to": f.To})
		}
		out["failover"] = list
	}
	if len(l.FailoverPriority) > 0 {
		var list []any
		for _, label := range l.FailoverPriority {
			list = append(list, label)
		}
		out["failoverPriority"] = list
	}
	if len(l.Distribute) > 0 {
		var list []any
		for _, d := range l.Distribute {
			to := map[string]any{}
			for locality, share := range d.To {
				to[locality] = int64(share)
			}
			list = append(list, map[string]any{"from": d.From, "to": to})
		}
		out["distribute"] = list
	}
	return out
}

// Failover is the spec of the DestinationRule that a mesh's locality policy needs, nil for
// none: Istio moves calls away from endpoints that fail only where there is outlier detection.
func Failover(l *v1alpha1.MeshLocality) map[string]any {
	if l == nil || !ptr.Deref(l.LocalFirst, true) && l.OutlierDetection == nil {
		return nil
	}
	o := l.OutlierDetection
	if o == nil {
		o = &v1alpha1.MeshOutlierDetection{}
	}
	interval, base := 10*time.Second, 30*time.Second
	if o.Interval != nil {
		interval = o.Interval.Duration
	}
	if o.BaseEjectionTime != nil {
		base = o.BaseEjectionTime.Duration
	}
	errors := int64(cmp.Or(ptr.Deref(o.ConsecutiveErrors, 0), 5))
	return map[string]any{
		"host":     FailoverHost,
		"exportTo": []any{"*"}, // whatever the mesh's default is
		"trafficPolicy": map[string]any{"outlierDetection": map[string]any{
			"consecutive5xxErrors": errors,
			"interval":             seconds(interval),
			"baseEjectionTime":     seconds(base),
			"maxEjectionPercent":   int64(ptr.Deref(o.MaxEjectionPercent, 100)),
		}},
	}
}

// LocalityName is a locality as Istio writes it, REGION/ZONE/SUBZONE with as much as is known.
func LocalityName(l v1alpha1.Locality) string {
	out := l.Region
	if out != "" && l.Zone != "" {
		out += "/" + l.Zone
		if l.SubZone != "" {
			out += "/" + l.SubZone
		}
	}
	return out
}

// seconds is a duration as protobuf has it in JSON.
func seconds(d time.Duration) string { return strconv.FormatFloat(d.Seconds(), 'f', -1, 64) + "s" }
