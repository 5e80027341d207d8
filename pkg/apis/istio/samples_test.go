package istio_test

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/util/validation/field"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"

	"github.com/vmesh-io/vmesh/pkg/apis/istio"
	"github.com/vmesh-io/vmesh/pkg/apis/kind"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

// sample is one document of the Istio module's own test data.
type sample struct {
	file    string
	json    []byte
	group   string
	version string
	kind    string
	wantErr string // part of the message that Istio's tests ask for
}

// moduleDir is where the source of the Istio module lies.
func moduleDir(tb testing.TB) string {
	tb.Helper()
	out, err := exec.CommandContext(tb.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "istio.io/istio").Output()
	if err != nil {
		tb.Fatalf("finding the Istio module: %v", err)
	}
	return strings.TrimSpace(string(out))
}

// samples reads all Istio objects in the YAML files of some folders of the module.
func samples(tb testing.TB, folders ...string) []sample {
	tb.Helper()
	root := moduleDir(tb)
	var found []sample
	for _, folder := range folders {
		err := filepath.WalkDir(filepath.Join(root, folder), func(path string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".yaml") {
				return err
			}
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			name, err := filepath.Rel(root, path)
			if err != nil {
				return err
			}
			found = append(found, split(name, data)...)
			return nil
		})
		if err != nil {
			tb.Fatal(err)
		}
	}
	if len(found) == 0 {
		tb.Fatalf("no samples under %v", folders)
	}
	return found
}

func split(file string, data []byte) []sample {
	var found []sample
	reader := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(data)))
	for {
		doc, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return found
		}
		if err != nil {
			return found
		}
		var u map[string]any
		if yaml.Unmarshal(doc, &u) != nil {
			continue // templates, and YAML that is wrong on purpose
		}
		apiVersion, _ := u["apiVersion"].(string)
		group, version, _ := strings.Cut(apiVersion, "/")
		if !strings.HasSuffix(group, ".istio.io") {
			continue
		}
		s := sample{file: file, group: group, version: version}
		s.kind, _ = u["kind"].(string)
		s.wantErr, _ = u["_err"].(string)
		delete(u, "_err")
		meta, ok := u["metadata"].(map[string]any)
		if !ok {
			continue
		}
		if meta["namespace"] == nil {
			meta["namespace"] = "default"
		}
		if s.json, err = yaml.Marshal(u); err != nil {
			continue
		}
		if s.json, err = yaml.YAMLToJSON(s.json); err != nil {
			continue
		}
		found = append(found, s)
	}
}

// byGroupKind are all kinds by "Kind.group".
func byGroupKind(tb testing.TB) map[string]*kind.Kind {
	tb.Helper()
	kinds, err := istio.Kinds()
	if err != nil {
		tb.Fatal(err)
	}
	m := map[string]*kind.Kind{}
	for _, k := range kinds {
		m[k.GroupKind().String()] = k
	}
	return m
}

// write does what a create does to an object before it is stored.
func write(tb testing.TB, k *kind.Kind, version string, data []byte) (*object.Object, []string, error) {
	tb.Helper()
	obj, strict, err := k.Decode(version, data, true)
	if err != nil {
		return nil, nil, err
	}
	if len(strict) > 0 {
		return nil, nil, errors.Join(strict...)
	}
	obj.ManagedFields = nil
	warnings, errs := k.Validate(tb.Context(), version, obj, nil)
	return obj, warnings, errs.ToAggregate()
}

func TestSamplesOfTheModuleAreJudgedAsItsTestsExpect(t *testing.T) {
	kinds := byGroupKind(t)
	var valid, invalid int
	for _, s := range samples(t, "pkg/config/validation/testdata/crds", "pkg/test/datasets/validation/dataset") {
		k := kinds[s.kind+"."+s.group]
		if k == nil {
			t.Errorf("%s: no kind %s", s.file, s.kind)
			continue
		}
		_, _, err := write(t, k, s.version, s.json)
		switch {
		case s.wantErr == "" && err != nil:
			t.Errorf("%s: %s\nrefused: %v", s.file, s.json, err)
		case s.wantErr != "" && err == nil:
			t.Errorf("%s: %s\naccepted, want: %s", s.file, s.json, s.wantErr)
		case s.wantErr != "" && !strings.Contains(err.Error(), core(s.wantErr)):
			t.Errorf("%s: %s\nrefused for %v\nwant: %s", s.file, s.json, err, s.wantErr)
		}
		if s.wantErr == "" {
			valid++
		} else {
			invalid++
		}
	}
	t.Logf("%d valid, %d invalid", valid, invalid)
	if valid < 50 || invalid < 50 {
		t.Error("too few samples to mean anything")
	}
}

// core is what of an expected message does not depend on the kube-apiserver that
// Istio's tests imitate: newer ones show the value itself, and drop nulls at decoding.
func core(message string) string {
	if field, ok := strings.CutSuffix(message, `: "null"`); ok {
		return strings.Fields(field)[0]
	}
	if _, rule, ok := strings.Cut(message, `Invalid value: "object": `); ok {
		return rule
	}
	if _, rule, ok := strings.Cut(message, `Invalid value: "integer": `); ok {
		return rule
	}
	return message
}

func TestErrorsNameTheField(t *testing.T) {
	kinds := byGroupKind(t)
	for _, c := range []struct {
		name, kind, body string
		want             []string
	}{
		{
			"a wrong type", "VirtualService.networking.istio.io",
			`{"spec":{"hosts":"reviews"}}`,
			[]string{`spec.hosts: Invalid value: "string": spec.hosts in body must be of type array: "string"`},
		},
		{
			"a value out of range", "VirtualService.networking.istio.io",
			`{"spec":{"hosts":["reviews"],"http":[{"route":[{"destination":{"host":"reviews","port":{"number":-1}}}]}]}}`,
			[]string{`spec.http[0].route[0].destination.port.number`},
		},
		{
			"a broken rule", "VirtualService.networking.istio.io",
			`{"spec":{"hosts":["reviews"],"http":[{"timeout":"soon","route":[{"destination":{"host":"reviews"}}]}]}}`,
			[]string{`spec.http[0].timeout: Invalid value: "string": `, `must be a valid duration greater than 1ms`},
		},
		{
			"what only Istio knows", "VirtualService.networking.istio.io",
			`{"spec":{"hosts":["re views"],"http":[{"route":[{"destination":{"host":"reviews"},"weight":-1}]}]}}`,
			[]string{`spec: Invalid value: `, `"re views"`},
		},
		{
			"several faults", "Gateway.networking.istio.io",
			`{"spec":{"selector":{"a":"b"},"servers":[{"hosts":["*"],"port":{"number":80,"name":"a","protocol":"HTTP"}},{"hosts":["*"],"port":{"number":81,"name":"a","protocol":"what"}}]}}`,
			[]string{`spec: Invalid value: `},
		},
		{
			"an unknown value", "PeerAuthentication.security.istio.io",
			`{"spec":{"mtls":{"mode":"SOMETIMES"}}}`,
			[]string{`spec.mtls.mode: Unsupported value: "SOMETIMES": supported values: "UNSET", "DISABLE", "PERMISSIVE", "STRICT"`},
		},
		{
			"an unknown field", "PeerAuthentication.security.istio.io",
			`{"spec":{"mtls":{"modus":"STRICT"}}}`,
			[]string{`unknown field "spec.mtls.modus"`},
		},
		{
			"a field given twice", "PeerAuthentication.security.istio.io",
			`{"spec":{"mtls":{"mode":"STRICT","mode":"DISABLE"}}}`,
			[]string{`duplicate field "spec.mtls.mode"`},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := kinds[c.kind]
			v := k.Versions()[0]
			body := `{"apiVersion":"` + k.Group() + `/` + v + `","kind":"` + k.GroupKind().Kind + `","metadata":{"name":"one","namespace":"shop"},` + c.body[1:]
			_, _, err := write(t, k, v, []byte(body))
			for _, want := range c.want {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("got %v\nwant %s", err, want)
				}
			}
		})
	}
}

func TestWarningsOfIstioReachTheUser(t *testing.T) {
	k := find(t, "virtualservices")
	body := `{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{"name":"one","namespace":"shop"},"spec":{"hosts":["reviews"],"http":[` +
		`{"route":[{"destination":{"host":"reviews"}}]},{"route":[{"destination":{"host":"reviews"}}]}]}}`
	_, warnings, err := write(t, k, "v1", []byte(body))
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(warnings, "\n"); !strings.Contains(got, "not used") {
		t.Errorf("got warnings %q", got)
	}
}

func TestValidationErrorsAreFieldErrors(t *testing.T) {
	k := find(t, "virtualservices")
	obj, _, err := k.Decode("v1", []byte(`{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{"name":"one","namespace":"shop"},"spec":{"hosts":["reviews"]}}`), true)
	if err != nil {
		t.Fatal(err)
	}
	_, errs := k.Validate(t.Context(), "v1", obj, nil)
	if len(errs) != 1 || errs[0].Type != field.ErrorTypeInvalid || errs[0].Field != "spec" {
		t.Errorf("got %v", errs)
	}
}

func TestDocumentsAreSplit(t *testing.T) {
	docs := split("x", bytes.Join([][]byte{
		[]byte("apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: a}"),
		[]byte("apiVersion: v1\nkind: Service\nmetadata: {name: b}"),
	}, []byte("\n---\n")))
	if len(docs) != 1 || docs[0].kind != "Gateway" || docs[0].version != "v1" {
		t.Errorf("got %+v", docs)
	}
}
