package members

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/members"
	"github.com/vmesh-io/vmesh/test/harness"
)

const (
	yes = metav1.ConditionTrue
	no  = metav1.ConditionFalse
)

func withTimeout(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// both are an access for vmesh and one for control planes.
func both(ctx context.Context, t *testing.T, m *harness.Member) map[string][]byte {
	t.Helper()
	return map[string][]byte{
		v1alpha1.MemberKubeconfigKey:       access(t, m, token(ctx, t, m, vmeshAccount)),
		v1alpha1.MemberIstiodKubeconfigKey: access(t, m, token(ctx, t, m, istiodAccount)),
	}
}

func TestAnIstiodReadsAMemberForAsLongAsItIsToAndNoLonger(t *testing.T) {
	ctx := withTimeout(t)
	m, b := startMember(ctx, t, "west", 11)
	join(ctx, t, "west", both(ctx, t, m))
	untilCondition(ctx, t, "west", v1alpha1.ConditionAccessGiven, yes, members.ReasonGiven)
	untilCondition(ctx, t, "west", v1alpha1.ConditionReachable, yes, "Answers")
	untilSeen(ctx, t, b.IP, true)
	untilCondition(ctx, t, "west", v1alpha1.ConditionDiscovered, yes, "Read")
	out, err := harness.Kubectl(ctx, shared.vmesh.AdminKubeconfig, "", "get", "membercluster/west", "-o", "wide")
	must(t, err)
	t.Log("\n" + out)

	t.Run("a Secret that somebody deletes comes back", func(t *testing.T) {
		secrets := shared.inHome.CoreV1().Secrets("istio-system")
		was, err := secrets.Get(ctx, members.RemoteSecretName("west"), metav1.GetOptions{})
		must(t, err)
		must(t, secrets.Delete(ctx, was.Name, metav1.DeleteOptions{}))
		eventually(ctx, t, "it is back", func() error {
			now, err := secrets.Get(ctx, was.Name, metav1.GetOptions{})
			if err == nil && string(now.Data["west"]) != string(was.Data["west"]) {
				return fmt.Errorf("it is another")
			}
			return err
		})
		untilSeen(ctx, t, b.IP, true)
	})
	t.Run("drained, its endpoints leave", func(t *testing.T) {
		patch(ctx, t, "membercluster/west", `{"spec":{"drain":{"reason":"new racks"}}}`)
		untilSeen(ctx, t, b.IP, false)
		untilCondition(ctx, t, "west", v1alpha1.ConditionAccessGiven, no, members.ReasonDrained)
		patch(ctx, t, "membercluster/west", `{"spec":{"drain":null}}`)
		untilSeen(ctx, t, b.IP, true)
	})
	t.Run("away, its endpoints stay", func(t *testing.T) {
		must(t, m.Stop(ctx))
		untilCondition(ctx, t, "west", v1alpha1.ConditionReachable, no, members.ReasonUnreachable)
		untilCondition(ctx, t, "west", v1alpha1.ConditionReady, no, members.ReasonUnreachable)
		must(t, shared.vmesh.Restart(ctx)) // nor does a restart take them
		untilCondition(ctx, t, "west", v1alpha1.ConditionReachable, no, members.ReasonUnreachable)
		if has, err := sees(ctx, b.IP); err != nil || !has {
			t.Errorf("istiod has lost it: %v", err)
		}
		if _, err := shared.inHome.CoreV1().Secrets("istio-system").Get(ctx, members.RemoteSecretName("west"), metav1.GetOptions{}); err != nil {
			t.Error(err)
		}
	})
	t.Run("away for too long, they go, and come back with it", func(t *testing.T) {
		patch(ctx, t, "mesh/default", `{"spec":{"members":{"whenAway":"Remove","removeAfter":"1s"}}}`)
		harness.StopAfter(t, func(ctx context.Context) error {
			_, err := harness.Kubectl(ctx, shared.vmesh.AdminKubeconfig, "", "patch", "mesh/default", "--type=merge", "-p", `{"spec":{"members":null}}`)
			return err
		})
		untilSeen(ctx, t, b.IP, false)
		untilCondition(ctx, t, "west", v1alpha1.ConditionAccessGiven, no, members.ReasonRemovedWhileAway)
		must(t, m.Restart(ctx))
		untilSeen(ctx, t, b.IP, true)
		untilCondition(ctx, t, "west", v1alpha1.ConditionReachable, yes, "Answers")
	})
	out, err = harness.Kubectl(ctx, shared.vmesh.AdminKubeconfig, "", "describe", "membercluster/west")
	must(t, err)
	t.Log("\n" + out)
	t.Run("it leaves, and so do they", func(t *testing.T) {
		must(t, leave(ctx, "west"))
		untilSeen(ctx, t, b.IP, false)
	})
}

func TestTokensAreRenewedInTime(t *testing.T) {
	ctx := withTimeout(t)
	m, b := startMember(ctx, t, "renewing", 12)
	old := map[string]string{}
	keys := map[string][]byte{}
	for key, account := range map[string]string{v1alpha1.MemberKubeconfigKey: vmeshAccount, v1alpha1.MemberIstiodKubeconfigKey: istiodAccount} {
		old[key] = oldToken(ctx, t, m, account)
		keys[key] = access(t, m, old[key])
	}
	join(ctx, t, "renewing", keys)
	untilSeen(ctx, t, b.IP, true)
	eventually(ctx, t, "both have an hour again", func() error {
		c, err := member(ctx, "renewing")
		if err != nil {
			return err
		}
		for _, credential := range c.Status.Credentials {
			if credential.RenewedAt == nil || credential.Error != "" || time.Until(credential.ExpiresAt.Time) < 50*time.Minute {
				return fmt.Errorf("%+v", credential)
			}
		}
		if len(c.Status.Credentials) != 2 {
			return fmt.Errorf("%+v", c.Status.Credentials)
		}
		return nil
	})
	secret, err := shared.core.CoreV1().Secrets(v1alpha1.MembersNamespace).Get(ctx, "renewing", metav1.GetOptions{})
	must(t, err)
	for key, token := range old {
		if strings.Contains(string(secret.Data[key]), token) {
			t.Errorf("%s has the old token", key)
		}
	}
	eventually(ctx, t, "istiod has the new one", func() error {
		remote, err := shared.inHome.CoreV1().Secrets("istio-system").Get(ctx, members.RemoteSecretName("renewing"), metav1.GetOptions{})
		if err == nil && string(remote.Data["renewing"]) != string(secret.Data[v1alpha1.MemberIstiodKubeconfigKey]) {
			return fmt.Errorf("it has another")
		}
		return err
	})
	// With it, istiod goes on reading.
	more, err := m.AddBackend(ctx, harness.BackendOptions{Namespace: "shop", Service: "greeter-renewing"})
	must(t, err)
	untilSeen(ctx, t, more.IP, true)
	untilSeen(ctx, t, b.IP, true)
}

// oldToken is one of a service account that was given 50 minutes ago for an hour. The API takes it as its own.
func oldToken(ctx context.Context, t *testing.T, m *harness.Member, account string) string {
	t.Helper()
	claims := strings.Split(token(ctx, t, m, account), ".")
	payload, err := base64.RawURLEncoding.DecodeString(claims[1])
	must(t, err)
	var said map[string]any
	must(t, json.Unmarshal(payload, &said))
	said["iat"], said["nbf"], said["exp"] = time.Now().Add(-50*time.Minute).Unix(), time.Now().Add(-50*time.Minute).Unix(), time.Now().Add(10*time.Minute).Unix()
	payload, err = json.Marshal(said)
	must(t, err)
	data, err := os.ReadFile(filepath.Join(m.PKI, "service-account.key"))
	must(t, err)
	block, _ := pem.Decode(data)
	var key *ecdsa.PrivateKey
	if parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes); err == nil {
		key = parsed.(*ecdsa.PrivateKey)
	} else {
		key, err = x509.ParseECPrivateKey(block.Bytes)
		must(t, err)
	}
	signed := claims[0] + "." + base64.RawURLEncoding.EncodeToString(payload)
	sum := sha256.Sum256([]byte(signed))
	r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
	must(t, err)
	signature := append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
	return signed + "." + base64.RawURLEncoding.EncodeToString(signature)
}

func TestAMemberSaysWhatIsWrongWithItsAccess(t *testing.T) {
	ctx := withTimeout(t)
	m, b := startMember(ctx, t, "faulty", 13)
	good := both(ctx, t, m)
	join(ctx, t, "faulty", good)
	untilSeen(ctx, t, b.IP, true)

	set := func(t *testing.T, keys map[string][]byte) {
		t.Helper()
		secrets := shared.core.CoreV1().Secrets(v1alpha1.MembersNamespace)
		must(t, secrets.Delete(ctx, "faulty", metav1.DeleteOptions{}))
		if keys == nil {
			return
		}
		_, err := secrets.Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: v1alpha1.MembersNamespace, Name: "faulty"}, Data: keys}, metav1.CreateOptions{})
		must(t, err)
	}
	own := func(data []byte) map[string][]byte {
		return map[string][]byte{v1alpha1.MemberKubeconfigKey: data}
	}
	stranger, err := clientcmd.LoadFromFile(shared.vmesh.AdminKubeconfig)
	must(t, err)
	var authority []byte
	for _, c := range stranger.Clusters {
		authority = c.CertificateAuthorityData
	}
	for _, c := range []struct {
		name   string
		keys   map[string][]byte
		reason string
	}{
		{"no kubeconfig", map[string][]byte{"other": []byte("x")}, members.ReasonNoKubeconfig},
		{"not a kubeconfig", own([]byte("hello")), members.ReasonBadKubeconfig},
		{"a program", own(access(t, m, "", func(c *clientcmdapi.Config) {
			c.AuthInfos["user"].Exec = &clientcmdapi.ExecConfig{APIVersion: "client.authentication.k8s.io/v1", Command: "aws", InteractiveMode: clientcmdapi.NeverExecInteractiveMode}
		})), members.ReasonUnsafeKubeconfig},
		{"another authority", own(access(t, m, "x", func(c *clientcmdapi.Config) { c.Clusters["member"].CertificateAuthorityData = authority })), members.ReasonCertificateUnknown},
		{"nobody there", own(access(t, m, "x", func(c *clientcmdapi.Config) { c.Clusters["member"].Server = "https://127.0.0.1:1" })), members.ReasonUnreachable},
		{"no such token", own(access(t, m, "x")), members.ReasonUnauthorized},
		{"no rights", own(access(t, m, tokenOf(ctx, t, m, "nobody"))), members.ReasonForbidden},
	} {
		t.Run(c.name, func(t *testing.T) {
			set(t, c.keys)
			reachable := untilCondition(ctx, t, "faulty", v1alpha1.ConditionReachable, no, c.reason)
			t.Log(reachable.Message)
			// Control planes keep what they have.
			untilCondition(ctx, t, "faulty", v1alpha1.ConditionAccessGiven, yes, c.reason)
			if has, err := sees(ctx, b.IP); err != nil || !has {
				t.Errorf("istiod has lost its endpoint: %v", err)
			}
		})
	}
	t.Run("no Secret", func(t *testing.T) {
		set(t, nil)
		untilCondition(ctx, t, "faulty", v1alpha1.ConditionReachable, no, members.ReasonNoSecret)
		_, err := shared.core.CoreV1().Secrets(v1alpha1.MembersNamespace).Create(ctx,
			&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: v1alpha1.MembersNamespace, Name: "faulty"}, Data: good}, metav1.CreateOptions{})
		must(t, err)
		untilCondition(ctx, t, "faulty", v1alpha1.ConditionReachable, yes, "Answers")
		untilCondition(ctx, t, "faulty", v1alpha1.ConditionAccessGiven, yes, members.ReasonGiven)
	})
	t.Run("the same cluster twice", func(t *testing.T) {
		join(ctx, t, "faulty-again", good)
		untilCondition(ctx, t, "faulty-again", v1alpha1.ConditionConflicting, yes, members.ReasonSameCluster)
		untilCondition(ctx, t, "faulty", v1alpha1.ConditionConflicting, yes, members.ReasonSameCluster)
		untilCondition(ctx, t, "faulty-again", v1alpha1.ConditionAccessGiven, no, members.ReasonSameCluster)
		must(t, leave(ctx, "faulty-again"))
		untilCondition(ctx, t, "faulty", v1alpha1.ConditionConflicting, no, "None")
	})
	t.Run("an account that is deleted", func(t *testing.T) {
		must(t, m.Client.CoreV1().ServiceAccounts(memberNamespace).Delete(ctx, vmeshAccount, metav1.DeleteOptions{}))
		c := untilCondition(ctx, t, "faulty", v1alpha1.ConditionReachable, no, members.ReasonUnauthorized)
		if !strings.Contains(c.Message, "revoked") {
			t.Error(c.Message)
		}
		if has, err := sees(ctx, b.IP); err != nil || !has {
			t.Errorf("istiod has lost its endpoint: %v", err)
		}
	})
}

func tokenOf(ctx context.Context, t *testing.T, m *harness.Member, account string) string {
	t.Helper()
	_, err := m.Client.CoreV1().ServiceAccounts(memberNamespace).Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: account}}, metav1.CreateOptions{})
	must(t, err)
	return token(ctx, t, m, account)
}

func TestAMemberIsCheckedWhenItIsWritten(t *testing.T) {
	ctx := withTimeout(t)
	apply := func(name, spec string) (string, error) {
		return harness.Kubectl(ctx, shared.vmesh.AdminKubeconfig, fmt.Sprintf("apiVersion: vmesh.io/v1alpha1\nkind: MemberCluster\nmetadata: {name: %s}\nspec: %s\n", name, spec), "apply", "--dry-run=server", "--warnings-as-errors", "-f", "-")
	}
	for _, c := range []struct{ name, spec, says string }{
		{"kubernetes", "{access: {secret: x}}", "another name than kubernetes"},
		{"west.1", "{access: {secret: x}}", "metadata.name"},
		{"west", "{access: {secret: X_}}", "spec.access.secret"},
		{"west", "{}", "spec.access"},
		{"west", "{access: {secret: x}, drain: {reason: ' '}}", "spec.drain.reason"},
		{"west", "{access: {secret: x}, discovery: Perhaps}", "spec.discovery"},
		{"west", "{access: {secret: x}, locality: {region: eu/a}}", "spec.locality.region"},
		{"west", "{access: {secret: x}, mesh: none}", "there is no mesh none"},
		{"west", "{access: {secret: x}, network: none}", "has no network none"},
	} {
		if out, err := apply(c.name, c.spec); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s %s is answered: %s %v", c.name, c.spec, out, err)
		}
	}
	if _, err := apply("west", "{access: {secret: x}}"); err != nil {
		t.Error(err)
	}
	for _, c := range []struct{ members, says string }{
		{`{"whenAway":"Remove","removeAfter":"-1s"}`, "must not be negative"},
		{`{"whenAway":"Remove","removeAfter":"5d"}`, "spec.members.removeAfter: "},
		{`{"whenAway":"Leave"}`, "spec.members.whenAway"},
	} {
		_, err := harness.Kubectl(ctx, shared.vmesh.AdminKubeconfig, "", "patch", "mesh/default", "--dry-run=server", "--type=merge", "-p", `{"spec":{"members":`+c.members+`}}`)
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s is answered: %v", c.members, err)
		}
	}
}
