package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/clientcmd"
)

// namespace is where everything is.
const namespace = "demo"

var resources = map[string]schema.GroupVersionResource{
	"DestinationRule": {Group: "networking.istio.io", Version: "v1", Resource: "destinationrules"},
	"ServiceEntry":    {Group: "networking.istio.io", Version: "v1", Resource: "serviceentries"},
	"VirtualService":  {Group: "networking.istio.io", Version: "v1", Resource: "virtualservices"},
}

// server is one vmesh as a client of its API sees it.
type server struct {
	name   string
	client dynamic.Interface
}

func newServer(name, kubeconfig string) (*server, error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, err
	}
	config.QPS = -1
	// A server that has lost etcd's leader answers in the end; what waits that long counts as not answered.
	config.Timeout = 10 * time.Second
	client, err := dynamic.NewForConfig(config)
	return &server{name, client}, err
}

func (s *server) kind(kind string) dynamic.ResourceInterface {
	return s.client.Resource(resources[kind]).Namespace(namespace)
}

// list is all that a server's API holds.
func (s *server) list(ctx context.Context) (state, error) {
	all := state{}
	for _, kind := range observed {
		list, err := s.kind(kind).List(ctx, metav1.ListOptions{})
		if err != nil {
			return nil, err
		}
		for _, o := range list.Items {
			key := keyOf(kind, namespace, o.GetName())
			if all[key], err = valueOf(key, o.GetAnnotations()); err != nil {
				return nil, err
			}
		}
	}
	return all, nil
}

// writer writes entries of its own through all servers, one write after the other, and gives each up only when it knows what
// became of it.
type writer struct {
	ledger  *ledger
	servers []*server
	random  *rand.Rand
	// spec is what an entry is at a value.
	spec func(kind, name string, value int) map[string]any
	logf func(format string, args ...any)
	// stop ends what it waits for in vain.
	stop context.Context
}

// item is an entry that a writer has.
type item struct {
	kind, name string
	version    string // its resourceVersion when it was written or read last
	doubtful   bool   // its creation was repeated when it may have been done: that may be under way still
}

func (i *item) key() string { return keyOf(i.kind, namespace, i.name) }

func (w *writer) object(i *item, value int) *unstructured.Unstructured {
	metadata := map[string]any{"name": i.name, "namespace": namespace, "annotations": map[string]any{valueAnnotation: strconv.Itoa(value)}}
	if i.version != "" {
		metadata["resourceVersion"] = i.version
	}
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "networking.istio.io/v1", "kind": i.kind, "metadata": metadata, "spec": w.spec(i.kind, i.name, value),
	}}
}

func (w *writer) server() *server { return w.servers[w.random.IntN(len(w.servers))] }

// slow is what is worth a line in the log.
const slow = 3 * time.Second

// errStopped says that the writer was stopped before it knew what became of its write.
var errStopped = errors.New("stopped")

// undone says that a server has answered that it did nothing, and may be asked again. client-go has asked again itself by then.
func undone(err error) bool {
	return apierrors.IsServiceUnavailable(err) || apierrors.IsTooManyRequests(err)
}

// unnamed says that a server has answered with an error that names no reason, by which no client knows what to do.
func unnamed(err error) bool {
	var answer apierrors.APIStatus
	return errors.As(err, &answer) && answer.Status().Code == http.StatusInternalServerError && !apierrors.IsServerTimeout(err)
}

// retry does something through one server and then another until it says that it is done. What was refused for good is a
// violation: all that is written is correct, and nobody else writes it. So is what no client understands.
func (w *writer) retry(what string, do func(s *server, attempt int) (done bool, err error)) error {
	for attempt := 0; ; attempt++ {
		s := w.server()
		began := time.Now()
		done, err := do(s, attempt)
		if took := time.Since(began); took > slow {
			w.logf("%s through %s took %s: %v", what, s.name, took.Truncate(time.Millisecond), err)
		}
		switch {
		case done:
			return nil
		case w.stop.Err() != nil:
			return errStopped
		case err == nil:
		case unnamed(err):
			w.ledger.violated("%s through %s, attempt %d, was answered as an internal error: %v", what, s.name, attempt, err)
		case apierrors.IsBadRequest(err), apierrors.IsForbidden(err), apierrors.IsUnauthorized(err), apierrors.IsInvalid(err), apierrors.IsNotFound(err), apierrors.IsGone(err):
			w.ledger.violated("%s through %s, attempt %d: %v", what, s.name, attempt, err)
			return err
		default:
			w.ledger.count("writes and reads without an answer")
		}
		pause(w.stop, 50*time.Millisecond)
	}
}

// create makes a new entry.
func (w *writer) create(kind, name string) (*item, error) {
	i := &item{kind: kind, name: name}
	value := w.ledger.ask(i.key())
	doubt := false // it may have been done
	err := w.retry("creating "+i.key(), func(s *server, _ int) (bool, error) {
		o, err := s.kind(kind).Create(w.stop, w.object(i, value), metav1.CreateOptions{})
		switch {
		case err == nil:
			i.version = o.GetResourceVersion()
		case apierrors.IsAlreadyExists(err) && doubt:
		case apierrors.IsAlreadyExists(err):
			return false, fmt.Errorf("%w, and was never created", apierrors.NewBadRequest(err.Error()))
		default:
			doubt = doubt || !undone(err)
			return false, err
		}
		i.doubtful = doubt
		w.ledger.acknowledge(i.key(), value)
		return true, nil
	})
	if err == nil && i.version == "" {
		err = w.read(i)
	}
	return i, err
}

// update gives an entry its next value.
func (w *writer) update(i *item) error {
	return w.retry("updating "+i.key(), func(s *server, _ int) (bool, error) {
		value := w.ledger.ask(i.key())
		o, err := s.kind(i.kind).Update(w.stop, w.object(i, value), metav1.UpdateOptions{})
		if err == nil {
			i.version = o.GetResourceVersion()
			w.ledger.acknowledge(i.key(), value)
			return true, nil
		}
		if apierrors.IsNotFound(err) || apierrors.IsInvalid(err) {
			return false, err
		}
		if undone(err) {
			w.ledger.refuse(i.key(), value)
			return false, err
		}
		// It may have been done, or somebody wrote the status: see how it is now.
		if unread := w.read(i); unread != nil {
			return false, unread
		}
		return false, err
	})
}

// read sees how an entry is, as whatever server is asked says.
func (w *writer) read(i *item) error {
	return w.retry("reading "+i.key(), func(s *server, _ int) (bool, error) {
		o, err := s.kind(i.kind).Get(w.stop, i.name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			w.ledger.read(s.name, i.key(), 0)
			return false, err
		}
		if err != nil {
			return false, err
		}
		value, err := valueOf(i.key(), o.GetAnnotations())
		if err != nil {
			return false, apierrors.NewBadRequest(err.Error())
		}
		w.ledger.read(s.name, i.key(), value)
		w.ledger.count("reads")
		i.version = o.GetResourceVersion()
		return true, nil
	})
}

// delete deletes an entry for good.
func (w *writer) delete(i *item) error {
	w.ledger.deleting(i.key())
	doubt := false // it may have been done
	err := w.retry("deleting "+i.key(), func(s *server, _ int) (bool, error) {
		err := s.kind(i.kind).Delete(w.stop, i.name, metav1.DeleteOptions{})
		if err == nil || apierrors.IsNotFound(err) && doubt {
			w.ledger.deleted(i.key())
			return true, nil
		}
		doubt = doubt || !undone(err)
		return false, err
	})
	if err != nil {
		return err
	}
	// Whoever is asked says that it is gone.
	return w.retry("reading "+i.key(), func(s *server, _ int) (bool, error) {
		o, err := s.kind(i.kind).Get(w.stop, i.name, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			return true, nil
		case err != nil:
			return false, err
		}
		value, _ := valueOf(i.key(), o.GetAnnotations())
		w.ledger.read(s.name, i.key(), max(value, 1))
		return true, nil
	})
}

// churn creates, changes and deletes entries at random until it is stopped. Those that it is given it changes only.
func (w *writer) churn(prefix string, given []*item, every time.Duration) {
	const most = 20 // entries of its own
	var own []*item
	created := 0
	for w.stop.Err() == nil {
		var err error
		switch n := w.random.IntN(10); {
		case n < 2 && len(own) < most || len(own) == 0:
			var i *item
			created++
			if i, err = w.create("ServiceEntry", fmt.Sprintf("%s-%d", prefix, created)); err == nil {
				own = append(own, i)
			}
		case n < 4:
			at := w.random.IntN(len(own))
			i := own[at]
			own = append(own[:at], own[at+1:]...)
			if i.doubtful {
				given = append(given, i)
				err = w.update(i)
				break
			}
			err = w.delete(i)
		case n < 7 && len(given) > 0:
			err = w.update(given[w.random.IntN(len(given))])
		default:
			i := own[w.random.IntN(len(own))]
			if err = w.update(i); err == nil && w.random.IntN(4) == 0 {
				err = w.read(i)
			}
		}
		if err != nil && !errors.Is(err, errStopped) {
			return // it was reported
		}
		pause(w.stop, every)
	}
}
