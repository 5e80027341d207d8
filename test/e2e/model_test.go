package e2e

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vmesh-io/vmesh/test/e2e/rawapi"
)

var (
	modelSeed = flag.Uint64("seed", 0, "the seed of the model test's operations; chosen and printed when 0")
	modelOps  = flag.Int("ops", 250, "how many operations each client of the model test does")
)

// cell is one object as the model has it. Operations on it come one after the other,
// those on different cells at once.
type cell struct {
	mu        sync.Mutex
	namespace string
	name      string
	kind      *modelKind
	exists    bool
	uid       string
	revision  string
	color     string // a label, which a watch selects by
	value     int
	history   []change
}

// change is what every watch must tell of a write.
type change struct {
	kind  string // ADDED, MODIFIED, DELETED
	color string
	value string
}

// modelKind is a kind of the model's objects.
type modelKind struct {
	prefix, plural string
	head           string             // apiVersion and kind
	body           func(v int) string // the members that carry a value
	read           []string           // the value's path
}

var modelKinds = []*modelKind{
	{"/api/v1", "configmaps", `"apiVersion":"v1","kind":"ConfigMap"`, func(v int) string { return fmt.Sprintf(`"data":{"value":"%d"}`, v) }, []string{"data", "value"}},
	{"/apis/networking.istio.io/v1", "destinationrules", `"apiVersion":"networking.istio.io/v1","kind":"DestinationRule"`,
		func(v int) string { return fmt.Sprintf(`"spec":{"host":"%d"}`, v) }, []string{"spec", "host"}},
	{"/apis/security.istio.io/v1", "requestauthentications", `"apiVersion":"security.istio.io/v1","kind":"RequestAuthentication"`,
		func(v int) string {
			return fmt.Sprintf(`"spec":{"jwtRules":[{"issuer":"%d","jwksUri":"https://example.com"}],"selector":{"matchLabels":{"value":"%d"}}}`, v, v)
		}, []string{"spec", "selector", "matchLabels", "value"}},
}

func (c *cell) collection() string {
	return c.kind.prefix + "/namespaces/" + c.namespace + "/" + c.kind.plural
}

func (c *cell) path() string { return c.collection() + "/" + c.name }

func (c *cell) document(revision string) string {
	if revision != "" {
		revision = fmt.Sprintf(`,"resourceVersion":%q`, revision)
	}
	return fmt.Sprintf(`{%s,"metadata":{"name":%q,"namespace":%q,"labels":{"color":%q}%s},%s}`, c.kind.head, c.name, c.namespace, c.color, revision, c.kind.body(c.value))
}

// TestRandomOperationsAgreeWithAModel lets several clients work at random in several
// virtual clusters with the same names in them, and compares all answers, and what
// watches tell, with a model.
func TestRandomOperationsAgreeWithAModel(t *testing.T) {
	seed := *modelSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("seed %d: repeat with -args -seed=%d", seed, seed)
	const clusters, clients, names = 3, 3, 4
	namespaces := []string{"default", "istio-system"}

	type world struct {
		tenant  *tenant
		cells   []*cell
		watches []*modelWatch
	}
	var worlds []*world
	for range clusters {
		w := &world{tenant: newTenant(t, shared)}
		for _, kind := range modelKinds {
			for _, namespace := range namespaces {
				for i := range names {
					w.cells = append(w.cells, &cell{kind: kind, namespace: namespace, name: fmt.Sprintf("n%d", i)})
				}
			}
			w.watches = append(w.watches,
				newModelWatch(t, w.tenant, kind, "", ""),
				newModelWatch(t, w.tenant, kind, "default", ""),
				newModelWatch(t, w.tenant, kind, "", "red"))
		}
		worlds = append(worlds, w)
	}

	var wg sync.WaitGroup
	for i, w := range worlds {
		for client := range clients {
			wg.Go(func() {
				random := rand.New(rand.NewPCG(seed, uint64(i*clients+client)))
				raw, err := rawapi.NewForConfig(w.tenant.config)
				if err != nil {
					t.Error(err)
					return
				}
				defer raw.Close()
				for range *modelOps {
					c := w.cells[random.IntN(len(w.cells))]
					c.mu.Lock()
					err := c.operate(t.Context(), raw, random)
					c.mu.Unlock()
					if err != nil {
						t.Errorf("virtual cluster %d, %s: %v", i, c.path(), err)
						return
					}
				}
			})
		}
		// Meanwhile watches break off and go on from where they were.
		wg.Go(func() {
			random := rand.New(rand.NewPCG(seed, uint64(1000+i)))
			for range *modelOps / 25 {
				w.watches[random.IntN(len(w.watches))].resume(t)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	told := 0
	for _, w := range worlds {
		for _, mw := range w.watches {
			told += mw.finish(t, w.cells)
		}
		for _, kind := range modelKinds {
			compareList(t, w.tenant, kind, w.cells)
		}
	}
	t.Logf("watches told %d changes", told)
}

// operate does one random operation on a cell and checks the answer.
func (c *cell) operate(ctx context.Context, client *rawapi.Client, random *rand.Rand) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	send := func(method, path, contentType, body string) (*rawapi.Response, error) {
		return client.Do(ctx, rawapi.Request{Method: method, Path: path, ContentType: contentType, Body: []byte(body)})
	}
	want := func(status int, r *rawapi.Response, err error) error {
		if err == nil && r.Status != status {
			err = fmt.Errorf("got %v, want %d", r, status)
		}
		return err
	}
	const jsonType, mergeType, applyType = "application/json", "application/merge-patch+json", "application/apply-patch+yaml"
	revision, value, color := c.revision, c.value, c.color
	operation := random.IntN(10)
	if operation < 6 {
		c.value = random.IntN(1000)
		c.color = []string{"red", "blue"}[random.IntN(2)]
	}
	switch {
	case operation == 9 && c.exists: // what is stored is what was written
		r, err := send(http.MethodGet, c.path(), "", "")
		if err := want(http.StatusOK, r, err); err != nil {
			return err
		}
		return c.check(r)
	case operation == 9:
		r, err := send(http.MethodGet, c.path(), "", "")
		return want(http.StatusNotFound, r, err)
	case operation == 8 && c.exists: // refusals leave all as it was
		r, err := send(http.MethodPut, c.path(), jsonType, c.document("1"))
		if err := want(http.StatusConflict, r, err); err != nil {
			return err
		}
		r, err = send(http.MethodPost, c.collection(), jsonType, c.document(""))
		if err := want(http.StatusConflict, r, err); err != nil {
			return err
		}
		r, err = send(http.MethodDelete, c.path(), jsonType, `{"preconditions":{"uid":"another"}}`)
		return want(http.StatusConflict, r, err)
	case operation == 8:
		r, err := send(http.MethodPatch, c.path(), mergeType, `{}`)
		return want(http.StatusNotFound, r, err)
	case operation >= 6 && c.exists:
		r, err := send(http.MethodDelete, c.path(), jsonType, fmt.Sprintf(`{"preconditions":{"uid":%q,"resourceVersion":%q}}`, c.uid, c.revision))
		if err := want(http.StatusOK, r, err); err != nil {
			return err
		}
		c.exists = false
		c.history = append(c.history, change{"DELETED", c.color, strconv.Itoa(c.value)})
		return nil
	case operation >= 6:
		r, err := send(http.MethodDelete, c.path(), jsonType, "")
		return want(http.StatusNotFound, r, err)
	case !c.exists:
		method, path, contentType := http.MethodPost, c.collection(), jsonType
		if operation%2 == 0 {
			method, path, contentType = http.MethodPatch, c.path()+"?fieldManager=model&force=true", applyType
		}
		r, err := send(method, path, contentType, c.document(""))
		if err := want(http.StatusCreated, r, err); err != nil {
			return err
		}
		if uid := r.Text("metadata", "uid"); uid == c.uid || uid == "" {
			return fmt.Errorf("a new object has the uid %q, the one before %q", uid, c.uid)
		}
		c.exists, c.uid, c.revision = true, r.Text("metadata", "uid"), r.Text("metadata", "resourceVersion")
		c.history = append(c.history, change{"ADDED", c.color, strconv.Itoa(c.value)})
		return c.check(r)
	}
	var r *rawapi.Response
	var err error
	switch operation % 3 {
	case 0:
		r, err = send(http.MethodPut, c.path(), jsonType, c.document(c.revision))
	case 1:
		r, err = send(http.MethodPatch, c.path(), mergeType, c.document(""))
	case 2:
		r, err = send(http.MethodPatch, c.path()+"?fieldManager=model&force=true", applyType, c.document(""))
	}
	if err := want(http.StatusOK, r, err); err != nil {
		return err
	}
	c.revision = r.Text("metadata", "resourceVersion")
	if c.revision != revision {
		// Ownership of a field can change without its value.
		c.history = append(c.history, change{"MODIFIED", c.color, strconv.Itoa(c.value)})
	} else if c.value != value || c.color != color {
		return fmt.Errorf("the resourceVersion is still %s after a change", c.revision)
	}
	return c.check(r)
}

// check compares an answer with the model.
func (c *cell) check(r *rawapi.Response) error {
	for _, f := range []struct{ what, got, want string }{
		{"value", r.Text(c.kind.read...), strconv.Itoa(c.value)},
		{"color", r.Text("metadata", "labels", "color"), c.color},
		{"uid", r.Text("metadata", "uid"), c.uid},
		{"resourceVersion", r.Text("metadata", "resourceVersion"), c.revision},
	} {
		if f.got != f.want {
			return fmt.Errorf("the %s is %q, want %q: %v", f.what, f.got, f.want, r)
		}
	}
	return nil
}

// modelWatch is a watch that may break off, of a kind in one namespace or all, perhaps
// of one color only.
type modelWatch struct {
	tenant           *tenant
	kind             *modelKind
	namespace, color string

	mu   sync.Mutex
	last string // the resourceVersion of what was seen last
	seen map[string][]change
	stop func()
}

// modelEvent is a watch event with all of its object.
type modelEvent struct {
	Type   string
	Object map[string]any
}

func newModelWatch(t *testing.T, tenant *tenant, kind *modelKind, namespace, color string) *modelWatch {
	t.Helper()
	w := &modelWatch{tenant: tenant, kind: kind, namespace: namespace, color: color, seen: map[string][]change{}}
	w.last = mustDo(t, tenant.raw, http.MethodGet, w.path(), "").Text("metadata", "resourceVersion")
	w.begin(t)
	return w
}

func (w *modelWatch) path() string {
	path := w.kind.prefix
	if w.namespace != "" {
		path += "/namespaces/" + w.namespace
	}
	path += "/" + w.kind.plural + "?allowWatchBookmarks=true"
	if w.color != "" {
		path += "&labelSelector=color%3D" + w.color
	}
	return path
}

// begin watches from what was seen last.
func (w *modelWatch) begin(t *testing.T) {
	events, cancel := stream[modelEvent](t, w.tenant.config, w.path()+"&watch=true&resourceVersion="+w.last)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for e := range events {
			if err := w.take(e); err != nil {
				t.Errorf("a watch of %s: %v", w.path(), err)
			}
		}
	}()
	w.stop = func() {
		cancel()
		<-done
	}
}

func (w *modelWatch) resume(t *testing.T) {
	w.mu.Lock()
	stop := w.stop
	w.mu.Unlock()
	stop()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.begin(t)
}

func (w *modelWatch) take(e modelEvent) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	metadata, _ := e.Object["metadata"].(map[string]any)
	revision, _ := metadata["resourceVersion"].(string)
	switch e.Type {
	case "BOOKMARK":
		w.last = revision
		return nil
	case "ADDED", "MODIFIED", "DELETED":
	default:
		return fmt.Errorf("%v", e)
	}
	before, err1 := strconv.ParseUint(w.last, 10, 64)
	now, err2 := strconv.ParseUint(revision, 10, 64)
	if err1 != nil || err2 != nil || now <= before {
		return fmt.Errorf("revision %s comes after %s", revision, w.last)
	}
	w.last = revision
	value := any(e.Object)
	for _, key := range w.kind.read {
		value = value.(map[string]any)[key]
	}
	labels, _ := metadata["labels"].(map[string]any)
	key := fmt.Sprintf("%s/%s", metadata["namespace"], metadata["name"])
	w.seen[key] = append(w.seen[key], change{e.Type, fmt.Sprint(labels["color"]), fmt.Sprint(value)})
	return nil
}

// expected is what the watch must have told of a cell.
func (w *modelWatch) expected(c *cell) []change {
	if c.kind != w.kind || w.namespace != "" && c.namespace != w.namespace {
		return nil
	}
	if w.color == "" {
		return c.history
	}
	var out []change
	visible := false
	var last change
	for _, h := range c.history {
		shows := h.kind != "DELETED" && h.color == w.color
		switch {
		case shows && visible:
			h.kind = "MODIFIED"
			out = append(out, h)
		case shows:
			h.kind = "ADDED"
			out = append(out, h)
		case visible:
			// What leaves the selection is told as it last was in it.
			last.kind = "DELETED"
			out = append(out, last)
		}
		visible, last = shows, h
	}
	return out
}

// finish waits until all has been told, compares it, and counts it.
func (w *modelWatch) finish(t *testing.T, cells []*cell) (told int) {
	t.Helper()
	want := map[string][]change{}
	for _, c := range cells {
		if e := w.expected(c); len(e) > 0 {
			want[c.namespace+"/"+c.name] = e
		}
	}
	eventually(t, func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		for key := range maps.Keys(want) {
			if len(w.seen[key]) < len(want[key]) {
				return fmt.Errorf("a watch of %s told %d changes of %s, want %d", w.path(), len(w.seen[key]), key, len(want[key]))
			}
		}
		return nil
	})
	w.mu.Lock()
	stop := w.stop
	w.mu.Unlock()
	stop()
	for key, got := range w.seen {
		if !slices.Equal(got, want[key]) {
			t.Errorf("a watch of %s told of %s\n%v, want\n%v", w.path(), key, got, want[key])
		}
		told += len(got)
	}
	return told
}

// compareList compares what is listed, in pages and in one, with the model.
func compareList(t *testing.T, tenant *tenant, kind *modelKind, cells []*cell) {
	t.Helper()
	var want []string
	for _, c := range cells {
		if c.kind == kind && c.exists {
			want = append(want, fmt.Sprintf("%s/%s %s %d", c.namespace, c.name, c.revision, c.value))
		}
	}
	slices.Sort(want)
	for _, query := range []string{"?", "?resourceVersion=0", "?limit=5"} {
		var got []string
		for token := ""; ; {
			path := kind.prefix + "/" + kind.plural + query
			if token != "" {
				path += "&continue=" + token
			}
			page := mustDo(t, tenant.raw, http.MethodGet, path, "")
			items, _ := page.Field("items").([]any)
			for _, item := range items {
				object := item.(map[string]any)
				metadata := object["metadata"].(map[string]any)
				value := any(object)
				for _, key := range kind.read {
					value = value.(map[string]any)[key]
				}
				got = append(got, fmt.Sprintf("%s/%s %s %s", metadata["namespace"], metadata["name"], metadata["resourceVersion"], value))
			}
			if token = page.Text("metadata", "continue"); token == "" {
				break
			}
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%s%s lists\n%s, want\n%s", kind.plural, query, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
}
