package extension

import (
	"sync"

	"k8s.io/component-base/metrics"
)

// boundMetrics takes the names of webhooks and policies off upstream's metrics: whoever
// writes into a virtual cluster chooses them, and each would be kept as long as the
// process lives. What remains is how often and how long, over all of them.
var boundMetrics = sync.OnceFunc(func() {
	none := map[string]string{}
	for _, name := range []string{
		"webhook_admission_duration_seconds", "webhook_rejection_count", "webhook_fail_open_count", "webhook_request_total",
		"match_condition_evaluation_errors_total", "match_condition_exclusions_total", "match_condition_evaluation_seconds",
	} {
		none["apiserver_admission_"+name+",name"] = ""
	}
	for _, kind := range []string{"validating", "mutating"} {
		for _, name := range []string{"check_total", "check_duration_seconds"} {
			for _, label := range []string{"policy", "policy_binding"} {
				none["apiserver_"+kind+"_admission_policy_"+name+","+label] = ""
			}
		}
	}
	metrics.SetLabelAllowList(none)
})
