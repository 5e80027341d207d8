package extension

import (
	"context"
	"errors"

	"k8s.io/apiserver/pkg/authorization/authorizer"

	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// scoped answers the questions of expressions for one virtual cluster. Upstream asks them
// in a context of its own, which says nothing of the request's.
type scoped struct {
	authorizer.UnconditionalAuthorizer
	// cluster is empty for guard rails' webhooks, of which one plugin serves all virtual
	// clusters: then the user says which it is, see seen.
	cluster string
}

func (s scoped) Authorize(ctx context.Context, a authorizer.Attributes) (authorizer.Decision, string, error) {
	cluster := s.cluster
	if u := a.GetUser(); cluster == "" && u != nil {
		if target := u.GetExtra()[ExtraTarget]; len(target) == 1 {
			cluster = target[0]
		}
	}
	if cluster == "" {
		return authorizer.DecisionDeny, "", errors.New("the platform's webhooks can ask for the permissions of the user who writes, and of no other")
	}
	return s.UnconditionalAuthorizer.Authorize(logical.WithCluster(ctx, cluster), a)
}
