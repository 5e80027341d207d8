package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/apiserver"
	"github.com/vmesh-io/vmesh/pkg/pki"
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
	config, err := clientcmd.BuildConfigFromFlags("", file)
	if err != nil {
		return nil, err
	}
	scheme := runtime.NewScheme()
	scheme.AddKnownTypes(v1alpha1.GroupVersion, &v1alpha1.KubeconfigRequest{})
	metav1.AddToGroupVersion(scheme, v1alpha1.GroupVersion)
	config.GroupVersion = &v1alpha1.GroupVersion
	config.APIPath = "/apis"
	config.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	return rest.RESTClientFor(config)
}

func newKubeconfigCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "kubeconfig",
		Short: "Give people and programs access to a virtual cluster",
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
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: access.completeClusters,
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := access.client()
			if err != nil {
				return err
			}
			seconds := int64(ttl.Seconds())
			request.ExpirationSeconds = &seconds
			data, err := createKubeconfig(cmd.Context(), client, args[0], request)
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
		return nil, fmt.Errorf("asking for access to virtual cluster %s: %w", cluster, err)
	}
	status := answer.Status
	return clientcmd.Write(*apiserver.Kubeconfig(cluster, status.Server, spec.User, status.CertificateAuthority, status.Certificate, keyPEM))
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
