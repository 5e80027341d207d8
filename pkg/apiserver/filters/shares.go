package filters

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/endpoints/handlers/responsewriters"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/endpoints/responsewriter"

	"github.com/vmesh-io/vmesh/pkg/authn"
	"github.com/vmesh-io/vmesh/pkg/fairness"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// WithShares deals out places and processor time. Each virtual cluster's own identities
// share an account; each user of the root has one, wherever it goes; and all anonymous
// callers have one. It comes before authorization, so that refusals are paid for as well,
// and the account is the caller's and not that of whom the request is for.
func WithShares(handler http.Handler, scheduler *fairness.Scheduler, longRunning request.LongRunningRequestCheck, s runtime.NegotiatedSerializer) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		ctx := req.Context()
		info, ok := request.RequestInfoFrom(ctx)
		u, known := request.UserFrom(ctx)
		if !ok || !known {
			responsewriters.InternalError(w, req, errors.New("no user or no request info in the context"))
			return
		}
		of := accountOf(u)
		if cluster, _ := logical.Cluster(ctx); cluster == logical.Root && !info.IsResourceRequest && seenAlways(info.Path) {
			handler.ServeHTTP(w, req)
			return
		}
		turn, err := scheduler.Begin(ctx, of, workOf(info, req.ContentLength))
		if err != nil {
			refuse(w, req, s, err)
			return
		}
		defer turn.End()
		if longRunning(req, info) {
			// A watch has its place while it tells what there is: until then it holds a list.
			patience := time.AfterFunc(beginWatch, turn.Release)
			defer patience.Stop()
			req = req.WithContext(logical.WithWatchBegun(ctx, turn.Release))
		}
		handler.ServeHTTP(responsewriter.WrapForHTTP1Or2(&payingWriter{ResponseWriter: w, ctx: ctx, turn: turn}), req)
	})
}

// seenAlways says whether a path of the root must be seen when all else is slow: health and
// metrics.
func seenAlways(path string) bool {
	first, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	return slices.Contains([]string{"livez", "readyz", "healthz", "metrics"}, first)
}

// beginWatch is how long a watch may have a place before its client has read what there is.
const beginWatch = 10 * time.Second

// accountOf is who pays for a request.
func accountOf(u user.Info) string {
	switch cluster := authn.Cluster(u); cluster {
	case "": // no identity of ours
		return "anonymous"
	case logical.Root:
		return "user:" + u.GetName()
	default:
		return "cluster:" + cluster
	}
}

// workOf is what requests need, in the experience of the benchmarks.
func workOf(info *request.RequestInfo, body int64) fairness.Work {
	w := fairness.Work{Places: 1, Body: body, Cost: 150 * time.Microsecond}
	switch {
	case !info.IsResourceRequest, info.Verb == "get":
	case info.Verb == "list":
		w.Places, w.Cost = 4, 250*time.Microsecond
	case info.Verb == "watch":
		w.Places, w.Cost = 4, 300*time.Microsecond
	case info.Verb == "deletecollection":
		w.Places, w.Cost = 32, 10*time.Millisecond
	default:
		w.Cost = 700 * time.Microsecond
	}
	return w
}

// refuse answers a request that may not come in now.
func refuse(w http.ResponseWriter, req *http.Request, s runtime.NegotiatedSerializer, err error) {
	var refusal *fairness.Refusal
	if errors.As(err, &refusal) {
		countRefusal(req.Context(), refusal.Reason)
		status := apierrors.NewTooManyRequests(refusal.Message, refusal.RetryAfter)
		status.ErrStatus.Details = &metav1.StatusDetails{RetryAfterSeconds: int32(refusal.RetryAfter)}
		err = status
	} else {
		err = apierrors.NewTimeoutError("the request ended while it waited for its turn", 1)
	}
	responsewriters.ErrorNegotiated(err, s, schema.GroupVersion{}, w, req)
}

// payingWriter has the account pay for the answer.
type payingWriter struct {
	http.ResponseWriter
	ctx  context.Context
	turn *fairness.Turn
}

// Unwrap implements responsewriter.UserProvidedDecorator.
func (w *payingWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// writeStep is how much is written before it is paid for: between the steps others go on.
const writeStep = 64 << 10

// Write implements http.ResponseWriter.
func (w *payingWriter) Write(p []byte) (int, error) {
	written := 0
	for {
		step := p[written:min(len(p), written+writeStep)]
		if err := w.turn.Wrote(w.ctx, len(step)); err != nil {
			return written, err
		}
		n, err := w.ResponseWriter.Write(step)
		if written += n; err != nil || written == len(p) {
			return written, err
		}
	}
}
