package members

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

const (
	yes, no, unknown = metav1.ConditionTrue, metav1.ConditionFalse, metav1.ConditionUnknown
	account          = "istio-system:vmesh"
)

func keys(kubeconfig []byte) map[string][]byte {
	return map[string][]byte{v1alpha1.MemberKubeconfigKey: kubeconfig}
}

// joined is a store with a home, and a member west that works, whose access control planes have.
func joined(t *testing.T) (*store, *api, []byte) {
	t.Helper()
	s, a := newStore(t), newAPI(t)
	s.home("home")
	kubeconfig := a.kubeconfig(fresh(account))
	s.join("west", keys(kubeconfig))
	s.start()
	s.untilCondition("west", v1alpha1.ConditionReady, yes, "Ready")
	return s, a, kubeconfig
}

func TestControlPlanesAreGivenAccessToAMember(t *testing.T) {
	s, _, kubeconfig := joined(t)
	remote := s.remote("home", "west")
	if remote == nil || !bytes.Equal(remote.Data["west"], kubeconfig) || len(remote.Data) != 1 {
		t.Fatalf("the Secret is %+v", remote)
	}
	if remote.Labels["istio/multiCluster"] != "true" || remote.Labels["app.kubernetes.io/managed-by"] != "vmesh" || remote.Annotations["vmesh.io/member-cluster"] != "west" {
		t.Errorf("its marks are %v %v", remote.Labels, remote.Annotations)
	}
	for kind, status := range map[string]metav1.ConditionStatus{"Reachable": yes, "AccessGiven": yes, "Conflicting": no} {
		if c := s.condition("west", kind); c.Status != status || c.ObservedGeneration != 1 {
			t.Errorf("%+v", c)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	status := s.members["west"].Status
	if status.Version != "v1.37.2" || status.LastSeen == nil || status.Latency == nil || len(status.Credentials) != 1 ||
		status.Credentials[0].User != "system:serviceaccount:"+account || status.Credentials[0].ExpiresAt == nil {
		t.Errorf("the status is %+v", status)
	}
}

func TestControlPlanesAreGivenTheirOwnAccessIfThereIsOne(t *testing.T) {
	s, a := newStore(t), newAPI(t)
	s.home("home")
	own, istiod := a.kubeconfig(fresh(account)), a.kubeconfig(fresh("istio-system:istiod"))
	s.join("west", map[string][]byte{v1alpha1.MemberKubeconfigKey: own, v1alpha1.MemberIstiodKubeconfigKey: istiod})
	s.start()
	s.untilCondition("west", v1alpha1.ConditionReady, yes, "Ready")
	if !bytes.Equal(s.remote("home", "west").Data["west"], istiod) {
		t.Error("it is another")
	}
}

func TestControlPlanesMayReachTheMemberElsewhere(t *testing.T) {
	s, a := newStore(t), newAPI(t)
	s.home("home")
	elsewhere := func(token string) map[string][]byte {
		return map[string][]byte{
			v1alpha1.MemberKubeconfigKey:       a.kubeconfig(fresh(account)),
			v1alpha1.MemberIstiodKubeconfigKey: kubeconfig("https://only-istiod-reaches-it.invalid:6443", a.authority(), token, nil),
		}
	}
	bad := jwt("system:serviceaccount:istio-system:istiod", time.Now(), time.Now().Add(time.Hour), "bad")
	a.set(func(a *api) { a.revoked[bad] = true })
	s.join("west", elsewhere(bad))
	s.start()
	s.untilCondition("west", v1alpha1.ConditionAccessGiven, no, ReasonUnauthorized)
	good := elsewhere(fresh("istio-system:istiod"))
	s.access("west", good)
	s.untilCondition("west", v1alpha1.ConditionReady, yes, "Ready")
	if !bytes.Equal(s.remote("home", "west").Data["west"], good[v1alpha1.MemberIstiodKubeconfigKey]) {
		t.Error("control planes have another access")
	}
}

func TestAStatusIsNotWrittenAtEachLook(t *testing.T) {
	s, _, _ := joined(t)
	s.mu.Lock()
	before := s.writes
	s.mu.Unlock()
	s.looks(20)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.writes != before {
		t.Errorf("%d writes in 20 looks", s.writes-before)
	}
}

func TestWhatControlPlanesHaveIsRestored(t *testing.T) {
	s, _, kubeconfig := joined(t)
	at := placement{"home", "istio-system", "istio-remote-secret-west"}
	restored := func() bool {
		r := s.remote("home", "west")
		return r != nil && bytes.Equal(r.Data["west"], kubeconfig) && len(r.Data) == 1 && r.Labels["istio/multiCluster"] == "true" &&
			r.Labels["app.kubernetes.io/managed-by"] == "vmesh" && r.Annotations["vmesh.io/member-cluster"] == "west"
	}
	s.dropSecret(at)
	s.until("a deleted one is restored", restored)
	for name, change := range map[string]func(*corev1.Secret){
		"kubeconfig": func(r *corev1.Secret) { r.Data["west"] = []byte("x") },
		"more":       func(r *corev1.Secret) { r.Data["east"] = []byte("x") },
		"label":      func(r *corev1.Secret) { r.Labels["istio/multiCluster"] = "false" },
		"labels":     func(r *corev1.Secret) { r.Labels = nil },
		"annotation": func(r *corev1.Secret) { r.Annotations = nil },
	} {
		changed := s.remote("home", "west")
		change(changed)
		s.putSecret("home", changed)
		s.until("a change of "+name+" is undone", restored)
	}
}

func TestASecretOfSomebodyElseIsLeftAlone(t *testing.T) {
	s, a := newStore(t), newAPI(t)
	s.home("home")
	foreign := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: "istio-remote-secret-west"}, Data: map[string][]byte{"west": []byte("theirs")}}
	s.putSecret("home", foreign)
	s.join("west", keys(a.kubeconfig(fresh(account))))
	s.start()
	c := s.untilCondition("west", v1alpha1.ConditionAccessGiven, no, ReasonSecretTaken)
	if !strings.Contains(c.Message, "delete it") || string(s.remote("home", "west").Data["west"]) != "theirs" {
		t.Errorf("%s", c.Message)
	}
	s.leave("west")
	s.join("east", keys(a.kubeconfig(fresh(account))))
	s.untilCondition("east", v1alpha1.ConditionReady, yes, "Ready")
	if s.remote("home", "west") == nil {
		t.Error("it was deleted with the member")
	}
}

func TestAccessIsTakenBackForWhatSomebodyAskedForOnly(t *testing.T) {
	gone := func(s *store) {
		s.t.Helper()
		s.until("access is taken back", func() bool { return s.remote("home", "west") == nil })
	}
	back := func(s *store) {
		s.t.Helper()
		s.until("access is given back", func() bool { return s.remote("home", "west") != nil })
		s.untilCondition("west", v1alpha1.ConditionReady, yes, "Ready")
	}
	s, _, _ := joined(t)
	s.change("west", func(m *v1alpha1.MemberCluster) { m.Spec.Drain = &v1alpha1.MemberClusterDrain{Reason: "new racks"} })
	gone(s)
	s.until("an event tells", func() bool { return s.told("west Normal AccessWithheld: the member is drained") })
	if c := s.untilCondition("west", v1alpha1.ConditionAccessGiven, no, ReasonDrained); !strings.Contains(c.Message, "new racks") {
		t.Error(c.Message)
	}
	s.untilCondition("west", v1alpha1.ConditionReady, yes, ReasonDrained) // it is as it is to be
	s.change("west", func(m *v1alpha1.MemberCluster) { m.Spec.Drain = nil })
	back(s)
	s.change("west", func(m *v1alpha1.MemberCluster) { m.Spec.Discovery = v1alpha1.DiscoveryDisabled })
	gone(s)
	s.untilCondition("west", v1alpha1.ConditionReady, yes, ReasonDiscoveryDisabled)
	s.change("west", func(m *v1alpha1.MemberCluster) { m.Spec.Discovery = v1alpha1.DiscoveryEnabled })
	back(s)
	s.mesh(func(m *v1alpha1.MeshSpec) { m.Home = nil })
	gone(s)
	s.untilCondition("west", v1alpha1.ConditionReady, no, ReasonNoHome)
	s.home("home")
	back(s)
	s.leave("west")
	gone(s)
}

func TestAccessToAMemberThatLeftMeanwhileIsTakenBack(t *testing.T) {
	s := newStore(t)
	s.home("home")
	for _, home := range []string{"home", "former"} {
		s.putSecret(home, remoteSecret("istio-system", "west", []byte("x")))
	}
	s.start()
	s.until("it is taken back", func() bool { return s.remote("home", "west") == nil && s.remote("former", "west") == nil })
}

func TestWhatIsInDoubtTakesNoAccessAway(t *testing.T) {
	broken := errors.New("no answer")
	for name, c := range map[string]struct {
		happens func(*store, *api)
		kind    string
		status  metav1.ConditionStatus
		reason  string
	}{
		"its API is away":            {func(_ *store, a *api) { a.Close() }, v1alpha1.ConditionReachable, no, ReasonUnreachable},
		"its API fails":              {func(_ *store, a *api) { a.set(func(a *api) { a.status = 500 }) }, v1alpha1.ConditionReachable, no, ReasonFailing},
		"its API is another's":       {func(_ *store, a *api) { a.set(func(a *api) { a.broken = "<html>" }) }, v1alpha1.ConditionReachable, no, ReasonNotKubernetes},
		"rights are lost":            {func(_ *store, a *api) { a.set(func(a *api) { a.forbidden = "/api/v1/pods" }) }, v1alpha1.ConditionAccessGiven, yes, ReasonForbidden},
		"the token is revoked":       {revokeAll, v1alpha1.ConditionReachable, no, ReasonUnauthorized},
		"the Secret is gone":         {func(s *store, _ *api) { s.dropSecret(placement{logical.Root, v1alpha1.MembersNamespace, "west"}) }, v1alpha1.ConditionAccessGiven, yes, ReasonNoSecret},
		"the Secret is empty":        {func(s *store, _ *api) { s.access("west", map[string][]byte{}) }, v1alpha1.ConditionAccessGiven, yes, ReasonNoKubeconfig},
		"the kubeconfig is none":     {func(s *store, _ *api) { s.access("west", keys([]byte("x"))) }, v1alpha1.ConditionAccessGiven, yes, ReasonBadKubeconfig},
		"the mesh cannot be read":    {func(s *store, _ *api) { s.fail("mesh", broken) }, v1alpha1.ConditionAccessGiven, unknown, ReasonMeshUnreadable},
		"the mesh is gone":           {func(s *store, _ *api) { s.mu.Lock(); delete(s.meshes, "default"); s.mu.Unlock() }, v1alpha1.ConditionAccessGiven, no, ReasonNoMesh},
		"the home cannot be read":    {func(s *store, _ *api) { s.fail("secrets of home", broken) }, v1alpha1.ConditionAccessGiven, unknown, ReasonHomeUnreadable},
		"the next home is not there": {func(s *store, _ *api) { s.mesh(func(m *v1alpha1.MeshSpec) { m.Home.VirtualCluster = "next" }) }, v1alpha1.ConditionAccessGiven, no, ReasonHomeMissing},
		"the next home cannot be read": {func(s *store, _ *api) { s.fail("secrets of next", broken); s.home("next") },
			v1alpha1.ConditionAccessGiven, unknown, ReasonHomeUnreadable},
		"the new kubeconfig does not work": {func(s *store, _ *api) {
			s.access("west", keys(kubeconfig("https://127.0.0.1:1", nil, fresh(account), nil)))
		}, v1alpha1.ConditionAccessGiven, yes, ReasonUnreachable},
	} {
		t.Run(name, func(t *testing.T) {
			s, a, kubeconfig := joined(t)
			c.happens(s, a)
			s.untilCondition("west", c.kind, c.status, c.reason)
			s.looks(3)
			if r := s.remote("home", "west"); r == nil || !bytes.Equal(r.Data["west"], kubeconfig) {
				t.Error("control planes have lost their access")
			}
			if r := s.condition("west", v1alpha1.ConditionReady); r.Status == yes {
				t.Errorf("the member is Ready: %+v", r)
			}
		})
	}
}

func revokeAll(s *store, a *api) {
	s.mu.Lock()
	data := s.secrets[placement{logical.Root, v1alpha1.MembersNamespace, "west"}].Data["kubeconfig"]
	s.mu.Unlock()
	access, f := parseAccess("kubeconfig", data)
	if f != nil {
		s.t.Fatal(f)
	}
	a.set(func(a *api) { a.revoked[*access.bearer.token.Load()] = true })
}

func TestARestartWhileAMemberIsAwayTakesNothing(t *testing.T) {
	s, a, kubeconfig := joined(t)
	a.Close()
	since := s.untilCondition("west", v1alpha1.ConditionReachable, no, ReasonUnreachable).LastTransitionTime
	s.start() // another keeper on the same storage, as another server would be
	s.looks(3)
	if r := s.remote("home", "west"); r == nil || !bytes.Equal(r.Data["west"], kubeconfig) {
		t.Error("control planes have lost their access")
	}
	if now := s.condition("west", v1alpha1.ConditionReachable).LastTransitionTime; !now.Equal(&since) {
		t.Errorf("it is away since %s, was since %s", now, since)
	}
}

func TestWhatNeverWorkedIsNotHandedOn(t *testing.T) {
	for name, c := range map[string]struct {
		kubeconfig func(*api) []byte
		reason     string
	}{
		"no Secret":  {nil, ReasonNoSecret},
		"not there":  {func(a *api) []byte { a.Close(); return a.kubeconfig(fresh(account)) }, ReasonUnreachable},
		"expired":    {func(a *api) []byte { return expired(a, account) }, ReasonUnauthorized},
		"no rights":  {func(a *api) []byte { a.forbidden = "/api/v1/services"; return a.kubeconfig(fresh(account)) }, ReasonForbidden},
		"a program":  {func(a *api) []byte { return withProgram(a) }, ReasonUnsafeKubeconfig},
		"plain http": {func(a *api) []byte { return kubeconfig("http://127.0.0.1:1", nil, "x", nil) }, ReasonInsecureServer},
	} {
		t.Run(name, func(t *testing.T) {
			s, a := newStore(t), newAPI(t)
			s.home("home")
			if c.kubeconfig == nil {
				s.join("west", nil)
			} else {
				s.join("west", keys(c.kubeconfig(a)))
			}
			s.start()
			s.untilCondition("west", v1alpha1.ConditionAccessGiven, no, c.reason)
			s.untilCondition("west", v1alpha1.ConditionReady, no, c.reason)
			if s.remote("home", "west") != nil {
				t.Error("control planes were given access")
			}
			s.until("an event tells of it", func() bool { return s.told("west Warning AccessWithheld") })
		})
	}
}

func withProgram(a *api) []byte {
	return kubeconfig(a.URL, a.authority(), "", func(c *clientcmdapi.Config) {
		c.AuthInfos["u"].Exec = &clientcmdapi.ExecConfig{Command: "/bin/true", APIVersion: "client.authentication.k8s.io/v1"}
	})
}

func TestOneFailedLookIsNoAbsence(t *testing.T) {
	s, a, _ := joined(t)
	s.mu.Lock()
	s.events = nil
	s.mu.Unlock()
	a.set(func(a *api) { a.failOnce = true })
	s.looks(3)
	a.set(func(a *api) {
		if a.failOnce {
			t.Error("no look failed")
		}
	})
	if c := s.condition("west", v1alpha1.ConditionReachable); c.Status != yes || s.told("Unreachable") || s.told("Failing") {
		t.Errorf("%+v, events %q", c, s.events)
	}
}

func TestEndpointsOfAMemberThatIsAwayAreRemovedWhereThatIsWanted(t *testing.T) {
	s, a := newStore(t), newAPI(t)
	s.home("home")
	s.mesh(func(m *v1alpha1.MeshSpec) {
		m.Members = &v1alpha1.MeshMembers{WhenAway: v1alpha1.RemoveWhenAway, RemoveAfter: &metav1.Duration{Duration: 300 * time.Millisecond}}
	})
	s.join("west", keys(a.kubeconfig(fresh(account))))
	s.start()
	s.untilCondition("west", v1alpha1.ConditionReady, yes, "Ready")
	a.set(func(a *api) { a.status = 503 })
	away := time.Now()
	s.until("access is taken back", func() bool { return s.remote("home", "west") == nil })
	if d := time.Since(away); d < 300*time.Millisecond {
		t.Errorf("after %s", d)
	}
	s.untilCondition("west", v1alpha1.ConditionAccessGiven, no, ReasonRemovedWhileAway)
	// Who restarts goes on where it was.
	s.start()
	s.looks(3)
	if s.remote("home", "west") != nil {
		t.Error("a restart has given access back")
	}
	a.set(func(a *api) { a.status = 0 })
	s.until("access is given back", func() bool { return s.remote("home", "west") != nil })
	s.untilCondition("west", v1alpha1.ConditionReady, yes, "Ready")
	// What answers something bad is not away.
	revokeAll(s, a)
	s.untilCondition("west", v1alpha1.ConditionReachable, no, ReasonUnauthorized)
	for revoked := time.Now(); time.Since(revoked) < 400*time.Millisecond; { // longer than it would be waited for
		s.looks(2)
	}
	if s.remote("home", "west") == nil {
		t.Error("access was taken back for a token that was revoked")
	}
}

func TestAHomeThatMovesIsGivenAccessBeforeTheOldOneLosesIt(t *testing.T) {
	s, _, _ := joined(t)
	s.mu.Lock()
	s.log = nil
	s.mu.Unlock()
	s.home("next")
	s.until("it has moved", func() bool { return s.remote("home", "west") == nil && s.remote("next", "west") != nil })
	s.mu.Lock()
	defer s.mu.Unlock()
	if want := []string{"write next/istio-remote-secret-west", "delete home/istio-remote-secret-west"}; !slices.Equal(s.log, want) {
		t.Errorf("%q", s.log)
	}
}

func TestTwoMembersThatAreOneClusterAreToldOf(t *testing.T) {
	s, a, _ := joined(t)
	s.join("west-again", keys(a.kubeconfig(fresh(account))))
	c := s.untilCondition("west-again", v1alpha1.ConditionConflicting, yes, ReasonSameCluster)
	if !strings.Contains(c.Message, "west") || !strings.Contains(c.Message, "delete one") {
		t.Error(c.Message)
	}
	s.untilCondition("west", v1alpha1.ConditionConflicting, yes, ReasonSameCluster)
	s.untilCondition("west-again", v1alpha1.ConditionAccessGiven, no, ReasonSameCluster)
	if s.remote("home", "west") == nil || s.remote("home", "west-again") != nil {
		t.Error("the one that came later has access, or the other none")
	}
	s.leave("west")
	s.untilCondition("west-again", v1alpha1.ConditionReady, yes, "Ready")
	if s.remote("home", "west") != nil || s.remote("home", "west-again") == nil {
		t.Error("the one that is left has no access")
	}
}

func TestTheSameClusterMayBeInTwoMeshes(t *testing.T) {
	s, a, _ := joined(t)
	s.join("other", keys(a.kubeconfig(fresh(account))), func(m *v1alpha1.MemberCluster) { m.Spec.Mesh = "other" })
	s.untilCondition("other", v1alpha1.ConditionReachable, yes, "Answers")
	s.looks(2)
	if c := s.condition("west", v1alpha1.ConditionConflicting); c.Status != no {
		t.Errorf("%+v", c)
	}
}

func TestATokenIsRenewedBeforeItExpires(t *testing.T) {
	s, a := newStore(t), newAPI(t)
	s.home("home")
	a.set(func(a *api) { a.life = 2 * time.Hour })
	old := jwt("system:serviceaccount:"+account, time.Now().Add(-90*time.Minute), time.Now().Add(30*time.Minute), "old")
	istiod := jwt("system:serviceaccount:istio-system:istiod", time.Now().Add(-50*time.Minute), time.Now().Add(10*time.Minute), "old")
	var followed follower
	s.join("west", map[string][]byte{v1alpha1.MemberKubeconfigKey: a.kubeconfig(old), v1alpha1.MemberIstiodKubeconfigKey: a.kubeconfig(istiod)})
	s.start(func(c *Config) { c.Reader = &followed })
	token := func(data []byte) string {
		access, f := parseAccess("kubeconfig", data)
		if f != nil {
			t.Fatal(f)
		}
		return *access.bearer.token.Load()
	}
	s.until("control planes have the new token", func() bool {
		r := s.remote("home", "west")
		return r != nil && token(r.Data["west"]) != istiod
	})
	secret, err := s.Secret(t.Context(), logical.Root, v1alpha1.MembersNamespace, "west", true)
	if err != nil {
		t.Fatal(err)
	}
	if token(secret.Data["kubeconfig"]) == old || !bytes.Equal(secret.Data["istiod-kubeconfig"], s.remote("home", "west").Data["west"]) {
		t.Error("the Secret has an old token")
	}
	a.set(func(a *api) {
		want := []string{
			"/api/v1/namespaces/istio-system/serviceaccounts/vmesh/token [here] 7200",
			"/api/v1/namespaces/istio-system/serviceaccounts/istiod/token [here] 3600",
		}
		slices.Sort(a.asked)
		slices.Sort(want)
		if !slices.Equal(a.asked, want) {
			t.Errorf("asked for %q", a.asked)
		}
		a.revoked[old], a.revoked[istiod] = true, true
	})
	s.looks(3)
	s.untilCondition("west", v1alpha1.ConditionReady, yes, "Ready")
	s.mu.Lock()
	for _, c := range s.members["west"].Status.Credentials {
		if c.RenewedAt == nil || c.Error != "" || c.ExpiresAt.Time.Before(time.Now().Add(time.Hour)) {
			t.Errorf("%+v", c)
		}
	}
	s.mu.Unlock()
	// Those who read the member need not begin anew.
	followed.mu.Lock()
	defer followed.mu.Unlock()
	for _, m := range followed.changed {
		if m.Config != followed.changed[0].Config {
			t.Error("the config became another for a new token")
		}
	}
	s.until("an event tells of it", func() bool { return s.told("west Normal Renewed") })
}

func TestATokenThatCannotBeRenewedIsToldOf(t *testing.T) {
	s, a := newStore(t), newAPI(t)
	s.home("home")
	a.set(func(a *api) { a.refuse = true })
	s.join("west", keys(a.kubeconfig(jwt("system:serviceaccount:"+account, time.Now().Add(-50*time.Minute), time.Now().Add(10*time.Minute), ""))))
	s.start()
	s.until("the status says so", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		c := s.members["west"].Status.Credentials
		return len(c) == 1 && strings.Contains(c[0].Error, "may not create serviceaccounts/token")
	})
	s.until("an event tells of it", func() bool { return s.told("west Warning RenewalFailed") })
	s.looks(5)
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(slices.DeleteFunc(s.events, func(e string) bool { return !strings.Contains(e, "RenewalFailed") })); n != 1 {
		t.Errorf("it was tried %d times in a moment", n)
	}
}

func TestATokenThatHasExpiredIsRenewedByTheOther(t *testing.T) {
	s, a := newStore(t), newAPI(t)
	s.home("home")
	s.join("west", map[string][]byte{v1alpha1.MemberKubeconfigKey: a.kubeconfig(fresh(account)), v1alpha1.MemberIstiodKubeconfigKey: expired(a, "istio-system:istiod")})
	s.start()
	s.untilCondition("west", v1alpha1.ConditionReady, yes, "Ready")
}

func TestATokenForSomebodyElseIsNotTaken(t *testing.T) {
	a := newAPI(t)
	access, f := parseAccess("kubeconfig", a.kubeconfig(jwt("system:serviceaccount:"+account, time.Now().Add(-time.Hour), time.Now().Add(time.Minute), "")))
	if f != nil {
		t.Fatal(f)
	}
	a.set(func(a *api) { a.life = 30 * time.Second }) // ends before the one that there is
	s := newStore(t)
	s.access("west", keys(access.data))
	k := NewKeeper(Config{Storage: s, Timeout: time.Minute})
	m := &v1alpha1.MemberCluster{ObjectMeta: metav1.ObjectMeta{Name: "west"}, Spec: v1alpha1.MemberClusterSpec{Access: v1alpha1.MemberClusterAccess{Secret: "west"}}}
	w := newWorker(k, m)
	w.own = access
	defer w.closeIdle()
	if err := w.renew(t.Context(), m, access); err == nil || !strings.Contains(err.Error(), "lasts longer") {
		t.Errorf("%v", err)
	}
}

func TestACertificateThatEndsSoonIsToldOf(t *testing.T) {
	s, a := newStore(t), newAPI(t)
	cert, key := certificate(t, time.Now().Add(10*24*time.Hour))
	s.join("west", keys(kubeconfig(a.URL, a.authority(), "", func(c *clientcmdapi.Config) {
		*c.AuthInfos["u"] = clientcmdapi.AuthInfo{ClientCertificateData: cert, ClientKeyData: key}
	})))
	s.start()
	s.until("an event tells", func() bool { return s.told("west Warning CredentialExpires") })
	s.until("the status says so", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		c := s.members["west"].Status.Credentials
		return len(c) == 1 && strings.Contains(c[0].Error, "cannot be renewed") && c[0].User == "someone"
	})
}

// follower is told of members, and claims to have read some.
type follower struct {
	mu      sync.Mutex
	changed []Member
	gone    []string
	reading Reading
	only    []string
	counted int // how often those were asked for
}

func (f *follower) Changed(m Member) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.changed = append(f.changed, m)
}

func (f *follower) Gone(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gone = append(f.gone, name)
}

func (f *follower) Reading(string) Reading {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.reading
}

func (f *follower) OnlyIn(name string, most int) (int, []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.counted++
	return len(f.only), f.only[:min(len(f.only), most)]
}

func TestFollowersAreToldOfMembers(t *testing.T) {
	s, a := newStore(t), newAPI(t)
	s.home("home")
	var f follower
	s.join("west", keys(a.kubeconfig(fresh(account))), func(m *v1alpha1.MemberCluster) {
		m.Spec.Network, m.Spec.Locality = "n1", &v1alpha1.Locality{Region: "eu"}
	})
	s.start(func(c *Config) { c.Reader = &f })
	last := func() Member {
		f.mu.Lock()
		defer f.mu.Unlock()
		if len(f.changed) == 0 {
			return Member{}
		}
		return f.changed[len(f.changed)-1]
	}
	s.until("they are told", func() bool { return last().Config != nil })
	got := last()
	if got.Name != "west" || got.Mesh != "default" || got.Network != "n1" || got.Locality.Region != "eu" || !got.Discovered || got.Drained || !got.AwaySince.IsZero() || got.UID == "" {
		t.Errorf("%+v", got)
	}
	s.looks(5)
	f.mu.Lock()
	if len(f.changed) != 1 {
		t.Errorf("they were told %d times", len(f.changed))
	}
	f.mu.Unlock()
	s.change("west", func(m *v1alpha1.MemberCluster) { m.Spec.Drain = &v1alpha1.MemberClusterDrain{Reason: "x"} })
	s.until("they are told of the drain", func() bool { return last().Drained })
	a.set(func(a *api) { a.status = 500 })
	s.until("they are told that it is away", func() bool { return !last().AwaySince.IsZero() })
	if last().Config != got.Config {
		t.Error("the config became another")
	}
	s.leave("west")
	s.until("they are told that it is gone", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return slices.Equal(f.gone, []string{"west"})
	})
}

func TestTheStatusHasWhatIsRead(t *testing.T) {
	s, a := newStore(t), newAPI(t)
	s.home("home")
	f := &follower{reading: Reading{Synced: true, Services: 3, Endpoints: 5, ReadyEndpoints: 4, Nodes: 2, Localities: []string{"eu/a"}, Overlaps: map[string]string{"east": "10.0.0.1"}}}
	began := time.Now()
	for i := range 12 {
		f.only = append(f.only, fmt.Sprint("shop/s", i))
	}
	s.join("west", keys(a.kubeconfig(fresh(account))))
	s.start(func(c *Config) { c.Reader = f })
	c := s.untilCondition("west", v1alpha1.ConditionConflicting, yes, "SharedAddresses")
	if !strings.Contains(c.Message, "east (10.0.0.1)") || !strings.Contains(c.Message, "spec.network") {
		t.Error(c.Message)
	}
	s.untilCondition("west", v1alpha1.ConditionDiscovered, yes, "Read")
	s.mu.Lock()
	status := s.members["west"].Status
	s.mu.Unlock()
	if status.Services != 3 || status.Endpoints != 5 || status.ReadyEndpoints != 4 || status.Nodes != 2 || !slices.Equal(status.Localities, []string{"eu/a"}) {
		t.Errorf("%+v", status)
	}
	if only := status.OnlyHere; only == nil || only.String() != "shop/s0, shop/s1, shop/s2, shop/s3, shop/s4, shop/s5, shop/s6, shop/s7, shop/s8, shop/s9 and 2 more" {
		t.Errorf("only there: %v", only)
	}
	s.looks(10)
	f.mu.Lock()
	if f.counted > 1+int(time.Since(began)/countsEvery) { // it takes time
		t.Errorf("it was looked for %d times", f.counted)
	}
	f.reading.Trouble, f.reading.Overlaps = `pods: Get "https://x/?timeoutSeconds=17": forbidden`, nil
	f.mu.Unlock()
	if c := s.untilCondition("west", v1alpha1.ConditionDiscovered, no, "Stale"); c.Message != "its services are as they were last seen: pods: forbidden" {
		t.Error(c.Message)
	}
	s.until("an event tells", func() bool { return s.told("west Warning NotDiscovered") })
	s.untilCondition("west", v1alpha1.ConditionConflicting, no, "None")

	// As after a restart of vmesh: nothing has been read yet.
	f.mu.Lock()
	f.reading = Reading{}
	f.mu.Unlock()
	s.untilCondition("west", v1alpha1.ConditionDiscovered, no, "Reading")
	s.mu.Lock()
	status = s.members["west"].Status
	s.mu.Unlock()
	if status.Services != 3 || status.ReadyEndpoints != 4 || !slices.Equal(status.Localities, []string{"eu/a"}) {
		t.Errorf("what was counted is lost: %+v", status)
	}
}

func TestWhoIsNotResponsibleLooksAndWritesNothing(t *testing.T) {
	s, a := newStore(t), newAPI(t)
	s.home("home")
	var f follower
	s.join("west", keys(a.kubeconfig(jwt("system:serviceaccount:"+account, time.Now().Add(-50*time.Minute), time.Now().Add(10*time.Minute), ""))))
	s.putSecret("home", remoteSecret("istio-system", "left", []byte("x")))
	s.mu.Lock()
	s.log = nil
	s.mu.Unlock()
	s.start(func(c *Config) { c.Reader, c.Responsible = &f, func() bool { return false } })
	s.looks(3)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.writes > 0 || len(s.log) > 0 || len(s.events) > 0 {
		t.Errorf("%d statuses, %q, %q", s.writes, s.log, s.events)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.changed) == 0 {
		t.Error("followers are not told")
	}
}

func TestServersAtWorkTogetherDoNotFight(t *testing.T) {
	s, a := newStore(t), newAPI(t)
	s.home("home")
	s.join("west", keys(a.kubeconfig(jwt("system:serviceaccount:"+account, time.Now().Add(-50*time.Minute), time.Now().Add(10*time.Minute), ""))))
	for range 3 {
		s.start() // the last is told of changes; the others find out
	}
	s.untilCondition("west", v1alpha1.ConditionReady, yes, "Ready")
	s.looks(10)
	a.set(func(a *api) {
		if a.issued != 1 {
			t.Errorf("%d tokens were made", a.issued)
		}
	})
	s.mu.Lock()
	before := len(s.log)
	s.mu.Unlock()
	s.looks(10)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.log) != before {
		t.Errorf("they go on writing: %q", s.log[before:])
	}
}

func TestAMemberThatComesBackUnderItsNameIsAnother(t *testing.T) {
	s, a, _ := joined(t)
	s.leave("west")
	s.join("west", keys(a.kubeconfig(fresh(account))))
	s.mu.Lock()
	uid := s.members["west"].UID
	s.mu.Unlock()
	s.until("it is looked after", func() bool {
		s.keeper.mu.Lock()
		defer s.keeper.mu.Unlock()
		w := s.keeper.workers["west"]
		return w != nil && w.uid == types.UID(uid)
	})
	s.untilCondition("west", v1alpha1.ConditionReady, yes, "Ready")
}

func TestDurationsAreRoundedSoThatChangesSaySomething(t *testing.T) {
	for d, want := range map[time.Duration]time.Duration{
		300 * time.Microsecond: time.Millisecond, 4 * time.Millisecond: 5 * time.Millisecond, 60 * time.Millisecond: 70 * time.Millisecond,
		80 * time.Millisecond: 100 * time.Millisecond, 2500 * time.Millisecond: 3 * time.Second, -45 * time.Second: -50 * time.Second,
	} {
		if got := coarse(d); got != want {
			t.Errorf("%s is %s, want %s", d, got, want)
		}
	}
}
