package members

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"syscall"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// The reasons for which an API cannot be used.
const (
	ReasonUnreachable        = "Unreachable"
	ReasonCertificateUnknown = "CertificateUnknown"
	ReasonCertificateExpired = "CertificateExpired"
	ReasonUnauthorized       = "Unauthorized"
	ReasonForbidden          = "Forbidden"
	ReasonClockSkew          = "ClockSkew"
	ReasonFailing            = "Failing"
	ReasonNotKubernetes      = "NotKubernetes"
)

const (
	// maxAnswer bounds what is read of an answer: a member may be anyone's.
	maxAnswer = 1 << 20
	// badSkew is how far clocks may be apart before tokens are refused for it.
	badSkew = time.Minute
)

// sight is what a look at a member showed.
type sight struct {
	version string
	uid     types.UID // of its namespace kube-system: it stands for the cluster
	latency time.Duration
	skew    time.Duration // how far its clock is ahead
}

// plainVersion is what a version may look like, since users see it.
var plainVersion = regexp.MustCompile(`^[0-9A-Za-z.+_~-]{1,100}$`)

// kubeSystem asks for one namespace by a list, for which the rights that reading needs are enough.
const kubeSystem = "/api/v1/namespaces?limit=1&fieldSelector=metadata.name%3D" + metav1.NamespaceSystem

// toRead are what control planes read of a member, in all namespaces.
var toRead = []struct{ resource, path string }{
	{"services", "/api/v1/services"},
	{"endpointslices.discovery.k8s.io", "/apis/discovery.k8s.io/v1/endpointslices"},
	{"pods", "/api/v1/pods"},
	{"nodes", "/api/v1/nodes"},
	{"namespaces", "/api/v1/namespaces"},
}

// look asks a member's API how it is, within ctx.
func (a *access) look(ctx context.Context) (sight, *Fault) {
	var s sight
	asked := time.Now()
	status, header, body, f := a.call(ctx, http.MethodGet, "/version", nil)
	s.latency = time.Since(asked)
	if f != nil {
		return s, f
	}
	if date, err := http.ParseTime(header.Get("Date")); err == nil {
		// It is of whole seconds, cut off; half of the latency lies after it.
		s.skew = date.Add(500 * time.Millisecond).Sub(asked.Add(s.latency / 2)).Round(time.Second)
		if s.skew.Abs() <= time.Second+s.latency/2 {
			s.skew = 0 // as far as can be told
		}
	}
	var version struct {
		GitVersion string `json:"gitVersion"`
	}
	// Some let nobody see their version who is not known.
	if status == http.StatusOK && json.Unmarshal(body, &version) == nil && plainVersion.MatchString(version.GitVersion) {
		s.version = version.GitVersion
	}
	status, _, body, f = a.call(ctx, http.MethodGet, kubeSystem, nil)
	if f != nil {
		return s, f
	}
	switch status {
	case http.StatusOK:
		var list metav1.PartialObjectMetadataList
		if json.Unmarshal(body, &list) != nil || list.Kind != "NamespaceList" {
			return s, fault(ReasonNotKubernetes, "%s answers, but not as the API of Kubernetes does", a.server.Host)
		}
		for _, namespace := range list.Items {
			if namespace.Name == metav1.NamespaceSystem {
				s.uid = namespace.UID
			}
		}
		return s, nil // without that namespace, nothing tells it from others
	}
	return s, a.refusal(status, s.skew, "list namespaces")
}

// mayRead says whether the access lets its user read what control planes read.
func (a *access) mayRead(ctx context.Context) *Fault {
	for _, r := range toRead {
		status, _, _, f := a.call(ctx, http.MethodGet, r.path+"?limit=1", nil)
		if f != nil {
			return f
		}
		if status != http.StatusOK {
			return a.refusal(status, 0, "list "+r.resource+" in all namespaces")
		}
	}
	return nil
}

// requestToken asks for a new token of the account of an access. lifetime is what is asked for;
// the member may give another.
func (a *access) requestToken(ctx context.Context, c *claims, lifetime time.Duration) (string, *Fault) {
	seconds := int64(max(lifetime, time.Hour).Round(time.Second) / time.Second)
	request, err := json.Marshal(&authenticationv1.TokenRequest{
		TypeMeta: metav1.TypeMeta{APIVersion: "authentication.k8s.io/v1", Kind: "TokenRequest"},
		Spec:     authenticationv1.TokenRequestSpec{Audiences: c.audiences, ExpirationSeconds: &seconds},
	})
	if err != nil {
		return "", fault(ReasonFailing, "making the request: %v", err)
	}
	path := "/api/v1/namespaces/" + url.PathEscape(c.namespace) + "/serviceaccounts/" + url.PathEscape(c.name) + "/token"
	status, _, body, f := a.call(ctx, http.MethodPost, path, request)
	if f != nil {
		return "", f
	}
	if status != http.StatusCreated && status != http.StatusOK {
		return "", a.refusal(status, 0, fmt.Sprintf("create serviceaccounts/token for %s/%s", c.namespace, c.name))
	}
	var answer authenticationv1.TokenRequest
	if json.Unmarshal(body, &answer) != nil || answer.Status.Token == "" {
		return "", fault(ReasonNotKubernetes, "%s gave no token", a.server.Host)
	}
	return answer.Status.Token, nil
}

// call makes one request. A fault is that no answer came.
func (a *access) call(ctx context.Context, method, path string, body []byte) (status int, header http.Header, answer []byte, _ *Fault) {
	target := *a.server
	path, target.RawQuery, _ = strings.Cut(path, "?")
	target = *target.JoinPath(path)
	request, err := http.NewRequestWithContext(ctx, method, target.String(), bytes.NewReader(body))
	if err != nil {
		return 0, nil, nil, fault(ReasonBadKubeconfig, "the address of the server cannot be used")
	}
	request.Header.Set("Accept", "application/json")
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	response, err := a.client.Do(request)
	if err != nil {
		return 0, nil, nil, a.explain(err)
	}
	defer response.Body.Close()
	answer, err = io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return 0, nil, nil, a.explain(err)
	}
	return response.StatusCode, response.Header, answer, nil
}

// explain says why no answer came.
func (a *access) explain(err error) *Fault {
	host := a.server.Host
	var (
		authority x509.UnknownAuthorityError
		name      x509.HostnameError
		invalid   x509.CertificateInvalidError
		alert     tls.AlertError
		dns       *net.DNSError
		timeout   net.Error
	)
	switch {
	case errors.Is(err, errRedirect):
		return fault(ReasonNotKubernetes, "%s answers with a redirect, which is not followed: give the address of the API itself", host)
	case errors.As(err, &authority):
		return fault(ReasonCertificateUnknown, "the certificate of %s is of no authority that the kubeconfig has: give its certificate-authority-data", host)
	case errors.As(err, &name):
		return fault(ReasonCertificateUnknown, "the certificate of %s is for other names: use one of those as the server, or set tls-server-name", host)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fault(ReasonCertificateExpired, "the certificate of %s has expired, or is not valid yet: have the cluster renew it, and compare the clocks", host)
	case errors.As(err, &invalid):
		return fault(ReasonCertificateUnknown, "the certificate of %s is not valid: %v", host, invalid)
	case errors.As(err, &alert), isRemoteTLS(err):
		return fault(ReasonUnauthorized, "%s refuses the client certificate: give another", host)
	}
	f := fault(ReasonUnreachable, "%s cannot be reached", host)
	f.Away = true
	switch {
	case errors.As(err, &dns):
		f.Message = fmt.Sprintf("the name of %s cannot be resolved", host)
	case errors.Is(err, syscall.ECONNREFUSED):
		f.Message = host + " refuses connections"
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		f.Message = host + " does not answer in time"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET):
		f.Message = host + " closes connections"
	}
	return f
}

// isRemoteTLS says whether the other side ended the handshake for what it was shown.
func isRemoteTLS(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error"
}

// refusal says why an answer is not the wanted one.
func (a *access) refusal(status int, skew time.Duration, what string) *Fault {
	who := a.user
	if who == "" {
		who = "the user of the kubeconfig"
	}
	switch {
	case status == http.StatusUnauthorized && skew.Abs() > badSkew:
		return fault(ReasonClockSkew, "the clocks are %s apart, so that credentials are refused: set them right", skew.Abs())
	case status == http.StatusUnauthorized && !a.expires.IsZero() && time.Now().After(a.expires):
		return fault(ReasonUnauthorized, "the credential under %s expired at %s: give another, as by vmesh join", a.key, a.expires.UTC().Format(time.RFC3339))
	case status == http.StatusUnauthorized:
		return fault(ReasonUnauthorized, "%s does not accept the credential under %s: it was revoked, or is another cluster's; give another, as by vmesh join", a.server.Host, a.key)
	case status == http.StatusForbidden:
		return fault(ReasonForbidden, "%s may not %s: give it that right in the member", who, what)
	case status == http.StatusTooManyRequests:
		return fault(ReasonFailing, "%s has too many requests", a.server.Host)
	case status >= 500:
		f := fault(ReasonFailing, "%s fails to answer (%d)", a.server.Host, status)
		f.Away = true
		return f
	}
	return fault(ReasonNotKubernetes, "%s answers (%d), but not as the API of Kubernetes does", a.server.Host, status)
}
