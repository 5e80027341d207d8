package apiserver

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"slices"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/transport"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/pki"
)

// fresh makes each request over a connection of its own, and never one from a cache.
func fresh(config *rest.Config) *rest.Config {
	config = rest.CopyConfig(config)
	config.Proxy = http.ProxyFromEnvironment // what has a proxy function of its own is not cached
	config.Wrap(transport.WrapperFunc(func(rt http.RoundTripper) http.RoundTripper { return closing{rt} }))
	return config
}

type closing struct{ http.RoundTripper }

func (c closing) RoundTrip(req *http.Request) (*http.Response, error) {
	req.Close = true
	return c.RoundTripper.RoundTrip(req)
}

func TestCertificatesAreRenewedWhileTheServerRuns(t *testing.T) {
	ctx := context.Background()
	o := NewOptions()
	o.DataDir, o.XDSAddress, o.SecurePort = t.TempDir(), "", freePort(t)
	// What takes years takes seconds here: the authorities change once and a half.
	o.lifetimes = lifetimes{authority: 24 * time.Second, serving: 6 * time.Second, admin: 8 * time.Second, every: 50 * time.Millisecond}
	_, stop := start(t, o)
	defer stop()
	var root *rest.Config
	var watch watch.Interface
	eventually(t, "a watch begins", func() bool { // a busy machine may have taken longer to start than certificates last
		var err error
		if root, err = clientcmd.BuildConfigFromFlags("", o.AdminKubeconfig()); err != nil {
			return false
		}
		watch, err = in(t, root, "default").CoreV1().ConfigMaps("default").Watch(ctx, metav1.ListOptions{})
		return err == nil
	})
	defer watch.Stop()
	begun := time.Now()
	first := leafOf(t, root)
	ended := make(chan time.Time, 1)
	go func() {
		for range watch.ResultChan() {
		}
		ended <- time.Now()
	}()

	serving, admins, authorities := map[string]bool{}, map[string]bool{}, map[string]bool{}
	late := time.Now()
	if err := wait.PollUntilContextTimeout(ctx, 100*time.Millisecond, 4*time.Minute, true, func(ctx context.Context) (bool, error) {
		// As kubectl, which reads its file each time.
		config, err := clientcmd.BuildConfigFromFlags("", o.AdminKubeconfig())
		if err != nil {
			return false, err
		}
		if _, err := in(t, fresh(config), "").CoreV1().Namespaces().List(ctx, metav1.ListOptions{}); err != nil {
			// A machine that is busy for seconds lets certificates of seconds end. They are renewed all the same.
			var expired x509.CertificateInvalidError
			if (errors.As(err, &expired) && expired.Reason == x509.Expired || time.Now().After(leafOf(t, config).NotAfter)) && time.Since(late) < time.Minute {
				return false, nil
			}
			return false, err
		}
		late = time.Now()
		connection, err := tls.Dial("tcp", config.Host[len("https://"):], &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			return false, err
		}
		peers := connection.ConnectionState().PeerCertificates
		serving[string(peers[0].Raw)], authorities[peers[0].Issuer.CommonName] = true, true
		admins[string(config.CertData)] = true
		enough := len(serving) >= 4 && len(admins) >= 3 && len(authorities) >= 2
		return enough && time.Since(begun) > o.lifetimes.authority+2*time.Second, connection.Close()
	}); err != nil {
		t.Fatalf("%v: there were %d serving certificates, %d of the administrator, signed by %d authorities", err, len(serving), len(admins), len(authorities))
	}
	select {
	case at := <-ended:
		// The serving certificate was renewed before, and that did not end it.
		if early := first.NotAfter.Sub(at); early > time.Second {
			t.Errorf("the watch has ended %s before its certificate", early)
		}
	case <-time.After(30 * time.Second):
		t.Error("the watch goes on though its certificate has expired")
	}
	if _, err := in(t, fresh(root), "").CoreV1().Namespaces().List(ctx, metav1.ListOptions{}); err == nil {
		t.Error("the first kubeconfig is good though its certificate and its authority have ended")
	}
	eventually(t, "there are events", func() bool {
		events, err := in(t, adminOf(t, o), "").CoreV1().Events("default").List(ctx, metav1.ListOptions{FieldSelector: "involvedObject.name=serving"})
		return err == nil && len(events.Items) > 0 && events.Items[0].Reason == "Renewed"
	})
}

// leafOf is the client certificate of an access.
func leafOf(t *testing.T, config *rest.Config) *x509.Certificate {
	t.Helper()
	leaf, ok := parseLeaf(config.CertData)
	if !ok {
		t.Fatalf("%q is no certificate", config.CertData)
	}
	return leaf
}

func adminOf(t *testing.T, o *Options) *rest.Config {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", o.AdminKubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	return fresh(config)
}

func TestTheAdministratorsKubeconfigOutlivesRestartsAndIsReplacedWhenRevoked(t *testing.T) {
	ctx := context.Background()
	o := NewOptions()
	o.DataDir, o.XDSAddress, o.SecurePort = t.TempDir(), "", freePort(t)
	o.lifetimes.every = 50 * time.Millisecond
	_, stop := start(t, o)
	first, err := os.ReadFile(o.AdminKubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	stop()
	root, stop := start(t, o)
	defer stop()
	if second, err := os.ReadFile(o.AdminKubeconfig()); err != nil || !bytes.Equal(first, second) {
		t.Errorf("a restart made another: %v", err)
	}
	certificates, err := Certificates(o.DataDir)
	var names []string
	for _, c := range certificates {
		names = append(names, c.Name+" "+c.State)
	}
	if want := []string{"client-ca Signs", "server-ca Signs", "serving In use", "admin In use"}; err != nil || !slices.Equal(names, want) {
		t.Errorf("the certificates are %q, %v", names, err)
	}
	kubeconfigs := func(config *rest.Config) *rest.Request {
		return in(t, config, "").RESTClient().Get().AbsPath("/apis/" + v1alpha1.GroupVersion.String() + "/kubeconfigs")
	}
	var list v1alpha1.KubeconfigList
	read := func(config *rest.Config) {
		t.Helper()
		data, err := kubeconfigs(config).DoRaw(ctx)
		if err != nil {
			t.Fatal(err)
		}
		list = v1alpha1.KubeconfigList{}
		if err := json.Unmarshal(data, &list); err != nil {
			t.Fatal(err)
		}
	}
	read(root)
	if len(list.Items) != 1 || list.Items[0].Spec.VirtualCluster != "root" {
		t.Fatalf("the records are %v", list.Items)
	}
	revoked := list.Items[0].Name
	if err := in(t, root, "").RESTClient().Delete().AbsPath("/apis/" + v1alpha1.GroupVersion.String() + "/kubeconfigs/" + revoked).Do(ctx).Error(); err != nil {
		t.Fatal(err)
	}
	if err := kubeconfigs(root).Do(ctx).Error(); err == nil {
		t.Error("it is good though it was revoked, over the connection that was open")
	}
	if err := wait.PollUntilContextTimeout(ctx, 20*time.Millisecond, time.Minute, true, func(ctx context.Context) (bool, error) {
		now, err := os.ReadFile(o.AdminKubeconfig())
		return !bytes.Equal(now, first), err
	}); err != nil {
		t.Fatalf("no other was made: %v", err)
	}
	read(adminOf(t, o))
	if len(list.Items) != 1 || list.Items[0].Name == revoked {
		t.Errorf("the records are %v", list.Items)
	}
}

func TestAnAuthorityThatIsReplacedIsNotTrustedByTheRunningServer(t *testing.T) {
	ctx := context.Background()
	o := NewOptions()
	o.DataDir, o.XDSAddress, o.SecurePort = t.TempDir(), "", freePort(t)
	o.lifetimes.every = 50 * time.Millisecond
	root, stop := start(t, o)
	defer stop()
	authority, err := pki.LoadOrCreateAuthority(o.pkiDir(), "client-ca")
	if err != nil {
		t.Fatal(err)
	}
	if err := authority.Replace(); err != nil {
		t.Fatal(err)
	}
	// What was verified a moment ago is verified again after ten seconds.
	if err := wait.PollUntilContextTimeout(ctx, 100*time.Millisecond, time.Minute, true, func(ctx context.Context) (bool, error) {
		_, err := in(t, root, "").CoreV1().Namespaces().List(ctx, metav1.ListOptions{})
		return err != nil, nil
	}); err != nil {
		t.Error("the old administrator is let in")
	}
	if err := wait.PollUntilContextTimeout(ctx, 100*time.Millisecond, time.Minute, true, func(ctx context.Context) (bool, error) {
		_, err := in(t, adminOf(t, o), "").CoreV1().Namespaces().List(ctx, metav1.ListOptions{})
		return err == nil, nil
	}); err != nil {
		t.Error("the new administrator is not let in")
	}
}
