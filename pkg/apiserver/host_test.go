package apiserver

import (
	"strings"
	"testing"

	"github.com/vmesh-io/vmesh/pkg/pki"
)

func TestTheAuthorityOfClientsIsNoFrontProxys(t *testing.T) {
	clients, err := pki.LoadOrCreateAuthority(t.TempDir(), "client-ca")
	if err != nil {
		t.Fatal(err)
	}
	proxies, err := pki.LoadOrCreateAuthority(t.TempDir(), "front-proxy-ca")
	if err != nil {
		t.Fatal(err)
	}
	if err := foreign(proxies.Bundle(), clients.Bundle()); err != nil {
		t.Error(err)
	}
	if err := foreign(append(proxies.Bundle(), clients.Bundle()...), clients.Bundle()); err == nil || !strings.Contains(err.Error(), "who could then be anyone") {
		t.Errorf("got %v", err)
	}
}
