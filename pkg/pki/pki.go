// Package pki makes the certificates that vmesh starts with and those that it
// issues: one authority for its clients and one for its own serving certificates.
package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
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
	authorityLifetime = 10 * 365 * 24 * time.Hour
	servingLifetime   = 365 * 24 * time.Hour
	// renewBefore is how long before its end a serving certificate is made anew at start.
	renewBefore = servingLifetime / 3
	// clockSkew is how far into the past certificates are valid, for clients whose clocks are behind.
	clockSkew = 5 * time.Minute
)

// Authority signs certificates. It is safe for concurrent use.
type Authority struct {
	cert *x509.Certificate
	key  crypto.Signer
	// PEM is the authority's own certificate.
	PEM []byte
}

// LoadOrCreateAuthority reads an authority from dir/NAME.crt and dir/NAME.key, or
// makes it there when neither exists.
func LoadOrCreateAuthority(dir, name string) (*Authority, error) {
	certFile, keyFile := filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key")
	if !exists(certFile) && !exists(keyFile) {
		key, err := newKey()
		if err != nil {
			return nil, err
		}
		template := &x509.Certificate{
			Subject:               pkix.Name{CommonName: "vmesh-" + name},
			NotBefore:             time.Now().Add(-clockSkew),
			NotAfter:              time.Now().Add(authorityLifetime),
			KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
			BasicConstraintsValid: true,
			IsCA:                  true,
		}
		der, err := sign(template, template, key.Public(), key)
		if err != nil {
			return nil, err
		}
		if err := writePair(certFile, keyFile, der, key); err != nil {
			return nil, err
		}
	}
	cert, key, certPEM, err := readPair(certFile, keyFile)
	if err != nil {
		return nil, fmt.Errorf("reading the certificate authority: %w", err)
	}
	return &Authority{cert: cert, key: key, PEM: certPEM}, nil
}

// Serving is what a serving certificate is to be good for.
type Serving struct {
	CommonName string
	Hosts      []string // DNS names and IP addresses
}

// LoadOrCreateServing gives the files of a serving certificate. One is made when there
// is none, when it ends soon, lacks a host, or was signed by another authority.
func (a *Authority) LoadOrCreateServing(dir, name string, want Serving) (certFile, keyFile string, err error) {
	certFile, keyFile = filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key")
	if exists(certFile) && exists(keyFile) {
		cert, _, _, err := readPair(certFile, keyFile)
		if err == nil && a.stillServes(cert, want) {
			return certFile, keyFile, nil
		}
	}
	key, err := newKey()
	if err != nil {
		return "", "", err
	}
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: want.CommonName},
		NotBefore:   time.Now().Add(-clockSkew),
		NotAfter:    time.Now().Add(servingLifetime),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, h := range want.Hosts {
		if ip := net.ParseIP(h); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	der, err := sign(template, a.cert, key.Public(), a.key)
	if err != nil {
		return "", "", err
	}
	return certFile, keyFile, writePair(certFile, keyFile, der, key)
}

func (a *Authority) stillServes(cert *x509.Certificate, want Serving) bool {
	if time.Until(cert.NotAfter) < renewBefore || cert.CheckSignatureFrom(a.cert) != nil {
		return false
	}
	return !slices.ContainsFunc(want.Hosts, func(h string) bool { return cert.VerifyHostname(h) != nil })
}

// Client is whom a client certificate is for.
type Client struct {
	User   string
	Groups []string
	// URI binds the certificate; see package authn.
	URI *url.URL
	TTL time.Duration
}

// IssueClient signs a client certificate for a public key.
func (a *Authority) IssueClient(public crypto.PublicKey, c Client) (certPEM []byte, notAfter time.Time, err error) {
	notAfter = time.Now().Add(c.TTL)
	if notAfter.After(a.cert.NotAfter) {
		notAfter = a.cert.NotAfter
	}
	der, err := sign(&x509.Certificate{
		Subject:     pkix.Name{CommonName: c.User, Organization: c.Groups},
		NotBefore:   time.Now().Add(-clockSkew),
		NotAfter:    notAfter,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		URIs:        []*url.URL{c.URI},
	}, a.cert, public, a.key)
	if err != nil {
		return nil, time.Time{}, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), notAfter, nil
}

// NewKey makes a private key; the PEM form is PKCS #8.
func NewKey() (crypto.Signer, []byte, error) {
	key, err := newKey()
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("encoding the private key: %w", err)
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
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

func sign(template, parent *x509.Certificate, public crypto.PublicKey, signer crypto.Signer) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial
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

// writePair writes the key before the certificate, each whole or not at all.
func writePair(certFile, keyFile string, der []byte, key *ecdsa.PrivateKey) error {
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("encoding the private key: %w", err)
	}
	if err := WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), 0o600); err != nil {
		return err
	}
	return WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644)
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

func readPair(certFile, keyFile string) (*x509.Certificate, crypto.Signer, []byte, error) {
	certPEM, err := os.ReadFile(certFile)
	if err != nil {
		return nil, nil, nil, err
	}
	keyPEM, err := os.ReadFile(keyFile)
	if err != nil {
		return nil, nil, nil, err
	}
	certBlock, _ := pem.Decode(certPEM)
	keyBlock, _ := pem.Decode(keyPEM)
	if certBlock == nil || keyBlock == nil {
		return nil, nil, nil, fmt.Errorf("%s or %s is not in PEM form", certFile, keyFile)
	}
	cert, err := x509.ParseCertificate(certBlock.Bytes)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("%s: %w", certFile, err)
	}
	key, err := x509.ParsePKCS8PrivateKey(keyBlock.Bytes)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("%s: %w", keyFile, err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, nil, nil, fmt.Errorf("%s: a %T cannot sign", keyFile, key)
	}
	return cert, signer, certPEM, nil
}
