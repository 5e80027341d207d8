package relay

import (
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/pflag"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Credentials are what a relay shows to vmesh, and knows it by. They are asked for at each
// connection, so that what has been replaced meanwhile is used.
type Credentials interface {
	// TLS is for a connection to a host.
	TLS(host string) (*tls.Config, error)
	// Token is a bearer token to show, or empty.
	Token() (string, error)
}

// Identity names the files that a relay's credentials are in: a kubeconfig, or single files.
type Identity struct {
	Kubeconfig                                   string
	CertificateAuthority, ClientCertificate, Key string
	TokenFile                                    string
	ServerName                                   string
}

func (i *Identity) addFlags(fs *pflag.FlagSet) {
	fs.StringVar(&i.Kubeconfig, "kubeconfig", i.Kubeconfig, "A kubeconfig for the root, with the relay's client certificate or token and vmesh's authority. Its server is not looked at.")
	fs.StringVar(&i.CertificateAuthority, "certificate-authority", i.CertificateAuthority, "The authority of vmesh's certificate, in place of --kubeconfig; by default the system's.")
	fs.StringVar(&i.ClientCertificate, "client-certificate", i.ClientCertificate, "The relay's client certificate, in place of --kubeconfig.")
	fs.StringVar(&i.Key, "client-key", i.Key, "The key of --client-certificate.")
	fs.StringVar(&i.TokenFile, "token-file", i.TokenFile, "A file with a bearer token of a user of the root, in place of a client certificate.")
	fs.StringVar(&i.ServerName, "tls-server-name", i.ServerName, "The name that vmesh's certificate must be good for; by default the host of the address.")
}

func (i *Identity) validate() error {
	single := i.CertificateAuthority + i.ClientCertificate + i.Key + i.TokenFile
	switch {
	case i.Kubeconfig == "" && i.ClientCertificate == "" && i.TokenFile == "":
		return errors.New("--kubeconfig: it is not given, and vmesh serves relays by their identity only: make one with vmesh kubeconfig create root, or give --client-certificate and --client-key, or --token-file")
	case i.Kubeconfig != "" && single != "":
		return errors.New("--kubeconfig: give it, or --certificate-authority, --client-certificate, --client-key and --token-file, but not both")
	case (i.ClientCertificate == "") != (i.Key == ""):
		return errors.New("--client-certificate and --client-key: give both or neither")
	}
	if _, err := i.TLS("localhost"); err != nil {
		return err
	}
	_, err := i.Token()
	return err
}

func (i *Identity) config() (*rest.Config, string, error) {
	if i.Kubeconfig == "" {
		return &rest.Config{
			TLSClientConfig: rest.TLSClientConfig{CAFile: i.CertificateAuthority, CertFile: i.ClientCertificate, KeyFile: i.Key}, BearerTokenFile: i.TokenFile,
		}, "--client-certificate, --client-key, --certificate-authority, --token-file", nil
	}
	config, err := clientcmd.BuildConfigFromFlags("", i.Kubeconfig)
	if err != nil {
		return nil, "", fmt.Errorf("--kubeconfig: %w", err)
	}
	return config, "--kubeconfig " + i.Kubeconfig, nil
}

// TLS implements Credentials.
func (i *Identity) TLS(host string) (*tls.Config, error) {
	from, flag, err := i.config()
	if err != nil {
		return nil, err
	}
	if from.Insecure {
		return nil, fmt.Errorf("%s: insecure-skip-tls-verify is not for a relay: give the authority of vmesh's certificate", flag)
	}
	if from.ExecProvider != nil || from.AuthProvider != nil || from.Username != "" {
		return nil, fmt.Errorf("%s: the user must have a client certificate or a token: programs and passwords are not for a relay", flag)
	}
	config, err := rest.TLSConfigFor(from)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	if config == nil {
		config = &tls.Config{}
	}
	config.MinVersion = tls.VersionTLS13
	if i.ServerName != "" {
		config.ServerName = i.ServerName
	}
	if config.ServerName == "" {
		config.ServerName = host
	}
	return config, nil
}

// Token implements Credentials.
func (i *Identity) Token() (string, error) {
	from, flag, err := i.config()
	if err != nil {
		return "", err
	}
	if from.BearerTokenFile == "" {
		return from.BearerToken, nil
	}
	data, err := os.ReadFile(from.BearerTokenFile)
	if err != nil {
		return "", fmt.Errorf("%s: %w", flag, err)
	}
	token := strings.TrimSpace(string(data))
	if token == "" {
		return "", fmt.Errorf("%s: %s is empty", flag, from.BearerTokenFile)
	}
	return token, nil
}
