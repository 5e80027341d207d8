package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/version"
)

// memberAccess is how a command reaches a member's API, by its administrator's kubeconfig.
type memberAccess struct {
	kubeconfig, context string
}

func (a *memberAccess) addFlags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&a.kubeconfig, "kubeconfig", "", "The kubeconfig of the member cluster's administrator; by default what kubectl would use. vmesh's own is --root-kubeconfig.")
	cmd.Flags().StringVar(&a.context, "context", "", "The context of the member's kubeconfig.")
	_ = cmd.MarkFlagFilename("kubeconfig")
}

// memberClient works in a member.
type memberClient struct {
	kubernetes.Interface
	dynamic dynamic.Interface
	config  *rest.Config
	version string
}

// requestTimeout bounds each request to a member: one that does not answer is to be told of.
const requestTimeout = 20 * time.Second

// client reaches a member. It fails unless the member's API answers.
func (a *memberAccess) client(root *rest.Config) (*memberClient, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = a.kubeconfig
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: a.context}).ClientConfig()
	if clientcmd.IsEmptyConfig(err) {
		return nil, errors.New("--kubeconfig: there is none: give the kubeconfig of the member cluster's administrator")
	}
	if err != nil {
		return nil, fmt.Errorf("--kubeconfig: %w", err)
	}
	u, err := url.Parse(config.Host)
	if err == nil && (strings.Contains(u.Path, "/clusters/") || strings.Contains(u.Path, "/virtualclusters/")) {
		return nil, fmt.Errorf("--kubeconfig: %s is a virtual cluster, which has no workloads: give the kubeconfig of a member cluster's administrator", config.Host)
	}
	if config.Host == root.Host {
		return nil, fmt.Errorf("--kubeconfig: %s is vmesh itself: give the kubeconfig of a member cluster's administrator, and vmesh's by --root-kubeconfig", config.Host)
	}
	if config.Insecure {
		return nil, errors.New("--kubeconfig: it does not look at who answers (insecure-skip-tls-verify), and so vmesh and istiod could not either: give one with certificate-authority")
	}
	config.QPS, config.UserAgent, config.Timeout = -1, "vmesh/"+version.Version, requestTimeout
	config.WarningHandler = rest.NoWarnings{}
	return newMemberClient(config)
}

func newMemberClient(config *rest.Config) (*memberClient, error) {
	client := &memberClient{config: config}
	var err error
	if client.Interface, err = kubernetes.NewForConfig(config); err != nil {
		return nil, fmt.Errorf("--kubeconfig: %w", err)
	}
	if client.dynamic, err = dynamic.NewForConfig(config); err != nil {
		return nil, fmt.Errorf("--kubeconfig: %w", err)
	}
	found, err := client.Discovery().ServerVersion()
	switch {
	case apierrors.IsUnauthorized(err):
		return nil, fmt.Errorf("--kubeconfig: the member's API at %s does not know its user (%w): the credential is of another cluster or has expired", config.Host, err)
	case err != nil:
		return nil, fmt.Errorf("--kubeconfig: the member's API at %s does not answer as one: %w", config.Host, err)
	}
	client.version = found.GitVersion
	return client, nil
}

// unknownUID is the UID of a cluster that may not be asked for it.
const unknownUID = ""

// uid is the UID of a cluster: that of its namespace kube-system. It is empty if the user may not know.
func (c *memberClient) uid(ctx context.Context) (string, error) {
	namespace, err := c.CoreV1().Namespaces().Get(ctx, metav1.NamespaceSystem, metav1.GetOptions{})
	if err == nil {
		return string(namespace.UID), nil
	}
	if !apierrors.IsForbidden(err) {
		return "", fmt.Errorf("reading namespace %s of the member: %w", metav1.NamespaceSystem, err)
	}
	list, err := c.CoreV1().Namespaces().List(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + metav1.NamespaceSystem})
	switch {
	case apierrors.IsForbidden(err):
		return unknownUID, nil
	case err != nil:
		return "", fmt.Errorf("reading namespace %s of the member: %w", metav1.NamespaceSystem, err)
	case len(list.Items) != 1:
		return "", fmt.Errorf("the member has no namespace %s: is it a Kubernetes cluster?", metav1.NamespaceSystem)
	}
	return string(list.Items[0].UID), nil
}

// lacks returns those of the rights that the user has not.
func (c *memberClient) lacks(ctx context.Context, rights []right) ([]right, error) {
	if len(rights) == 0 {
		return nil, nil
	}
	var missing []right
	for _, r := range append([]right{{verb: "*", group: "*", resource: "*"}}, rights...) {
		may, err := c.may(ctx, r)
		switch {
		case err != nil:
			return nil, err
		case may && r.resource == "*":
			return nil, nil
		case !may && r.resource != "*":
			missing = append(missing, r)
		}
	}
	return missing, nil
}

func (c *memberClient) may(ctx context.Context, r right) (bool, error) {
	review, err := c.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, &authorizationv1.SelfSubjectAccessReview{
		Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &authorizationv1.ResourceAttributes{
			Namespace: r.namespace, Verb: r.verb, Group: r.group, Resource: r.resource, Subresource: r.subresource, Name: r.name,
		}},
	}, metav1.CreateOptions{})
	if err != nil {
		return false, fmt.Errorf("asking the member whether you may %s: %w", r, err)
	}
	return review.Status.Allowed, nil
}

// missingRights is the error of a user who may not do what it takes.
func missingRights(missing []right, remedy string) error {
	var lines strings.Builder
	for _, r := range missing {
		fmt.Fprintf(&lines, "\n  %s", r)
	}
	return fmt.Errorf("--kubeconfig: its user may not do in the member what it takes:%s\n%s", lines.String(), remedy)
}

// token makes a token of a service account of the member's.
func (c *memberClient) token(ctx context.Context, account string, ttl time.Duration) (authenticationv1.TokenRequestStatus, error) {
	seconds := int64(ttl.Seconds())
	answer, err := c.CoreV1().ServiceAccounts(memberNamespace).CreateToken(ctx, account,
		&authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds}}, metav1.CreateOptions{})
	if err != nil {
		return authenticationv1.TokenRequestStatus{}, fmt.Errorf("making a token of service account %s/%s in the member: %w", memberNamespace, account, err)
	}
	return answer.Status, nil
}

// as is the same cluster for the user of a token.
func (c *memberClient) as(token string) (*memberClient, error) {
	config := rest.AnonymousClientConfig(c.config)
	config.BearerToken = token
	config.WarningHandler = rest.NoWarnings{}
	return newMemberClient(config)
}

// rolesReach is how long a member's authorizer may take to know of roles that were just made.
const rolesReach = 15 * time.Second

// awaitRights waits until the user of a token has the rights that it is to have.
func (c *memberClient) awaitRights(ctx context.Context, account string, rights []right) error {
	var missing []right
	err := wait.PollUntilContextTimeout(ctx, 200*time.Millisecond, rolesReach, true, func(context.Context) (done bool, err error) {
		// Not within the time of waiting: at its end it is to be known what is missing.
		missing, err = c.lacks(ctx, rights)
		return len(missing) == 0, err
	})
	if err == nil || ctx.Err() != nil || len(missing) == 0 {
		return err
	}
	var names []string
	for _, r := range missing {
		names = append(names, r.String())
	}
	return fmt.Errorf("service account %s/%s may not do in the member what it is to do: %s: have the member's administrator apply what vmesh join --print prints",
		memberNamespace, account, strings.Join(names, ", "))
}

// kubeconfigOf is a kubeconfig that holds all it needs. server is empty for the address of the administrator's.
func (c *memberClient) kubeconfigOf(member, account, server, token string) ([]byte, error) {
	config := rest.CopyConfig(c.config)
	if err := rest.LoadTLSFiles(config); err != nil {
		return nil, fmt.Errorf("--kubeconfig: %w", err)
	}
	cluster := &clientcmdapi.Cluster{Server: config.Host, CertificateAuthorityData: config.CAData, TLSServerName: config.ServerName}
	if server != "" {
		cluster.Server = server
	}
	made := clientcmdapi.NewConfig()
	made.Clusters[member] = cluster
	made.AuthInfos[account] = &clientcmdapi.AuthInfo{Token: token}
	made.Contexts[member] = &clientcmdapi.Context{Cluster: member, AuthInfo: account}
	made.CurrentContext = member
	return clientcmd.Write(*made)
}

// onLoopback says whether a server is only to be reached from its own machine.
func onLoopback(server string) bool {
	u, err := url.Parse(server)
	if err != nil {
		return false
	}
	host := u.Hostname()
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func checkServer(flag, server string) error {
	if server == "" {
		return nil
	}
	if u, err := url.Parse(server); err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" {
		return fmt.Errorf("--%s: %q is not the address of an API, as https://east.example.com:6443", flag, server)
	}
	return nil
}

// rootClient works in the root.
type rootClient struct {
	*rest.RESTClient // of vmesh's own API
	kubernetes.Interface
	config *rest.Config
}

func (a *rootAccess) all() (*rootClient, error) {
	config, file, err := a.config()
	if err != nil {
		return nil, err
	}
	client := &rootClient{config: config}
	if client.RESTClient, err = a.client(); err != nil {
		return nil, err
	}
	config.WarningHandler = rest.NoWarnings{}
	if client.Interface, err = kubernetes.NewForConfig(config); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return client, nil
}

// read decodes an answer of vmesh's own API.
func read(ctx context.Context, request *rest.Request, into any) error {
	data, err := request.SetHeader("Accept", "application/json").DoRaw(ctx)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, into)
}

// members are all member clusters.
func (c *rootClient) members(ctx context.Context) ([]v1alpha1.MemberCluster, error) {
	var list v1alpha1.MemberClusterList
	err := read(ctx, c.RESTClient.Get().Resource("memberclusters"), &list)
	if apierrors.IsNotFound(err) {
		return nil, errors.New("the server knows no member clusters: is it of an older version?")
	}
	if err != nil {
		return nil, fmt.Errorf("listing member clusters: %w%s", err, accessRemedy(err))
	}
	return list.Items, nil
}

// mesh reads a mesh.
func (c *rootClient) mesh(ctx context.Context, name string) (*v1alpha1.Mesh, error) {
	var mesh v1alpha1.Mesh
	err := read(ctx, c.RESTClient.Get().Resource("meshes").Name(name), &mesh)
	if apierrors.IsNotFound(err) {
		data, listErr := c.RESTClient.Get().Resource("meshes").SetHeader("Accept", "application/json").DoRaw(ctx)
		if names := objectNames(data); listErr == nil && len(names) > 0 {
			return nil, fmt.Errorf("--mesh: there is no mesh %q, but: %s", name, strings.Join(names, ", "))
		}
		return nil, fmt.Errorf("--mesh: there is no mesh %q, nor any other: see the operator's guide on how to make one", name)
	}
	if err != nil {
		return nil, fmt.Errorf("mesh %s: %w%s", name, err, accessRemedy(err))
	}
	return &mesh, nil
}

// write sends an object of vmesh's own API.
func write(ctx context.Context, request *rest.Request, object any) error {
	data, err := json.Marshal(object)
	if err != nil {
		return err
	}
	return request.SetHeader("Content-Type", "application/json").Body(data).Do(ctx).Error()
}
