package extension

import (
	"fmt"
	"slices"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/labels"
	mutatingwebhook "k8s.io/apiserver/pkg/admission/plugin/webhook/mutating"
	validatingwebhook "k8s.io/apiserver/pkg/admission/plugin/webhook/validating"
	webhookutil "k8s.io/apiserver/pkg/util/webhook"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/informers/admissionregistration"
	admissionregistrationinformers "k8s.io/client-go/informers/admissionregistration/v1"
	"k8s.io/client-go/informers/core"
	coreinformers "k8s.io/client-go/informers/core/v1"
	admissionregistrationlisters "k8s.io/client-go/listers/admissionregistration/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// newMutating makes upstream's plugin for a fixed list of configurations. It has no
// goroutines and needs no end: when the list changes, another takes its place. as is in
// whose place expressions ask: the virtual cluster, or nobody for guard rails.
func (p *Plugin) newMutating(cluster, as string, configurations []*admissionregistrationv1.MutatingWebhookConfiguration) (*mutatingwebhook.Plugin, error) {
	w, err := mutatingwebhook.NewMutatingWebhook(nil)
	if err != nil {
		return nil, err
	}
	in := p.namespaces(cluster)
	w.SetAuthenticationInfoResolverWrapper(p.clients(cluster))
	w.SetExternalKubeClientSet(in.client())
	w.SetExternalKubeInformerFactory(&fixed{namespaces: in, mutating: configurations})
	w.SetUnconditionalAuthorizer(p.authorizer(as))
	return w, w.ValidateInitialization()
}

// newValidating is newMutating for the other kind.
func (p *Plugin) newValidating(cluster, as string, configurations []*admissionregistrationv1.ValidatingWebhookConfiguration) (*validatingwebhook.Plugin, error) {
	w, err := validatingwebhook.NewValidatingAdmissionWebhook(nil)
	if err != nil {
		return nil, err
	}
	in := p.namespaces(cluster)
	w.SetAuthenticationInfoResolverWrapper(p.clients(cluster))
	w.SetExternalKubeClientSet(in.client())
	w.SetExternalKubeInformerFactory(&fixed{namespaces: in, validating: configurations})
	w.SetUnconditionalAuthorizer(p.authorizer(as))
	return w, w.ValidateInitialization()
}

// clientTimeout is the longest a call may take, whatever a webhook asks for.
const clientTimeout = 30 * time.Second

// clients are how webhooks are called: without any credentials. Upstream's way shows the
// pod's own service account to a service that is named like the cluster that it runs in.
func (p *Plugin) clients(cluster string) webhookutil.AuthenticationInfoResolverWrapper {
	config := func() (*rest.Config, error) {
		c := &rest.Config{UserAgent: "vmesh-admission", Timeout: clientTimeout}
		if cluster != logical.Root {
			c.Dial = p.config.Egress.dial
		}
		c.Wrap(careful)
		return c, nil
	}
	return func(webhookutil.AuthenticationInfoResolver) webhookutil.AuthenticationInfoResolver {
		return &webhookutil.AuthenticationInfoResolverDelegator{
			ClientConfigForFunc:        func(string) (*rest.Config, error) { return config() },
			ClientConfigForServiceFunc: func(string, string, int) (*rest.Config, error) { return config() },
		}
	}
}

// fixed is the informer factory of configurations that never change, as far as upstream's
// webhook plugins use one.
type fixed struct {
	informers.SharedInformerFactory
	namespaces corelisters.NamespaceLister
	mutating   []*admissionregistrationv1.MutatingWebhookConfiguration
	validating []*admissionregistrationv1.ValidatingWebhookConfiguration
}

func (f *fixed) Core() core.Interface                                   { return fixedCore{of: f} }
func (f *fixed) Admissionregistration() admissionregistration.Interface { return fixedGroup{of: f} }

type fixedCore struct {
	core.Interface
	of *fixed
}

func (c fixedCore) V1() coreinformers.Interface { return fixedCoreV1{of: c.of} }

type fixedCoreV1 struct {
	coreinformers.Interface
	of *fixed
}

func (c fixedCoreV1) Namespaces() coreinformers.TypedNamespaceInformer {
	return fixedNamespaces{of: c.of}
}

type fixedNamespaces struct {
	coreinformers.TypedNamespaceInformer
	of *fixed
}

func (n fixedNamespaces) Informer() cache.SharedIndexInformer { return synced{} }
func (n fixedNamespaces) Lister() corelisters.NamespaceLister { return n.of.namespaces }

type fixedGroup struct {
	admissionregistration.Interface
	of *fixed
}

func (g fixedGroup) V1() admissionregistrationinformers.Interface { return fixedGroupV1{of: g.of} }

type fixedGroupV1 struct {
	admissionregistrationinformers.Interface
	of *fixed
}

func (g fixedGroupV1) MutatingWebhookConfigurations() admissionregistrationinformers.TypedMutatingWebhookConfigurationInformer {
	return fixedMutating{of: g.of}
}

func (g fixedGroupV1) ValidatingWebhookConfigurations() admissionregistrationinformers.TypedValidatingWebhookConfigurationInformer {
	return fixedValidating{of: g.of}
}

type fixedMutating struct {
	admissionregistrationinformers.TypedMutatingWebhookConfigurationInformer
	of *fixed
}

func (m fixedMutating) Informer() cache.SharedIndexInformer { return synced{} }
func (m fixedMutating) Lister() admissionregistrationlisters.MutatingWebhookConfigurationLister {
	return mutatingList{of: m.of.mutating}
}

type mutatingList struct {
	admissionregistrationlisters.MutatingWebhookConfigurationLister
	of []*admissionregistrationv1.MutatingWebhookConfiguration
}

// List gives a list of its own: upstream sorts it.
func (l mutatingList) List(labels.Selector) ([]*admissionregistrationv1.MutatingWebhookConfiguration, error) {
	return slices.Clone(l.of), nil
}

type fixedValidating struct {
	admissionregistrationinformers.TypedValidatingWebhookConfigurationInformer
	of *fixed
}

func (v fixedValidating) Informer() cache.SharedIndexInformer { return synced{} }
func (v fixedValidating) Lister() admissionregistrationlisters.ValidatingWebhookConfigurationLister {
	return validatingList{of: v.of.validating}
}

type validatingList struct {
	admissionregistrationlisters.ValidatingWebhookConfigurationLister
	of []*admissionregistrationv1.ValidatingWebhookConfiguration
}

func (l validatingList) List(labels.Selector) ([]*admissionregistrationv1.ValidatingWebhookConfiguration, error) {
	return slices.Clone(l.of), nil
}

// synced is an informer that has all it will ever have.
type synced struct{ cache.SharedIndexInformer }

func (synced) HasSynced() bool { return true }

func (synced) AddEventHandler(cache.ResourceEventHandler) (cache.ResourceEventHandlerRegistration, error) {
	return registration{}, nil
}

type registration struct {
	cache.ResourceEventHandlerRegistration
}

func (registration) HasSynced() bool { return true }

// errNoSuch is what a lister answers that is asked for something nobody asks it for.
func errNoSuch(what string) error { return fmt.Errorf("%s are not listed here", what) }
