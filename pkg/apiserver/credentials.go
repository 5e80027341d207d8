package apiserver

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/server/dynamiccertificates"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/component-base/metrics"
	"k8s.io/klog/v2"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/authn"
	"github.com/vmesh-io/vmesh/pkg/events"
	"github.com/vmesh-io/vmesh/pkg/pki"
	"github.com/vmesh-io/vmesh/pkg/registry/resource"
	"github.com/vmesh-io/vmesh/pkg/registry/vmesh"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

const (
	// adminTTL is how long the administrator's certificate is good.
	adminTTL = 365 * 24 * time.Hour
	// maintainEvery is how often certificates are looked after.
	maintainEvery = 10 * time.Second
)

// lifetimes are how long what the server signs for itself is good, and how often it looks.
type lifetimes struct {
	authority, serving, admin, every time.Duration
}

func usualLifetimes() lifetimes {
	return lifetimes{authority: pki.AuthorityLifetime, serving: pki.ServingLifetime, admin: adminTTL, every: maintainEvery}
}

// credentials are the files under the data directory that make the server's identity,
// and their renewal.
type credentials struct {
	options          *Options
	hosts            []string
	clients, servers *pki.Authority
	serving          atomic.Pointer[servingCertificate]

	mu        sync.Mutex
	listeners []dynamiccertificates.Listener
}

type servingCertificate struct {
	pki.Pair
	tls tls.Certificate
}

// ensureCredentials makes what is missing, but for the administrator's kubeconfig, which
// is recorded in the storage.
func ensureCredentials(o *Options) (*credentials, error) {
	dir := o.pkiDir()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("--data-dir: %w: give a directory that this user can write", err)
	}
	c := &credentials{options: o, hosts: o.hosts()}
	if u, err := url.Parse(o.URL()); err == nil && u.Hostname() != "" {
		c.hosts = append(c.hosts, u.Hostname())
	}
	var err error
	if c.clients, err = pki.OpenAuthority(pki.AuthorityConfig{Dir: dir, Name: "client-ca", Lifetime: o.lifetimes.authority}); err != nil {
		return nil, err
	}
	if c.servers, err = pki.OpenAuthority(pki.AuthorityConfig{Dir: dir, Name: "server-ca", Lifetime: o.lifetimes.authority}); err != nil {
		return nil, err
	}
	_, err = c.renewServing()
	return c, err
}

// renewServing makes the serving certificate anew when that is due.
func (c *credentials) renewServing() (renewed bool, err error) {
	pair, _, err := c.servers.LoadOrCreateServing(c.options.pkiDir(), "server",
		pki.Serving{CommonName: "vmesh", Hosts: c.hosts, Lifetime: c.options.lifetimes.serving})
	if err != nil {
		return false, fmt.Errorf("making the serving certificate: %w", err)
	}
	if had := c.serving.Load(); had != nil && bytes.Equal(had.Cert, pair.Cert) {
		return false, nil
	}
	s := &servingCertificate{Pair: pair}
	if s.tls, err = tls.X509KeyPair(pair.Cert, pair.Key); err != nil {
		return false, fmt.Errorf("reading the serving certificate: %w", err)
	}
	renewed = c.serving.Load() != nil
	c.serving.Store(s)
	return renewed, nil
}

// maintain does what is due, and tells of it. What fails leaves all as it was, and is
// tried again the next time; say is told of it.
func (c *credentials) maintain(say func(name string, err error, message string)) {
	changed := false
	for name, a := range map[string]*pki.Authority{"client-ca": c.clients, "server-ca": c.servers} {
		notes, err := a.Maintain()
		if err != nil {
			say(name, err, "Looking after the authority failed")
		}
		for _, note := range notes {
			say(name, nil, note)
			changed = true
		}
		expiry.WithLabelValues(name).Set(float64(a.Expires().Unix()))
	}
	renewed, err := c.renewServing()
	if err != nil {
		say("serving", err, "Renewing the serving certificate failed")
	}
	expires := c.serving.Load().Expires
	if renewed {
		say("serving", nil, "The serving certificate was renewed and is good until "+expires.UTC().Format(time.RFC3339))
	}
	expiry.WithLabelValues("serving").Set(float64(expires.Unix()))
	if changed || renewed {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, l := range c.listeners {
			l.Enqueue()
		}
	}
}

// AddListener implements dynamiccertificates.Notifier.
func (c *credentials) AddListener(l dynamiccertificates.Listener) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.listeners = append(c.listeners, l)
}

// Name implements dynamiccertificates.CertKeyContentProvider and CAContentProvider.
func (c *credentials) Name() string { return "vmesh" }

// CurrentCertKeyContent implements dynamiccertificates.CertKeyContentProvider.
func (c *credentials) CurrentCertKeyContent() (cert, key []byte) {
	s := c.serving.Load()
	return s.Cert, s.Key
}

// CurrentCABundleContent implements dynamiccertificates.CAContentProvider.
func (c *credentials) CurrentCABundleContent() []byte { return c.clients.Bundle() }

// VerifyOptions implements dynamiccertificates.CAContentProvider.
func (c *credentials) VerifyOptions() (x509.VerifyOptions, bool) {
	return x509.VerifyOptions{Roots: c.clients.Pool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, true
}

// certificate is for TLS servers.
func (c *credentials) certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return &c.serving.Load().tls, nil
}

var expiry = metrics.NewGaugeVec(&metrics.GaugeOpts{
	Name: "vmesh_certificate_expiry_timestamp_seconds", Help: "When the server's own certificates expire, as Unix time: those of its authorities that sign now, its serving certificate and that in admin.kubeconfig.",
	StabilityLevel: metrics.ALPHA,
}, []string{"name"})

// keeper looks after the server's certificates while it runs.
type keeper struct {
	*credentials
	kubeconfigs *vmesh.Kubeconfigs
	events      *events.Recorder
}

// run is a loop.
func (k *keeper) run(ctx context.Context) error {
	ticker := time.NewTicker(k.options.lifetimes.every)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		k.maintain(func(name string, err error, message string) { k.tell(ctx, name, err, message) })
		if err := k.ensureAdmin(ctx); err != nil && ctx.Err() == nil {
			k.tell(ctx, "admin.kubeconfig", err, "Looking after the administrator's kubeconfig failed")
		}
	}
}

// tell logs what has happened to a certificate, and writes an event in the root.
func (k *keeper) tell(ctx context.Context, name string, err error, message string) {
	kind, reason := corev1.EventTypeNormal, "Renewed"
	if err != nil {
		kind, reason, message = corev1.EventTypeWarning, "RenewalFailed", fmt.Sprintf("%s: %v", message, err)
		klog.FromContext(ctx).Error(err, "Renewing a certificate failed", "certificate", name)
	} else {
		klog.FromContext(ctx).Info("A certificate has changed", "certificate", name, "change", message)
	}
	k.events.Event(ctx, logical.Root, corev1.ObjectReference{Kind: "Certificate", Name: name}, kind, reason, message)
}

// ensureAdmin sees to it that admin.kubeconfig is good for longer than a third of its
// certificate's life, has the server's present address and trusts its authorities. A
// certificate that is replaced stays good until its end, for copies of the file; one
// that was revoked is replaced.
func (k *keeper) ensureAdmin(ctx context.Context) error {
	file := k.options.AdminKubeconfig()
	old, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	cert, key, expires, err := k.adminCertificate(ctx, old)
	if err != nil {
		return err
	}
	expiry.WithLabelValues("admin").Set(float64(expires.Unix()))
	data, err := clientcmd.Write(*Kubeconfig("vmesh", k.options.URL(), defaultAdmin, k.servers.Bundle(), cert, key))
	if err != nil {
		return fmt.Errorf("encoding the administrator's kubeconfig: %w", err)
	}
	if bytes.Equal(data, old) {
		return nil
	}
	return pki.WriteFile(file, data, 0o600)
}

// adminCertificate is the certificate and key of a kubeconfig, or where they will not do
// new ones.
func (k *keeper) adminCertificate(ctx context.Context, kubeconfig []byte) (cert, key []byte, expires time.Time, err error) {
	config, err := clientcmd.Load(kubeconfig)
	if err == nil && config.AuthInfos[defaultAdmin+"@vmesh"] != nil {
		info := config.AuthInfos[defaultAdmin+"@vmesh"]
		leaf, ok := parseLeaf(info.ClientCertificateData)
		if ok && time.Now().Before(pki.RenewAt(leaf)) && k.trusted(leaf) {
			recorded, err := k.kubeconfigs.Good(ctx, authn.RecordOf(leaf), vmesh.Fingerprint(leaf.Raw))
			if err != nil {
				return nil, nil, time.Time{}, err
			}
			if recorded {
				return info.ClientCertificateData, info.ClientKeyData, leaf.NotAfter, nil
			}
		}
	}
	signer, key, err := pki.NewKey()
	if err != nil {
		return nil, nil, time.Time{}, err
	}
	cert, record, err := k.kubeconfigs.Issue(ctx, k.clients, signer.Public(), logical.Root, "",
		pki.Client{User: defaultAdmin, Groups: []string{user.SystemPrivilegedGroup}, TTL: k.options.lifetimes.admin}, &metav1.CreateOptions{})
	if err != nil {
		return nil, nil, time.Time{}, fmt.Errorf("recording the administrator's kubeconfig: %w", err)
	}
	return cert, key, record.Spec.Expires.Time, nil
}

func (k *keeper) trusted(leaf *x509.Certificate) bool {
	options, _ := k.VerifyOptions()
	_, err := leaf.Verify(options)
	return err == nil
}

func parseLeaf(certPEM []byte) (*x509.Certificate, bool) {
	block, _ := pem.Decode(certPEM)
	if block == nil {
		return nil, false
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	return leaf, err == nil
}

const defaultAdmin = "admin"

// Kubeconfig makes a kubeconfig with one context, which is named after the cluster.
func Kubeconfig(cluster, server, user string, ca, cert, key []byte) *clientcmdapi.Config {
	config := clientcmdapi.NewConfig()
	config.Clusters[cluster] = &clientcmdapi.Cluster{Server: server, CertificateAuthorityData: ca}
	name := user + "@" + cluster
	config.AuthInfos[name] = &clientcmdapi.AuthInfo{ClientCertificateData: cert, ClientKeyData: key}
	config.Contexts[cluster] = &clientcmdapi.Context{Cluster: cluster, AuthInfo: name}
	config.CurrentContext = cluster
	return config
}

// keepCertificates makes what looks after the server's certificates and those that it
// has signed.
func (s *Server) keepCertificates(creds *credentials, records *vmesh.Kubeconfigs, recordStore, eventStore *resource.Store) {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	recorder := events.NewRecorder(eventStore, "vmesh", host)
	records.Attach(recordStore)
	records.Record = func(ctx context.Context, o *object.Object, reason, message string) {
		recorder.Event(ctx, logical.Root, events.Reference(o), corev1.EventTypeWarning, reason, message)
	}
	register(append(records.Metrics(), expiry)...)
	s.keeper = &keeper{credentials: creds, kubeconfigs: records, events: recorder}
	s.loops = append(s.loops, s.observe(recordStore, records),
		loop{"kubeconfigs", func(ctx context.Context) error { records.Run(ctx); return nil }},
		loop{"certificates", s.keeper.run})
}

// CertificateInfo tells of one of a server's own certificates.
type CertificateInfo struct {
	// Name is client-ca, server-ca, serving or admin.
	Name    string `json:"name"`
	Subject string `json:"subject"`
	// State is what it does: Signs, Signs later, Trusted (and no longer, or never, signs) or
	// In use; Ended where that is over.
	State   string    `json:"state"`
	Expires time.Time `json:"expires"`
}

// Certificates reads those in a server's data directory, and changes nothing.
func Certificates(dataDir string) ([]CertificateInfo, error) {
	o := &Options{DataDir: dataDir}
	var all []CertificateInfo
	now := time.Now()
	add := func(name, subject, state string, expires time.Time) {
		if now.After(expires) {
			state = "Ended"
		}
		all = append(all, CertificateInfo{Name: name, Subject: subject, State: state, Expires: expires})
	}
	for _, name := range []string{"client-ca", "server-ca"} {
		generations, err := pki.ReadAuthority(o.pkiDir(), name)
		if err != nil {
			return nil, err
		}
		for _, g := range generations {
			state := "Trusted"
			if g.Signing {
				state = "Signs"
			} else if g.Signs.After(now) {
				state = "Signs from " + g.Signs.UTC().Format(time.RFC3339)
			}
			add(name, g.Subject, state, g.Expires)
		}
	}
	serving, err := os.ReadFile(filepath.Join(o.pkiDir(), "server.crt"))
	if err != nil {
		return nil, err
	}
	if leaf, ok := parseLeaf(serving); ok {
		add("serving", leaf.Subject.CommonName, "In use", leaf.NotAfter)
	}
	admin, err := clientcmd.LoadFromFile(o.AdminKubeconfig())
	if err != nil {
		return nil, err
	}
	if info := admin.AuthInfos[defaultAdmin+"@vmesh"]; info != nil {
		if leaf, ok := parseLeaf(info.ClientCertificateData); ok {
			add("admin", leaf.Subject.CommonName, "In use", leaf.NotAfter)
		}
	}
	return all, nil
}
