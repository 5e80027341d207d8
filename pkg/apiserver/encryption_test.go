package apiserver

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	"k8s.io/apiserver/pkg/storage/value"

	"github.com/vmesh-io/vmesh/pkg/storage/embedded"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

func testKey(name string) string {
	return base64.StdEncoding.EncodeToString([]byte((name + strings.Repeat("<>&/+?", 6))[:32]))
}

func encryptionFile(t *testing.T, content string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "encryption.yaml")
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func encryptionOf(providers string) string {
	return "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: [secrets]\n  providers:\n" + providers
}

func secretboxOf(keys ...string) string {
	var list []string
	for _, name := range keys {
		list = append(list, fmt.Sprintf("{name: %s, secret: %q}", name, testKey(name)))
	}
	return encryptionOf("  - secretbox: {keys: [" + strings.Join(list, ", ") + "]}\n")
}

func TestAnErrorAboutKeysDoesNotHoldThem(t *testing.T) {
	for name, c := range map[string]struct{ secret, config, want string }{
		"two providers in one": {testKey("a"), encryptionOf(fmt.Sprintf("  - secretbox: {keys: [{name: a, secret: %q}]}\n    aesgcm: {keys: [{name: a, secret: %[1]q}]}\n", testKey("a"))), "more than one provider"},
		"no base64":            {"<a&b> not base64", encryptionOf("  - secretbox: {keys: [{name: a, secret: \"<a&b> not base64\"}]}\n    identity: {}\n"), "more than one provider"},
		"a key too short":      {"c2hvcnQgYnV0IHNlY3JldA==", encryptionOf("  - secretbox: {keys: [{name: a, secret: c2hvcnQgYnV0IHNlY3JldA==}]}\n"), "expected length"},
		"an unknown member":    {testKey("a"), encryptionOf(fmt.Sprintf("  - secretbox: {keyz: [{name: a, secret: %q}]}\n", testKey("a"))), "keyz"},
		"no YAML":              {testKey("a"), encryptionOf(fmt.Sprintf("  - secretbox: {keys: [{name: a, secret: %q}\n", testKey("a"))), "yaml"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := newEncryption(EncryptionOptions{ConfigFile: encryptionFile(t, c.config)})
			if err == nil || !strings.HasPrefix(err.Error(), "--encryption-provider-config: ") || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v, want %q in it", err, c.want)
			}
			if strings.Contains(err.Error(), c.secret) || strings.Contains(err.Error(), "a\\u0026b") {
				t.Errorf("it holds the key: %v", err)
			}
		})
	}
}

func TestAChangedEncryptionConfigurationIsTakenIntoUse(t *testing.T) {
	file := encryptionFile(t, secretboxOf("one"))
	e, err := newEncryption(EncryptionOptions{ConfigFile: file, Reload: true})
	if err != nil {
		t.Fatal(err)
	}
	defer e.close()
	secrets := e.transformer(schema.GroupResource{Resource: "secrets"})
	at := value.DefaultContext("/registry/core/secrets/a/default/x")
	write := func(want string) []byte {
		t.Helper()
		out, err := secrets.TransformToStorage(t.Context(), []byte("{}"), at)
		if err != nil || !bytes.HasPrefix(out, []byte("k8s:enc:secretbox:v1:"+want+":")) {
			t.Fatalf("it writes %q, %v", out, err)
		}
		return out
	}
	change := func(content string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	old := write("one")
	change(secretboxOf("two", "one"))
	write("one")
	if err := e.refresh(); err != nil {
		t.Fatal(err)
	}
	write("two")
	if out, stale, err := secrets.TransformFromStorage(t.Context(), old, at); string(out) != "{}" || !stale || err != nil {
		t.Errorf("what was written before is %q, stale %t, %v", out, stale, err)
	}
	for _, broken := range []string{"", "garbage", secretboxOf()} {
		change(broken)
		if err := e.refresh(); err == nil {
			t.Errorf("%q was accepted", broken)
		}
		write("two")
	}
	change(secretboxOf("three"))
	if err := e.refresh(); err != nil {
		t.Fatal(err)
	}
	write("three")
	if _, _, err := secrets.TransformFromStorage(t.Context(), old, at); !errors.Is(err, logical.ErrCorrupt) {
		t.Errorf("without the key: got %v", err)
	}
	// What is not named is not encrypted.
	if out, err := e.transformer(schema.GroupResource{Resource: "pods"}).TransformToStorage(t.Context(), []byte("{}"), at); string(out) != "{}" || err != nil {
		t.Errorf("got %q, %v", out, err)
	}
}

func TestAConfigurationThatIsNotReloadedIsNotRewrittenWith(t *testing.T) {
	file := encryptionFile(t, secretboxOf("one"))
	e, err := newEncryption(EncryptionOptions{ConfigFile: file})
	if err != nil {
		t.Fatal(err)
	}
	defer e.close()
	if err := e.refresh(); err != nil {
		t.Errorf("unchanged: %v", err)
	}
	if err := os.WriteFile(file, []byte(secretboxOf("two", "one")), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := e.refresh(); !errors.Is(err, errNotLoaded) {
		t.Errorf("changed: %v", err)
	}
}

func TestOnlyAServiceThatCannotBeAskedIsAskedAgain(t *testing.T) {
	wrapped := func(c codes.Code) error {
		return fmt.Errorf("failed to decrypt DEK, error: %w", status.Error(c, "x"))
	}
	for name, c := range map[string]struct {
		err    error
		passes bool
	}{
		"a key that there is not":          {errors.New("no matching prefix found"), false},
		"a value that was changed":         {errors.New("cipher: message authentication failed"), false},
		"a service that is away":           {wrapped(codes.Unavailable), true},
		"a service that fails":             {wrapped(codes.Unknown), true},
		"a service that is slow":           {wrapped(codes.DeadlineExceeded), true},
		"a request that was ended":         {fmt.Errorf("x: %w", context.Canceled), true},
		"a service that does not know it":  {wrapped(codes.NotFound), false},
		"a service that refuses the value": {wrapped(codes.InvalidArgument), false},
		"two, one of which is away":        {utilerrors.NewAggregate([]error{errors.New("no"), wrapped(codes.Unavailable)}), true},
		"two, neither of which is away":    {utilerrors.NewAggregate([]error{errors.New("no"), errors.New("neither")}), false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := passes(c.err); got != c.passes {
				t.Errorf("passes is %t", got)
			}
		})
	}
}

func TestTraceOptionsThatDoNotFitAreErrors(t *testing.T) {
	for name, c := range map[string]struct {
		change func(o *Options)
		want   string
	}{
		"a log without a policy":     {func(o *Options) { o.Audit.LogOptions.Path = "-" }, "--audit-policy-file"},
		"a webhook without a policy": {func(o *Options) { o.Audit.WebhookOptions.ConfigFile = "x" }, "--audit-policy-file"},
		"a policy without a log":     {func(o *Options) { o.Audit.PolicyFile = "x" }, "--audit-log-path"},
		"a mode that there is not": {func(o *Options) {
			o.Audit.PolicyFile, o.Audit.LogOptions.Path, o.Audit.LogOptions.BatchOptions.Mode = "x", "-", "later"
		}, "later"},
		"a reload of nothing":           {func(o *Options) { o.Encryption.Reload = true }, "--encryption-provider-config"},
		"what is right without a trace": {func(*Options) {}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			o := NewOptions()
			c.change(o)
			err := o.Validate()
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestFilesOfTracesThatCannotBeReadAreNamed(t *testing.T) {
	for name, c := range map[string]struct {
		change func(o *Options, file string)
		file   string
		want   []string
	}{
		"no audit policy": {func(o *Options, file string) { o.Audit.PolicyFile, o.Audit.LogOptions.Path = file+"x", "-" }, "", []string{"--audit-policy-file", "no such file"}},
		"an audit policy without rules": {func(o *Options, file string) { o.Audit.PolicyFile, o.Audit.LogOptions.Path = file, "-" },
			"apiVersion: audit.k8s.io/v1\nkind: Policy\n", []string{"--audit-policy-file", "0 rules"}},
		"no tracing configuration":      {func(o *Options, file string) { o.TracingConfigFile = file + "x" }, "", []string{"--tracing-config-file", "no such file"}},
		"a tracing rate that cannot be": {func(o *Options, file string) { o.TracingConfigFile = file }, "apiVersion: apiserver.config.k8s.io/v1\nkind: TracingConfiguration\nsamplingRatePerMillion: -1\n", []string{"--tracing-config-file", "samplingRatePerMillion"}},
		"no encryption configuration":   {func(o *Options, file string) { o.Encryption.ConfigFile = file + "x" }, "", []string{"--encryption-provider-config", "no such file"}},
	} {
		t.Run(name, func(t *testing.T) {
			o := NewOptions()
			o.DataDir, o.XDSAddress, o.SecurePort = t.TempDir(), "", freePort(t)
			c.change(o, encryptionFile(t, c.file))
			server, err := New(t.Context(), o)
			if err == nil {
				server.Close()
				t.Fatal("it was accepted")
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%v lacks %q", err, want)
				}
			}
		})
	}
}

// Controllers write statuses, and istiod is told what virtual clusters hold: neither may
// happen while nothing can be read.
func TestAServerWithoutTheKeysChangesNothing(t *testing.T) {
	o := NewOptions()
	o.DataDir, o.XDSAddress, o.SecurePort = t.TempDir(), "", freePort(t)
	o.Encryption.ConfigFile = encryptionFile(t, strings.Replace(secretboxOf("one"), "[secrets]", "['*.*']", 1))
	root, stop := start(t, o)
	createCluster(t, root, "shop", "{}")
	before, err := in(t, root, "").RESTClient().Get().AbsPath("/apis/vmesh.io/v1alpha1/virtualclusters").Do(t.Context()).Raw()
	if err != nil {
		t.Fatal(err)
	}
	stop()

	right := o.Encryption.ConfigFile
	for name, file := range map[string]string{"none": "", "another": encryptionFile(t, strings.Replace(secretboxOf("two"), "[secrets]", "['*.*']", 1))} {
		o.Encryption.ConfigFile = file
		server, err := New(t.Context(), o)
		if err == nil {
			server.Close()
			t.Fatalf("%s: it starts", name)
		}
		if !strings.Contains(err.Error(), "--encryption-provider-config") || !strings.Contains(err.Error(), "give the configuration that has the key") {
			t.Errorf("%s: %v", name, err)
		}
	}

	o.Encryption.ConfigFile = right
	root, stop = start(t, o)
	defer stop()
	after, err := in(t, root, "").RESTClient().Get().AbsPath("/apis/vmesh.io/v1alpha1/virtualclusters").Do(t.Context()).Raw()
	if err != nil {
		t.Fatal(err)
	}
	versions := regexp.MustCompile(`"resourceVersion":"[0-9]+"`)
	if b, a := versions.FindAll(before, -1), versions.FindAll(after, -1); len(b) != 3 || string(bytes.Join(b[1:], nil)) != string(bytes.Join(a[1:], nil)) {
		t.Errorf("before it was %s, after %s", before, after)
	}
}

func TestOneValueThatCannotBeDecryptedKeepsNothingFromStarting(t *testing.T) {
	o := NewOptions()
	o.DataDir, o.XDSAddress, o.SecurePort = t.TempDir(), "", freePort(t)
	o.Encryption.ConfigFile = encryptionFile(t, strings.Replace(secretboxOf("one"), "[secrets]", "['*.*']", 1))
	root, stop := start(t, o)
	createCluster(t, root, "shop", "{}")
	stop()
	etcd, err := embedded.Start(t.Context(), embedded.Config{Dir: o.etcdDir()})
	if err != nil {
		t.Fatal(err)
	}
	const prefix = "/registry/vmesh.io/virtualclusters/root/"
	of, err := etcd.Client().Get(t.Context(), prefix+"default")
	if err != nil || len(of.Kvs) != 1 {
		t.Fatal(of, err)
	}
	if _, err := etcd.Client().Put(t.Context(), prefix+"shop", string(of.Kvs[0].Value)); err != nil {
		t.Fatal(err)
	}
	if err := etcd.Close(); err != nil {
		t.Fatal(err)
	}
	root, stop = start(t, o)
	defer stop()
	shop := func(method string) string {
		body, _ := in(t, root, "").RESTClient().Verb(method).AbsPath("/apis/vmesh.io/v1alpha1/virtualclusters/shop/status").SetHeader("Content-Type", "application/merge-patch+json").
			Body([]byte(`{"status":{"url":"https://x"}}`)).Do(t.Context()).Raw()
		return string(body)
	}
	if got := shop("PATCH"); !strings.Contains(got, "Failure") {
		t.Errorf("its status was written: %s", got)
	}
	if got := shop("GET"); !strings.Contains(got, "copied to this one") {
		t.Errorf("it is shown as %s", got)
	}
}
