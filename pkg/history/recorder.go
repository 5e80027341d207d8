package history

import (
	"bytes"
	"context"
	"net/http"
	"net/url"
	"strings"
	"sync"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/endpoints/request"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// Self is the user of what the server does by itself.
const Self = "system:vmesh"

// unrecorded are the resources without a history: secrets, because a history would keep
// them; and what programs write all the time, because it would push out everything else.
var unrecorded = map[schema.GroupResource]bool{
	{Resource: "secrets"}:                                                  true,
	{Resource: "events"}:                                                   true,
	{Group: "events.k8s.io", Resource: "events"}:                           true,
	{Group: "coordination.k8s.io", Resource: "leases"}:                     true,
	{Resource: "endpoints"}:                                                true,
	{Group: "discovery.k8s.io", Resource: "endpointslices"}:                true,
	{Resource: "pods"}:                                                     true,
	{Resource: "nodes"}:                                                    true,
	{Group: "vmesh.io", Resource: "virtualclusters"}:                       true,
	{Group: "vmesh.io", Resource: "meshes"}:                                true,
	{Group: "vmesh.io", Resource: "kubeconfigs"}:                           true,
	{Group: "apiextensions.k8s.io", Resource: "customresourcedefinitions"}: true,
}

type requestKey struct{}

// WithRequest notes in a request's context what a record of it says besides its user: it
// is for writes, before anybody is impersonated.
func WithRequest(ctx context.Context, req *http.Request) context.Context {
	return context.WithValue(ctx, requestKey{}, req)
}

// Recorder makes records. It is a logical.Recorder.
type Recorder struct {
	mu    sync.Mutex
	grown map[string]grown // since they were pruned last
	full  chan struct{}    // holds one when some virtual cluster has grown much
	most  grown
}

// grown is by how much a virtual cluster's history has grown.
type grown struct {
	changes int
	bytes   int64
}

// NewRecorder makes a recorder of histories with bounds.
func NewRecorder(bounds logical.HistoryBounds) *Recorder {
	return &Recorder{
		grown: map[string]grown{}, full: make(chan struct{}, 1),
		// A history is allowed to be beyond its bounds by so much before it is pruned.
		most: grown{max(1, bounds.Changes/8), max(1, bounds.Bytes/8)},
	}
}

// Records implements logical.Recorder.
func (*Recorder) Records(gr schema.GroupResource) bool { return !unrecorded[gr] }

// Content implements logical.Recorder.
func (*Recorder) Content(o *object.Object) []byte { return Content(o) }

// Recorded implements logical.Recorder.
func (r *Recorder) Recorded(cluster string, size int) {
	r.mu.Lock()
	g := r.grown[cluster]
	g.changes++
	g.bytes += int64(size)
	r.grown[cluster] = g
	full := g.changes >= r.most.changes || g.bytes >= r.most.bytes
	r.mu.Unlock()
	if full {
		select {
		case r.full <- struct{}{}:
		default:
		}
	}
}

// take returns the virtual clusters that have grown, and begins anew; with full, only
// those that have grown much.
func (r *Recorder) take(full bool) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var names []string
	for name, g := range r.grown {
		if !full || g.changes >= r.most.changes || g.bytes >= r.most.bytes {
			names = append(names, name)
			delete(r.grown, name)
		}
	}
	return names
}

// mostInflated is how many times larger than its bound a history may be when it is read.
const mostInflated = 8

// Record implements logical.Recorder.
func (r *Recorder) Record(ctx context.Context, c logical.RecordedChange, room int) (data []byte, size int) {
	o := c.Object
	if !c.Lost && c.Before != nil && bytes.Equal(c.Before, c.After) {
		return nil, 0 // a status, managed fields, or nothing
	}
	record := &Record{
		Head: Head{
			Operation: string(v1alpha1.ChangeUpdate), APIVersion: o.APIVersion, Kind: o.Kind, Namespace: o.Namespace, Name: o.Name,
			UID: string(o.UID), Generation: o.Generation, Micros: c.Time.UnixMicro(),
		},
		Before: c.Before, After: c.After,
	}
	switch {
	case c.After == nil:
		record.Operation = string(v1alpha1.ChangeDelete)
	case c.Before == nil && !c.Lost:
		record.Operation = string(v1alpha1.ChangeCreate)
	}
	record.who(ctx)
	if c.Lost {
		record.Omitted = "what was stored before could not be read"
	}
	data = record.Encode()
	if len(data) > room {
		record.Before, record.After = nil, nil
		record.Omitted = "the object is too large for its history to be kept"
		data = record.Encode()
	}
	// Whoever reads a history inflates it: it must not be a hundred times what its bound says.
	return data, max(len(data), (len(record.Before)+len(record.After))/mostInflated)
}

// who fills in who asks for a change, and how.
func (r *Record) who(ctx context.Context) {
	r.User, r.Verb = Self, strings.ToLower(r.Operation)
	u, ok := request.UserFrom(ctx)
	if ok {
		r.User, r.Groups = u.GetName(), u.GetGroups()
	}
	req, _ := ctx.Value(requestKey{}).(*http.Request)
	if req == nil {
		return
	}
	if info, ok := request.RequestInfoFrom(ctx); ok {
		r.Verb = info.Verb
	}
	if r.Verb == "patch" && strings.HasPrefix(req.Header.Get("Content-Type"), applyPrefix) {
		r.Verb = "apply"
	}
	r.UserAgent = cropped(req.UserAgent())
	if strings.Contains(req.URL.RawQuery, "fieldManager=") {
		if q, err := url.ParseQuery(req.URL.RawQuery); err == nil {
			r.FieldManager = q.Get("fieldManager")
		}
	}
	if r.FieldManager == "" {
		r.FieldManager, _, _ = strings.Cut(r.UserAgent, "/")
	}
	r.FieldManager = cropped(r.FieldManager)
	if caller, _ := request.UserFrom(req.Context()); caller != nil && u != nil && !same(caller, u) {
		r.Impersonator = caller.GetName()
	}
}

// applyPrefix begins the content types of server-side applies, in YAML and CBOR.
var applyPrefix = strings.TrimSuffix(string(types.ApplyYAMLPatchType), "+yaml")

func same(a, b user.Info) bool { return a.GetName() == b.GetName() && a.GetUID() == b.GetUID() }

// cropped bounds what a client says of itself.
func cropped(s string) string {
	const most = 256
	if len(s) > most {
		return strings.ToValidUTF8(s[:most], "")
	}
	return s
}
