package e2e

import (
	"fmt"
	"net/http"
	"path/filepath"
	"sync"
	"testing"

	"github.com/vmesh-io/vmesh/pkg/apiserver"
	"github.com/vmesh-io/vmesh/test/e2e/rawapi"
)

// TestOfManyWhoClaimTheSameThroughTwoServersOneWins lets two servers on one etcd be asked
// at the same moment for what cannot both be.
func TestOfManyWhoClaimTheSameThroughTwoServersOneWins(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	etcd := ownEtcd(t, dir)
	var servers []*rawapi.Client
	for i := range 2 {
		s, err := startServer(filepath.Join(dir, fmt.Sprint("server-", i)), func(o *apiserver.Options) { o.Etcd.Servers = []string{etcd.URL} })
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := s.stop(); err != nil {
				t.Error(err)
			}
		})
		servers = append(servers, rawClient(t, s.root))
	}
	for i := range 2 {
		mustDo(t, servers[0], http.MethodPost, clustersPath, virtualCluster(fmt.Sprint("old-", i), `{}`))
	}
	const rounds = 30
	for round := range rounds {
		claim := fmt.Sprintf(`{"namespaces":["claim-%d"]}`, round)
		hosts := []string{fmt.Sprintf(`{"hosts":["*.h%d.example.com"]}`, round), fmt.Sprintf(`{"hosts":["a.b.h%d.example.com"]}`, round)}
		for _, c := range []struct {
			name string
			ask  func(server int) *rawapi.Response
		}{
			{"creating", func(server int) *rawapi.Response {
				return do(t, servers[server], http.MethodPost, clustersPath, virtualCluster(fmt.Sprintf("new-%d-%d", round, server), claim))
			}},
			{"claiming hosts that overlap", func(server int) *rawapi.Response {
				return do(t, servers[server], http.MethodPost, clustersPath, virtualCluster(fmt.Sprintf("host-%d-%d", round, server), hosts[server]))
			}},
			{"changing", func(server int) *rawapi.Response {
				return do(t, servers[server], http.MethodPatch, fmt.Sprintf("%s/old-%d", clustersPath, server), fmt.Sprintf(`{"spec":{"namespaces":["change-%d"]}}`, round))
			}},
		} {
			var both sync.WaitGroup
			answers := make([]*rawapi.Response, len(servers))
			for server := range servers {
				both.Go(func() { answers[server] = c.ask(server) })
			}
			both.Wait()
			won := 0
			for _, answer := range answers {
				switch {
				case answer.Status < 300:
					won++
				case answer.Status != http.StatusUnprocessableEntity:
					t.Errorf("%s: got %v", c.name, answer)
				}
			}
			if won != 1 {
				t.Errorf("%s: %d of two who claim the same have it: %v, %v", c.name, won, answers[0], answers[1])
			}
		}
	}
}
