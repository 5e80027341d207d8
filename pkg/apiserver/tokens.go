package apiserver

import (
	"fmt"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/request/anonymous"
	tokenunion "k8s.io/apiserver/pkg/authentication/token/union"

	"github.com/vmesh-io/vmesh/pkg/authn/oidc"
	"github.com/vmesh-io/vmesh/pkg/authn/serviceaccount"
	"github.com/vmesh-io/vmesh/pkg/registry/resource"
	registryserviceaccount "github.com/vmesh-io/vmesh/pkg/registry/serviceaccount"
)

// tokens knows whose a bearer token is.
type tokens struct {
	authenticator.Token
	accounts *serviceaccount.Tokens
	request  *registryserviceaccount.TokenREST
	// nobody judges callers without credentials.
	nobody authenticator.Request
}

// assembleTokens makes the issuer of service account tokens, beside the other issuers.
func (s *Server) assembleTokens(stores map[schema.GroupResource]*resource.Store) *tokens {
	core := func(name string) *resource.Store { return stores[schema.GroupResource{Resource: name}] }
	accounts := serviceaccount.New(serviceaccount.Config{
		Clusters: s.clusters, URL: s.clusters.URL, Secrets: core("secrets"), Namespaces: core("namespaces"),
		ServiceAccounts: core("serviceaccounts"), Pods: core("pods"), Nodes: core("nodes"),
	})
	t := &tokens{
		Token: accounts, accounts: accounts, nobody: anonymous.NewAuthenticator(nil),
		request: registryserviceaccount.NewTokenREST(accounts, core("serviceaccounts"), core("pods"), core("secrets"), core("nodes")),
	}
	if s.issuers != nil {
		s.loops = append(s.loops, loop{"authentication configuration", s.issuers.Run})
		t.Token, t.nobody = tokenunion.NewFailOnError(accounts, s.issuers), s.issuers
	}
	return t
}

// openIssuers reads which other issuers there are.
func (s *Server) openIssuers() error {
	if s.options.AuthenticationConfig == "" {
		return nil
	}
	issuers, err := oidc.New(s.options.AuthenticationConfig, s.options.clusterURL)
	if err != nil {
		return fmt.Errorf("--authentication-config: %w", err)
	}
	s.issuers = issuers
	s.closers = append(s.closers, issuers.Close)
	return nil
}
