package main

import (
	"context"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/clientcmd"
)

// route notices when somebody changes the VirtualService.
type route struct {
	services   dynamic.ResourceInterface
	generation int64
	since      time.Time
}

func newRoute(kubeconfig string) (*route, error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, err
	}
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	resource := schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1", Resource: "virtualservices"}
	return &route{services: client.Resource(resource).Namespace("demo"), since: time.Now()}, nil
}

// changed is when the last change was seen. While the API does not answer it is the one before.
func (r *route) changed(ctx context.Context) time.Time {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	service, err := r.services.Get(ctx, "greeter", metav1.GetOptions{})
	if err == nil && service.GetGeneration() != r.generation {
		r.generation = service.GetGeneration()
		r.since = time.Now()
	}
	return r.since
}
