package pki

import (
	"bytes"
	"crypto/x509"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	clocktesting "k8s.io/utils/clock/testing"
)

const day = 24 * time.Hour

// world is an authority under a clock of the test's own.
type world struct {
	*testing.T
	dir   string
	clock *clocktesting.FakePassiveClock
	ca    *Authority
}

func newWorld(t *testing.T) *world {
	w := &world{T: t, dir: t.TempDir(), clock: clocktesting.NewFakePassiveClock(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC))}
	w.ca = w.open()
	return w
}

func (w *world) open() *Authority {
	w.Helper()
	a, err := OpenAuthority(AuthorityConfig{Dir: w.dir, Name: "ca", Lifetime: 100 * day, Clock: w.clock})
	if err != nil {
		w.Fatal(err)
	}
	return a
}

// after lets time pass, with the maintenance that a running server does.
func (w *world) after(d time.Duration) {
	w.Helper()
	for end := w.clock.Now().Add(d); w.clock.Now().Before(end); {
		w.clock.SetTime(w.clock.Now().Add(min(day, end.Sub(w.clock.Now()))))
		if _, err := w.ca.Maintain(); err != nil {
			w.Fatal(err)
		}
	}
}

func (w *world) serving() Pair {
	w.Helper()
	p, _, err := w.ca.LoadOrCreateServing(w.dir, "server", Serving{Hosts: []string{"localhost"}, Lifetime: 30 * day})
	if err != nil {
		w.Fatal(err)
	}
	return p
}

func (w *world) client(ttl time.Duration) *x509.Certificate {
	w.Helper()
	key, _, err := NewKey()
	if err != nil {
		w.Fatal(err)
	}
	certPEM, _, err := w.ca.IssueClient(key.Public(), Client{User: "alice", URI: &url.URL{Scheme: "vmesh", Host: "clusters", Path: "/shop"}, TTL: ttl})
	if err != nil {
		w.Fatal(err)
	}
	return parse(w.T, certPEM)
}

func (w *world) accepted(cert *x509.Certificate) bool {
	_, err := cert.Verify(x509.VerifyOptions{Roots: w.ca.Pool(), CurrentTime: w.clock.Now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	return err == nil
}

// trusts says whether a client that was once given a bundle talks to the server of now.
func (w *world) trusts(bundle []byte) error {
	w.Helper()
	chain, err := parseCerts(w.serving().Cert)
	if err != nil {
		w.Fatal(err)
	}
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	roots.AppendCertsFromPEM(bundle)
	for _, cert := range chain[1:] {
		intermediates.AddCert(cert)
	}
	_, err = chain[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: intermediates, CurrentTime: w.clock.Now(), DNSName: "localhost"})
	return err
}

func TestAnAuthorityIsFollowedBeforeItEnds(t *testing.T) {
	w := newWorld(t)
	first := w.ca.Generations()[0]
	w.after(79 * day)
	if all := w.ca.Generations(); len(all) != 1 {
		t.Fatalf("with a fifth of its life left there are %v", all)
	}
	old := w.client(20 * day)
	w.after(2 * day)
	all := w.ca.Generations()
	if len(all) != 2 || !all[1].Signing || all[1].Subject != first.Subject {
		t.Fatalf("after four fifths there are %v", all)
	}
	if begins := all[0].Signs; !begins.Equal(first.Expires.Add(-10 * day)) {
		t.Errorf("the following one signs from %s on", begins)
	}
	w.after(10 * day)
	if all := w.ca.Generations(); len(all) != 2 || !all[0].Signing {
		t.Fatalf("after nine tenths there are %v", all)
	}
	fresh := w.client(50 * day)
	if !w.accepted(old) || !w.accepted(fresh) {
		t.Error("what the two have signed is not accepted from both")
	}
	if another := w.open(); !slices.Equal(another.Generations(), w.ca.Generations()) || !bytes.Equal(another.Bundle(), w.ca.Bundle()) {
		t.Error("a restart reads something else")
	}
	w.after(10 * day)
	if all := w.ca.Generations(); len(all) != 1 || all[0].Subject == first.Subject {
		t.Errorf("when the first has ended there are %v", all)
	}
	if w.accepted(old) || !w.accepted(fresh) {
		t.Error("what the first has signed outlives it, or what the second has signed does not")
	}
	w.after(1000 * day)
	if cert := w.client(day); !w.accepted(cert) {
		t.Error("after ten lives nothing is signed any more")
	}
}

func TestClientsOfEitherAuthorityTrustTheServerWhileItsCertificatesChange(t *testing.T) {
	w := newWorld(t)
	first, served := w.ca.Bundle(), w.serving()
	between, handedOver := []byte(nil), []byte(nil)
	renewals := 0
	for d := range 99 {
		w.after(day)
		if now := w.serving(); !bytes.Equal(now.Cert, served.Cert) {
			renewals++
			served = now
		}
		if left := served.Expires.Sub(w.clock.Now()); left < 9*day && d < 89 {
			t.Fatalf("day %d: the serving certificate is good for %s", d, left)
		}
		switch d {
		case 85:
			between = w.ca.Bundle()
		case 95:
			handedOver = w.ca.Bundle()
		}
		for name, bundle := range map[string][]byte{"the first": first, "the two": between, "the two, the second signing": handedOver} {
			if bundle == nil {
				continue
			}
			if err := w.trusts(bundle); err != nil {
				t.Fatalf("day %d: a client that was given %s: %v", d, name, err)
			}
		}
	}
	if renewals < 4 || renewals > 6 {
		t.Errorf("the serving certificate was made %d times", renewals)
	}
	w.after(10 * day)
	if err := w.trusts(between); err != nil {
		t.Errorf("a client that was given both, when the first has ended: %v", err)
	}
	if err := w.trusts(first); err == nil {
		t.Error("a client that knows only what has ended trusts the server")
	}
}

func TestAnAuthorityIsRotatedOnDemand(t *testing.T) {
	w := newWorld(t)
	old, bundle := w.client(50*day), w.ca.Bundle()
	// Another process, as the command is.
	if err := w.open().Rotate(time.Hour); err != nil {
		t.Fatal(err)
	}
	if err := w.open().Rotate(0); err == nil || !strings.Contains(err.Error(), "is being rotated") {
		t.Errorf("a second one at once: %v", err)
	}
	notes, err := w.ca.Maintain()
	if err != nil || len(notes) != 1 {
		t.Errorf("the running server says %q, %v", notes, err)
	}
	if all := w.ca.Generations(); len(all) != 2 || !all[1].Signing {
		t.Fatalf("before its time there are %v", all)
	}
	w.after(2 * time.Hour)
	if all := w.ca.Generations(); !all[0].Signing {
		t.Fatalf("an hour later there are %v", all)
	}
	if fresh := w.client(day); !w.accepted(old) || !w.accepted(fresh) {
		t.Error("what the two have signed is not accepted from both")
	}
	if err := w.trusts(bundle); err != nil {
		t.Error(err)
	}

	if err := w.open().Replace(); err != nil {
		t.Fatal(err)
	}
	w.after(time.Second)
	if all := w.ca.Generations(); len(all) != 1 || !all[0].Signing {
		t.Errorf("after a replacement there are %v", all)
	}
	if w.accepted(old) || !w.accepted(w.client(day)) {
		t.Error("what was signed before is accepted, or what is signed now is not")
	}
	if w.trusts(bundle) == nil {
		t.Error("who knows the old ones trusts what the new one signs")
	}
	keys, err := os.ReadFile(filepath.Join(w.dir, "ca.key"))
	if err != nil || bytes.Count(keys, []byte("BEGIN")) != 1 {
		t.Errorf("the old keys are kept: %v", err)
	}
}

func TestACertificateWithoutAKeyIsTrustedAndDoesNotSign(t *testing.T) {
	w, other := newWorld(t), newWorld(t)
	file := filepath.Join(w.dir, "ca.crt")
	if err := WriteFile(file, slices.Concat(other.ca.Bundle(), w.ca.Bundle()), 0o644); err != nil {
		t.Fatal(err)
	}
	w.after(time.Second)
	foreign := other.client(day)
	if !w.accepted(foreign) || other.accepted(w.client(day)) {
		t.Error("it is not trusted, or it signed")
	}
	w.serving()
	if err := w.trusts(w.ca.Bundle()); err != nil {
		t.Error(err)
	}
	before := w.ca.Bundle()
	for name, data := range map[string]string{"nothing": "", "no certificate": "garbage", "another's alone": string(other.ca.Bundle())} {
		if err := WriteFile(file, []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := w.ca.Maintain(); err == nil {
			t.Errorf("%s is no error", name)
		}
		if !bytes.Equal(w.ca.Bundle(), before) {
			t.Errorf("%s took the place of what was good", name)
		}
	}
}

func TestFilesAreNeverFoundHalfWritten(t *testing.T) {
	w := newWorld(t)
	done := make(chan error, 1)
	go func() {
		var err error
		for i := 0; i < 30 && err == nil; i++ {
			if err = w.ca.Rotate(0); err == nil && i%3 == 2 {
				err = w.ca.Replace()
			}
		}
		done <- err
	}()
	for {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			return
		default:
			w.open()
		}
	}
}
