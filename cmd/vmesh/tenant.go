package main

import (
	"context"
	"fmt"
	"net/url"
	"strings"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/version"
)

// changesResource is that of changes.
var changesResource = v1alpha1.GroupVersion.WithResource("changes")

// clusterAccess is how a command reaches a virtual cluster: as kubectl does.
type clusterAccess struct {
	kubeconfig, context, namespace string
	allNamespaces                  bool
}

func (a *clusterAccess) addFlags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&a.kubeconfig, "kubeconfig", "", "The kubeconfig of the virtual cluster; by default what kubectl would use.")
	cmd.Flags().StringVar(&a.context, "context", "", "The context of the kubeconfig.")
	cmd.Flags().StringVarP(&a.namespace, "namespace", "n", "", "The namespace; by default the context's.")
}

// clusterClient works in a virtual cluster.
type clusterClient struct {
	dynamic.Interface
	config    *rest.Config
	namespace string // the one that was given, or the context's
}

func (a *clusterAccess) client() (*clusterClient, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = a.kubeconfig
	loader := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: a.context})
	config, err := loader.ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("--kubeconfig: %w", err)
	}
	if u, err := url.Parse(config.Host); err == nil && !strings.Contains(u.Path, "/clusters/") && !strings.Contains(u.Path, "/virtualclusters/") {
		return nil, fmt.Errorf("--kubeconfig: it is for %s, which is not a virtual cluster: give the kubeconfig of one, as vmesh kubeconfig create makes", config.Host)
	}
	config.QPS, config.UserAgent = -1, "vmesh/"+version.Version
	config.WarningHandler = rest.NoWarnings{}
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	namespace := a.namespace
	if namespace == "" {
		if namespace, _, err = loader.Namespace(); err != nil {
			return nil, fmt.Errorf("--kubeconfig: %w", err)
		}
	}
	return &clusterClient{Interface: client, config: config, namespace: namespace}, nil
}

// objectRef names an object as a user does: KIND/NAME.
type objectRef struct {
	gvk        schema.GroupVersionKind
	namespaced bool
	name       string
}

// resolve finds out what KIND is, which may be a kind, a resource or a short name.
func (c *clusterClient) resolve(arg string) (objectRef, error) {
	kind, name, ok := strings.Cut(arg, "/")
	if !ok || kind == "" || name == "" || strings.Contains(name, "/") {
		return objectRef{}, fmt.Errorf("%q is not KIND/NAME, as in virtualservice/reviews", arg)
	}
	client, err := discovery.NewDiscoveryClientForConfig(c.config)
	if err != nil {
		return objectRef{}, err
	}
	cached := memory.NewMemCacheClient(client)
	mapper := restmapper.NewShortcutExpander(restmapper.NewDeferredDiscoveryRESTMapper(cached), cached, nil)
	resource := schema.ParseGroupResource(strings.ToLower(kind))
	gvk, err := mapper.KindFor(resource.WithVersion(""))
	if meta.IsNoMatchError(err) {
		return objectRef{}, fmt.Errorf("%s: the virtual cluster has no kind %q: see kubectl api-resources", arg, kind)
	}
	if err != nil {
		return objectRef{}, err
	}
	mapping, err := mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
	if err != nil {
		return objectRef{}, err
	}
	return objectRef{gvk: gvk, namespaced: mapping.Scope.Name() == meta.RESTScopeNameNamespace, name: name}, nil
}

// changesPage is how many changes are read at once.
const changesPage = 500

// eachChange calls visit for changes, the newest first, until it says no. namespace is
// empty for all.
func (c *clusterClient) eachChange(ctx context.Context, namespace, fieldSelector string, visit func(*v1alpha1.Change) bool) error {
	options := metav1.ListOptions{FieldSelector: fieldSelector, Limit: changesPage}
	for {
		list, err := c.Resource(changesResource).Namespace(namespace).List(ctx, options)
		if err != nil {
			return historyError(err)
		}
		for i := range list.Items {
			var change v1alpha1.Change
			if err := runtime.DefaultUnstructuredConverter.FromUnstructured(list.Items[i].Object, &change); err != nil {
				return fmt.Errorf("reading change %s: %w", list.Items[i].GetName(), err)
			}
			if !visit(&change) {
				return nil
			}
		}
		if options.Continue = list.GetContinue(); options.Continue == "" {
			return nil
		}
	}
}

// historyError says what errors of reading changes mean.
func historyError(err error) error {
	switch {
	case apierrors.IsResourceExpired(err), apierrors.IsForbidden(err), apierrors.IsUnauthorized(err):
		return err
	case apierrors.IsNotFound(err):
		return fmt.Errorf("the server has no history of changes, or is no virtual cluster: %w", err)
	}
	return fmt.Errorf("reading the history: %w", err)
}
