package harness

import (
	"context"
	"crypto/x509/pkix"
	"errors"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// KubeAPIServerOptions says how to run a kube-apiserver.
type KubeAPIServerOptions struct {
	// Dir takes the log, the certificates and the kubeconfig. Required.
	Dir string
	// EtcdURL is where it stores. Required.
	EtcdURL string
	// Binary is the kube-apiserver to run; built from its module when empty.
	Binary string
	// ExtraArgs go to kube-apiserver last, so they win.
	ExtraArgs []string
}

// KubeAPIServer is a running kube-apiserver with RBAC, service account tokens and the aggregation layer, and without any
// controller: what a host cluster looks like to vmesh and to istiod.
type KubeAPIServer struct {
	*Process
	Port int
	// Kubeconfig is one of system:masters.
	Kubeconfig string
	// PKI is the directory of its certificates and keys.
	PKI string

	options KubeAPIServerOptions
	users   *authority
}

// StartKubeAPIServer starts a kube-apiserver and waits until it is ready.
func StartKubeAPIServer(ctx context.Context, options KubeAPIServerOptions) (*KubeAPIServer, error) {
	if options.Binary == "" {
		binary, err := Tool(ctx, "kube-apiserver")
		if err != nil {
			return nil, err
		}
		options.Binary = binary
	}
	ports, err := FreePorts(1)
	if err != nil {
		return nil, err
	}
	dir, err := filepath.Abs(options.Dir)
	if err != nil {
		return nil, err
	}
	options.Dir = dir
	server := &KubeAPIServer{Port: ports[0], Kubeconfig: filepath.Join(dir, "admin.kubeconfig"), PKI: filepath.Join(dir, "pki"), options: options}
	if server.users, err = writeKubernetesPKI(server.PKI); err != nil {
		return nil, err
	}
	if err := server.WriteKubeconfig(server.Kubeconfig, "admin", "system:masters"); err != nil {
		return nil, err
	}
	return server, server.start(ctx)
}

// Restart stops the server, unless it has ended already, and starts it again on the same port.
func (s *KubeAPIServer) Restart(ctx context.Context) error {
	if err := s.Stop(ctx); err != nil {
		return err
	}
	return s.start(ctx)
}

func (s *KubeAPIServer) start(ctx context.Context) error {
	file := func(name string) string { return filepath.Join(s.PKI, name) }
	process, err := StartProcess("kube-apiserver", filepath.Join(s.options.Dir, "kube-apiserver.log"), exec.Command(s.options.Binary, append([]string{
		"--etcd-servers", s.options.EtcdURL,
		"--bind-address", "127.0.0.1",
		"--advertise-address", "127.0.0.1",
		"--secure-port", strconv.Itoa(s.Port),
		// It would publish its own address, and loopback is not a legal one.
		"--endpoint-reconciler-type", "none",
		"--service-cluster-ip-range", "10.0.0.0/24",
		"--authorization-mode", "RBAC",
		"--client-ca-file", file("ca.crt"),
		"--tls-cert-file", file("server.crt"),
		"--tls-private-key-file", file("server.key"),
		"--service-account-issuer", "https://kubernetes.default.svc",
		"--service-account-key-file", file("service-account.key"),
		"--service-account-signing-key-file", file("service-account.key"),
		"--requestheader-client-ca-file", file("front-proxy-ca.crt"),
		"--requestheader-allowed-names", "front-proxy",
		"--requestheader-username-headers", "X-Remote-User",
		"--requestheader-group-headers", "X-Remote-Group",
		"--requestheader-extra-headers-prefix", "X-Remote-Extra-",
		"--proxy-client-cert-file", file("front-proxy.crt"),
		"--proxy-client-key-file", file("front-proxy.key"),
	}, s.options.ExtraArgs...)...))
	if err != nil {
		return err
	}
	s.Process = process
	if err := s.waitReady(ctx, func(ctx context.Context) error { return apiReady(ctx, s.Kubeconfig) }); err != nil {
		return errors.Join(err, s.Kill())
	}
	return nil
}

// URL is where the API is.
func (s *KubeAPIServer) URL() string { return "https://" + loopback(s.Port) }

// WriteKubeconfig writes a kubeconfig of a user with groups, by a client certificate.
func (s *KubeAPIServer) WriteKubeconfig(file, user string, groups ...string) error {
	certificate, err := s.users.issue(pkix.Name{CommonName: user, Organization: groups})
	if err != nil {
		return err
	}
	config := clientcmdapi.NewConfig()
	config.Clusters["kubernetes"] = &clientcmdapi.Cluster{Server: s.URL(), CertificateAuthorityData: s.users.pem}
	config.AuthInfos[user] = &clientcmdapi.AuthInfo{ClientCertificateData: certificate.cert, ClientKeyData: certificate.key}
	config.Contexts[user] = &clientcmdapi.Context{Cluster: "kubernetes", AuthInfo: user}
	config.CurrentContext = user
	return clientcmd.WriteToFile(*config, file)
}

// StartControllers runs a kube-controller-manager with the controllers of those names, each as the service account that it
// has in any cluster. It returns when the process has started; the controllers take a few seconds more.
func (s *KubeAPIServer) StartControllers(ctx context.Context, controllers ...string) (*Process, error) {
	binary, err := Tool(ctx, "kube-controller-manager")
	if err != nil {
		return nil, err
	}
	kubeconfig := filepath.Join(s.options.Dir, "controllers.kubeconfig")
	if err := s.WriteKubeconfig(kubeconfig, "system:kube-controller-manager"); err != nil {
		return nil, err
	}
	return StartProcess("kube-controller-manager", filepath.Join(s.options.Dir, "kube-controller-manager.log"), exec.Command(binary,
		"--kubeconfig", kubeconfig,
		"--controllers", strings.Join(controllers, ","),
		"--use-service-account-credentials",
		"--service-account-private-key-file", filepath.Join(s.PKI, "service-account.key"),
		"--leader-elect=false",
		"--secure-port", "0",
	))
}

// writeKubernetesPKI writes a fresh set of keys: one authority for the server and its users, another for the front proxy,
// as those who may say who a request comes from must not be those who make requests. It returns the users' authority.
func writeKubernetesPKI(dir string) (*authority, error) {
	ca, err := newAuthority("kubernetes")
	if err != nil {
		return nil, err
	}
	frontProxyCA, err := newAuthority("front-proxy-ca")
	if err != nil {
		return nil, err
	}
	server, err := ca.issue(pkix.Name{CommonName: "kube-apiserver"})
	if err != nil {
		return nil, err
	}
	frontProxy, err := frontProxyCA.issue(pkix.Name{CommonName: "front-proxy"})
	if err != nil {
		return nil, err
	}
	_, serviceAccountKey, err := newKey()
	if err != nil {
		return nil, err
	}
	return ca, writePKI(dir, map[string][]byte{
		"ca.crt":              ca.pem,
		"server.crt":          server.cert,
		"server.key":          server.key,
		"service-account.key": serviceAccountKey,
		"front-proxy-ca.crt":  frontProxyCA.pem,
		"front-proxy.crt":     frontProxy.cert,
		"front-proxy.key":     frontProxy.key,
	})
}
