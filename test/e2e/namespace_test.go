package e2e

import (
	"fmt"
	"net/http"
	"testing"
)

func TestDeletingANamespaceEmptiesIt(t *testing.T) {
	a, b := newTenant(t, shared), newTenant(t, shared)
	for _, tenant := range []*tenant{a, b} {
		tenant.namespace(t, "shop")
		for i := range 20 {
			mustDo(t, tenant.raw, http.MethodPost, virtualServices("shop"), virtualService(fmt.Sprintf("vs-%d", i)))
		}
		for _, body := range []string{
			`services {"metadata":{"name":"a"},"spec":{"ports":[{"port":80}]}}`,
			`configmaps {"metadata":{"name":"a"}}`,
			`secrets {"metadata":{"name":"a"}}`,
			`serviceaccounts {"metadata":{"name":"a"}}`,
		} {
			var resource string
			if _, err := fmt.Sscan(body, &resource); err != nil {
				t.Fatal(err)
			}
			mustDo(t, tenant.raw, http.MethodPost, "/api/v1/namespaces/shop/"+resource, body[len(resource)+1:])
		}
	}
	events := watchRaw(t, a.config, "/apis/networking.istio.io/v1/virtualservices")
	answer := mustDo(t, a.raw, http.MethodDelete, "/api/v1/namespaces/shop", "")
	if got := answer.Text("status", "phase"); got != "Terminating" {
		t.Errorf("the phase is %q", got)
	}
	for range 20 {
		if e := next(t, events); e.Type != "DELETED" {
			t.Fatalf("a watch saw %+v", e)
		}
	}
	eventually(t, func() error {
		if response := do(t, a.raw, http.MethodGet, "/api/v1/namespaces/shop", ""); response.Status != 404 {
			return fmt.Errorf("got %v", response)
		}
		return nil
	})
	for _, path := range []string{virtualServices("shop"), "/api/v1/namespaces/shop/services", "/api/v1/namespaces/shop/configmaps", "/api/v1/namespaces/shop/secrets", "/api/v1/namespaces/shop/serviceaccounts"} {
		if n := count(mustDo(t, a.raw, http.MethodGet, path, "")); n != 0 {
			t.Errorf("%s has %d objects", path, n)
		}
	}
	if n := count(mustDo(t, b.raw, http.MethodGet, virtualServices("shop"), "")); n != 20 {
		t.Errorf("the other virtual cluster's namespace has %d objects, want 20", n)
	}
	a.namespace(t, "shop") // the name is free again, and what was in it is not back
	if n := count(mustDo(t, a.raw, http.MethodGet, virtualServices("shop"), "")); n != 0 {
		t.Errorf("the new namespace has %d objects", n)
	}
}

func TestANamespaceWaitsForWhatItHolds(t *testing.T) {
	tenant := newTenant(t, shared)
	tenant.namespace(t, "shop")
	const held = "/api/v1/namespaces/shop/configmaps/held"
	mustDo(t, tenant.raw, http.MethodPost, "/api/v1/namespaces/shop/configmaps", `{"metadata":{"name":"held","finalizers":["example.com/hold"]}}`)
	mustDo(t, tenant.raw, http.MethodDelete, "/api/v1/namespaces/shop", "")
	eventually(t, func() error {
		if mustDo(t, tenant.raw, http.MethodGet, held, "").Text("metadata", "deletionTimestamp") == "" {
			return fmt.Errorf("what the namespace holds is not being deleted")
		}
		namespace := mustDo(t, tenant.raw, http.MethodGet, "/api/v1/namespaces/shop", "")
		conditions, _ := namespace.Field("status", "conditions").([]any)
		for _, c := range conditions {
			if c := c.(map[string]any); c["type"] == "NamespaceContentRemaining" && c["status"] == "True" {
				return nil
			}
		}
		return fmt.Errorf("the namespace does not say what remains: %v", namespace)
	})
	for path, body := range map[string]string{
		"/api/v1/namespaces/shop/configmaps": `{"metadata":{"name":"late"}}`,
		virtualServices("shop"):              virtualService("late"),
	} {
		refused(t, do(t, tenant.raw, http.MethodPost, path, body), http.StatusForbidden, "being terminated")
	}
	refused(t, do(t, tenant.raw, http.MethodPost, "/api/v1/namespaces", `{"metadata":{"name":"shop"}}`), http.StatusConflict, "already exists")
	mustDo(t, tenant.raw, http.MethodPut, "/api/v1/namespaces/shop", `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"shop"},"spec":{"finalizers":[]}}`)
	mustDo(t, tenant.raw, http.MethodGet, held, "")
	mustDo(t, tenant.raw, http.MethodGet, "/api/v1/namespaces/shop", "")
	mustDo(t, tenant.raw, http.MethodPatch, held, `{"metadata":{"finalizers":null}}`)
	eventually(t, func() error {
		if response := do(t, tenant.raw, http.MethodGet, "/api/v1/namespaces/shop", ""); response.Status != 404 {
			return fmt.Errorf("got %v", response)
		}
		return nil
	})
}

func TestANamespaceWaitsForItsOwnFinalizers(t *testing.T) {
	tenant := newTenant(t, shared)
	const path = "/api/v1/namespaces/shop"
	mustDo(t, tenant.raw, http.MethodPost, "/api/v1/namespaces", `{"metadata":{"name":"shop","finalizers":["example.com/hold"]},"spec":{"finalizers":["kubernetes","example.com/spec"]}}`)
	mustDo(t, tenant.raw, http.MethodPost, path+"/configmaps", `{"metadata":{"name":"a"}}`)
	mustDo(t, tenant.raw, http.MethodDelete, path, "")
	eventually(t, func() error {
		if n := count(mustDo(t, tenant.raw, http.MethodGet, path+"/configmaps", "")); n != 0 {
			return fmt.Errorf("%d config maps are left", n)
		}
		return nil
	})
	// The spec's finalizers are taken away at the finalize endpoint and nowhere else.
	mustDo(t, tenant.raw, http.MethodPatch, path, `{"spec":{"finalizers":[]}}`)
	mustDo(t, tenant.raw, http.MethodGet, path, "")
	eventually(t, func() error {
		now := mustDo(t, tenant.raw, http.MethodGet, path, "")
		response := do(t, tenant.raw, http.MethodPut, path+"/finalize", fmt.Sprintf(
			`{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"shop","resourceVersion":%q},"spec":{"finalizers":[]}}`, now.Text("metadata", "resourceVersion")))
		switch response.Status {
		case http.StatusOK:
			return nil
		case http.StatusConflict: // who empties the namespace has just told how far that has come
			return fmt.Errorf("got %v", response)
		}
		t.Fatal(response)
		return nil
	})
	for i := range 20 {
		// Whoever empties namespaces looks at each change, and has nothing to do any more.
		mustDo(t, tenant.raw, http.MethodPatch, path, fmt.Sprintf(`{"metadata":{"labels":{"seen":"%d"}}}`, i))
	}
	held := mustDo(t, tenant.raw, http.MethodGet, path, "")
	if got := fmt.Sprint(held.Field("metadata", "finalizers"), held.Field("metadata", "labels")); got != "[example.com/hold] map[kubernetes.io/metadata.name:shop seen:19]" {
		t.Errorf("finalizers and labels are %s", got)
	}
	mustDo(t, tenant.raw, http.MethodPatch, path, `{"metadata":{"finalizers":null}}`)
	eventually(t, func() error {
		if response := do(t, tenant.raw, http.MethodGet, path, ""); response.Status != 404 {
			return fmt.Errorf("got %v", response)
		}
		return nil
	})
}

func TestNamespacesThatEveryVirtualClusterHasStay(t *testing.T) {
	tenant := newTenant(t, shared)
	for _, name := range []string{"default", "istio-system"} {
		refused(t, do(t, tenant.raw, http.MethodDelete, "/api/v1/namespaces/"+name, ""), http.StatusForbidden, name)
	}
	refused(t, do(t, tenant.raw, http.MethodDelete, "/api/v1/namespaces", ""), http.StatusMethodNotAllowed)
}
