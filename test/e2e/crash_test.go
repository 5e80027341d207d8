package e2e

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vmesh-io/vmesh/test/e2e/rawapi"
	"github.com/vmesh-io/vmesh/test/harness"
)

var crashes = flag.Int("crashes", 20, "how often the server is killed under load")

// ledger is what one writer was told of its objects. An object's state is the value that
// was last acknowledged, empty when it does not exist. A write without an answer leaves
// two states possible.
type ledger struct {
	acknowledged map[string]string
	uncertain    map[string]string // what the state is if the unanswered write was done
}

// TestNoAcknowledgedWriteIsLost kills the real server, again and again, while several
// clients write. What was acknowledged before is there after, and nothing else; and so is
// the record of the change.
func TestNoAcknowledgedWriteIsLost(t *testing.T) {
	const writers, objects = 8, 10
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	vmesh, err := harness.StartVmesh(ctx, harness.VmeshOptions{DataDir: filepath.Join(t.TempDir(), "data"), ExtraArgs: []string{"--history-size", "64Mi"}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := vmesh.Kill(); err != nil {
			t.Error(err)
		}
	}()
	kubeconfig, err := vmesh.Kubeconfig(ctx, "default")
	if err != nil {
		t.Fatal(err)
	}
	ledgers := make([]*ledger, writers)
	for w := range ledgers {
		ledgers[w] = &ledger{map[string]string{}, map[string]string{}}
	}
	var written atomic.Int64
	for crash := range *crashes {
		load, stop := context.WithCancel(ctx)
		var wg sync.WaitGroup
		for w, l := range ledgers {
			wg.Go(func() { l.write(t, load, kubeconfig, w, objects, &written) })
		}
		// With too few writes the crash would tell nothing.
		enough := written.Load() + 20 + rand.Int64N(300)
		eventually(t, func() error {
			if n := written.Load(); n < enough {
				return fmt.Errorf("crash %d: %d writes were acknowledged, of %d", crash+1, n, enough)
			}
			return nil
		})
		if err := vmesh.Kill(); err != nil {
			t.Fatal(err)
		}
		stop()
		wg.Wait()
		if err := vmesh.Restart(ctx); err != nil {
			t.Fatalf("after crash %d: %v", crash+1, err)
		}
		stored := storedHosts(t, ctx, kubeconfig)
		recorded := lastChanges(t, ctx, kubeconfig, "default")
		for w, l := range ledgers {
			for i := range objects {
				name := fmt.Sprintf("w%d-%d", w, i)
				after, isUncertain := l.uncertain[name]
				if got := stored[name]; got != l.acknowledged[name] && !(isUncertain && got == after) {
					t.Errorf("after crash %d %s is %q, want %q (or, if there was an unanswered write: %t, %q)",
						crash+1, name, got, l.acknowledged[name], isUncertain, after)
				}
				if last, known := recorded[name]; known && stored[name] != "" && (last.After == nil || !strings.Contains(string(last.After.Raw), strconv.Quote(stored[name]))) ||
					known && stored[name] == "" && last.After != nil {
					t.Errorf("after crash %d %s is %q, and its last change is %+v", crash+1, name, stored[name], last)
				} else if !known && stored[name] != l.acknowledged[name] {
					t.Errorf("after crash %d %s has changed, and there is no change of it", crash+1, name)
				}
				l.acknowledged[name] = stored[name]
				delete(stored, name)
			}
			clear(l.uncertain)
		}
		for name := range stored {
			t.Errorf("after crash %d there is %s, which nobody wrote", crash+1, name)
		}
	}
	t.Logf("%d writes were acknowledged over %d crashes", written.Load(), *crashes)
}

// write changes objects at random until it gets no answer.
func (l *ledger) write(t *testing.T, ctx context.Context, kubeconfig string, writer, objects int, acknowledged *atomic.Int64) {
	client, err := rawapi.New(kubeconfig)
	if err != nil {
		t.Error(err)
		return
	}
	defer client.Close()
	for ctx.Err() == nil {
		name := fmt.Sprintf("w%d-%d", writer, rand.IntN(objects))
		path, host := virtualServices("default"), fmt.Sprintf("h%d", rand.Uint32())
		request := rawapi.Request{ContentType: "application/json"}
		switch exists := l.acknowledged[name] != ""; {
		case !exists:
			request.Method, request.Path = http.MethodPost, path
			request.Body = []byte(strings.ReplaceAll(virtualService(name), `"reviews"`, fmt.Sprintf("%q", host)))
		case rand.IntN(3) == 0:
			request.Method, request.Path, host = http.MethodDelete, path+"/"+name, ""
		default:
			request.Method, request.Path, request.ContentType = http.MethodPatch, path+"/"+name, "application/merge-patch+json"
			request.Body = fmt.Appendf(nil, `{"spec":{"hosts":[%q]}}`, host)
		}
		response, err := client.Do(ctx, request)
		if err != nil || response.Status >= 500 {
			l.uncertain[name] = host
			return
		}
		if response.Status >= 300 {
			t.Errorf("%s %s: %v", request.Method, request.Path, response)
			return
		}
		l.acknowledged[name] = host
		acknowledged.Add(1)
	}
}

// storedHosts lists what there is: the first host of each VirtualService.
func storedHosts(t *testing.T, ctx context.Context, kubeconfig string) map[string]string {
	t.Helper()
	client, err := rawapi.New(kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	list, err := client.Do(ctx, rawapi.Request{Method: http.MethodGet, Path: virtualServices("default")})
	if err != nil || list.Status != http.StatusOK {
		t.Fatalf("listing: %v, %v", list, err)
	}
	stored := map[string]string{}
	items, _ := list.Field("items").([]any)
	for _, item := range items {
		object := item.(map[string]any)
		hosts := object["spec"].(map[string]any)["hosts"].([]any)
		stored[object["metadata"].(map[string]any)["name"].(string)] = hosts[0].(string)
	}
	return stored
}
