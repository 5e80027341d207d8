package filters

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/endpoints/request"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/authn"
	"github.com/vmesh-io/vmesh/pkg/fairness"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

func TestWhoPaysForARequest(t *testing.T) {
	of := func(name, cluster string) user.Info {
		return &user.DefaultInfo{Name: name, Extra: map[string][]string{authn.ExtraCluster: {cluster}}}
	}
	for _, c := range []struct {
		name string
		user user.Info
		want string
	}{
		{"a virtual cluster, for its own users", of("alice", "shop"), "cluster:shop"},
		{"the same, whoever it is", of("bob", "shop"), "cluster:shop"},
		{"a user of the root for itself", of("alice", logical.Root), "user:alice"},
		{"a virtual cluster that is named like a user is another", of("x", "alice"), "cluster:alice"},
		{"all anonymous callers together", &user.DefaultInfo{Name: user.Anonymous}, "anonymous"},
	} {
		if got := accountOf(c.user); got != c.want {
			t.Errorf("%s: got %s, want %s", c.name, got, c.want)
		}
	}
}

type rated map[string]*v1alpha1.VirtualClusterRates

func (r rated) Rates(_ context.Context, cluster string) *v1alpha1.VirtualClusterRates {
	return r[cluster]
}

func TestWatchesOverTheLimitAreRefusedWithATimeToComeBack(t *testing.T) {
	one, none := int32(1), int32(0)
	clusters := rated{"one": {Watches: &one}, "none": {Watches: &none}}
	for _, c := range []struct {
		cluster string
		second  int
	}{{"one", 429}, {"none", 200}, {"default", 429}, {logical.Root, 200}} {
		t.Run(c.cluster, func(t *testing.T) {
			begun, end := make(chan struct{}, 2), make(chan struct{})
			handler := WithRates(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
				begun <- struct{}{}
				<-end
			}), fairness.NewRates(), clusters, fairness.Limits{Watches: 1}, codecs())
			serve := func() *httptest.ResponseRecorder {
				ctx := request.WithRequestInfo(logical.WithCluster(t.Context(), c.cluster), &request.RequestInfo{IsResourceRequest: true, Verb: "watch"})
				w := httptest.NewRecorder()
				handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil).WithContext(ctx))
				return w
			}
			first := make(chan *httptest.ResponseRecorder)
			go func() { first <- serve() }()
			<-begun
			second := make(chan *httptest.ResponseRecorder)
			go func() { second <- serve() }()
			if c.second == 200 {
				<-begun
				close(end)
			}
			w := <-second
			if c.second != 200 {
				close(end)
			}
			<-first
			if w.Code != c.second {
				t.Fatalf("got %d, want %d", w.Code, c.second)
			}
			if c.second == 200 {
				return
			}
			var status metav1.Status
			if err := json.Unmarshal(w.Body.Bytes(), &status); err != nil {
				t.Fatal(err)
			}
			if w.Header().Get("Retry-After") == "" || status.Reason != metav1.StatusReasonTooManyRequests || !strings.Contains(status.Message, "rates.watches") {
				t.Errorf("got %v with Retry-After %q", status, w.Header().Get("Retry-After"))
			}
		})
	}
}

func TestHealthOfTheRootIsAnsweredWhenAllElseWaits(t *testing.T) {
	scheduler := fairness.New(1, func() time.Duration { return 0 }, func(bool) {})
	u := &user.DefaultInfo{Name: "admin", Extra: map[string][]string{authn.ExtraCluster: {logical.Root}}}
	if turn, err := scheduler.Begin(t.Context(), accountOf(u), fairness.Work{Places: 64}); err != nil {
		t.Fatal(err)
	} else {
		defer turn.End()
	}
	served := false
	handler := WithShares(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { served = true }), scheduler,
		func(*http.Request, *request.RequestInfo) bool { return false }, codecs())
	serve := func(cluster string) {
		ctx, cancel := context.WithTimeout(logical.WithCluster(t.Context(), cluster), 50*time.Millisecond)
		defer cancel()
		ctx = request.WithUser(request.WithRequestInfo(ctx, &request.RequestInfo{Path: "/readyz"}), u)
		handler.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/readyz", nil).WithContext(ctx))
	}
	if serve(logical.Root); !served {
		t.Error("/readyz of the root was not served")
	}
	served = false
	if serve("shop"); served {
		t.Error("a path of a virtual cluster was served although its account has no place left")
	}
}

// TestOfTheRootOnlyHealthAndMetricsAreFree asks with a share that is used up: what is not
// free waits, and is told so when the caller has gone.
func TestOfTheRootOnlyHealthAndMetricsAreFree(t *testing.T) {
	for path, free := range map[string]bool{
		"/livez": true, "/readyz": true, "/readyz/etcd": true, "/healthz": true, "/metrics": true, "/metrics/slis": true,
		"/openapi/v3": false, "/apis": false, "/version": false, "/storage/rewrite": false, "/livezz": false, "/": false,
	} {
		t.Run(path, func(t *testing.T) {
			scheduler := fairness.New(1, func() time.Duration { return 0 }, func(bool) {})
			user := &user.DefaultInfo{Name: "rita", Extra: map[string][]string{authn.ExtraCluster: {logical.Root}}}
			for range 64 { // as much as one may have under way
				turn, err := scheduler.Begin(t.Context(), accountOf(user), fairness.Work{Places: 1})
				if err != nil {
					t.Fatal(err)
				}
				defer turn.End()
			}
			served := false
			handler := WithShares(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { served = true }), scheduler,
				func(*http.Request, *request.RequestInfo) bool { return false }, codecs())
			ctx, gone := context.WithCancel(request.WithUser(logical.WithCluster(t.Context(), logical.Root), user))
			gone()
			ctx = request.WithRequestInfo(ctx, &request.RequestInfo{Path: path, Verb: "get"})
			handler.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, path, nil).WithContext(ctx))
			if served != free {
				t.Errorf("served: %t", served)
			}
		})
	}
}
