package serviceaccount

import (
	"context"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/authn/serviceaccount"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// objects are of one kind, by CLUSTER/NAMESPACE/NAME.
type objects map[string]*object.Object

func at(ctx context.Context, name string) string {
	cluster, err := logical.Cluster(ctx)
	if err != nil {
		panic(err) // whoever reads says where
	}
	return cluster + "/" + request.NamespaceValue(ctx) + "/" + name
}

func (s objects) Get(ctx context.Context, name string, _ *metav1.GetOptions) (runtime.Object, error) {
	if o, ok := s[at(ctx, name)]; ok {
		return o, nil
	}
	return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "objects"}, name)
}

func (s objects) Create(ctx context.Context, obj runtime.Object, _ rest.ValidateObjectFunc, _ *metav1.CreateOptions) (runtime.Object, error) {
	o := obj.(*object.Object)
	s[at(ctx, o.Name)] = o
	return o, nil
}

func put(t *testing.T, s objects, key string, typed runtime.Object, kind string) {
	t.Helper()
	o, err := object.From(typed, corev1.SchemeGroupVersion.WithKind(kind))
	if err != nil {
		t.Fatal(err)
	}
	s[key] = o
}

type uids map[string]string

func (u uids) UID(_ context.Context, cluster string) (string, bool) {
	uid, ok := u[cluster]
	return uid, ok
}

func TestWhatATokenIsAskedFor(t *testing.T) {
	accounts, pods, secrets, nodes := objects{}, objects{}, objects{}, objects{}
	put(t, accounts, "shop/apps/ci", &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "ci", UID: "uid-ci"}}, "ServiceAccount")
	put(t, pods, "shop/apps/web", &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "web", UID: "uid-web"}, Spec: corev1.PodSpec{ServiceAccountName: "ci", NodeName: "n1"}}, "Pod")
	put(t, pods, "shop/apps/db", &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "db", UID: "uid-db"}, Spec: corev1.PodSpec{ServiceAccountName: "other", NodeName: "n1"}}, "Pod")
	put(t, pods, "other/apps/far", &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "far", UID: "uid-far"}, Spec: corev1.PodSpec{ServiceAccountName: "ci"}}, "Pod")
	put(t, secrets, "shop/apps/lease", &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "lease", UID: "uid-lease"}}, "Secret")
	put(t, secrets, "shop/other/far", &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "far", UID: "uid-far"}}, "Secret")
	put(t, nodes, "shop//n1", &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", UID: "uid-n1"}}, "Node")
	tokens := serviceaccount.New(serviceaccount.Config{
		Clusters: uids{"shop": "uid-shop"}, URL: func(cluster string) string { return "https://vmesh/clusters/" + cluster },
		Secrets: secrets, Namespaces: objects{}, ServiceAccounts: accounts, Pods: pods, Nodes: nodes,
	})
	storage := NewTokenREST(tokens, accounts, pods, secrets, nodes)
	ctx := request.WithNamespace(logical.WithCluster(context.Background(), "shop"), "apps")
	for _, c := range []struct {
		name, account string
		ask           authenticationv1.TokenRequest
		want          string // why it is refused; empty when it is not
		extra         string // who comes with it has this
	}{
		{name: "nothing in particular", account: "ci"},
		{name: "of nobody", account: "none", want: "not found"},
		{name: "by another name", account: "ci", ask: authenticationv1.TokenRequest{ObjectMeta: metav1.ObjectMeta{Name: "x"}}, want: "metadata.name"},
		{name: "in another namespace", account: "ci", ask: authenticationv1.TokenRequest{ObjectMeta: metav1.ObjectMeta{Namespace: "x"}}, want: "metadata.namespace"},
		{name: "of an earlier one", account: "ci", ask: authenticationv1.TokenRequest{ObjectMeta: metav1.ObjectMeta{UID: "x"}}, want: "does not match the UID of the service account"},
		{name: "for too short", account: "ci", ask: lasting(599), want: "spec.expirationSeconds"},
		{name: "for the shortest", account: "ci", ask: lasting(600)},
		{name: "for ever", account: "ci", ask: lasting(1<<32 + 1), want: "spec.expirationSeconds"},
		{name: "bound to a pod", account: "ci", ask: boundTo("Pod", "web", ""), extra: "authentication.kubernetes.io/pod-uid"},
		{name: "bound to a pod on a node", account: "ci", ask: boundTo("Pod", "web", ""), extra: "authentication.kubernetes.io/node-uid"},
		{name: "bound to a pod of another account", account: "ci", ask: boundTo("Pod", "db", ""), want: "different serviceaccount name"},
		{name: "bound to a pod of another virtual cluster", account: "ci", ask: boundTo("Pod", "far", ""), want: "not found"},
		{name: "bound to an earlier pod", account: "ci", ask: boundTo("Pod", "web", "x"), want: "does not match the UID in record"},
		{name: "bound to a secret", account: "ci", ask: boundTo("Secret", "lease", "uid-lease")},
		{name: "bound to a secret of another namespace", account: "ci", ask: boundTo("Secret", "far", ""), want: "not found"},
		{name: "bound to a node", account: "ci", ask: boundTo("Node", "n1", ""), extra: "authentication.kubernetes.io/node-name"},
		{name: "bound to what tokens cannot be", account: "ci", ask: boundTo("ConfigMap", "x", ""), want: "cannot bind token"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ask := c.ask
			ask.Status.Token = "mine"
			obj, err := storage.Create(ctx, c.account, &ask, rest.ValidateAllObjectFunc, &metav1.CreateOptions{})
			if c.want != "" {
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("got %v, want %q", err, c.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			got := obj.(*authenticationv1.TokenRequest)
			ttl := time.Hour
			if s := c.ask.Spec.ExpirationSeconds; s != nil {
				ttl = time.Duration(*s) * time.Second
			}
			if !got.Status.ExpirationTimestamp.Time.Equal(got.CreationTimestamp.Add(ttl)) || len(got.Spec.Audiences) != 1 || got.Spec.Audiences[0] != "https://vmesh/clusters/shop" {
				t.Errorf("got %+v", got)
			}
			resp, ok, err := tokens.AuthenticateToken(ctx, got.Status.Token)
			if err != nil || !ok || resp.User.GetName() != "system:serviceaccount:apps:ci" {
				t.Fatalf("the token: %v, %t, %v", resp, ok, err)
			}
			if c.extra != "" && len(resp.User.GetExtra()[c.extra]) != 1 {
				t.Errorf("the token's user is %+v", resp.User)
			}
		})
	}
}

func lasting(seconds int64) authenticationv1.TokenRequest {
	return authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds}}
}

func boundTo(kind, name string, uid types.UID) authenticationv1.TokenRequest {
	return authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		BoundObjectRef: &authenticationv1.BoundObjectReference{Kind: kind, APIVersion: "v1", Name: name, UID: uid},
	}}
}
