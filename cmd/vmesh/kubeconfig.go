package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
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
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

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
	flag       string // of kubeconfig
}

func (a *rootAccess) addFlags(cmd *cobra.Command) { a.addFlagsAs(cmd, "kubeconfig") }

// addFlagsAs is addFlags for commands whose --kubeconfig is that of another cluster.
func (a *rootAccess) addFlagsAs(cmd *cobra.Command, flag string) {
	a.flag = flag
	cmd.Flags().StringVar(&a.dataDir, "data-dir", apiserver.NewOptions().DataDir, "The data directory of a server on this machine, for its administrator's kubeconfig.")
	cmd.Flags().StringVar(&a.kubeconfig, flag, "", "The kubeconfig of the root's administrator, from another machine.")
	cmd.MarkFlagsMutuallyExclusive("data-dir", flag)
	_ = cmd.MarkFlagDirname("data-dir")
}

// client is a REST client for vmesh's own API in the root.
func (a *rootAccess) client() (*rest.RESTClient, error) {
	config, file, err := a.config()
	if err != nil {
		return nil, err
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

// config reaches the root, by the kubeconfig in file.
func (a *rootAccess) config() (_ *rest.Config, file string, _ error) {
	file = a.kubeconfig
	if file == "" {
		file = filepath.Join(a.dataDir, "admin.kubeconfig")
		if _, err := os.Stat(file); errors.Is(err, os.ErrNotExist) {
			return nil, "", fmt.Errorf("--data-dir: there is no %s: give the data directory of a server that has been started, or --%s", file, a.flag)
		}
	}
	loaded, err := clientcmd.LoadFromFile(file)
	var unreadable *fs.PathError
	switch {
	case errors.As(err, &unreadable):
		return nil, "", fmt.Errorf("--%s: %w", a.flag, err)
	case err != nil || len(loaded.Clusters) == 0:
		return nil, "", fmt.Errorf("%s is not a kubeconfig: give the admin.kubeconfig of the server's data directory", file)
	}
	if err := clientcmd.ResolveLocalPaths(loaded); err != nil {
		return nil, "", fmt.Errorf("%s: %w", file, err)
	}
	config, err := clientcmd.NewDefaultClientConfig(*loaded, &clientcmd.ConfigOverrides{}).ClientConfig()
	if err != nil {
		return nil, "", fmt.Errorf("%s: %w", file, err)
	}
	if u, err := url.Parse(config.Host); err == nil && strings.HasPrefix(u.Path, "/clusters/") {
		return nil, "", fmt.Errorf("%s is for virtual cluster %s: give the kubeconfig of the root's administrator", file, path.Base(u.Path))
	}
	config.QPS = -1 // a limiter's complaint would stand for that of --timeout
	return config, file, nil
}

func newKubeconfigCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "kubeconfig",
		Short: "Give people and programs access to virtual clusters, and take it back",
		Example: `  vmesh kubeconfig create default > team.kubeconfig
  vmesh kubeconfig list
  vmesh kubeconfig revoke default-admin-x7k2p`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newKubeconfigCreateCommand(), newKubeconfigListCommand(), newKubeconfigRevokeCommand())
	return cmd
}

// createOptions are what kubeconfig create takes.
type createOptions struct {
	access  rootAccess
	request v1alpha1.KubeconfigRequestSpec
	ttl     time.Duration
	file    string
	merge   bool
}

func newKubeconfigCreateCommand() *cobra.Command {
	var o createOptions
	cmd := &cobra.Command{
		Use:   "create NAME...",
		Short: "Make a kubeconfig for virtual clusters",
		Long: `Make a kubeconfig for the virtual clusters that are named, with a context for each, and print
it. NAME root is the root itself. Without --group its user is an administrator there; with
--group the user may do what RBAC there gives to the user and the groups. A virtual cluster's
identities are nobody elsewhere. The private keys are made here and are not sent to the server,
which records what it has signed: see vmesh kubeconfig list and revoke.`,
		Example: `  # On the server's machine
  vmesh kubeconfig create default --data-dir data > default.kubeconfig

  # From another machine, for a pipeline, good for a day
  vmesh kubeconfig create shop --kubeconfig admin.kubeconfig --user deployer --ttl 24h > shop.kubeconfig

  # One file for a person who works in three virtual clusters
  vmesh kubeconfig create shop bank lab --user alice --group developers -o alice.kubeconfig

  # Add contexts to the file that kubectl uses
  vmesh kubeconfig create shop bank --user alice --merge`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return seeHelp(cmd, fmt.Errorf("%s takes at least one NAME, and was given none", cmd.CommandPath()))
			}
			return nil
		},
		ValidArgsFunction: o.access.completeMoreClusters,
		RunE:              func(cmd *cobra.Command, args []string) error { return o.run(cmd, args) },
	}
	o.access.addFlags(cmd)
	cmd.Flags().StringVar(&o.request.User, "user", "admin", "The user's name.")
	cmd.Flags().StringSliceVar(&o.request.Groups, "group", nil, "The user's groups, instead of the administrators' (system:masters); may be given several times.")
	cmd.Flags().DurationVar(&o.ttl, "ttl", 365*24*time.Hour, "How long it is good, from 10m to 87600h.")
	cmd.Flags().StringVarP(&o.file, "output", "o", "", "The file to write, which must not exist yet but with --merge; by default it is printed.")
	cmd.Flags().BoolVar(&o.merge, "merge", false, "Add the contexts to the file of --output, or without that to the one that kubectl uses, in the place of those of the same names. Its current context stays.")
	_ = cmd.MarkFlagFilename("output")
	return cmd
}

func (o *createOptions) run(cmd *cobra.Command, names []string) error {
	if o.request.User == "" {
		return errors.New("--user: must not be empty")
	}
	// Without a group the user is an administrator, which a variable that is not set must not make of him.
	if cmd.Flags().Changed("group") && (len(o.request.Groups) == 0 || slices.Contains(o.request.Groups, "")) {
		return errors.New("--group: must not be empty: leave it out for an administrator")
	}
	for i, name := range names {
		if name == "" || slices.Contains(names[:i], name) {
			return fmt.Errorf("NAME: %q is empty or given twice: name each virtual cluster once", name)
		}
	}
	if o.ttl < minTTL || o.ttl > maxTTL {
		return fmt.Errorf("--ttl: %s is not from 10m to 87600h", o.ttl)
	}
	into := clientcmdapi.NewConfig()
	file := o.file
	if o.merge {
		if file == "" {
			file = clientcmd.NewDefaultClientConfigLoadingRules().GetDefaultFilename()
		}
		loaded, err := clientcmd.LoadFromFile(file)
		switch {
		case err == nil:
			into = loaded
		case !errors.Is(err, fs.ErrNotExist):
			return fmt.Errorf("--merge: %s: %w", file, err)
		}
	} else if file != "" {
		if _, err := os.Stat(file); err == nil {
			return fmt.Errorf("--output: %s exists: give another name, or --merge to add to it", file)
		}
	}
	seconds := int64(o.ttl.Seconds())
	o.request.ExpirationSeconds = &seconds
	client, err := o.access.client()
	if err != nil {
		return err
	}
	waiting, answered := context.WithCancel(cmd.Context())
	defer answered()
	go tellProgress(waiting, cmd.ErrOrStderr(), progressAfter, progressEvery, func() string {
		return client.Get().URL().Host + " has not answered"
	})
	records, err := createKubeconfigs(cmd.Context(), client, names, o.request, into)
	answered()
	if err == nil {
		err = o.write(cmd, into, file)
	}
	if err != nil {
		// What nobody has got is worth nothing, and should not look as if it were.
		for _, record := range records {
			if revokeErr := client.Delete().Resource("kubeconfigs").Name(record).Do(context.WithoutCancel(cmd.Context())).Error(); revokeErr != nil {
				err = fmt.Errorf("%w\nKubeconfig %s was made for nobody and could not be revoked: %w", err, record, revokeErr)
			}
		}
	}
	return err
}

func (o *createOptions) write(cmd *cobra.Command, config *clientcmdapi.Config, file string) error {
	data, err := clientcmd.Write(*config)
	if err != nil {
		return err
	}
	if file == "" {
		_, err = cmd.OutOrStdout().Write(data)
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	target := file
	if linked, err := filepath.EvalSymlinks(file); err == nil {
		target = linked // a link stays one
	}
	if err := pki.WriteFile(target, data, 0o600); err != nil {
		return err
	}
	_, err = fmt.Fprintf(cmd.ErrOrStderr(), "wrote %s\n", file)
	return err
}

// createKubeconfigs asks for access to virtual clusters and adds it to a kubeconfig, with
// a context for each. records are those that were made, also where one could not be.
func createKubeconfigs(ctx context.Context, client *rest.RESTClient, names []string, spec v1alpha1.KubeconfigRequestSpec, into *clientcmdapi.Config) (records []string, err error) {
	for _, name := range names {
		record, made, err := createKubeconfig(ctx, client, name, spec)
		if err != nil {
			return records, err
		}
		records = append(records, record)
		maps.Copy(into.Clusters, made.Clusters)
		maps.Copy(into.AuthInfos, made.AuthInfos)
		maps.Copy(into.Contexts, made.Contexts)
		if into.CurrentContext == "" {
			into.CurrentContext = made.CurrentContext
		}
	}
	return records, nil
}

func createKubeconfig(ctx context.Context, client *rest.RESTClient, cluster string, spec v1alpha1.KubeconfigRequestSpec) (record string, _ *clientcmdapi.Config, err error) {
	key, keyPEM, err := pki.NewKey()
	if err != nil {
		return "", nil, err
	}
	if spec.Request, err = pki.NewRequest(key); err != nil {
		return "", nil, err
	}
	var answer v1alpha1.KubeconfigRequest
	err = client.Post().Resource("virtualclusters").Name(cluster).SubResource("kubeconfig").
		Body(&v1alpha1.KubeconfigRequest{Spec: spec}).Do(ctx).Into(&answer)
	switch {
	case apierrors.IsNotFound(err):
		return "", nil, fmt.Errorf("there is no virtual cluster %q: see kubectl get virtualclusters", cluster)
	case err != nil:
		return "", nil, fmt.Errorf("asking for access to virtual cluster %s: %w%s", cluster, err, accessRemedy(err))
	}
	status := answer.Status
	return status.Kubeconfig, apiserver.Kubeconfig(cluster, status.Server, spec.User, status.CertificateAuthority, status.Certificate, keyPEM), nil
}

// accessRemedy says what to do when the server cannot be asked.
func accessRemedy(err error) string {
	var unknownCA x509.UnknownAuthorityError
	var wrongHost x509.HostnameError
	switch {
	case utilnet.IsConnectionRefused(err):
		return "\nIs the server running, and is the kubeconfig of its present address? A start writes admin.kubeconfig anew"
	case errors.As(err, &unknownCA):
		return "\nThe kubeconfig is of another server than the one that answers"
	case errors.As(err, &wrongHost):
		return "\nStart the server with --tls-host for the name by which it is reached"
	case apierrors.IsUnauthorized(err):
		return "\nThe kubeconfig has expired, was revoked or is of another server: take admin.kubeconfig from the data directory anew"
	case apierrors.IsForbidden(err) && (strings.Contains(err.Error(), " cannot ") || strings.Contains(err.Error(), "only administrators")):
		// It is a matter of who asks, and not of what: that a virtual cluster is being deleted, or a record protected.
		return "\nGive the kubeconfig of the root's administrator: admin.kubeconfig in the data directory"
	}
	return ""
}

// completeClusters completes the name of a virtual cluster.
func (a *rootAccess) completeClusters(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.completeNames(cmd, "virtualclusters", nil)
}

// completeMoreClusters completes names of virtual clusters.
func (a *rootAccess) completeMoreClusters(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.completeNames(cmd, "virtualclusters", args)
}

// completeNames completes names of objects in the root that were not given yet.
func (a *rootAccess) completeNames(cmd *cobra.Command, resource string, given []string) ([]string, cobra.ShellCompDirective) {
	client, err := a.client()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	data, err := client.Get().Resource(resource).DoRaw(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	names := slices.DeleteFunc(objectNames(data), func(name string) bool { return slices.Contains(given, name) })
	return names, cobra.ShellCompDirectiveNoFileComp
}

// completeMesh completes the name of a mesh, where one may be given.
func (a *rootAccess) completeMesh(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.completeNames(cmd, "meshes", nil)
}
