package apiserver

import (
	"fmt"
	"net/url"
	"os"
	"time"

	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/vmesh-io/vmesh/pkg/authn"
	"github.com/vmesh-io/vmesh/pkg/pki"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// adminTTL is how long the administrator's certificate is good; each start makes a new one.
const adminTTL = 365 * 24 * time.Hour

// credentials are the files under the data directory that make the server's identity.
type credentials struct {
	clients, servers  *pki.Authority
	certFile, keyFile string
	clientCAFile      string
}

// ensureCredentials makes what is missing.
func ensureCredentials(o *Options) (*credentials, error) {
	dir := o.pkiDir()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("--data-dir: %w: give a directory that this user can write", err)
	}
	c := &credentials{clientCAFile: dir + "/client-ca.crt"}
	var err error
	if c.clients, err = pki.LoadOrCreateAuthority(dir, "client-ca"); err != nil {
		return nil, err
	}
	if c.servers, err = pki.LoadOrCreateAuthority(dir, "server-ca"); err != nil {
		return nil, err
	}
	hosts := o.hosts()
	if u, err := url.Parse(o.URL()); err == nil && u.Hostname() != "" {
		hosts = append(hosts, u.Hostname())
	}
	c.certFile, c.keyFile, err = c.servers.LoadOrCreateServing(dir, "server", pki.Serving{CommonName: "vmesh", Hosts: hosts})
	if err != nil {
		return nil, err
	}
	return c, c.writeAdminKubeconfig(o)
}

func (c *credentials) writeAdminKubeconfig(o *Options) error {
	key, keyPEM, err := pki.NewKey()
	if err != nil {
		return err
	}
	cert, _, err := c.clients.IssueClient(key.Public(), pki.Client{
		User: defaultAdmin, Groups: []string{user.SystemPrivilegedGroup}, URI: authn.ClusterURI(logical.Root, ""), TTL: adminTTL,
	})
	if err != nil {
		return err
	}
	data, err := clientcmd.Write(*Kubeconfig("vmesh", o.URL(), defaultAdmin, c.servers.PEM, cert, keyPEM))
	if err != nil {
		return fmt.Errorf("encoding the administrator's kubeconfig: %w", err)
	}
	return pki.WriteFile(o.AdminKubeconfig(), data, 0o600)
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
