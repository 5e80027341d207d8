package review

import (
	"context"

	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/registry/rest"

	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// TokenReview answers whose a token is. url gives the address of the API of a virtual
// cluster, or of the root: the audience of who asks for none.
func TokenReview(tokens authenticator.Token, url func(cluster string) string) rest.Storage {
	return &creater{
		name:   "tokenreview",
		sample: func() runtime.Object { return &authenticationv1.TokenReview{} },
		answer: func(ctx context.Context, _ user.Info, obj runtime.Object) error {
			review := obj.(*authenticationv1.TokenReview)
			if review.Spec.Token == "" {
				return apierrors.NewBadRequest("token is required for TokenReview in authentication")
			}
			here, err := logical.Cluster(ctx)
			if err != nil {
				return err
			}
			audiences := authenticator.Audiences(review.Spec.Audiences)
			if len(audiences) == 0 {
				audiences = authenticator.Audiences{url(here)}
			}
			resp, ok, err := tokens.AuthenticateToken(authenticator.WithAudiences(ctx, audiences), review.Spec.Token)
			switch {
			case err != nil:
				review.Status = authenticationv1.TokenReviewStatus{Error: err.Error()}
			case !ok:
				review.Status = authenticationv1.TokenReviewStatus{Error: "invalid bearer token"}
			default:
				review.Status = authenticationv1.TokenReviewStatus{Authenticated: true, User: infoOf(resp.User), Audiences: resp.Audiences}
			}
			return nil
		},
	}
}
