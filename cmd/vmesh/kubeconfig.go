package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/apiserver"
	"github.com/vmesh-io/vmesh/pkg/pki"
)

// What the server allows.
const (
	minTTL = 10 * time.Minute
	maxTTL = 87600 * time.Hour
)

// rootAccess is how a command reaches the root.
type rootAccess struct {
	dataDir    string
	kubeconfig string
}

func (a *rootAccess) addFlags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&a.dataDir, "data-dir", apiserver.NewOptions().DataDir, "The data directory of a server on this machine, for its administrator's kubeconfig.")
	cmd.Flags().StringVar(&a.kubeconfig, "kubeconfig", "", "The kubeconfig of the root's administrator, from another machine.")
	cmd.MarkFlagsMutuallyExclusive("data-dir", "kubeconfig")
	_ = cmd.MarkFlagDirname("data-dir")
}

// client is a REST client for vmesh's own API in the root.
func (a *rootAccess) client() (*rest.RESTClient, error) {
	file := a.kubeconfig
	if file == "" {
		file = filepath.Join(a.dataDir, "admin.kubeconfig")
		if _, err := os.Stat(file); errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("--data-dir: there is no %s: give the data directory of a server that has been started, or --kubeconfig", file)
		}
	}
	loaded, err := clientcmd.LoadFromFile(file)
	var unreadable *fs.PathError
	switch {
	case errors.As(err, &unreadable):
		return nil, fmt.Errorf("--kubeconfig: %w", err)
	case err != nil || len(loaded.Clusters) == 0:
		return nil, fmt.Errorf("%s is not a kubeconfig: give the admin.kubeconfig of the server's data directory", file)
	}
	if err := clientcmd.ResolveLocalPaths(loaded); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	config, err := clientcmd.NewDefaultClientConfig(*loaded, &clientcmd.ConfigOverrides{}).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if u, err := url.Parse(config.Host); err == nil && strings.HasPrefix(u.Path, "/clusters/") {
		return nil, fmt.Errorf("%s is for virtual cluster %s: give the kubeconfig of the root's administrator", file, path.Base(u.Path))
	}
	scheme := runtime.NewScheme()
	scheme.AddKnownTypes(v1alpha1.GroupVersion, &v1alpha1.KubeconfigRequest{})
	metav1.AddToGroupVersion(scheme, v1alpha1.GroupVersion)
	config.GroupVersion = &v1alpha1.GroupVersion
	config.APIPath = "/apis"
	config.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	client, err := rest.RESTClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return client, nil
}

func newKubeconfigCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "kubeconfig",
		Short:   "Give people and programs access to a virtual cluster",
		Example: `  vmesh kubeconfig create default > team.kubeconfig`,
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newKubeconfigCreateCommand())
	return cmd
}

func newKubeconfigCreateCommand() *cobra.Command {
	var access rootAccess
	var request v1alpha1.KubeconfigRequestSpec
	var ttl time.Duration
	cmd := &cobra.Command{
		Use:   "create NAME",
		Short: "Print a new kubeconfig for virtual cluster NAME",
		Long: `Print a new kubeconfig for virtual cluster NAME, or for the root if NAME is root. Without
--group its user is an administrator there; with --group the user may do what RBAC there gives
to the user and the groups. A virtual cluster's identities are nobody elsewhere. The private
key is made here and is not sent to the server.`,
		Example: `  # On the server's machine
  vmesh kubeconfig create default --data-dir data > default.kubeconfig

  # From another machine, for a pipeline, good for a day
  vmesh kubeconfig create shop --kubeconfig admin.kubeconfig --user deployer --ttl 24h > shop.kubeconfig`,
		Args:              oneArg("NAME"),
		ValidArgsFunction: access.completeClusters,
		RunE: func(cmd *cobra.Command, args []string) error {
			if request.User == "" {
				return errors.New("--user: must not be empty")
			}
			if ttl < minTTL || ttl > maxTTL {
				return fmt.Errorf("--ttl: %s is not from 10m to 87600h", ttl)
			}
			client, err := access.client()
			if err != nil {
				return err
			}
			seconds := int64(ttl.Seconds())
			request.ExpirationSeconds = &seconds
			waiting, answered := context.WithCancel(cmd.Context())
			defer answered()
			go tellProgress(waiting, cmd.ErrOrStderr(), progressAfter, progressEvery, func() string {
				return client.Get().URL().Host + " has not answered"
			})
			data, err := createKubeconfig(cmd.Context(), client, args[0], request)
			answered()
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(data)
			return err
		},
	}
	access.addFlags(cmd)
	cmd.Flags().StringVar(&request.User, "user", "admin", "The user's name.")
	cmd.Flags().StringSliceVar(&request.Groups, "group", nil, "The user's groups, instead of the administrators' (system:masters); may be given several times.")
	cmd.Flags().DurationVar(&ttl, "ttl", 365*24*time.Hour, "How long it is good, from 10m to 87600h.")
	return cmd
}

func createKubeconfig(ctx context.Context, client *rest.RESTClient, cluster string, spec v1alpha1.KubeconfigRequestSpec) ([]byte, error) {
	key, keyPEM, err := pki.NewKey()
	if err != nil {
		return nil, err
	}
	if spec.Request, err = pki.NewRequest(key); err != nil {
		return nil, err
	}
	var answer v1alpha1.KubeconfigRequest
	err = client.Post().Resource("virtualclusters").Name(cluster).SubResource("kubeconfig").
		Body(&v1alpha1.KubeconfigRequest{Spec: spec}).Do(ctx).Into(&answer)
	switch {
	case apierrors.IsNotFound(err):
		return nil, fmt.Errorf("there is no virtual cluster %q: see kubectl get virtualclusters", cluster)
	case err != nil:
		return nil, fmt.Errorf("asking for access to virtual cluster %s: %w%s", cluster, err, accessRemedy(err))
	}
	status := answer.Status
	return clientcmd.Write(*apiserver.Kubeconfig(cluster, status.Server, spec.User, status.CertificateAuthority, status.Certificate, keyPEM))
}

// accessRemedy says what to do when the server cannot be asked.
func accessRemedy(err error) string {
	var unknownCA x509.UnknownAuthorityError
	var wrongHost x509.HostnameError
	switch {
	case utilnet.IsConnectionRefused(err):
		return "\nIs the server running, and is the kubeconfig of its present address? It is written at each start"
	case errors.As(err, &unknownCA):
		return "\nThe kubeconfig is of another server than the one that answers"
	case errors.As(err, &wrongHost):
		return "\nStart the server with --tls-host for the name by which it is reached"
	case apierrors.IsUnauthorized(err):
		return "\nThe kubeconfig has expired or is of another server: take admin.kubeconfig from the data directory anew"
	case apierrors.IsForbidden(err):
		return "\nGive the kubeconfig of the root's administrator: admin.kubeconfig in the data directory"
	}
	return ""
}

// completeClusters completes the names of virtual clusters.
func (a *rootAccess) completeClusters(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	client, err := a.client()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	data, err := client.Get().Resource("virtualclusters").DoRaw(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return clusterNames(data), cobra.ShellCompDirectiveNoFileComp
}
