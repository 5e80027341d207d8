package pki

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func parse(t *testing.T, certPEM []byte) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(certPEM)
	if block == nil {
		t.Fatal("not PEM")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func authority(t *testing.T, dir string) *Authority {
	t.Helper()
	a, err := LoadOrCreateAuthority(dir, "ca")
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestAnAuthorityIsMadeOnce(t *testing.T) {
	dir := t.TempDir()
	if first, second := authority(t, dir), authority(t, dir); string(first.Bundle()) != string(second.Bundle()) {
		t.Error("a second authority was made")
	}
	info, err := os.Stat(filepath.Join(dir, "ca.key"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key's mode is %v, %v", info.Mode(), err)
	}
}

func TestHalfAnAuthorityIsAnError(t *testing.T) {
	dir := t.TempDir()
	authority(t, dir)
	if err := os.Remove(filepath.Join(dir, "ca.key")); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadOrCreateAuthority(dir, "ca"); err == nil {
		t.Error("a certificate without its key was taken, or written over")
	}
}

func TestAServingCertificateIsKeptWhileItServes(t *testing.T) {
	dir := t.TempDir()
	a := authority(t, dir)
	serve := func(a *Authority, hosts ...string) string {
		t.Helper()
		p, _, err := a.LoadOrCreateServing(dir, "server", Serving{CommonName: "vmesh", Hosts: hosts})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tls.X509KeyPair(p.Cert, p.Key); err != nil {
			t.Fatal(err)
		}
		return string(p.Cert)
	}
	first := serve(a, "localhost", "127.0.0.1")
	if serve(a, "127.0.0.1") != first {
		t.Error("it was made anew though it had every host")
	}
	second := serve(a, "localhost", "vmesh.example.com")
	if second == first {
		t.Error("it was kept though it lacks a host")
	}
	if serve(authority(t, t.TempDir()), "localhost") == second {
		t.Error("it was kept though another authority signed it")
	}
}

func TestClientCertificates(t *testing.T) {
	a := authority(t, t.TempDir())
	key, _, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	request, err := NewRequest(key)
	if err != nil {
		t.Fatal(err)
	}
	public, err := ParseRequest(request)
	if err != nil {
		t.Fatal(err)
	}
	uri := &url.URL{Scheme: "vmesh", Host: "clusters", Path: "/shop"}
	certPEM, notAfter, err := a.IssueClient(public, Client{User: "alice", Groups: []string{"team"}, URI: uri, TTL: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	cert := parse(t, certPEM)
	pool := a.Pool()
	if _, err := cert.Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Error(err)
	}
	if _, err := cert.Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}); err == nil {
		t.Error("a client's certificate can serve")
	}
	if cert.Subject.CommonName != "alice" || len(cert.URIs) != 1 || cert.URIs[0].String() != uri.String() {
		t.Errorf("issued for %v, %v", cert.Subject, cert.URIs)
	}
	if left := time.Until(notAfter); left > time.Hour || left < 59*time.Minute {
		t.Errorf("good for %s", left)
	}
	if _, notAfter, err = a.IssueClient(public, Client{User: "a", URI: uri, TTL: 100 * 365 * 24 * time.Hour}); err != nil || notAfter.After(parse(t, a.Bundle()).NotAfter) {
		t.Errorf("it outlives its authority: %v, %v", notAfter, err)
	}
}

func TestRequestsThatAreNone(t *testing.T) {
	key, keyPEM, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	request, err := NewRequest(key)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(request)
	block.Bytes[len(block.Bytes)-1] ^= 1 // the signature
	for name, data := range map[string][]byte{"nothing": nil, "a key": keyPEM, "a broken signature": pem.EncodeToMemory(block)} {
		if _, err := ParseRequest(data); err == nil {
			t.Errorf("%s was taken for a request", name)
		}
	}
}
