// Package history serves the changes of a virtual cluster, from the records that the
// storage keeps.
package history

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/google/uuid"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"

	"github.com/vmesh-io/vmesh/pkg/apis/kind"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/history"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// Source has the records; it is the storage.
type Source interface {
	History(ctx context.Context, p logical.HistoryPage) (records []logical.StoredRecord, revision int64, more bool, err error)
	HistoryHorizon(ctx context.Context) (logical.Horizon, error)
}

// Clusters knows the virtual clusters.
type Clusters interface {
	// Origin is the UID of a virtual cluster and the time of its creation.
	Origin(ctx context.Context, cluster string) (uid string, created metav1.Time)
}

// REST gets and lists changes. Who may read changes sees those of the objects that he may
// get, and no others.
type REST struct {
	kind     *kind.Kind
	version  string
	source   Source
	clusters Clusters
	z        authorizer.UnconditionalAuthorizer
}

var (
	_ rest.Getter               = (*REST)(nil)
	_ rest.Lister               = (*REST)(nil)
	_ rest.Scoper               = (*REST)(nil)
	_ rest.SingularNameProvider = (*REST)(nil)
)

// New makes the storage of changes.
func New(k *kind.Kind, source Source, clusters Clusters, z authorizer.UnconditionalAuthorizer) *REST {
	return &REST{kind: k, version: k.StorageVersion(), source: source, clusters: clusters, z: z}
}

func (r *REST) New() runtime.Object     { return object.New(r.kind.GVK(r.version)) }
func (r *REST) NewList() runtime.Object { return r.newList() }
func (r *REST) Destroy()                {}
func (r *REST) NamespaceScoped() bool   { return true }
func (r *REST) GetSingularName() string { return r.kind.Singular() }

func (r *REST) newList() *object.List {
	gvk := r.kind.ListGVK(r.version)
	return &object.List{TypeMeta: metav1.TypeMeta{APIVersion: gvk.GroupVersion().String(), Kind: gvk.Kind}}
}

func (r *REST) ConvertToTable(ctx context.Context, obj, options runtime.Object) (*metav1.Table, error) {
	return r.kind.ConvertToTable(ctx, r.version, obj, options)
}

// Get implements rest.Getter.
func (r *REST) Get(ctx context.Context, name string, _ *metav1.GetOptions) (runtime.Object, error) {
	missing := apierrors.NewNotFound(r.kind.GroupResource(), name)
	revision, err := strconv.ParseInt(name, 10, 64)
	if err != nil || revision <= 0 || strconv.FormatInt(revision, 10) != name {
		return nil, missing
	}
	records, _, _, err := r.source.History(ctx, logical.HistoryPage{After: revision - 1, Upto: revision, Limit: 1})
	if err != nil {
		return nil, err
	}
	if len(records) == 0 {
		return nil, missing
	}
	view, err := r.newView(ctx)
	if err != nil {
		return nil, err
	}
	c, shown, err := view.change(ctx, records[0])
	if err != nil {
		return nil, err
	}
	if !shown || c.Namespace != request.NamespaceValue(ctx) {
		return nil, missing
	}
	return object.From(c, r.kind.GVK(r.version))
}

const (
	// page is how many records are read at once, at most. etcd looks at all of a history for each.
	page = 1000
	// mostListed is how many bytes of objects one answer has, give or take one change: then it
	// ends early, with a token to go on by, whatever limit was asked for.
	mostListed = 8 << 20
)

// List implements rest.Lister. The newest changes come first.
func (r *REST) List(ctx context.Context, options *internalversion.ListOptions) (runtime.Object, error) {
	q, err := newQuery(options)
	if err != nil {
		return nil, err
	}
	if err := r.reaches(ctx, q); err != nil {
		return nil, err
	}
	view, err := r.newView(ctx)
	if err != nil {
		return nil, err
	}
	list := r.newList()
	upto, revision, listed := q.upto, q.revision, 0
	for size := q.page(); ; size = min(4*size, page) { // most may be what is not asked for
		records, now, more, err := r.source.History(ctx, logical.HistoryPage{After: q.after, Upto: upto, Limit: int64(size)})
		if err != nil {
			return nil, err
		}
		if revision == 0 {
			revision = now
		}
		list.ResourceVersion = strconv.FormatInt(revision, 10)
		for i, record := range records {
			if !q.afterTime.IsZero() && !record.Time.After(q.afterTime) {
				more, records = false, records[:i]
				break
			}
			if q.limit > 0 && len(list.Items) == q.limit || listed > mostListed {
				list.Continue = token{Revision: revision, Upto: record.Revision}.String()
				return list, nil
			}
			c, shown, err := view.change(ctx, record)
			if err != nil {
				return nil, err
			}
			if namespace := request.NamespaceValue(ctx); !shown || namespace != "" && c.Namespace != namespace || !q.selects(c) {
				continue
			}
			o, err := object.From(c, r.kind.GVK(r.version))
			if err != nil {
				return nil, err
			}
			list.Items = append(list.Items, *o)
			listed += len(o.Body())
		}
		if !more || len(records) == 0 {
			break
		}
		upto = records[len(records)-1].Revision - 1
	}
	// Meanwhile records may have been pruned.
	if err := r.reaches(ctx, q); err != nil {
		return nil, err
	}
	return list, nil
}

// query is what a list asks for.
type query struct {
	limit     int
	after     int64
	afterTime time.Time
	asked     bool // for all since some time
	upto      int64
	revision  int64 // of the first page
	field     fields.Selector
	label     labels.Selector
}

// The field selectors that say since when.
const (
	SinceRevision = "sinceRevision"
	SinceTime     = "sinceTime"
)

func newQuery(options *internalversion.ListOptions) (*query, error) {
	q := &query{field: fields.Everything(), label: labels.Everything()}
	if options == nil {
		return q, nil
	}
	q.limit = int(options.Limit)
	if options.LabelSelector != nil {
		q.label = options.LabelSelector
	}
	if options.Continue != "" {
		t, err := parseToken(options.Continue)
		if err != nil {
			return nil, apierrors.NewBadRequest("continue: " + err.Error())
		}
		q.upto, q.revision = t.Upto, t.Revision
	}
	if options.FieldSelector == nil {
		return q, nil
	}
	q.field = options.FieldSelector
	if since, ok := q.field.RequiresExactMatch(SinceRevision); ok {
		revision, err := strconv.ParseInt(since, 10, 64)
		if err != nil || revision <= 0 {
			return nil, apierrors.NewBadRequest(fmt.Sprintf("fieldSelector: %s: %q is not a revision, as in %s=1234", SinceRevision, since, SinceRevision))
		}
		q.after, q.asked = revision, true
	}
	if since, ok := q.field.RequiresExactMatch(SinceTime); ok {
		t, err := time.Parse(time.RFC3339Nano, since)
		if err != nil {
			return nil, apierrors.NewBadRequest(fmt.Sprintf("fieldSelector: %s: %q is not a time as of RFC 3339, as in %s=2026-01-31T12:00:00Z", SinceTime, since, SinceTime))
		}
		q.afterTime, q.asked = t, true
	}
	for _, requirement := range q.field.Requirements() {
		if f := requirement.Field; (f == SinceRevision || f == SinceTime) && q.fieldIsNegated(f) {
			return nil, apierrors.NewBadRequest(fmt.Sprintf("fieldSelector: %s can only be asked for by =", f))
		}
	}
	var err error
	if q.field, err = q.field.Transform(func(field, value string) (string, string, error) {
		if field == SinceRevision || field == SinceTime {
			return "", "", nil // this drops it
		}
		return field, value, nil
	}); err != nil {
		return nil, apierrors.NewBadRequest("fieldSelector: " + err.Error())
	}
	return q, nil
}

// page is how many records to read first.
func (q *query) page() int {
	if q.limit > 0 && q.limit < page {
		return q.limit + 1 // one more tells whether there is more
	}
	return page
}

func (q *query) fieldIsNegated(field string) bool {
	_, exact := q.field.RequiresExactMatch(field)
	return !exact
}

// Selectors are the field selectors besides those of the definition.
func Selectors() map[string]func(map[string]any) string {
	none := func(map[string]any) string { return "" }
	return map[string]func(map[string]any) string{SinceRevision: none, SinceTime: none}
}

func (q *query) selects(c *v1alpha1.Change) bool {
	if q.field.Empty() && q.label.Empty() {
		return true
	}
	return q.label.Matches(labels.Set(c.Labels)) && q.field.Matches(fields.Set{
		"metadata.name": c.Name, "metadata.namespace": c.Namespace, "object.kind": c.Object.Kind, "object.name": c.Object.Name,
		"user.name": c.User.Name, "operation": string(c.Operation),
	})
}

// reaches is an error if something is missing of what a query asks for.
func (r *REST) reaches(ctx context.Context, q *query) error {
	if !q.asked {
		return nil
	}
	h, err := r.source.HistoryHorizon(ctx)
	if err != nil {
		return err
	}
	if h.Time.IsZero() {
		cluster, err := logical.Cluster(ctx)
		if err != nil {
			return err
		}
		_, created := r.clusters.Origin(ctx, cluster)
		h.Time = created.Time
	}
	if q.after > 0 && q.after < h.Revision || !q.afterTime.IsZero() && q.afterTime.Before(h.Time) {
		return apierrors.NewResourceExpired(fmt.Sprintf(
			"the history does not reach back so far: it begins at revision %d (%s)", h.Revision, h.Time.UTC().Format(time.RFC3339)))
	}
	return nil
}

// token is where to go on with a list.
type token struct {
	Revision int64 `json:"rv"`
	Upto     int64 `json:"upto"`
}

func (t token) String() string {
	data, err := json.Marshal(t)
	if err != nil {
		panic("encoding a continue token: " + err.Error()) // two numbers
	}
	return base64.RawURLEncoding.EncodeToString(data)
}

func parseToken(s string) (t token, err error) {
	data, err := base64.RawURLEncoding.DecodeString(s)
	if err == nil {
		err = json.Unmarshal(data, &t)
	}
	if err != nil || t.Upto <= 0 || t.Revision <= 0 {
		return t, errors.New("it is not what a list of changes has answered")
	}
	return t, nil
}

// view shows changes to one user.
type view struct {
	r     *REST
	user  user.Info
	uid   string
	asked map[question]bool // what the user may get
}

type question struct {
	schema.GroupResource
	namespace, name string
}

func (r *REST) newView(ctx context.Context) (*view, error) {
	u, ok := request.UserFrom(ctx)
	if !ok {
		return nil, apierrors.NewInternalError(errors.New("the request has no user"))
	}
	cluster, err := logical.Cluster(ctx)
	if err != nil {
		return nil, err
	}
	uid, _ := r.clusters.Origin(ctx, cluster)
	return &view{r: r, user: u, uid: uid, asked: map[question]bool{}}, nil
}

func (v *view) may(ctx context.Context, q question, version string) (bool, error) {
	if may, known := v.asked[q]; known {
		return may, nil
	}
	decision, _, err := v.r.z.Authorize(ctx, authorizer.AttributesRecord{
		User: v.user, Verb: "get", APIGroup: q.Group, APIVersion: version, Resource: q.Resource, Namespace: q.namespace, Name: q.name, ResourceRequest: true,
	})
	if err != nil {
		return false, apierrors.NewServiceUnavailable(err.Error())
	}
	v.asked[q] = decision == authorizer.DecisionAllow
	return v.asked[q], nil
}

// change is a record as it is shown; shown is false for one of an object that the user may not get.
func (v *view) change(ctx context.Context, s logical.StoredRecord) (c *v1alpha1.Change, shown bool, err error) {
	record, broken := (*history.Record)(nil), s.Err
	if broken == nil {
		record, broken = history.Decode(s.Data)
	}
	if broken != nil {
		record = &history.Record{Head: history.Head{
			Operation: string(v1alpha1.ChangeUpdate), Micros: s.Time.UnixMicro(), Omitted: "the record cannot be read: " + broken.Error(),
		}}
	}
	gv, err := schema.ParseGroupVersion(record.APIVersion)
	if err != nil {
		return nil, false, apierrors.NewInternalError(fmt.Errorf("the record of revision %d: %w", s.Revision, err))
	}
	q := question{GroupResource: s.Resource, namespace: record.Namespace, name: record.Name}
	if s.Resource == (schema.GroupResource{Resource: "namespaces"}) {
		q.namespace = record.Name // as a request for it would be judged
	}
	if may, err := v.may(ctx, q, gv.Version); err != nil || !may {
		return nil, false, err
	}
	name := strconv.FormatInt(s.Revision, 10)
	c = &v1alpha1.Change{
		ObjectMeta: metav1.ObjectMeta{
			Name: name, Namespace: q.namespace, ResourceVersion: name, CreationTimestamp: metav1.NewTime(record.Time().Truncate(time.Second)),
			UID: types.UID(uuid.NewSHA1(uuid.NameSpaceOID, []byte("change/"+v.uid+"/"+name)).String()),
		},
		Time: metav1.NewMicroTime(record.Time()), Verb: record.Verb, Operation: v1alpha1.ChangeOperation(record.Operation),
		User: v1alpha1.ChangeUser{Name: record.User, Groups: record.Groups}, Impersonator: record.Impersonator,
		UserAgent: record.UserAgent, FieldManager: record.FieldManager, What: record.What(), Omitted: record.Omitted,
		Object: v1alpha1.ChangedObject{
			APIVersion: record.APIVersion, Kind: record.Kind, Resource: s.Resource.Resource, Namespace: record.Namespace, Name: record.Name,
			UID: record.UID, Generation: record.Generation,
		},
	}
	if c.Namespace == "" {
		c.Namespace = metav1.NamespaceDefault
	}
	if len(record.Before) > 0 {
		c.Before = &runtime.RawExtension{Raw: record.Before}
	}
	if len(record.After) > 0 {
		c.After = &runtime.RawExtension{Raw: record.After}
	}
	return c, true, nil
}
