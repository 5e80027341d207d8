package traffic

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"time"

	"google.golang.org/grpc/credentials"
)

// Trust is the certificate authority of a mesh.
type Trust struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	roots       *x509.CertPool
}

// NewTrust makes one, which is good for a day.
func NewTrust() (*Trust, error) {
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: "mesh"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AddCert(certificate)
	return &Trust{certificate: certificate, key: key, roots: roots}, nil
}

// identity is the certificate of a service account, by its SPIFFE id.
func (t *Trust) identity(namespace, account string) (tls.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: serial, NotBefore: t.certificate.NotBefore, NotAfter: t.certificate.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		URIs:        []*url.URL{{Scheme: "spiffe", Host: "cluster.local", Path: "/ns/" + namespace + "/sa/" + account}},
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, t.certificate, key.Public(), t.key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

// Server are the credentials of a backend: it shows who it is, and calls of those who do not are refused.
func (t *Trust) Server(namespace, account string) (credentials.TransportCredentials, error) {
	certificate, err := t.identity(namespace, account)
	if err != nil {
		return nil, err
	}
	return credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{certificate}, ClientCAs: t.roots, ClientAuth: tls.RequireAndVerifyClientCert}), nil
}

// Client are the credentials of a client that calls a service, of which sni is what gateways are shown. gRPC's own xDS credentials
// would send what they are told by the control plane, and Istio's generator for gRPC tells them no name.
func (t *Trust) Client(namespace, account, sni string) (credentials.TransportCredentials, error) {
	certificate, err := t.identity(namespace, account)
	if err != nil {
		return nil, err
	}
	return named{credentials.NewTLS(&tls.Config{
		Certificates:       []tls.Certificate{certificate},
		InsecureSkipVerify: true, // servers show who they are, and not what they are called: see below
		VerifyConnection: func(state tls.ConnectionState) error {
			if len(state.PeerCertificates) == 0 {
				return errors.New("the server shows no certificate")
			}
			server := state.PeerCertificates[0]
			if _, err := server.Verify(x509.VerifyOptions{Roots: t.roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}); err != nil {
				return err
			}
			if len(server.URIs) != 1 || server.URIs[0].Scheme != "spiffe" || server.URIs[0].Host != "cluster.local" {
				return fmt.Errorf("the server is %v, of another mesh", server.URIs)
			}
			return nil
		},
	}), sni}, nil
}

// named are credentials that send a server name which is not the channel's authority: by that, gRPC looks for the route.
type named struct {
	credentials.TransportCredentials
	name string
}

func (n named) ClientHandshake(ctx context.Context, _ string, connection net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return n.TransportCredentials.ClientHandshake(ctx, n.name, connection)
}

func (n named) Clone() credentials.TransportCredentials {
	return named{n.TransportCredentials.Clone(), n.name}
}
