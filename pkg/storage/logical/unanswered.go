package logical

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/client/v3/kubernetes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Away tells whether an error is that of an etcd which cannot answer now: it cannot be reached,
// has no leader, or lost the one that was asked. It may have done what it was asked for.
func Away(err error) bool {
	var ofEtcd rpctypes.EtcdError
	if errors.As(err, &ofEtcd) {
		return ofEtcd.Code() == codes.Unavailable || ofEtcd.Code() == codes.DeadlineExceeded
	}
	code := status.Code(err)
	return code == codes.Unavailable || code == codes.DeadlineExceeded || errors.Is(err, context.DeadlineExceeded)
}

// retryAfter is when a client is to try again, in seconds: about how long etcd takes to find a
// new leader.
const retryAfter = 1

// answerable says in the API's words that etcd did not answer, which upstream passes on as it
// comes: as a 500 that no client takes for something that goes by. Other errors stay as they are.
//
// With Retry-After clients repeat a request of any kind by themselves. So it is given for what
// was not done, and never for a write of which nobody knows whether it was: repeated it might
// be done twice, or be refused for what it has done itself.
func answerable(ctx context.Context, err error) error {
	if err == nil || ctx.Err() != nil { // who asked has gone, or is told of his own deadline
		return err
	}
	var unknown *unknownOutcome
	switch {
	case errors.As(err, &unknown):
		return apierrors.NewTimeoutError(fmt.Sprintf("etcd has not said whether it did this (%v): see how things are before you try again", unknown.error), 0)
	case errors.Is(err, rpctypes.ErrTooManyRequests):
		return apierrors.NewTooManyRequests(fmt.Sprintf("etcd has too much to do (%v): nothing was changed", err), retryAfter)
	case Away(err):
		return &apierrors.StatusError{ErrStatus: metav1.Status{
			Status: metav1.StatusFailure, Code: http.StatusServiceUnavailable, Reason: metav1.StatusReasonServiceUnavailable,
			Message: fmt.Sprintf("etcd does not answer (%v): nothing was changed; try again", err),
			Details: &metav1.StatusDetails{RetryAfterSeconds: retryAfter},
		}}
	}
	return err
}

// unknownOutcome is the error of a write that etcd may have done.
type unknownOutcome struct{ error }

func (u *unknownOutcome) Unwrap() error { return u.error }

// candidClient tells failed writes from failed reads: a write begins with reads, and when one of
// those fails, nothing was done.
type candidClient struct{ kubernetes.Interface }

// OptimisticPut implements kubernetes.Interface.
func (c candidClient) OptimisticPut(ctx context.Context, key string, value []byte, expected int64, opts kubernetes.PutOptions) (kubernetes.PutResponse, error) {
	resp, err := c.Interface.OptimisticPut(ctx, key, value, expected, opts)
	return resp, written(err)
}

// OptimisticDelete implements kubernetes.Interface.
func (c candidClient) OptimisticDelete(ctx context.Context, key string, expected int64, opts kubernetes.DeleteOptions) (kubernetes.DeleteResponse, error) {
	resp, err := c.Interface.OptimisticDelete(ctx, key, expected, opts)
	return resp, written(err)
}

func written(err error) error {
	if err == nil || !Away(err) {
		return err
	}
	return &unknownOutcome{err}
}
