package apiserver

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/types"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

func TestASidecarScopeIsCheckedAndTold(t *testing.T) {
	o := NewOptions()
	o.DataDir, o.XDSAddress, o.SecurePort = t.TempDir(), "", freePort(t)
	root, stop := start(t, o)
	defer stop()
	patch := func(scope string) error {
		return in(t, root, "").RESTClient().Patch(types.MergePatchType).AbsPath("/apis/vmesh.io/v1alpha1/virtualclusters/default").
			Body(fmt.Appendf(nil, `{"spec":{"namespaces":["shop"],"sidecarScope":%s}}`, scope)).Do(t.Context()).Error()
	}
	for scope, says := range map[string]string{
		`{"reach":"All"}`:                                     `spec.sidecarScope.reach: Unsupported value: "All"`,
		`{"hosts":["bank"]}`:                                  "spec.sidecarScope.hosts[0]: Invalid value: \"bank\": must be NAMESPACE/HOST: bank/*",
		`{"hosts":["bank/*","~/*"]}`:                          `spec.sidecarScope.hosts[1]: Invalid value: "~/*": must be NAMESPACE/HOST`,
		`{"hosts":["bank/"]}`:                                 "must be NAMESPACE/HOST",
		`{"hosts":["bank-*/*"]}`:                              "must be NAMESPACE/HOST",
		`{"hosts":["bank/api.*.com"]}`:                        "must be NAMESPACE/HOST",
		`{"hosts":["bank/*","bank/*"]}`:                       "spec.sidecarScope.hosts[1]: Duplicate value",
		`{"hosts":["bank/*/x"]}`:                              "must be NAMESPACE/HOST",
		`{"hosts":["bank/x\nbank/y"]}`:                        "must be NAMESPACE/HOST",
		`{"hosts":["bank/` + strings.Repeat("a", 400) + `"]}`: "Too long",
	} {
		if err := patch(scope); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want it refused with %s", scope, err, says)
		}
	}
	for _, step := range []struct{ scope, told string }{
		{`{}`, `1 [istio-system/* shop/*]`},
		{`{"reach":"Namespace","hosts":["*/*.example.com","bank/pay.bank.svc.cluster.local"]}`, `1 [*/*.example.com ./* bank/pay.bank.svc.cluster.local istio-system/*]`},
		{`null`, ``},
	} {
		if err := patch(step.scope); err != nil {
			t.Fatal(err)
		}
		eventually(t, "with "+step.scope+" it tells "+step.told, func() bool {
			data, err := in(t, root, "").RESTClient().Get().AbsPath("/apis/vmesh.io/v1alpha1/virtualclusters/default").DoRaw(t.Context())
			if err != nil {
				return false
			}
			var vc v1alpha1.VirtualCluster
			if err := json.Unmarshal(data, &vc); err != nil {
				t.Fatal(err)
			}
			told := ""
			if s := vc.Status.SidecarScope; s != nil {
				told = fmt.Sprintf("%d %v", s.Namespaces, s.Hosts)
			}
			return told == step.told
		})
	}
}
