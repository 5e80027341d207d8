package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/util/retry"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

// joinPoll is how often a member is looked at that is waited for.
const joinPoll = 500 * time.Millisecond

// minTokenTTL is what Kubernetes allows.
const minTokenTTL = 10 * time.Minute

// notReady is the error of a member that was joined and is not ready.
type notReady struct{ member, why string }

func (e notReady) Error() string {
	return fmt.Sprintf("member %s has joined and is not ready: %s\nSee kubectl describe membercluster %s in the root", e.member, e.why, e.member)
}

// ExitCode is the process's.
func (notReady) ExitCode() int { return 2 }

type joinOptions struct {
	root                 rootAccess
	member               memberAccess
	name                 string
	mesh, network        string
	region, zone         string
	server, istiodServer string
	tokenTTL             time.Duration
	noDiscovery          bool
	noSecrets            bool
	print, wait          bool
	timeout              time.Duration
	output               outputFormat
	given                func(flag string) bool
	out, errOut          io.Writer
	done                 []string
	until                time.Time // the end of vmesh's new token
}

func newJoinCommand() *cobra.Command {
	o := joinOptions{}
	cmd := &cobra.Command{
		Use:   "join NAME",
		Short: "Let a Kubernetes cluster join a mesh as member NAME",
		Long: `Let a Kubernetes cluster join a mesh. NAME is what Istio calls the cluster's id. --kubeconfig is
the cluster's, of its administrator; it is used here and given to nobody. The root of vmesh is reached by
--data-dir or --root-kubeconfig.

In the cluster it makes namespace vmesh-member with two service accounts, which may do this:
  vmesh   read services, endpoint slices, namespaces and nodes; make tokens for these two accounts
  istiod  read those, pods, Secrets, gateways, custom resource definitions and config map istio;
          review tokens and accesses
and nothing else: neither may write. Istiod reads Secrets for the certificates of gateways in the cluster, and waits for
them; --no-secrets keeps them from it, at a price. In the root it keeps their access in Secret vmesh-system/NAME,
and makes MemberCluster NAME. vmesh renews the tokens before they expire.

Run again, it mends what was changed, renews the tokens, and changes what flags say. Flags that are not given change
nothing. A cautious administrator of the cluster applies what --print prints, and hands out a kubeconfig that may do no
more than create serviceaccounts/token for the two accounts in namespace vmesh-member.

The exit code is 0 if the member is ready (or with --wait=false has joined), 2 if it has joined and is not ready, and
1 if it has not joined.`,
		Example: `  # On the machine of vmesh
  vmesh join east --kubeconfig east.kubeconfig --data-dir data

  # From another machine, into a network of a mesh, with the zone that its nodes do not tell
  vmesh join east --kubeconfig ~/.kube/config --context east --root-kubeconfig admin.kubeconfig \
    --mesh prod --network vpc-east --region eu-1 --zone eu-1a

  # vmesh and istiod reach it by another address than you
  vmesh join east --kubeconfig east.kubeconfig --server https://10.1.0.1:6443

  # In two steps: the cluster's administrator first
  vmesh join east --print | kubectl --kubeconfig east.kubeconfig apply -f -
  vmesh join east --kubeconfig tokens-only.kubeconfig`,
		Args:              oneArg("NAME"),
		ValidArgsFunction: o.completeMember,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.name, o.given, o.out, o.errOut = args[0], cmd.Flags().Changed, cmd.OutOrStdout(), cmd.ErrOrStderr()
			if err := o.check(); err != nil {
				return err
			}
			return o.run(cmd.Context())
		},
	}
	o.member.addFlags(cmd)
	o.root.addFlagsAs(cmd, "root-kubeconfig")
	cmd.Flags().StringVar(&o.mesh, "mesh", v1alpha1.DefaultName, "The mesh that the cluster joins.")
	cmd.Flags().StringVar(&o.network, "network", "", "The network of its workloads, one of the mesh's spec.networks.")
	cmd.Flags().StringVar(&o.region, "region", "", "The region, as far as its nodes do not tell.")
	cmd.Flags().StringVar(&o.zone, "zone", "", "The zone, as far as its nodes do not tell.")
	cmd.Flags().BoolVar(&o.noDiscovery, "no-discovery", false, "Do not have the control planes read its services.")
	cmd.Flags().BoolVar(&o.noSecrets, "no-secrets", false, "Do not let istiod read the Secrets of the cluster. It starts half a minute later then, and keeps a connection more each time that its token is renewed.")
	cmd.Flags().StringVar(&o.server, "server", "", "The address of the cluster's API as vmesh and istiod reach it; by default that of the kubeconfig.")
	cmd.Flags().StringVar(&o.istiodServer, "istiod-server", "", "The address of the cluster's API as istiod reaches it, if that is another than --server.")
	cmd.Flags().DurationVar(&o.tokenTTL, "token-ttl", 720*time.Hour, "How long the tokens are good, if the cluster allows that much. vmesh renews them.")
	cmd.Flags().BoolVar(&o.print, "print", false, "Print the manifests for the cluster, and do nothing.")
	cmd.Flags().BoolVar(&o.wait, "wait", true, "Wait until the member is ready.")
	cmd.Flags().DurationVar(&o.timeout, "timeout", 2*time.Minute, "How long to wait at most.")
	o.output.addFlag(cmd, "Print the MemberCluster: json or yaml.")
	_ = cmd.RegisterFlagCompletionFunc("mesh", o.root.completeMeshFlag)
	_ = cmd.RegisterFlagCompletionFunc("network", o.completeNetwork)
	return cmd
}

func (o *joinOptions) completeMember(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	return completeMember(&o.root, cmd, args)
}

func completeMember(root *rootAccess, cmd *cobra.Command, args []string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return root.completeNames(cmd, "memberclusters", nil)
}

// completeMeshFlag completes the name of a mesh for a flag.
func (a *rootAccess) completeMeshFlag(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.completeNames(cmd, "meshes", nil)
}

func (o *joinOptions) completeNetwork(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	root, err := o.root.all()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	mesh, err := root.mesh(cmd.Context(), o.mesh)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return networkNames(mesh), cobra.ShellCompDirectiveNoFileComp
}

func networkNames(mesh *v1alpha1.Mesh) []string {
	var names []string
	for _, n := range mesh.Spec.Networks {
		names = append(names, n.Name)
	}
	return names
}

func (o *joinOptions) check() error {
	if errs := validation.IsDNS1123Label(o.name); len(errs) > 0 {
		return fmt.Errorf("NAME: %q: %s", o.name, strings.Join(errs, "; "))
	}
	if o.tokenTTL < minTokenTTL {
		return fmt.Errorf("--token-ttl: %s is less than %s, the least that Kubernetes allows", o.tokenTTL, minTokenTTL)
	}
	if o.timeout <= 0 {
		return fmt.Errorf("--timeout: %s must be more than nothing; see --wait=false", o.timeout)
	}
	for flag, value := range map[string]string{"region": o.region, "zone": o.zone} {
		if strings.Contains(value, "/") {
			return fmt.Errorf("--%s: %q is not the name of a %s: give --region and --zone apart, without slashes", flag, value, flag)
		}
	}
	return errors.Join(checkServer("server", o.server), checkServer("istiod-server", o.istiodServer))
}

func (o *joinOptions) run(ctx context.Context) error {
	root, err := o.root.all()
	var others []v1alpha1.MemberCluster
	var mesh *v1alpha1.Mesh
	if err == nil {
		others, err = root.members(ctx)
	}
	if err == nil {
		for i := range others {
			if others[i].Name == o.name && !o.given("mesh") {
				o.mesh = others[i].Spec.Mesh
			}
		}
		mesh, err = root.mesh(ctx, o.mesh)
	}
	if err != nil && !o.print {
		return err
	}
	var revisions []string
	if err != nil {
		o.say("Warning: the mesh is not known here, so if it has revisions, istiod may not read the settings of theirs: %v", err)
	} else if mesh.Spec.Home != nil {
		revisions = mesh.Spec.Home.Revisions
	}
	manifests, err := memberManifests(o.name, revisions, !o.noSecrets)
	if err != nil {
		return err
	}
	if o.print {
		return printManifests(o.out, manifests)
	}
	if err := o.checkMesh(mesh); err != nil {
		return err
	}
	member, err := o.member.client(root.config)
	if err != nil {
		return err
	}
	uid, err := member.uid(ctx)
	if err != nil {
		return err
	}
	if err := o.checkName(others, uid); err != nil {
		return err
	}
	steps, err := planMember(ctx, member.dynamic, o.name, manifests)
	if err != nil {
		return err
	}
	if err := o.checkRights(ctx, member, steps, revisions); err != nil {
		return err
	}

	o.say("the API of member %s answers at %s (Kubernetes %s)", o.name, member.config.Host, member.version)
	if err := o.join(ctx, root, member, steps, others, uid, revisions); err != nil {
		return o.halfway(err)
	}
	return o.finish(ctx, root)
}

// say tells of a step.
func (o *joinOptions) say(format string, args ...any) { fmt.Fprintf(o.errOut, format+"\n", args...) }

// halfway says of an error what was done before it.
func (o *joinOptions) halfway(err error) error {
	if len(o.done) == 0 {
		return fmt.Errorf("%w\nNothing was changed", err)
	}
	return fmt.Errorf("%w\nDone so far: %s.\nRun the command again to go on, or vmesh leave %s to undo it", err, strings.Join(o.done, ", "), o.name)
}

func (o *joinOptions) checkMesh(mesh *v1alpha1.Mesh) error {
	if mesh.Spec.Home == nil {
		return fmt.Errorf("--mesh: mesh %s has no home, where control planes would find the access to its members: set spec.home.virtualCluster of the mesh", mesh.Name)
	}
	if names := networkNames(mesh); o.network != "" && !slices.Contains(names, o.network) {
		if len(names) == 0 {
			return fmt.Errorf("--network: mesh %s has no networks: leave --network out if all its workloads reach each other, or add %q to its spec.networks", mesh.Name, o.network)
		}
		return fmt.Errorf("--network: mesh %s has no network %q, but: %s", mesh.Name, o.network, strings.Join(names, ", "))
	}
	return nil
}

// checkName refuses a name that is another cluster's, and a cluster that has another name.
func (o *joinOptions) checkName(members []v1alpha1.MemberCluster, uid string) error {
	for i := range members {
		m := &members[i]
		known := m.Annotations[v1alpha1.AnnotationClusterUID]
		switch {
		case m.Name != o.name && uid != "" && known == uid:
			return fmt.Errorf("NAME: this cluster is member %q of mesh %s already: use that name, or let it leave first: vmesh leave %s", m.Name, m.Spec.Mesh, m.Name)
		case m.Name != o.name:
		case m.DeletionTimestamp != nil:
			return fmt.Errorf("NAME: member %s is leaving: run the command again when it is gone", m.Name)
		case uid != "" && known != "" && known != uid:
			return fmt.Errorf("NAME: %q is another cluster, whose namespace kube-system has UID %s and not %s: take another name, or let that one leave first: vmesh leave %s",
				m.Name, known, uid, m.Name)
		case m.Spec.Mesh != o.mesh:
			return fmt.Errorf("--mesh: member %s belongs to mesh %s: let it leave first: vmesh leave %s", m.Name, m.Spec.Mesh, m.Name)
		}
	}
	return nil
}

// checkRights finds out whether the administrator may do all that it takes.
func (o *joinOptions) checkRights(ctx context.Context, member *memberClient, steps []*memberStep, revisions []string) error {
	granted := slices.Concat(rightsOf(vmeshRules(), ""), rightsOf(istiodRules(revisions, !o.noSecrets), ""), tokenRights())
	needed, unseen := rightsFor(steps, granted)
	noTokens, err := member.lacks(ctx, tokenRights())
	if err != nil {
		return err
	}
	// Who may make tokens and not look is one whom an administrator has prepared it for.
	if len(noTokens) > 0 {
		needed = slices.Concat(needed, unseen, tokenRights())
	}
	missing, err := member.lacks(ctx, needed)
	if err != nil {
		return err
	}
	// Who may grant what he does not have needs no more than that.
	if granting := slices.ContainsFunc(missing, func(r right) bool { return slices.Contains(granted, r) }); granting {
		var without []right
		for _, verb := range []string{"escalate", "bind"} {
			without = append(without, right{verb: verb, group: rbacGroup, resource: "clusterroles"}, right{verb: verb, group: rbacGroup, resource: "roles", namespace: memberNamespace})
		}
		without, err := member.lacks(ctx, without)
		if err != nil {
			return err
		}
		if len(without) == 0 {
			missing = slices.DeleteFunc(missing, func(r right) bool { return slices.Contains(granted, r) && !slices.Contains(tokenRights(), r) })
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return missingRights(missing, fmt.Sprintf(`Nothing was changed. Give an administrator's kubeconfig, or have one apply what this prints: vmesh join %s --print
After that it takes: %s; %s`, o.name, tokenRights()[0], tokenRights()[1]))
}

// join does it.
func (o *joinOptions) join(ctx context.Context, root *rootClient, member *memberClient, steps []*memberStep, others []v1alpha1.MemberCluster, uid string, revisions []string) error {
	for _, s := range steps {
		what, err := s.do(ctx, member.dynamic)
		if err != nil {
			return fmt.Errorf("%s in the member: %w", s, err)
		}
		o.say("member: %s %s", s, what)
		if !s.unseen && len(s.verbs) > 0 {
			o.done = append(o.done, fmt.Sprintf("%s in the member %s", s, what))
		}
	}
	kubeconfigs := map[string][]byte{}
	if err := o.servers(ctx, root); err != nil {
		return err
	}
	for _, a := range []struct {
		account, key, server string
		rights               []right
	}{
		{memberAccount, v1alpha1.MemberKubeconfigKey, o.server, append(rightsOf(vmeshRules(), ""), tokenRights()...)},
		{memberIstiod, v1alpha1.MemberIstiodKubeconfigKey, cmp.Or(o.istiodServer, o.server), rightsOf(istiodRules(revisions, !o.noSecrets), "")},
	} {
		token, err := member.token(ctx, a.account, o.tokenTTL)
		if apierrors.IsNotFound(err) {
			return fmt.Errorf("%w\nHave the member's administrator apply what this prints: vmesh join %s --print", err, o.name)
		}
		if err != nil {
			return err
		}
		until := token.ExpirationTimestamp.Time
		if a.key == v1alpha1.MemberKubeconfigKey {
			o.until = until
		}
		note := ""
		if short := o.tokenTTL - time.Until(until); short > time.Minute {
			note = fmt.Sprintf(", and not for %s: the member allows no more", o.tokenTTL)
		}
		o.say("member: token of service account %s made, good until %s%s", a.account, until.Local().Format(time.DateTime), note)
		holder, err := member.as(token.Token)
		if err != nil {
			return fmt.Errorf("the member does not take the token that it made: %w", err)
		}
		if err := holder.awaitRights(ctx, a.account, a.rights); err != nil {
			return err
		}
		if uid == unknownUID {
			if uid, err = holder.uid(ctx); err != nil {
				return err
			}
			if err := o.checkName(others, uid); err != nil {
				return err
			}
		}
		if kubeconfigs[a.key], err = member.kubeconfigOf(o.name, a.account, a.server, token.Token); err != nil {
			return err
		}
		if used := cmp.Or(a.server, member.config.Host); onLoopback(used) {
			o.say("Warning: %s reaches the member at %s, which it can on this machine alone: see --server", a.account, used)
		}
	}
	if err := o.keepSecret(ctx, root, kubeconfigs); err != nil {
		return err
	}
	return o.keepMember(ctx, root, uid)
}

// The annotations of a member's Secret that keep what --server and --istiod-server said.
const (
	annotationServer       = "vmesh.io/server"
	annotationIstiodServer = "vmesh.io/istiod-server"
)

// servers are the addresses of the member's API that were given now or before, or else empty.
func (o *joinOptions) servers(ctx context.Context, root *rootClient) error {
	secret, err := root.CoreV1().Secrets(v1alpha1.MembersNamespace).Get(ctx, o.name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("secret %s/%s in the root: %w%s", v1alpha1.MembersNamespace, o.name, err, accessRemedy(err))
	}
	for _, f := range []struct {
		flag, annotation string
		server           *string
	}{{"server", annotationServer, &o.server}, {"istiod-server", annotationIstiodServer, &o.istiodServer}} {
		if before := secret.Annotations[f.annotation]; before != "" && !o.given(f.flag) {
			*f.server = before
			o.say("--%s is %s, as before", f.flag, before)
		}
	}
	return nil
}

func (o *joinOptions) labels() map[string]string {
	return map[string]string{v1alpha1.LabelManagedBy: v1alpha1.ManagedBy, v1alpha1.LabelMember: o.name}
}

// keepSecret writes the access to the member into the root.
func (o *joinOptions) keepSecret(ctx context.Context, root *rootClient, data map[string][]byte) error {
	namespace := v1alpha1.MembersNamespace
	what := fmt.Sprintf("secret %s/%s", namespace, o.name)
	_, err := root.CoreV1().Namespaces().Get(ctx, namespace, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		_, err = root.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}, metav1.CreateOptions{FieldManager: joinManager})
		if err == nil || apierrors.IsAlreadyExists(err) {
			o.report("namespace "+namespace, "created")
			err = nil
		}
	}
	if err != nil {
		return fmt.Errorf("namespace %s in the root: %w%s", namespace, err, accessRemedy(err))
	}
	secrets := root.CoreV1().Secrets(namespace)
	how := ""
	err = retry.RetryOnConflict(retry.DefaultRetry, func() error {
		present, err := secrets.Get(ctx, o.name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			how = "created"
			made := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: o.name, Labels: o.labels()}, Data: data}
			o.keepServers(made)
			_, err = secrets.Create(ctx, made, metav1.CreateOptions{FieldManager: joinManager})
			return err
		}
		if err != nil {
			return err
		}
		how = "updated"
		if present.Labels == nil {
			present.Labels = map[string]string{}
		}
		if present.Data == nil {
			present.Data = map[string][]byte{}
		}
		maps.Copy(present.Labels, o.labels())
		maps.Copy(present.Data, data)
		o.keepServers(present)
		_, err = secrets.Update(ctx, present, metav1.UpdateOptions{FieldManager: joinManager})
		return err
	})
	if err != nil {
		return fmt.Errorf("%s in the root: %w%s", what, err, accessRemedy(err))
	}
	o.report(what, how)
	return nil
}

func (o *joinOptions) keepServers(secret *corev1.Secret) {
	for annotation, server := range map[string]string{annotationServer: o.server, annotationIstiodServer: o.istiodServer} {
		if server == "" {
			delete(secret.Annotations, annotation)
		} else {
			metav1.SetMetaDataAnnotation(&secret.ObjectMeta, annotation, server)
		}
	}
}

// report tells of what was done in the root.
func (o *joinOptions) report(what, how string) {
	o.say("root: %s %s", what, how)
	if how != "unchanged" {
		o.done = append(o.done, fmt.Sprintf("%s in the root %s", what, how))
	}
}

// keepMember writes the MemberCluster.
func (o *joinOptions) keepMember(ctx context.Context, root *rootClient, uid string) error {
	what, how := "membercluster "+o.name, ""
	err := retry.RetryOnConflict(retry.DefaultRetry, func() error {
		var present v1alpha1.MemberCluster
		err := read(ctx, root.RESTClient.Get().Resource("memberclusters").Name(o.name), &present)
		absent := apierrors.IsNotFound(err)
		if err != nil && !absent {
			return err
		}
		before := present.DeepCopy()
		o.fill(&present, uid, absent)
		switch {
		case absent:
			how = "created"
			return write(ctx, root.RESTClient.Post().Resource("memberclusters").Param("fieldManager", joinManager), &present)
		case equality.Semantic.DeepEqual(before, &present):
			how = "unchanged"
			return nil
		}
		how = "updated"
		return write(ctx, root.RESTClient.Put().Resource("memberclusters").Name(o.name).Param("fieldManager", joinManager), &present)
	})
	if err != nil {
		return fmt.Errorf("%s in the root: %w%s", what, err, accessRemedy(err))
	}
	o.report(what, how)
	return nil
}

// fill sets what was asked for. What was not stays.
func (o *joinOptions) fill(m *v1alpha1.MemberCluster, uid string, created bool) {
	m.TypeMeta = metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: "MemberCluster"}
	m.Name = o.name
	if m.Labels == nil {
		m.Labels = map[string]string{}
	}
	m.Labels[v1alpha1.LabelManagedBy] = v1alpha1.ManagedBy
	if m.Annotations == nil {
		m.Annotations = map[string]string{}
	}
	m.Annotations[v1alpha1.AnnotationClusterUID] = uid
	m.Spec.Mesh, m.Spec.Access.Secret = o.mesh, o.name
	if created || o.given("network") {
		m.Spec.Network = o.network
	}
	if o.given("region") || o.given("zone") {
		if m.Spec.Locality == nil {
			m.Spec.Locality = &v1alpha1.Locality{}
		}
		if o.given("region") {
			m.Spec.Locality.Region = o.region
		}
		if o.given("zone") {
			m.Spec.Locality.Zone = o.zone
		}
		if *m.Spec.Locality == (v1alpha1.Locality{}) {
			m.Spec.Locality = nil
		}
	}
	switch {
	case o.noDiscovery:
		m.Spec.Discovery = v1alpha1.DiscoveryDisabled
	case created || o.given("no-discovery"):
		m.Spec.Discovery = v1alpha1.DiscoveryEnabled
	}
	// One who was leaving has changed his mind.
	if m.Spec.Drain != nil && m.Spec.Drain.Reason == v1alpha1.ReasonLeaving {
		m.Spec.Drain = nil
	}
}

// finish waits, and prints what came of it.
func (o *joinOptions) finish(ctx context.Context, root *rootClient) error {
	m, why := &v1alpha1.MemberCluster{}, ""
	if o.wait {
		waiting, stop := context.WithTimeout(ctx, o.timeout)
		defer stop()
		why = "nobody has looked at it yet: is the server running?"
		go tellProgress(waiting, o.errOut, progressAfter, progressEvery, func() string { return o.state(waiting, root) })
		for {
			err := read(waiting, root.RESTClient.Get().Resource("memberclusters").Name(o.name), m)
			if err == nil {
				if why = notReadyYet(m, o.until); why == "" {
					break
				}
			}
			if apierrors.IsNotFound(err) {
				return fmt.Errorf("member %s was deleted meanwhile", o.name)
			}
			select {
			case <-time.After(joinPoll):
				continue
			case <-waiting.Done():
			}
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			why = fmt.Sprintf("after %s: %s", o.timeout, why)
			break
		}
		stop()
	}
	if o.output.structured() || m.Name == "" {
		if err := read(ctx, root.RESTClient.Get().Resource("memberclusters").Name(o.name), m); err != nil {
			return fmt.Errorf("member cluster %s: %w%s", o.name, err, accessRemedy(err))
		}
	}
	if err := o.printMember(m, why); err != nil {
		return err
	}
	if why != "" {
		return notReady{o.name, why}
	}
	return nil
}

// state is what is waited for.
func (o *joinOptions) state(ctx context.Context, root *rootClient) string {
	var m v1alpha1.MemberCluster
	if err := read(ctx, root.RESTClient.Get().Resource("memberclusters").Name(o.name), &m); err != nil {
		return err.Error()
	}
	return notReadyYet(&m, o.until)
}

// notReadyYet says why a member is not ready by its present access, whose token ends at until; it is empty if it is.
func notReadyYet(m *v1alpha1.MemberCluster, until time.Time) string {
	ready := meta.FindStatusCondition(m.Status.Conditions, v1alpha1.ConditionReady)
	switch {
	case ready == nil:
		return "no condition Ready yet"
	case ready.ObservedGeneration != 0 && ready.ObservedGeneration < m.Generation:
		return "what was changed was not looked at yet"
	case ready.Status == metav1.ConditionTrue && !slices.ContainsFunc(m.Status.Credentials, func(c v1alpha1.MemberCredential) bool {
		return c.Key == v1alpha1.MemberKubeconfigKey && c.ExpiresAt != nil && c.ExpiresAt.Unix() >= until.Unix()
	}):
		return "the new access was not looked at yet"
	case ready.Status == metav1.ConditionTrue:
		return ""
	case ready.Message == "":
		return ready.Reason
	}
	return ready.Reason + ": " + ready.Message
}

func (o *joinOptions) printMember(m *v1alpha1.MemberCluster, why string) error {
	if !o.output.structured() {
		what := "has joined"
		if o.wait && why == "" {
			what = "is ready in mesh " + m.Spec.Mesh
			if meta.IsStatusConditionTrue(m.Status.Conditions, v1alpha1.ConditionDiscovered) {
				what += fmt.Sprintf(": services %d, endpoints %d, nodes %d", m.Status.Services, m.Status.Endpoints, m.Status.Nodes)
			}
		}
		_, err := fmt.Fprintf(o.out, "membercluster.%s %q %s\n", v1alpha1.GroupVersion.Group, o.name, what)
		return err
	}
	m.TypeMeta, m.ManagedFields = metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: "MemberCluster"}, nil
	return o.output.print(o.out, m)
}
