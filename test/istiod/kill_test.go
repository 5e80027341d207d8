package istiod

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	kills   = 20
	writers = 4
	// keys is how many objects each writer creates before it updates them in turn.
	keys = 25
)

// written remembers what vmesh has acknowledged: the last value of each object, and how
// many times a value was asked for, acknowledged or not.
type written struct {
	mu           sync.Mutex
	acknowledged map[string]int
	asked        map[string]int
}

// vmesh is killed twenty times in a row while it is being written to. No acknowledged
// write may be lost, istiod may lose no object, and no call may fail.
func TestNothingIsLostWhenVmeshIsKilled(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	m := startMesh(ctx, t)
	config, err := clientcmd.BuildConfigFromFlags("", m.kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	config.QPS = -1
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	rules := client.Resource(schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1", Resource: "destinationrules"}).Namespace("demo")

	load, stopLoad := context.WithCancel(ctx)
	var wg sync.WaitGroup
	log := &written{acknowledged: map[string]int{}, asked: map[string]int{}}
	for w := range writers {
		wg.Go(func() { log.write(load, rules, w) })
	}
	var calls int
	var callErr, configErr error
	wg.Go(func() { calls, callErr = callAll(load, m) })
	wg.Go(func() { configErr = neverLoses(load, m) })

	for kill := range kills {
		// Let some writes through, so that the kill comes amidst others.
		log.waitForMore(ctx, t, 40)
		if err := m.vmesh.Kill(); err != nil {
			t.Fatal(err)
		}
		<-m.vmesh.Exited()
		if err := m.vmesh.Restart(ctx); err != nil {
			t.Fatalf("restart %d: %v", kill+1, err)
		}
	}
	log.waitForMore(ctx, t, 40)
	stopLoad()
	wg.Wait()
	if callErr != nil {
		t.Error(callErr)
	}
	if configErr != nil {
		t.Error(configErr)
	}

	list := func() (map[string]int, error) {
		list, err := rules.List(ctx, metav1.ListOptions{LabelSelector: "probe=kill"})
		if err != nil {
			return nil, err
		}
		values := map[string]int{}
		for _, o := range list.Items {
			values[o.GetName()], _ = strconv.Atoi(o.GetAnnotations()["value"])
		}
		return values, nil
	}
	stored, err := list()
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range log.acknowledged {
		got, exists := stored[name]
		switch {
		case !exists:
			t.Errorf("%s was acknowledged and is gone", name)
		case got < value || got > log.asked[name]:
			t.Errorf("%s has value %d; %d was acknowledged, %d asked for", name, got, value, log.asked[name])
		}
	}
	// istiod comes to have all of it, whatever it missed.
	settled, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	eventually(settled, t, "istiod has what is stored", func() error {
		// A write that was given up when the load ended may have come through since.
		stored, err := list()
		if err != nil {
			return err
		}
		shown, err := m.istiod.Configz(settled)
		if err != nil {
			return err
		}
		has := map[string]string{}
		for _, o := range shown {
			has[o.GetName()] = o.GetAnnotations()["value"]
		}
		for name, value := range stored {
			if has[name] != strconv.Itoa(value) {
				return fmt.Errorf("istiod has %s at value %q, stored is %d", name, has[name], value)
			}
		}
		return nil
	})
	t.Logf("%d objects, %d calls, %d kills", len(stored), calls, kills)
}

// write creates objects, then raises their values, until ctx ends.
func (w *written) write(ctx context.Context, rules dynamic.ResourceInterface, writer int) {
	for n := 0; ctx.Err() == nil; n++ {
		name := fmt.Sprintf("kill-%d-%d", writer, n%keys)
		w.mu.Lock()
		w.asked[name]++
		value := w.asked[name]
		_, exists := w.acknowledged[name]
		w.mu.Unlock()

		o := &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "networking.istio.io/v1", "kind": "DestinationRule",
			"metadata": map[string]any{"name": name, "labels": map[string]any{"probe": "kill"}, "annotations": map[string]any{"value": strconv.Itoa(value)}},
			"spec":     map[string]any{"host": name + ".example"},
		}}
		// Server-side apply creates and replaces: a repetition after a lost answer does no harm.
		_, err := rules.Apply(ctx, name, o, metav1.ApplyOptions{FieldManager: "writer", Force: true})
		switch {
		case err == nil:
			w.mu.Lock()
			w.acknowledged[name] = value
			w.mu.Unlock()
		case exists || ctx.Err() != nil:
		default:
			// Not there yet, as far as is known: try it again before the next.
			n--
		}
		if err != nil {
			pause(ctx, 10*time.Millisecond)
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// waitForMore waits until so many more writes have been acknowledged.
func (w *written) waitForMore(ctx context.Context, t *testing.T, more int) {
	t.Helper()
	count := func() int {
		w.mu.Lock()
		defer w.mu.Unlock()
		total := 0
		for _, v := range w.acknowledged {
			total += v
		}
		return total
	}
	start := count()
	eventually(ctx, t, "writes go through", func() error {
		if got := count() - start; got < more {
			return fmt.Errorf("%d of %d", got, more)
		}
		return nil
	})
}

// callAll calls without a pause, and returns the first failure.
func callAll(ctx context.Context, m *mesh) (calls int, _ error) {
	for ctx.Err() == nil {
		if _, err := m.client.Call(ctx, nil); err != nil && ctx.Err() == nil {
			return calls, fmt.Errorf("call %d failed: %w", calls, err)
		}
		calls++
		pause(ctx, 2*time.Millisecond)
	}
	return calls, nil
}

// neverLoses looks at istiod's configuration all the time: nothing is ever deleted, so
// nothing that was there may be missing.
func neverLoses(ctx context.Context, m *mesh) error {
	seen := map[string]bool{}
	for ctx.Err() == nil {
		shown, err := m.istiod.Configz(ctx)
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, context.Canceled) {
				return nil
			}
			return err
		}
		now := map[string]bool{}
		for _, o := range shown {
			now[o.GetKind()+" "+o.GetNamespace()+"/"+o.GetName()] = true
		}
		for name := range seen {
			if !now[name] {
				return fmt.Errorf("istiod lost %s", name)
			}
		}
		seen = now
		pause(ctx, 20*time.Millisecond)
	}
	if len(seen) == 0 {
		return errors.New("istiod never had anything")
	}
	return nil
}
