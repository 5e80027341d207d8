package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/apiserver"
	"github.com/vmesh-io/vmesh/test/harness"
)

func freePort(t *testing.T) int {
	t.Helper()
	ports, err := harness.FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	return ports[0]
}

// TestCheckTellsOfAChangeBeforeItIsMade asks a real server.
func TestCheckTellsOfAChangeBeforeItIsMade(t *testing.T) {
	options := apiserver.NewOptions()
	options.AddFlags(pflag.NewFlagSet("vmesh", pflag.ContinueOnError)) // for the feature gates that it sets
	options.DataDir, options.SecurePort, options.XDSAddress = t.TempDir(), freePort(t), ""
	options.ShutdownPeriod = 10 * time.Second
	ctx, cancel := context.WithCancel(t.Context())
	server, err := apiserver.New(ctx, options)
	if err != nil {
		t.Fatal(err)
	}
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- server.Run(ctx, func() { close(ready) }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		server.Close()
	})
	select {
	case <-ready:
	case err := <-done:
		t.Fatal(err)
	case <-time.After(3 * time.Minute):
		t.Fatal("the server is not ready after three minutes")
	}
	config, err := clientcmd.BuildConfigFromFlags("", options.AdminKubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	config.APIPath, config.NegotiatedSerializer = "/", clientscheme.Codecs.WithoutConversion()
	client, err := rest.UnversionedRESTClientFor(config)
	if err != nil {
		t.Fatal(err)
	}
	post := func(path, body string) {
		t.Helper()
		if err := client.Post().AbsPath(path).SetHeader("Content-Type", "application/json").Body([]byte(body)).Do(ctx).Error(); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
	}
	vc := func(name, spec string) string {
		return fmt.Sprintf(`{"apiVersion":"vmesh.io/v1alpha1","kind":"VirtualCluster","metadata":{"name":%q},"spec":%s}`, name, spec)
	}
	const clusters = "/apis/vmesh.io/v1alpha1/virtualclusters"
	post(clusters, vc("shop", `{"namespaces":["shop"],"hosts":["shop.example.com"]}`))
	post(clusters, vc("bank", `{"namespaces":["bank"]}`))
	post("/clusters/shop/api/v1/namespaces", `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"shop"}}`)
	post("/clusters/shop/apis/networking.istio.io/v1/namespaces/shop/virtualservices",
		`{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{"name":"web"},"spec":{"hosts":["shop.example.com"],"http":[{"route":[{"destination":{"host":"web"}}]}]}}`)

	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	less := file("less", vc("shop", `{"namespaces":["shop"]}`))
	for _, c := range []struct {
		name string
		args []string
		code int
		want []string
	}{
		{"what changes nothing", []string{"-f", file("more", vc("bank", `{"namespaces":["bank","new"]}`))}, 0, []string{"No object would be held back"}},
		{"what holds back", []string{"-f", less}, 2, []string{"held back   shop", "VirtualService", "web", "HostNotOwned"}},
		{"as JSON", []string{"-f", less, "-o", "json"}, 2, []string{`"heldBackCount": 1`, `"reason": "HostNotOwned"`}},
		{"as YAML", []string{"-f", less, "-o", "yaml"}, 2, []string{"heldBackCount: 1"}},
		{"what is refused", []string{"-f", file("taken", vc("bank", `{"namespaces":["bank"],"hosts":["*.example.com"]}`))}, 2, []string{"Refused:", "overlaps", `"shop"`}},
		{"what takes it over", []string{"-f", less, "-f", file("taker", vc("bank", `{"namespaces":["bank"],"hosts":["*.example.com"]}`))}, 2, []string{"held back   shop", `virtual cluster "bank"`}},
		{"another root namespace", []string{"-f", file("mesh", `{"apiVersion":"vmesh.io/v1alpha1","kind":"Mesh","metadata":{"name":"default"},"spec":{"rootNamespace":"mesh"}}`)}, 0, nil},
		{"what the server refuses", []string{"-f", file("odd", vc("bank", `{"namespaces":["BANK"]}`))}, 1, []string{"spec.virtualClusters[0].namespaces[0]"}},
	} {
		deadline := time.Now().Add(time.Minute)
		for {
			out, err := run(append([]string{"check", "--kubeconfig", options.AdminKubeconfig()}, c.args...)...)
			code := 0
			if err != nil {
				code = exitCode(err)
				out += err.Error()
			}
			wrong := ""
			if code != c.code {
				wrong = fmt.Sprintf("exit code %d, want %d", code, c.code)
			}
			for _, want := range c.want {
				if !strings.Contains(out, want) {
					wrong = fmt.Sprintf("%q is missing", want)
				}
			}
			if wrong == "" {
				break
			}
			if time.Now().After(deadline) {
				t.Errorf("%s: %s in %s", c.name, wrong, out)
				break
			}
			time.Sleep(10 * time.Millisecond) // the object is on its way
		}
	}
}

func TestPlansAreReadFromFiles(t *testing.T) {
	for _, c := range []struct{ name, content, want, wrong string }{
		{"two documents", "apiVersion: vmesh.io/v1alpha1\nkind: VirtualCluster\nmetadata: {name: a}\nspec: {hosts: [a.example.com]}\n---\n---\napiVersion: vmesh.io/v1alpha1\nkind: Mesh\nmetadata: {name: m}\n",
			`{"virtualClusters":[{"name":"a","hosts":["a.example.com"]}],"meshes":[{"name":"m"}]}`, ""},
		{"a list", `{"apiVersion":"v1","kind":"List","items":[{"apiVersion":"vmesh.io/v1alpha1","kind":"VirtualCluster","metadata":{"name":"a"},"spec":{"grants":[{"to":"b"}]}}]}`,
			`{"virtualClusters":[{"name":"a","grants":[{"to":"b"}]}]}`, ""},
		{"a field that there is not", `{"apiVersion":"vmesh.io/v1alpha1","kind":"VirtualCluster","metadata":{"name":"a"},"spec":{"host":["a"]}}`, "", `unknown field "host"`},
		{"another kind", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a"}}`, "", "it is a ConfigMap of v1"},
		{"no name", `{"apiVersion":"vmesh.io/v1alpha1","kind":"Mesh"}`, "", "metadata.name"},
		{"nothing", "---\n", "", "there is no VirtualCluster or Mesh in it"},
		{"garbage", "{", "", "document 1"},
	} {
		var spec v1alpha1.ClaimReviewSpec
		err := readPlan(strings.NewReader(c.content), "-", &spec)
		if c.wrong != "" {
			if err == nil || !strings.Contains(err.Error(), c.wrong) {
				t.Errorf("%s: %v", c.name, err)
			}
			continue
		}
		if got, _ := json.Marshal(spec); err != nil || string(got) != c.want {
			t.Errorf("%s: %s, %v", c.name, got, err)
		}
	}
	if err := readPlan(nil, filepath.Join(t.TempDir(), "none"), nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
}

func TestAnswersThatAreTooLongSaySo(t *testing.T) {
	var out, errOut bytes.Buffer
	if err := printCheck(&out, &errOut, v1alpha1.ClaimReviewStatus{
		LetInCount: 3, LetIn: []v1alpha1.ReviewedResource{{VirtualCluster: "a", HeldBackResource: v1alpha1.HeldBackResource{Kind: "Gateway", Namespace: "n", Name: "g", Reason: "NotOwner"}}},
		Warnings: []string{"careful"},
	}); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(errOut.String(), "and 2 more that would be let in") || !strings.Contains(errOut.String(), "Warning: careful") || !strings.Contains(out.String(), "until now: NotOwner") {
		t.Errorf("printed %s and %s", &out, &errOut)
	}
}
