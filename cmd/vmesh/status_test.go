package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

const statusNow = "2026-01-02T03:04:05Z"

// meshes are what a server holds in TestAMeshIsShownOnOneScreen.
var statusObjects = map[string]string{
	"/apis/vmesh.io/v1alpha1/memberclusters": `{"items":[
		{"metadata":{"name":"east"},"spec":{"mesh":"m","network":"coast"},"status":{"version":"v1.37.2","services":41,"endpoints":230,"readyEndpoints":228,
			"conditions":[{"type":"Ready","status":"True","reason":"Ready","message":"fine"}]}},
		{"metadata":{"name":"north"},"spec":{"mesh":"m","drain":{"reason":"new racks"}},"status":{"services":3,"endpoints":4,"readyEndpoints":4}},
		{"metadata":{"name":"other"},"spec":{"mesh":"n"}},
		{"metadata":{"name":"west"},"spec":{"mesh":"m","network":"island"},"status":{"services":40,"endpoints":128,"readyEndpoints":128,
			"conditions":[{"type":"Ready","status":"False","reason":"Unreachable","message":"connection refused"}]}}]}`,
	"/apis/vmesh.io/v1alpha1/meshes/m": `{"metadata":{"name":"m","uid":"u"},"status":{"version":"0bd75158bd4faebe","virtualClusters":2,"resources":12,"connected":4,"inStep":1,"heldBack":7,"proxies":60,"syncedProxies":59,
		"quarantined":[{"kind":"Gateway"}],"servers":[{"name":"a"},{"name":"b"}],
		"conditions":[{"type":"Ready","status":"True"},{"type":"InStep","status":"False","message":"istiod-1.istio-system has not acknowledged what it was sent at 2026-01-02T03:03:35Z"},
			{"type":"HomeReady","status":"True","message":"no"},{"type":"NetworksConnected","status":"Unknown","message":"no"},{"type":"SettingsCurrent","status":"False","message":"trustDomain changed"}],
		"rollout":{"phase":"Baking","stage":"first","message":"until 03:10","changes":3,"pinned":1,"stages":[{"name":"first","controlPlanes":2,"current":2},{"name":"last","controlPlanes":1,"current":0}],"more":true},
		"controlPlanes":[
		{"id":"sidecar~10.0.0.1~istiod-0.istio-system~istio-system.svc","server":"a","revision":"canary","stage":"first","connected":true,"connectedSince":"2026-01-02T02:04:05Z","kinds":[{"typeUrl":"a/v1/VirtualService","ackedAt":"2026-01-02T03:00:00Z"}],
		 "proxies":{"connected":40,"synced":39,"observedAt":"2026-01-02T03:04:04Z"}},
		{"id":"sidecar~10.0.0.2~istiod-1.istio-system~istio-system.svc#2","server":"b","connected":true,"connectedSince":"2026-01-02T03:00:05Z","behindSince":"2026-01-02T03:03:35Z","kinds":[{"typeUrl":"a/v1/VirtualService","ackedAt":"2026-01-02T03:00:00Z"}]},
		{"id":"odd","server":"b","connected":true,"connectedSince":"2026-01-02T03:00:05Z","behindSince":"2026-01-02T03:03:35Z","kinds":[{"typeUrl":"a/v1/Gateway","error":"no \u001b[31mgood"}]},
		{"id":"new","server":"b","connected":true,"connectedSince":"2026-01-02T03:04:05Z"},
		{"id":"old","server":"b","connected":false,"connectedSince":"2026-01-01T03:00:05Z","disconnectedAt":"2026-01-02T02:54:05Z"}]}}`,
	"/apis/vmesh.io/v1alpha1/virtualclusters": `{"items":[
		{"metadata":{"name":"shop"},"spec":{"mesh":"m","namespaces":["shop","shop-*"],"hosts":["shop.example.com"]},"status":{"heldBackCount":7,"heldBack":[
			{"kind":"VirtualService","namespace":"shop","name":"a","reason":"HostNotOwned","message":"spec.hosts: bank.example.com is claimed by virtual cluster bank: ask it for a grant, or take the host out"},
			{"kind":"Gateway","namespace":"shop","name":"b","reason":"SelectorNotAllowed","message":"no"},{"kind":"Gateway","namespace":"shop","name":"c","reason":"R","message":"no"},
			{"kind":"Gateway","namespace":"shop","name":"d","reason":"R","message":"no"},{"kind":"Gateway","namespace":"shop","name":"e","reason":"R","message":"no"},{"kind":"Gateway","namespace":"shop","name":"f","reason":"R","message":"no"}]}},
		{"metadata":{"name":"bank"},"spec":{"mesh":"m","namespaces":["bank"]}},
		{"metadata":{"name":"other"},"spec":{"mesh":"other","namespaces":["*"]}}]}`,
	"/api/v1/namespaces/default/events": `{"items":[
		{"involvedObject":{"kind":"Mesh","name":"m","uid":"u"},"type":"Normal","reason":"ControlPlaneConnected","message":"Control plane new is connected","count":1,"lastTimestamp":"2026-01-02T03:04:00Z"},
		{"involvedObject":{"kind":"Mesh","name":"m","uid":"u"},"type":"Warning","reason":"ControlPlaneGone","message":"Control plane old is no longer connected","count":3,"lastTimestamp":"2026-01-02T03:04:01Z"},
		{"involvedObject":{"kind":"Mesh","name":"m","uid":"before"},"type":"Warning","reason":"Elsewhere","message":"x","count":1,"lastTimestamp":"2026-01-02T03:04:01Z"}]}`,
	"/clusters/shop/apis/vmesh.io/v1alpha1/changes": `{"items":[{"time":"2026-01-02T03:03:05.000001Z","user":{"name":"alice"},"operation":"Update","object":{"kind":"VirtualService","namespace":"shop","name":"a"},"what":"spec.http"}]}`,
}

// statusServer answers with statusObjects and what comes before them.
func statusServer(t *testing.T, before map[string]string) (kubeconfig string) {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer, ok := before[r.URL.Path]
		if !ok {
			answer, ok = statusObjects[r.URL.Path]
		}
		w.Header().Set("Content-Type", "application/json")
		switch {
		case !ok:
			w.WriteHeader(http.StatusNotFound)
			answer = `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","code":404,"message":"not found"}`
		case answer == "forbidden":
			w.WriteHeader(http.StatusForbidden)
			answer = `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Forbidden","code":403,"message":"forbidden"}`
		}
		fmt.Fprint(w, answer)
	}))
	t.Cleanup(server.Close)
	kubeconfig = filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(kubeconfig, []byte("apiVersion: v1\nkind: Config\ncurrent-context: x\ncontexts: [{name: x, context: {cluster: x, user: x}}]\n"+
		"clusters: [{name: x, cluster: {server: \""+server.URL+"\"}}]\nusers: [{name: x}]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return kubeconfig
}

func loadStatus(t *testing.T) []meshReport {
	t.Helper()
	o := statusOptions{access: rootAccess{kubeconfig: statusServer(t, nil)}}
	client, err := o.access.client()
	if err != nil {
		t.Fatal(err)
	}
	reports, err := o.load(t.Context(), client, "m")
	if err != nil {
		t.Fatal(err)
	}
	now, err := time.Parse(time.RFC3339, statusNow)
	if err != nil {
		t.Fatal(err)
	}
	for i := range reports[0].ControlPlanes {
		c := &reports[0].ControlPlanes[i]
		if c.BehindSince != nil {
			c.LagSeconds = now.Sub(*c.BehindSince).Seconds() // as of then
		}
	}
	return reports
}

func TestAMeshIsShownOnOneScreen(t *testing.T) {
	now, err := time.Parse(time.RFC3339, statusNow)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	o := statusOptions{}
	if err := o.print(&out, loadStatus(t), "m", now); err != nil {
		t.Fatal(err)
	}
	const want = `Mesh m: ready, behind
  istiod-1.istio-system has not acknowledged what it was sent at 2026-01-02T03:03:35Z
  trustDomain changed
  serves          12 resources of 2 virtual clusters, 7 held back, 1 cannot be sent
  version         0bd75158bd4faebe
  control planes  1 of 4 connected are in step, on 2 servers
  proxies         59 of 60 connected have it
  rollout         Baking at stage first: first 2/2, last 0/1; 3 changes on the way
                  until 03:10
                  1 resource held at the last good form

CONTROL PLANE             REVISION   STAGE   STATE                           SINCE   PROXIES
istiod-0.istio-system     canary     first   in step                         60m     39/40
istiod-1.istio-system#2                      behind by 30s                   4m
odd                                          refused Gateway: no  [31mgood   4m
new                                          starting                        0s
old                                          gone                            10m

MEMBER   NETWORK   STATE                SERVICES   READY
east     coast     ready                41         228/230
north              drained: new racks   3          4/4
west     island    Unreachable          40         128/128

HELD BACK IN   OBJECT                  REASON               MESSAGE
shop           VirtualService shop/a   HostNotOwned         spec.hosts: bank.example.com is claim...
shop           Gateway shop/b          SelectorNotAllowed   no
shop           Gateway shop/c          R                    no
shop           Gateway shop/d          R                    no
shop           Gateway shop/e          R                    no
and 2 more: kubectl get virtualcluster NAME -o yaml has them

VIRTUAL CLUSTER   NAMESPACES    HOSTS              HELD BACK
bank              bank
shop              shop,shop-*   shop.example.com   7

CHANGED   IN     BY      HOW      OBJECT                  WHAT
59s       shop   alice   Update   VirtualService shop/a   spec.http

HAPPENED   REASON                  MESSAGE
4s         ControlPlaneGone        Control plane old is no longer connected (3 times)
5s         ControlPlaneConnected   Control plane new is connected
`
	if out.String() != want {
		t.Errorf("shown\n%s", out.String())
	}
	for line := range strings.Lines(out.String()) {
		if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > screenWidth {
			t.Errorf("a line of %d columns: %s", n, line)
		}
	}
	out.Reset()
	o.output = "wide"
	if err := o.print(&out, loadStatus(t), "m", now); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"ask it for a grant, or take the host out", "sidecar~10.0.0.1~istiod-0.istio-system~istio-system.svc", "Gateway shop/f"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the wide form lacks %q:\n%s", want, out.String())
		}
	}
}

func TestTheJSONOfAStatusIsStable(t *testing.T) {
	var out bytes.Buffer
	o := statusOptions{output: "json"}
	reports := loadStatus(t)
	if err := o.print(&out, reports, "m", time.Time{}); err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	plane := got["controlPlanes"].([]any)[1].(map[string]any)
	for what, pair := range map[string][2]any{
		"mesh":           {got["mesh"], "m"},
		"inStep":         {got["inStep"], "False"},
		"problem":        {got["problems"].([]any)[0], "trustDomain changed"},
		"connected":      {got["controlPlanesConnected"], 4.0},
		"proxies":        {got["proxies"].(map[string]any)["synced"], 59.0},
		"state":          {plane["state"], "Behind"},
		"lag":            {plane["lagSeconds"], 30.0},
		"since":          {plane["behindSince"], "2026-01-02T03:03:35Z"},
		"all held back":  {len(got["heldBackObjects"].([]any)), 6},
		"held back":      {got["heldBackObjects"].([]any)[0].(map[string]any)["virtualCluster"], "shop"},
		"reason":         {got["heldBackObjects"].([]any)[0].(map[string]any)["reason"], "HostNotOwned"},
		"claims":         {got["claims"].([]any)[1].(map[string]any)["hosts"].([]any)[0], "shop.example.com"},
		"members":        {len(got["members"].([]any)), 3},
		"a member":       {got["members"].([]any)[2].(map[string]any)["reason"], "Unreachable"},
		"the rollout":    {got["rollout"].(map[string]any)["more"], true},
		"change":         {got["changes"].([]any)[0].(map[string]any)["user"], "alice"},
		"event":          {got["events"].([]any)[0].(map[string]any)["count"], 3.0},
		"only its event": {len(got["events"].([]any)), 2},
	} {
		if pair[0] != pair[1] {
			t.Errorf("%s: %v, want %v", what, pair[0], pair[1])
		}
	}
	out.Reset()
	if err := o.print(&out, reports, "", time.Time{}); err != nil || !strings.HasPrefix(out.String(), "[") {
		t.Errorf("without a name it is no list: %v", err)
	}
}

func TestStatusCommandsTellByTheirExitCode(t *testing.T) {
	const mesh = "/apis/vmesh.io/v1alpha1/meshes/m"
	in := `{"metadata":{"name":"m"},"status":{"conditions":[{"type":"Ready","status":"True"},{"type":"InStep","status":"True"}]}}`
	for _, c := range []struct {
		name   string
		before map[string]string
		args   []string
		code   int
		part   string
	}{
		{"behind, and nobody asks", nil, []string{"m"}, 0, "Mesh m: ready, behind"},
		{"behind", nil, []string{"m", "--exit-code"}, 3, "istiod-1.istio-system has not acknowledged"},
		{"in step", map[string]string{mesh: in}, []string{"m", "--exit-code"}, 0, "Mesh m: ready, in step"},
		{"nobody is connected", map[string]string{mesh: `{"metadata":{"name":"m"},"status":{"conditions":[{"type":"Ready","status":"True"}]}}`}, []string{"m", "--exit-code"}, 3, "none is connected"},
		{"not served yet", map[string]string{mesh: `{"metadata":{"name":"m"}}`}, []string{"m", "--exit-code"}, 3, "not served yet"},
		{"no such mesh", nil, []string{"x"}, 1, `there is no mesh "x": see kubectl get meshes`},
		{"no right to events, changes and members", map[string]string{"/api/v1/namespaces/default/events": "forbidden", "/clusters/shop/apis/vmesh.io/v1alpha1/changes": "forbidden", "/apis/vmesh.io/v1alpha1/memberclusters": "forbidden"}, []string{"m"}, 0, "Mesh m"},
		{"no right to meshes", map[string]string{mesh: "forbidden"}, []string{"m"}, 1, "asking for meshes"},
		{"an answer that is none", map[string]string{mesh: "<html>"}, []string{"m"}, 1, "reading meshes"},
		{"no mesh at all", map[string]string{"/apis/vmesh.io/v1alpha1/meshes": `{"items":[]}`}, nil, 0, "There is no mesh."},
		{"one of one", map[string]string{"/apis/vmesh.io/v1alpha1/meshes": `{"items":[` + in + `]}`}, nil, 0, "Mesh m: ready, in step"},
		{"two", map[string]string{"/apis/vmesh.io/v1alpha1/meshes": `{"items":[` + in + `,{"metadata":{"name":"n"}}]}`}, []string{"--exit-code"}, 3, "MESH   READY"},
		{"another form", nil, []string{"m", "-o", "xml"}, 1, `"-o, --output" flag: it must be wide, json or yaml`},
		{"two names", nil, []string{"m", "n"}, 1, "at most one MESH"},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, err := run(append([]string{"status", "--kubeconfig", statusServer(t, c.before)}, c.args...)...)
			code := 0
			if err != nil {
				code, out = exitCode(err), out+err.Error()
			}
			if code != c.code || !strings.Contains(out, c.part) {
				t.Errorf("exit code %d, want %d, and the output lacks %q:\n%s", code, c.code, c.part, out)
			}
		})
	}
}
