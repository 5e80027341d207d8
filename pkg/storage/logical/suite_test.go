package logical

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/apis/example"
	examplev1 "k8s.io/apiserver/pkg/apis/example/v1"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/etcd3"
	storagetesting "k8s.io/apiserver/pkg/storage/testing"
	"k8s.io/utils/clock"
)

// The suites that k8s.io/apiserver holds its own storage to are run through the
// decorator: all that they do happens in one virtual cluster, with objects of the same
// names in two others around it, before and after it in the order of keys.
//
// Not run, with the reason:
//
//   - RunTestDelete...ExpectedTransformOrDecodeError (3), RunTestWatchWithUnsafeDelete,
//     RunTestGetListWith(out)ErrorAggregation, RunTestWatchError,
//     RunWatchErrorIsBlockingFurtherEvents, RunTestTransformationFailure: about
//     objects that fail to decode. Here they are quarantined (TestQuarantine...).
//   - RunTestGuaranteedUpdate, RunTestGuaranteedUpdateChecksStoredData,
//     RunTestListResourceVersionMatch, RunTestListInconsistentContinuation: want to
//     exchange the transformer of a running store, or bypass the watch cache;
//     upstream does not run them on its watch cache either.
//   - RunTestWatchContextCancel: expects what only the etcd3 store does; upstream does
//     not run it on its watch cache either.
//   - RunTestGuaranteedUpdateWithConflict: an update gives the object another name than
//     its key's, which is refused here.
//   - RunTestKeySchema: creates objects under keys that are no object's (TestKeys...).
//   - RunOptionalTestProgressNotify: upstream does not run it on its watch cache either.
//   - RunTestWatchFromZero skips its end, which reaches into the watch cache
//     (TestAWatchThatCannotBeginSaysWhy).
//   - RunTestStats: about estimated sizes, which are switched off (feed).
const suiteCluster = "suite"

var suiteGR = schema.GroupResource{Group: "example", Resource: "pods"}

// podFormat stores the suites' pods. They have no place for a cluster that does not
// show, so that those of the suites' cluster have no stamp.
type podFormat struct{ codec runtime.Codec }

const (
	stampAnnotation  = "stamp"
	podCorruptReason = "corrupt"
)

func newPodFormat() podFormat {
	scheme := runtime.NewScheme()
	metav1.AddToGroupVersion(scheme, metav1.SchemeGroupVersion)
	utilruntime.Must(example.AddToScheme(scheme))
	utilruntime.Must(examplev1.AddToScheme(scheme))
	return podFormat{codec: serializer.NewCodecFactory(scheme).LegacyCodec(examplev1.SchemeGroupVersion)}
}

func (podFormat) newObject() runtime.Object { return &example.Pod{} }
func (podFormat) newList() runtime.Object   { return &example.PodList{} }

func (f podFormat) encode(dst []byte, obj runtime.Object) ([]byte, error) {
	pod := obj.(*example.Pod)
	if pod.Annotations[stampAnnotation] != "" {
		pod = pod.DeepCopy()
		delete(pod.Annotations, stampAnnotation)
	}
	data, err := runtime.Encode(f.codec, pod)
	return append(dst, data...), err
}

func (f podFormat) decode(data []byte, obj runtime.Object) error {
	_, _, err := f.codec.Decode(data, nil, obj)
	return err
}

func (podFormat) cluster(obj runtime.Object) string {
	if pod, ok := obj.(*example.Pod); ok && pod.Annotations[stampAnnotation] != "" {
		return pod.Annotations[stampAnnotation]
	}
	return suiteCluster
}

func (podFormat) stamp(obj runtime.Object, cluster string) {
	if cluster != suiteCluster {
		metav1.SetMetaDataAnnotation(&obj.(*example.Pod).ObjectMeta, stampAnnotation, cluster)
	}
}

func (f podFormat) quarantine(obj runtime.Object, cluster, namespace, name, reason string) {
	pod := obj.(*example.Pod)
	*pod = example.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Annotations: map[string]string{podCorruptReason: reason}}}
	f.stamp(pod, cluster)
}

func (podFormat) quarantined(obj runtime.Object) (string, bool) {
	pod, ok := obj.(*example.Pod)
	if !ok {
		return "", false
	}
	reason, is := pod.Annotations[podCorruptReason]
	return reason, is
}

func podAttrs(obj runtime.Object) (labels.Set, fields.Set, error) {
	pod, ok := obj.(*example.Pod)
	if !ok {
		return nil, nil, fmt.Errorf("not a pod: %T", obj)
	}
	return pod.Labels, fields.Set{
		"metadata.name":      pod.Name,
		"metadata.namespace": pod.Namespace,
		"spec.nodeName":      pod.Spec.NodeName,
		"spec.restartPolicy": string(pod.Spec.RestartPolicy),
		"status.phase":       string(pod.Status.Phase),
	}, nil
}

// suiteStore puts the suites' keys and requests in their virtual cluster.
type suiteStore struct {
	storage.Interface
	store *store
	// settled makes Create wait until the watch cache has the object, as upstream does
	// for some suites.
	settled bool
}

const suiteRoot = "/example/pods/" + suiteCluster

func (s *suiteStore) key(key string) string {
	if strings.HasPrefix(key, "/pods") {
		// Objects of a suite without namespaces have an empty one in their keys.
		return suiteRoot + strings.ReplaceAll(strings.TrimPrefix(key, "/pods"), "//", "/")
	}
	return key
}

func (s *suiteStore) ctx(ctx context.Context) context.Context { return WithCluster(ctx, suiteCluster) }

func (s *suiteStore) Create(ctx context.Context, key string, obj, out runtime.Object, ttl uint64) error {
	// A suite makes a hundred objects in the three seconds of a watch, which a busy machine does not.
	ctx = context.WithoutCancel(ctx)
	if err := s.Interface.Create(s.ctx(ctx), s.key(key), obj, out, ttl); err != nil || !s.settled {
		return err
	}
	return wait.PollUntilContextTimeout(ctx, time.Millisecond, wait.ForeverTestTimeout, true, func(ctx context.Context) (bool, error) {
		var current example.Pod
		err := s.Get(ctx, key, storage.GetOptions{ResourceVersion: "0"}, &current)
		if err != nil && !storage.IsNotFound(err) {
			return false, err
		}
		return err == nil && equality.Semantic.DeepEqual(&current, out), nil
	})
}

func (s *suiteStore) Delete(ctx context.Context, key string, out runtime.Object, p *storage.Preconditions, v storage.ValidateObjectFunc, cached runtime.Object, opts storage.DeleteOptions) error {
	return s.Interface.Delete(s.ctx(ctx), s.key(key), out, p, v, cached, opts)
}

func (s *suiteStore) Watch(ctx context.Context, key string, opts storage.ListOptions) (watch.Interface, error) {
	return s.Interface.Watch(s.ctx(ctx), s.key(key), opts)
}

func (s *suiteStore) Get(ctx context.Context, key string, opts storage.GetOptions, out runtime.Object) error {
	return s.Interface.Get(s.ctx(ctx), s.key(key), opts, out)
}

func (s *suiteStore) GetList(ctx context.Context, key string, opts storage.ListOptions, list runtime.Object) error {
	return s.Interface.GetList(s.ctx(ctx), s.key(key), opts, list)
}

func (s *suiteStore) GuaranteedUpdate(ctx context.Context, key string, out runtime.Object, ignoreNotFound bool, p *storage.Preconditions, update storage.UpdateFunc, cached runtime.Object) error {
	return s.Interface.GuaranteedUpdate(s.ctx(ctx), s.key(key), out, ignoreNotFound, p, update, cached)
}

func (s *suiteStore) compact(ctx context.Context, t *testing.T, resourceVersion string) {
	t.Helper()
	rv, err := s.Versioner().ParseResourceVersion(resourceVersion)
	if err != nil {
		t.Fatal(err)
	}
	client := s.store.backend.config.Client
	version, _, _, err := etcd3.Compact(ctx, client, 0, int64(rv))
	if err != nil {
		_, _, _, err = etcd3.Compact(ctx, client, version, int64(rv))
	}
	if err != nil {
		t.Fatal(err)
	}
	for s.CompactRevision() != int64(rv) {
		if ctx.Err() != nil {
			t.Fatal(ctx.Err())
		}
		time.Sleep(time.Millisecond)
	}
}

// eagerClock makes a watch cache ask every few milliseconds for what was compacted.
type eagerClock struct{ clock.RealClock }

const compactionPoll = 15 * time.Second // upstream's

type eagerTimer struct{ clock.Timer }

func (c eagerClock) NewTimer(d time.Duration) clock.Timer {
	if d != compactionPoll {
		return c.RealClock.NewTimer(d)
	}
	return eagerTimer{c.RealClock.NewTimer(time.Millisecond)}
}

func (t eagerTimer) Reset(time.Duration) bool { return t.Timer.Reset(5 * time.Millisecond) }

func (s *suiteStore) increaseRV(ctx context.Context, t *testing.T) int64 {
	t.Helper()
	resp, err := s.store.backend.config.Client.Put(ctx, "increaseRV", "ok")
	if err != nil {
		t.Fatal(err)
	}
	return resp.Header.Revision
}

func newSuiteStore(t *testing.T, namespaced bool) *suiteStore {
	t.Helper()
	b := newTestBackend(t, BackendConfig{CompactionInterval: -1})
	b.client.Kubernetes = storagetesting.NewKubernetesRecorder(b.client.Kubernetes)
	s, err := b.open(storeConfig{GroupResource: suiteGR, Namespaced: namespaced, GetAttrs: podAttrs, Format: newPodFormat(), Clock: eagerClock{}})
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	if err := s.cacher.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	suite := &suiteStore{Interface: s, store: s}
	for _, cluster := range []string{suiteCluster[:3], suiteCluster + "s"} {
		for _, name := range []string{"foo", "bar", "first", "test-ns", "pod-1"} {
			pod := &example.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}}
			key := "/example/pods/" + cluster + "/" + name
			if namespaced {
				pod.Namespace = "test-ns"
				key = "/example/pods/" + cluster + "/test-ns/" + name
			}
			if err := s.Create(WithCluster(ctx, cluster), key, pod, nil, 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	// The suites count on a watch cache that knows all that is there.
	list := &example.PodList{}
	if err := suite.GetList(ctx, "/pods", storage.ListOptions{Recursive: true, Predicate: storage.Everything}, list); err != nil {
		t.Fatal(err)
	}
	if len(list.Items) != 0 {
		t.Fatalf("the virtual cluster begins with %d objects of others", len(list.Items))
	}
	return suite
}

func TestUpstreamSuites(t *testing.T) {
	noKeyCheck := func(context.Context, *testing.T, string) {}
	noCallCheck := func(*testing.T, uint64, uint64) {}
	ctx := context.Background()
	for _, c := range []struct {
		name          string
		clusterScoped bool
		settled       bool
		alone         bool // sets a feature gate, or has an object that expires while subtests wait
		run           func(t *testing.T, s *suiteStore)
	}{
		{name: "Create", run: func(t *testing.T, s *suiteStore) { storagetesting.RunTestCreate(ctx, t, s, noKeyCheck) }},
		{name: "CreateWithTTL", run: func(t *testing.T, s *suiteStore) { storagetesting.RunTestCreateWithTTL(ctx, t, s) }},
		{name: "CreateWithKeyExist", run: func(t *testing.T, s *suiteStore) { storagetesting.RunTestCreateWithKeyExist(ctx, t, s) }},
		{name: "Get", alone: true, run: func(t *testing.T, s *suiteStore) { storagetesting.RunTestGet(ctx, t, s) }},
		{name: "UnconditionalDelete", run: func(t *testing.T, s *suiteStore) { storagetesting.RunTestUnconditionalDelete(ctx, t, s) }},
		{name: "ConditionalDelete", run: func(t *testing.T, s *suiteStore) { storagetesting.RunTestConditionalDelete(ctx, t, s) }},
		{name: "DeleteWithSuggestion", run: func(t *testing.T, s *suiteStore) { storagetesting.RunTestDeleteWithSuggestion(ctx, t, s) }},
		{name: "DeleteWithSuggestionAndConflict", run: func(t *testing.T, s *suiteStore) { storagetesting.RunTestDeleteWithSuggestionAndConflict(ctx, t, s) }},
		{name: "DeleteWithSuggestionOfDeletedObject", run: func(t *testing.T, s *suiteStore) {
			storagetesting.RunTestDeleteWithSuggestionOfDeletedObject(ctx, t, s)
		}},
		{name: "DeleteWithConflict", run: func(t *testing.T, s *suiteStore) { storagetesting.RunTestDeleteWithConflict(ctx, t, s) }},
		{name: "ValidateDeletionWithSuggestion", run: func(t *testing.T, s *suiteStore) { storagetesting.RunTestValidateDeletionWithSuggestion(ctx, t, s) }},
		{name: "ValidateDeletionWithOnlySuggestionValid", run: func(t *testing.T, s *suiteStore) {
			storagetesting.RunTestValidateDeletionWithOnlySuggestionValid(ctx, t, s)
		}},
		{name: "PreconditionalDeleteWithSuggestion", run: func(t *testing.T, s *suiteStore) {
			storagetesting.RunTestPreconditionalDeleteWithSuggestion(ctx, t, s)
		}},
		{name: "PreconditionalDeleteWithOnlySuggestionPass", run: func(t *testing.T, s *suiteStore) {
			storagetesting.RunTestPreconditionalDeleteWithOnlySuggestionPass(ctx, t, s)
		}},
		{name: "List", run: func(t *testing.T, s *suiteStore) {
			storagetesting.RunTestList(ctx, t, s, s.compact, true, s.store.backend.client.Kubernetes.(*storagetesting.KubernetesRecorder))
		}},
		{name: "ConsistentList", run: func(t *testing.T, s *suiteStore) {
			storagetesting.RunTestConsistentList(ctx, t, s, s.increaseRV, true, true, true)
		}},
		{name: "GetListNonRecursive", run: func(t *testing.T, s *suiteStore) { storagetesting.RunTestGetListNonRecursive(ctx, t, s.increaseRV, s) }},
		{name: "GetListRecursivePrefix", run: func(t *testing.T, s *suiteStore) { storagetesting.RunTestGetListRecursivePrefix(ctx, t, s) }},
		{name: "ListContinuation", run: func(t *testing.T, s *suiteStore) { storagetesting.RunTestListContinuation(ctx, t, s, noCallCheck) }},
		{name: "ListPaginationRareObject", clusterScoped: true, run: func(t *testing.T, s *suiteStore) {
			storagetesting.RunTestListPaginationRareObject(ctx, t, s, noCallCheck)
		}},
		{name: "ListContinuationWithFilter", run: func(t *testing.T, s *suiteStore) {
			storagetesting.RunTestListContinuationWithFilter(ctx, t, s, noCallCheck)
		}},
		{name: "ListPaging", run: func(t *testing.T, s *suiteStore) { storagetesting.RunTestListPaging(ctx, t, s) }},
		{name: "NamespaceScopedList", run: func(t *testing.T, s *suiteStore) { storagetesting.RunTestNamespaceScopedList(ctx, t, s) }},
		{name: "GuaranteedUpdateWithTTL", run: func(t *testing.T, s *suiteStore) { storagetesting.RunTestGuaranteedUpdateWithTTL(ctx, t, s) }},
		{name: "GuaranteedUpdateWithSuggestionAndConflict", run: func(t *testing.T, s *suiteStore) {
			storagetesting.RunTestGuaranteedUpdateWithSuggestionAndConflict(ctx, t, s)
		}},
		{name: "CompactRevision", run: func(t *testing.T, s *suiteStore) {
			storagetesting.RunTestCompactRevision(ctx, t, s, s.increaseRV, s.compact)
		}},

		{name: "Watch", run: func(t *testing.T, s *suiteStore) { storagetesting.RunTestWatch(ctx, t, s) }},
		{name: "WatchFromZero", run: func(t *testing.T, s *suiteStore) { storagetesting.RunTestWatchFromZero(ctx, t, s, nil) }},
		{name: "DeleteTriggerWatch", run: func(t *testing.T, s *suiteStore) { storagetesting.RunTestDeleteTriggerWatch(ctx, t, s) }},
		{name: "WatchFromNonZero", run: func(t *testing.T, s *suiteStore) { storagetesting.RunTestWatchFromNonZero(ctx, t, s) }},
		{name: "DelayedWatchDelivery", run: func(t *testing.T, s *suiteStore) { storagetesting.RunTestDelayedWatchDelivery(ctx, t, s) }},
		{name: "WatcherTimeout", run: func(t *testing.T, s *suiteStore) { storagetesting.RunTestWatcherTimeout(ctx, t, s) }},
		{name: "WatchDeleteEventObjectHaveLatestRV", run: func(t *testing.T, s *suiteStore) {
			storagetesting.RunTestWatchDeleteEventObjectHaveLatestRV(ctx, t, s)
		}},
		{name: "WatchInitializationSignal", run: func(t *testing.T, s *suiteStore) { storagetesting.RunTestWatchInitializationSignal(ctx, t, s) }},
		{name: "ClusterScopedWatch", clusterScoped: true, run: func(t *testing.T, s *suiteStore) { storagetesting.RunTestClusterScopedWatch(ctx, t, s) }},
		{name: "NamespaceScopedWatch", run: func(t *testing.T, s *suiteStore) { storagetesting.RunTestNamespaceScopedWatch(ctx, t, s) }},
		{name: "WatchDispatchBookmarkEvents", run: func(t *testing.T, s *suiteStore) {
			storagetesting.RunTestWatchDispatchBookmarkEvents(ctx, t, s, true)
		}},
		{name: "WatchBookmarksWithCorrectResourceVersion", run: func(t *testing.T, s *suiteStore) {
			storagetesting.RunTestOptionalWatchBookmarksWithCorrectResourceVersion(ctx, t, s)
		}},
		{name: "SendInitialEventsBackwardCompatibility", run: func(t *testing.T, s *suiteStore) {
			storagetesting.RunSendInitialEventsBackwardCompatibility(ctx, t, s)
		}},
		{name: "WatchSemantics", settled: true, alone: true, run: func(t *testing.T, s *suiteStore) { storagetesting.RunWatchSemantics(ctx, t, s) }},
		{name: "WatchSemanticInitialEventsExtended", settled: true, alone: true, run: func(t *testing.T, s *suiteStore) {
			storagetesting.RunWatchSemanticInitialEventsExtended(ctx, t, s)
		}},
		{name: "WatchListMatchSingle", settled: true, alone: true, run: func(t *testing.T, s *suiteStore) { storagetesting.RunWatchListMatchSingle(ctx, t, s) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			if !c.alone {
				t.Parallel()
			}
			s := newSuiteStore(t, !c.clusterScoped)
			s.settled = c.settled
			c.run(t, s)
		})
	}
}
