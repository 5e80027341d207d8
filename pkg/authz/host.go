package authz

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"

	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/authn"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// Host is the host cluster's authorization: it decides about the paths that are the
// host's. It may remember answers, since it is never asked what a virtual cluster
// decides. An error means that it did not answer.
type Host interface {
	Authorize(ctx context.Context, a authorizer.Attributes) (authorizer.Decision, string, error)
}

// ErrHostAway is the error of questions that the host cluster did not answer.
var ErrHostAway = errors.New("the host cluster's authorization API does not answer, and without it users of the host are not let in")

// AskHost lets the host cluster decide about its users, those that authn.FromHost tells,
// in place of the root's RBAC. It is called before the first decision.
func (z *Authorizer) AskHost(h Host) { z.host = h }

// asksHost says whether the host decides about a user.
func (z *Authorizer) asksHost(u user.Info) bool {
	return z.host != nil && u != nil && authn.FromHost(u)
}

type viewKey struct{}

// WithHostView returns a context for requests of the host view: the host's own API
// groups, served from a virtual cluster.
func WithHostView(ctx context.Context) context.Context {
	return context.WithValue(ctx, viewKey{}, true)
}

// InHostView says whether a request is for the host view.
func InHostView(ctx context.Context) bool {
	in, _ := ctx.Value(viewKey{}).(bool)
	return in
}

// ask is why the host does not allow something to one of its users, or nil.
func (z *Authorizer) ask(ctx context.Context, a authorizer.Attributes) error {
	decision, reason, err := z.host.Authorize(ctx, asHost{a})
	switch {
	case err != nil:
		return fmt.Errorf("%w: %w", ErrHostAway, err)
	case decision == authorizer.DecisionAllow:
		return nil
	case reason == "":
		reason = "no rule of it allows it"
	}
	return errors.New(reason)
}

// inRoot decides about a user of the host in the root. Nothing but vmesh's own API and
// what describes it is the host's: a right to read the host's secrets opens none here.
func (z *Authorizer) inRoot(ctx context.Context, a authorizer.Attributes) (authorizer.Decision, string, error) {
	if a.IsResourceRequest() && a.GetAPIGroup() != v1alpha1.GroupVersion.Group {
		return authorizer.DecisionNoOpinion, "users of the host cluster reach nothing in the root but " + v1alpha1.GroupVersion.Group, nil
	}
	switch err := z.ask(ctx, a); {
	case errors.Is(err, ErrHostAway):
		return authorizer.DecisionNoOpinion, "", err
	case err != nil:
		return authorizer.DecisionNoOpinion, "the host cluster does not allow it: " + err.Error(), nil
	}
	return authorizer.DecisionAllow, "allowed by the host cluster", nil
}

// enterByHost is why the host does not let a user into a virtual cluster, or nil. The
// host has decided about the same verbs when it forwarded the request: it knows the
// method, and not what is read.
func (z *Authorizer) enterByHost(ctx context.Context, u user.Info, cluster, verb string) error {
	switch verb {
	case "list", "watch":
		verb = "get"
	case "deletecollection":
		verb = "delete"
	}
	err := z.ask(ctx, entrance(u, cluster, verb))
	if err == nil || errors.Is(err, ErrHostAway) {
		return err
	}
	return fmt.Errorf("the host cluster does not let this identity enter virtual cluster %q: it needs the verb %q on virtualclusters/proxy of vmesh.io, of that name: %w", cluster, verb, err)
}

// HostAnswers is ErrHostAway, with its cause, if the host has to be asked about a request
// and does not answer. Otherwise it is nil, whatever the host said.
func (z *Authorizer) HostAnswers(ctx context.Context, a authorizer.Attributes) error {
	here, err := logical.Cluster(ctx)
	if err != nil || !z.asksHost(a.GetUser()) || standingOf(a.GetUser(), here) == administrator {
		return nil
	}
	if here == logical.Root {
		_, _, err = z.inRoot(ctx, a)
	} else {
		err = z.enter(ctx, a, here)
	}
	if errors.Is(err, ErrHostAway) {
		return err
	}
	return nil
}

// asHost is a question as the host understands it: about its own user.
type asHost struct{ authorizer.Attributes }

func (h asHost) GetUser() user.Info {
	of := h.Attributes.GetUser()
	extra := maps.Clone(of.GetExtra())
	maps.DeleteFunc(extra, func(key string, _ []string) bool { return strings.HasPrefix(key, authn.ExtraPrefix) })
	return &user.DefaultInfo{Name: of.GetName(), UID: of.GetUID(), Groups: of.GetGroups(), Extra: extra}
}
