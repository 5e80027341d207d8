// Package pki makes the certificates that vmesh starts with and those that it
// issues: one authority for its clients and one for its own serving certificates. It
// renews them while nobody looks.
package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"time"
)

const (
	// ServingLifetime is how long a serving certificate is good unless it is said otherwise.
	ServingLifetime = 365 * 24 * time.Hour
	// renewedAt is the part of a certificate's life that is left when it is made anew.
	renewedAt = 3
)

// RenewAt is when a certificate that vmesh made is to be made anew: when a third of its
// life is left.
func RenewAt(cert *x509.Certificate) time.Time {
	return cert.NotAfter.Add(-member{cert: cert}.life() / renewedAt)
}

// Serving is what a serving certificate is to be good for.
type Serving struct {
	CommonName string
	Hosts      []string // DNS names and IP addresses
	// Lifetime is how long it is good; ServingLifetime when 0.
	Lifetime time.Duration
}

// Pair is a certificate, with those that lead to an authority, and its key, in PEM form.
type Pair struct {
	Cert, Key []byte
	Expires   time.Time
}

// LoadOrCreateServing gives a serving certificate, kept in dir/NAME.crt and dir/NAME.key.
// One is made when there is none, when a third of its life is left, when it lacks a
// host, or when its authority has been followed by another; made says so.
func (a *Authority) LoadOrCreateServing(dir, name string, want Serving) (p Pair, made bool, err error) {
	certFile, keyFile := filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key")
	signer, err := a.signer()
	if err != nil {
		return Pair{}, false, err
	}
	if p, err := readPair(certFile, keyFile); err == nil && a.stillServes(p, signer, want) {
		return p, false, nil
	}
	key, err := newKey()
	if err != nil {
		return Pair{}, false, err
	}
	if want.Lifetime == 0 {
		want.Lifetime = ServingLifetime
	}
	now := a.Clock.Now()
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: want.CommonName},
		NotBefore:   now.Add(-clockSkew),
		NotAfter:    now.Add(want.Lifetime),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if template.NotAfter.After(signer.cert.NotAfter) {
		template.NotAfter = signer.cert.NotAfter
	}
	for _, h := range want.Hosts {
		if ip := net.ParseIP(h); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	der, err := sign(template, signer.cert, key.Public(), signer.key)
	if err != nil {
		return Pair{}, false, err
	}
	p = Pair{Cert: encodeCert(der), Expires: template.NotAfter}
	crosses, err := a.crosses(signer)
	if err != nil {
		return Pair{}, false, err
	}
	for _, cross := range crosses {
		p.Cert = append(p.Cert, encodeCert(cross)...)
	}
	if p.Key, err = encodeKey(key); err != nil {
		return Pair{}, false, err
	}
	if err := WriteFile(keyFile, p.Key, 0o600); err != nil {
		return Pair{}, false, err
	}
	return p, true, WriteFile(certFile, p.Cert, 0o644)
}

func (a *Authority) stillServes(p Pair, signer member, want Serving) bool {
	chain, err := parseCerts(p.Cert)
	if err != nil {
		return false
	}
	before := a.before(signer)
	if chain[0].CheckSignatureFrom(signer.cert) != nil || len(chain) != 1+len(before) {
		return false
	}
	for i, m := range before {
		if chain[i+1].CheckSignatureFrom(m.cert) != nil {
			return false
		}
	}
	// One that ends with its authority cannot be made to last longer.
	if a.Clock.Now().After(RenewAt(chain[0])) && chain[0].NotAfter.Before(signer.cert.NotAfter) {
		return false
	}
	return !slices.ContainsFunc(want.Hosts, func(h string) bool { return chain[0].VerifyHostname(h) != nil })
}

// Client is whom a client certificate is for.
type Client struct {
	User   string
	Groups []string
	// URI binds the certificate; see package authn.
	URI *url.URL
	TTL time.Duration
}

// IssueClient signs a client certificate for a public key. It does not outlive the authority.
func (a *Authority) IssueClient(public crypto.PublicKey, c Client) (certPEM []byte, notAfter time.Time, err error) {
	signer, err := a.signer()
	if err != nil {
		return nil, time.Time{}, err
	}
	now := a.Clock.Now()
	// Certificates know whole seconds.
	notAfter = now.Add(c.TTL).Truncate(time.Second)
	if notAfter.After(signer.cert.NotAfter) {
		notAfter = signer.cert.NotAfter
	}
	der, err := sign(&x509.Certificate{
		Subject:     pkix.Name{CommonName: c.User, Organization: c.Groups},
		NotBefore:   now.Add(-clockSkew),
		NotAfter:    notAfter,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		URIs:        []*url.URL{c.URI},
	}, signer.cert, public, signer.key)
	if err != nil {
		return nil, time.Time{}, err
	}
	return encodeCert(der), notAfter, nil
}

// NewKey makes a private key; the PEM form is PKCS #8.
func NewKey() (crypto.Signer, []byte, error) {
	key, err := newKey()
	if err != nil {
		return nil, nil, err
	}
	keyPEM, err := encodeKey(key)
	return key, keyPEM, err
}

// NewRequest makes a certificate request in PEM form, signed by the key.
func NewRequest(key crypto.Signer) ([]byte, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, fmt.Errorf("making the certificate request: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), nil
}

// ParseRequest reads a certificate request's public key, after checking that who asks
// holds its private half.
func ParseRequest(requestPEM []byte) (crypto.PublicKey, error) {
	block, _ := pem.Decode(requestPEM)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return nil, errors.New("not a certificate request in PEM form")
	}
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	if err := request.CheckSignature(); err != nil {
		return nil, err
	}
	return request.PublicKey, nil
}

func newKey() (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making a private key: %w", err)
	}
	return key, nil
}

func newSerial() (*big.Int, error) {
	return rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
}

// sign makes a certificate; without a serial number it gets a random one.
func sign(template, parent *x509.Certificate, public crypto.PublicKey, signer crypto.Signer) ([]byte, error) {
	if template.SerialNumber == nil {
		serial, err := newSerial()
		if err != nil {
			return nil, err
		}
		template.SerialNumber = serial
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, signer)
	if err != nil {
		return nil, fmt.Errorf("signing a certificate: %w", err)
	}
	return der, nil
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

// WriteFile writes a file whole or not at all.
func WriteFile(name string, data []byte, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+"-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if err := errors.Join(f.Chmod(mode), write(f, data), f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	return os.Rename(f.Name(), name)
}

func write(f *os.File, data []byte) error {
	_, err := f.Write(data)
	return err
}

// readPair reads a certificate and its key.
func readPair(certFile, keyFile string) (Pair, error) {
	certPEM, err := os.ReadFile(certFile)
	if err != nil {
		return Pair{}, err
	}
	keyPEM, err := os.ReadFile(keyFile)
	if err != nil {
		return Pair{}, err
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return Pair{}, err
	}
	return Pair{Cert: certPEM, Key: keyPEM, Expires: pair.Leaf.NotAfter}, nil
}
