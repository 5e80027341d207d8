package members

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

const (
	// A token is renewed when less than one part in so many is left of its life: rarely, since istiod reads a cluster
	// anew when the access to it changes.
	renewPart = 3
	// warnBefore is how long before its end it is told of a credential that cannot be renewed.
	warnBefore = 30 * 24 * time.Hour
	// The pauses between attempts to renew.
	firstRetry, lastRetry = 10 * time.Second, 10 * time.Minute
)

// renewal is how it went with one credential.
type renewal struct {
	at       time.Time // of the last that succeeded; zero if unknown
	fault    string
	failures int
	retryAt  time.Time
}

func (w *worker) renewal(key string) *renewal {
	r := w.renewals[key]
	if r == nil {
		r = &renewal{}
		w.renewals[key] = r
	}
	return r
}

// accesses are those of the Secret, each once.
func (w *worker) accesses() []*access {
	var all []*access
	if w.own != nil {
		all = append(all, w.own)
	}
	if w.istiod != nil && w.istiod != w.own {
		all = append(all, w.istiod)
	}
	return all
}

// due says whether a token is to be renewed.
func (c *claims) due(now time.Time) bool { return c.expires.Sub(now) < c.life()/renewPart }

// renewAll renews the tokens that are due, and warns of what ends and cannot be renewed.
func (w *worker) renewAll(ctx context.Context, m *v1alpha1.MemberCluster) {
	now := time.Now()
	for _, a := range w.accesses() {
		theirs := now.Add(w.last.skew) // it is the member's clock that the token goes by
		r := w.renewal(a.key)
		switch {
		case a.expires.IsZero():
			r.fault = ""
		case a.claims == nil:
			r.fault = ""
			if left := a.expires.Sub(now); left < warnBefore {
				r.fault = "it cannot be renewed, since it is no token of a service account: put another in its place, as by vmesh join"
				if now.Sub(w.warnedAt[a.key]) > 24*time.Hour {
					w.warnedAt[a.key] = now
					w.keeper.config.Storage.Event(ctx, m.Name, m.UID, corev1.EventTypeWarning, "CredentialExpires",
						fmt.Sprintf("the credential under %s expires at %s: %s", a.key, a.expires.UTC().Format(time.RFC3339), r.fault))
				}
			}
		case !a.claims.due(theirs):
			r.fault, r.failures = "", 0
		case w.failures > 0 || now.Before(r.retryAt):
			// There is nobody to ask, or it is too soon to ask again.
		default:
			if err := w.renew(ctx, m, a); err != nil && ctx.Err() == nil {
				r.failures++
				r.retryAt = now.Add(jitter(min(firstRetry<<min(r.failures-1, 16), lastRetry)))
				r.fault = err.Error()
				w.keeper.metrics.renewed(w.name, "failure")
				w.keeper.config.Storage.Event(ctx, m.Name, m.UID, corev1.EventTypeWarning, "RenewalFailed",
					fmt.Sprintf("the token under %s, which expires at %s, could not be renewed: %v", a.key, a.expires.UTC().Format(time.RFC3339), err))
			}
		}
	}
}

// renew puts a new token into the Secret. Of several servers one does so.
func (w *worker) renew(ctx context.Context, m *v1alpha1.MemberCluster, a *access) error {
	ctx, cancel := context.WithTimeout(ctx, 2*w.keeper.config.Timeout)
	defer cancel()
	storage := w.keeper.config.Storage
	unlock, err := storage.Lock(ctx, "member-credentials/"+m.Name)
	if err != nil {
		return fmt.Errorf("waiting for other servers: %w", err)
	}
	defer unlock()
	secret, err := storage.Secret(ctx, logical.Root, v1alpha1.MembersNamespace, m.Spec.Access.Secret, true)
	if err != nil {
		return fmt.Errorf("reading the Secret %s/%s: %w", v1alpha1.MembersNamespace, m.Spec.Access.Secret, err)
	}
	if secret == nil || string(secret.Data[a.key]) != string(a.data) {
		return nil // it is another meanwhile, and will be looked at
	}
	// vmesh's own account is the one that may, for both; otherwise each for itself.
	var token string
	f := fault(ReasonNoCredential, "vmesh has no access of its own")
	if w.own != nil {
		token, f = w.own.requestToken(ctx, a.claims, a.claims.life())
	}
	if f != nil && w.own != a {
		var second *Fault
		if token, second = a.requestToken(ctx, a.claims, a.claims.life()); second != nil {
			return f
		}
	} else if f != nil {
		return f
	}
	data, err := a.withToken(token)
	if err != nil {
		return err
	}
	fresh, f := parseAccess(a.key, data)
	if f != nil {
		return f
	}
	defer fresh.client.CloseIdleConnections()
	if fresh.user != a.user || fresh.claims == nil || !fresh.expires.After(a.expires) {
		return fmt.Errorf("the member gave a token for %q until %s, where one of %q is wanted that lasts longer", fresh.user, fresh.expires.UTC().Format(time.RFC3339), a.user)
	}
	next := secret.DeepCopy()
	next.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"}
	next.Data[a.key] = data
	if err := storage.WriteSecret(ctx, logical.Root, next); err != nil {
		return fmt.Errorf("writing the Secret %s/%s: %w", v1alpha1.MembersNamespace, m.Spec.Access.Secret, err)
	}
	r := w.renewal(a.key)
	*r = renewal{at: time.Now()}
	w.keeper.metrics.renewed(w.name, "success")
	klog.FromContext(ctx).Info("A token for a member cluster was renewed", "member", m.Name, "key", a.key, "expires", fresh.expires)
	storage.Event(ctx, m.Name, m.UID, corev1.EventTypeNormal, "Renewed", fmt.Sprintf("the token under %s was renewed, until %s", a.key, fresh.expires.UTC().Format(time.RFC3339)))
	return nil
}

// credentials are the accesses as the status has them; was is what it had.
func (w *worker) credentials(was []v1alpha1.MemberCredential) []v1alpha1.MemberCredential {
	var all []v1alpha1.MemberCredential
	for _, a := range w.accesses() {
		c := v1alpha1.MemberCredential{Key: a.key, User: a.user}
		if !a.expires.IsZero() {
			c.ExpiresAt = &metav1.Time{Time: a.expires}
		}
		if r := w.renewals[a.key]; r != nil {
			c.Error = r.fault
			if !r.at.IsZero() {
				c.RenewedAt = &metav1.Time{Time: r.at.Truncate(time.Second)}
			}
		}
		for _, old := range was {
			if old.Key == c.Key && old.User == c.User && c.RenewedAt == nil {
				c.RenewedAt = old.RenewedAt
			}
		}
		all = append(all, c)
	}
	return all
}
