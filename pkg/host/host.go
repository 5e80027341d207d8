// Package host is the connection to the Kubernetes cluster that vmesh is registered with
// as an aggregated API: who its front proxy is, what its users may do, and which
// namespaces it has.
package host

import (
	"context"
	"fmt"
	"net/http"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apiserver/pkg/authentication/authenticatorfactory"
	"k8s.io/apiserver/pkg/authentication/request/headerrequest"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/authorization/authorizerfactory"
	"k8s.io/apiserver/pkg/server/dynamiccertificates"
	genericoptions "k8s.io/apiserver/pkg/server/options"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	// remembered is how long an answer of the host's authorization is good.
	remembered = 10 * time.Second
	// patience is how long the host may take to answer, and to be asked again.
	patience = 5 * time.Second

	// authenticationConfigMap is where a kube-apiserver tells extensions its front proxy.
	authenticationConfigMap = "extension-apiserver-authentication"
)

// Host is a host cluster. Its methods may be called from several goroutines.
type Host struct {
	authorizer.Authorizer
	client  kubernetes.Interface
	watches kubernetes.Interface
	closers []func()
}

// New reads a kubeconfig of the host. It does not connect: a host that is away is no
// error until it is asked something.
func New(kubeconfig string) (*Host, error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, err
	}
	config.UserAgent = "vmesh"
	// A question stands for a request that the host has forwarded: it is the host that limits them.
	config.QPS = -1
	h := &Host{}
	if h.watches, err = h.connect(config); err != nil {
		return nil, err
	}
	asking := rest.CopyConfig(config)
	asking.Timeout = patience
	if h.client, err = h.connect(asking); err != nil {
		return nil, err
	}
	h.Authorizer, err = authorizerfactory.DelegatingAuthorizerConfig{
		SubjectAccessReviewClient: h.client.AuthorizationV1(), AllowCacheTTL: remembered, DenyCacheTTL: remembered,
		// The client asks again, when told to.
		WebhookRetryBackoff: &wait.Backoff{Steps: 1},
	}.New()
	return h, err
}

func (h *Host) connect(config *rest.Config) (kubernetes.Interface, error) {
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, err
	}
	h.closers = append(h.closers, func() { closeIdle(client) })
	return kubernetes.NewForConfigAndClient(config, client)
}

func closeIdle(client *http.Client) { client.CloseIdleConnections() }

// Close ends connections that nobody uses.
func (h *Host) Close() {
	for _, c := range h.closers {
		c()
	}
}

// HasNamespace says whether the host has a namespace that is not being deleted.
func (h *Host) HasNamespace(ctx context.Context, name string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	namespace, err := h.client.CoreV1().Namespaces().Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	return err == nil && namespace.DeletionTimestamp == nil, err
}

// FrontProxy is what the host's kube-apiserver says of its front proxy, and changes when
// that does. Until the host has said it, no certificate is good. Who serves with its
// authorities runs it.
func (h *Host) FrontProxy() (*authenticatorfactory.RequestHeaderConfig, error) {
	ca, err := dynamiccertificates.NewDynamicCAFromConfigMapController("front-proxy", metav1.NamespaceSystem, authenticationConfigMap,
		"requestheader-client-ca-file", h.watches)
	if err != nil {
		return nil, fmt.Errorf("making the reader of the front proxy's authority: %w", err)
	}
	headers := headerrequest.NewRequestHeaderAuthRequestController(authenticationConfigMap, metav1.NamespaceSystem, h.watches,
		"requestheader-username-headers", "requestheader-uid-headers", "requestheader-group-headers",
		"requestheader-extra-headers-prefix", "requestheader-allowed-names")
	list := func(f func() []string) headerrequest.StringSliceProvider {
		return headerrequest.StringSliceProviderFunc(f)
	}
	return &authenticatorfactory.RequestHeaderConfig{
		CAContentProvider: &genericoptions.DynamicRequestHeaderController{ConfigMapCAController: ca, RequestHeaderAuthRequestController: headers},
		UsernameHeaders:   list(headers.UsernameHeaders), UIDHeaders: list(headers.UIDHeaders), GroupHeaders: list(headers.GroupHeaders),
		ExtraHeaderPrefixes: list(headers.ExtraHeaderPrefixes), AllowedClientNames: list(headers.AllowedClientNames),
	}, nil
}
