package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/discovery"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

// notAllGone is the error of a leave that has left something behind.
type notAllGone struct{ left []string }

func (e notAllGone) Error() string {
	return "these are left: " + strings.Join(e.left, ", ") + "; when the reason is gone, run the command again"
}

// ExitCode is the process's.
func (notAllGone) ExitCode() int { return 2 }

type leaveOptions struct {
	root             rootAccess
	member           memberAccess
	name             string
	yes, keep, force bool
	drainTime        time.Duration
	timeout          time.Duration
	in               io.Reader
	out, errOut      io.Writer
}

func newLeaveCommand() *cobra.Command {
	o := leaveOptions{}
	cmd := &cobra.Command{
		Use:   "leave NAME",
		Short: "Let member cluster NAME leave its mesh",
		Long: `Let a member cluster leave its mesh, and undo what vmesh join made, in this order: drain it, so that its
workloads are called no more; delete the MemberCluster, with which control planes lose their access; delete the Secret
in the root; delete what vmesh join made in the cluster, the namespace last. Only what has the labels of vmesh join is
deleted. What depends on the member is told first, and asked about on a terminal.

--kubeconfig is the cluster's, of its administrator: it is refused if it is of another cluster. If the cluster is gone
for good, say --force; to leave in it what is there, --keep-member-objects. Run again, the command goes on where it ended.

The exit code is 0 if nothing is left, 2 if something is, and 1 if it could not be done.`,
		Example: `  # Undo a join
  vmesh leave east --kubeconfig east.kubeconfig --data-dir data

  # In a pipeline, with a minute for calls under way
  vmesh leave east --kubeconfig east.kubeconfig --root-kubeconfig admin.kubeconfig --yes --drain-time 1m

  # The cluster is no more
  vmesh leave east --force`,
		Args: oneArg("NAME"),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			return completeMember(&o.root, cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			o.name, o.in, o.out, o.errOut = args[0], cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr()
			switch {
			case o.drainTime < 0:
				return fmt.Errorf("--drain-time: %s must not be negative", o.drainTime)
			case o.timeout <= 0:
				return fmt.Errorf("--timeout: %s must be more than nothing", o.timeout)
			}
			return o.run(cmd.Context())
		},
	}
	o.member.addFlags(cmd)
	o.root.addFlagsAs(cmd, "root-kubeconfig")
	cmd.Flags().BoolVarP(&o.yes, "yes", "y", false, "Do not ask.")
	cmd.Flags().DurationVar(&o.drainTime, "drain-time", 30*time.Second, "How long the member is drained before it leaves: time for calls under way to end. 0 does not drain.")
	cmd.Flags().BoolVar(&o.keep, "keep-member-objects", false, "Leave in the cluster what vmesh join made there. It takes no --kubeconfig then.")
	cmd.Flags().BoolVar(&o.force, "force", false, "Go on if the cluster does not answer: it is gone for good, or what is in it may stay.")
	cmd.Flags().DurationVar(&o.timeout, "timeout", 2*time.Minute, "How long to wait at most until each part is gone.")
	cmd.MarkFlagsMutuallyExclusive("keep-member-objects", "force")
	return cmd
}

func (o *leaveOptions) say(format string, args ...any) { fmt.Fprintf(o.errOut, format+"\n", args...) }

func (o *leaveOptions) run(ctx context.Context) error {
	root, err := o.root.all()
	if err != nil {
		return err
	}
	members, err := root.members(ctx)
	if err != nil {
		return err
	}
	var m *v1alpha1.MemberCluster
	if i := slices.IndexFunc(members, func(m v1alpha1.MemberCluster) bool { return m.Name == o.name }); i >= 0 {
		m = &members[i]
	}
	secret, err := root.CoreV1().Secrets(v1alpha1.MembersNamespace).Get(ctx, o.name, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("secret %s/%s in the root: %w%s", v1alpha1.MembersNamespace, o.name, err, accessRemedy(err))
	}
	if apierrors.IsNotFound(err) || secret.Labels[v1alpha1.LabelMember] != o.name || secret.Labels[v1alpha1.LabelManagedBy] != v1alpha1.ManagedBy {
		secret = nil
	}
	member, objects, err := o.openMember(ctx, root, m)
	if err != nil {
		return err
	}
	if m == nil && secret == nil && len(objects) == 0 {
		if member == nil {
			return fmt.Errorf("there is no member %q: see kubectl get memberclusters", o.name)
		}
		return fmt.Errorf("there is no member %q, and in the cluster at %s nothing of one: see kubectl get memberclusters", o.name, member.config.Host)
	}
	if m != nil {
		for _, w := range o.dependents(ctx, root, m, members) {
			o.say("Warning: %s", w)
		}
	}
	if member != nil && len(objects) == 0 {
		o.say("Warning: in the cluster at %s there is nothing that a join has made", member.config.Host)
	}
	if err := o.confirm(m, len(objects)); err != nil {
		return err
	}

	if m != nil {
		if err := o.drain(ctx, root, m); err != nil {
			return fmt.Errorf("%w\nThe member is in the mesh still, and may be drained: run the command again to go on, or vmesh join %s to undo that", err, o.name)
		}
		if err := o.remove(ctx, root); err != nil {
			return fmt.Errorf("%w\nRun the command again to go on", err)
		}
	}
	if secret != nil {
		if err := root.CoreV1().Secrets(secret.Namespace).Delete(ctx, secret.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("secret %s/%s in the root: %w%s\nRun the command again to go on", secret.Namespace, secret.Name, err, accessRemedy(err))
		}
		o.say("root: secret %s/%s deleted", secret.Namespace, secret.Name)
	}
	var left []string
	if member != nil {
		if left, err = o.clean(ctx, member, objects); err != nil {
			return fmt.Errorf("%w\nRun the command again to go on", err)
		}
	}
	if len(left) > 0 {
		return notAllGone{left}
	}
	what := "has left"
	if member == nil {
		what += "; what vmesh join made in the cluster stays there"
	}
	_, err = fmt.Fprintf(o.out, "membercluster.%s %q %s\n", v1alpha1.GroupVersion.Group, o.name, what)
	return err
}

// openMember reaches the member and finds what join has made there. It is nil without error if it need not be reached.
func (o *leaveOptions) openMember(ctx context.Context, root *rootClient, m *v1alpha1.MemberCluster) (*memberClient, []*memberObject, error) {
	if o.keep {
		return nil, nil, nil
	}
	member, err := o.member.client(root.config)
	if err != nil {
		if o.force {
			o.say("Warning: %v: what is in the cluster stays", err)
			return nil, nil, nil
		}
		return nil, nil, fmt.Errorf("%w\nNothing was changed. If the cluster is gone for good, say --force; to leave in it what vmesh join made, --keep-member-objects", err)
	}
	uid, err := member.uid(ctx)
	if err != nil {
		return nil, nil, err
	}
	if m != nil {
		if known := m.Annotations[v1alpha1.AnnotationClusterUID]; known != "" && uid != "" && uid != known {
			return nil, nil, fmt.Errorf("--kubeconfig: the cluster at %s is not member %s: its namespace kube-system has UID %s and not %s. Nothing was changed", member.config.Host, o.name, uid, known)
		}
	}
	objects, err := o.find(ctx, member)
	if err != nil {
		return nil, nil, err
	}
	var needed []right
	for _, object := range objects {
		needed = append(needed, right{"delete", object.resource.Group, object.resource.Resource, "", object.object.GetNamespace(), object.object.GetName()})
	}
	missing, err := member.lacks(ctx, needed)
	if err == nil && len(missing) > 0 {
		err = missingRights(missing, "Nothing was changed. Give an administrator's kubeconfig, or say --keep-member-objects")
	}
	return member, objects, err
}

// find finds what join has made in the member, in the order in which it was made.
func (o *leaveOptions) find(ctx context.Context, member *memberClient) ([]*memberObject, error) {
	selector := fmt.Sprintf("%s=%s,%s=%s", v1alpha1.LabelManagedBy, v1alpha1.ManagedBy, v1alpha1.LabelMember, o.name)
	var all []*memberObject
	for i, resource := range memberResources {
		at := member.dynamic.Resource(resource)
		var list *unstructured.UnstructuredList
		var err error
		if namespaced := i == 1 || i >= 4; namespaced {
			list, err = at.Namespace(memberNamespace).List(ctx, metav1.ListOptions{LabelSelector: selector})
		} else {
			list, err = at.List(ctx, metav1.ListOptions{LabelSelector: selector})
		}
		if err != nil {
			return nil, fmt.Errorf("listing %s in the member: %w\nNothing was changed. Give an administrator's kubeconfig, or say --keep-member-objects", resource.Resource, err)
		}
		for j := range list.Items {
			all = append(all, &memberObject{resource, &list.Items[j]})
		}
	}
	return all, nil
}

// dependents are what loses something when the member leaves, as far as it can be found out.
func (o *leaveOptions) dependents(ctx context.Context, root *rootClient, m *v1alpha1.MemberCluster, members []v1alpha1.MemberCluster) []string {
	var warnings []string
	warn := func(format string, args ...any) { warnings = append(warnings, fmt.Sprintf(format, args...)) }
	mesh, err := root.mesh(ctx, m.Spec.Mesh)
	if err != nil {
		warn("what depends on the member was not found out: %v", err)
		return warnings
	}
	alone, aloneInNetwork := true, true
	for i := range members {
		if other := &members[i]; other.Name != m.Name && other.Spec.Mesh == m.Spec.Mesh {
			alone = false
			aloneInNetwork = aloneInNetwork && other.Spec.Network != m.Spec.Network
		}
	}
	switch {
	case alone:
		warn("it is the last member of mesh %s", mesh.Name)
	case aloneInNetwork && m.Spec.Network != "":
		warn("it is the last member of network %s", m.Spec.Network)
	}
	for _, network := range mesh.Spec.Networks {
		for _, g := range network.Gateways {
			if g.Service != nil && g.Service.Member == m.Name {
				warn("network %s of mesh %s has a gateway in it: service %s/%s", network.Name, mesh.Name, g.Service.Namespace, g.Service.Name)
			}
		}
	}
	switch only := m.Status.OnlyHere; {
	case only == nil:
		warn("which services only it has is not known, since vmesh has not read them")
	case only.Services > 0:
		warn("only it has these services: %s", only)
	}
	waiting, stop := context.WithCancel(ctx)
	defer stop()
	go tellProgress(waiting, o.errOut, progressAfter, progressEvery, func() string { return "looking for what names the member in the virtual clusters" })
	naming, err := naming(ctx, root, m)
	if err != nil {
		warn("which objects name it was not found out: %v", err)
	}
	if len(naming) > 0 {
		warn("these objects name it: %s", some(naming))
	}
	return warnings
}

// some are names, of which not more than a few are told.
func some(names []string) string {
	const most = 10
	if more := len(names) - most; more > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), more)
	}
	return strings.Join(names, ", ")
}

// pageOf is how many objects are read at once.
const pageOf = 500

// inCluster reads all objects of a resource in a virtual cluster.
func inCluster[T any](ctx context.Context, root *rootClient, cluster string, resource schema.GroupVersionResource, visit func(*T)) error {
	for next := ""; ; {
		var list struct {
			metav1.ListMeta `json:"metadata"`
			Items           []T `json:"items"`
		}
		request := root.RESTClient.Get().AbsPath("/clusters", cluster, "apis", resource.Group, resource.Version, resource.Resource).Param("limit", fmt.Sprint(pageOf))
		if next != "" {
			request = request.Param("continue", next)
		}
		if err := read(ctx, request, &list); err != nil {
			return fmt.Errorf("listing %s of virtual cluster %s: %w", resource.Resource, cluster, err)
		}
		for i := range list.Items {
			visit(&list.Items[i])
		}
		if next = list.Continue; next == "" {
			return nil
		}
	}
}

// naming are the objects of the mesh's virtual clusters that select by the member's name.
func naming(ctx context.Context, root *rootClient, m *v1alpha1.MemberCluster) ([]string, error) {
	var clusters v1alpha1.VirtualClusterList
	if err := read(ctx, root.RESTClient.Get().Resource("virtualclusters"), &clusters); err != nil {
		return nil, err
	}
	var found []string
	var errs []error
	for i := range clusters.Items {
		cluster := &clusters.Items[i]
		if cluster.Spec.Mesh != m.Spec.Mesh {
			continue
		}
		for _, resource := range []string{"destinationrules", "virtualservices"} {
			gvr := schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1", Resource: resource}
			err := inCluster(ctx, root, cluster.Name, gvr, func(object *map[string]any) {
				if u := (unstructured.Unstructured{Object: *object}); selects((*object)["spec"], m.Name) {
					found = append(found, fmt.Sprintf("%s %s/%s of virtual cluster %s", strings.TrimSuffix(resource, "s"), u.GetNamespace(), u.GetName(), cluster.Name))
				}
			})
			if err != nil {
				errs = append(errs, err)
			}
		}
	}
	return found, errors.Join(errs...)
}

// selects says whether there is a label topology.istio.io/cluster of that value anywhere in a spec: of a subset's, or of
// those that a match asks of the caller.
func selects(spec any, member string) bool {
	switch spec := spec.(type) {
	case map[string]any:
		for key, value := range spec {
			if key == clusterLabel && value == member || selects(value, member) {
				return true
			}
		}
	case []any:
		return slices.ContainsFunc(spec, func(item any) bool { return selects(item, member) })
	}
	return false
}

// confirm asks, on a terminal.
func (o *leaveOptions) confirm(m *v1alpha1.MemberCluster, objects int) error {
	if o.yes {
		return nil
	}
	file, ok := o.in.(*os.File)
	if !ok || !term.IsTerminal(int(file.Fd())) {
		return errors.New("nothing was done: there is no terminal to ask on: give --yes")
	}
	drain := ""
	if m != nil && o.drainTime > 0 && m.Spec.Discovery != v1alpha1.DiscoveryDisabled {
		drain = fmt.Sprintf("drained for %s, ", o.drainTime)
	}
	fmt.Fprintf(o.errOut, "Member %s will be %sdeleted, and %d objects in the cluster. Go on? [y/N] ", o.name, drain, objects)
	answer, err := bufio.NewReader(file).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if answer = strings.ToLower(strings.TrimSpace(answer)); answer != "y" && answer != "yes" {
		return errors.New("nothing was done")
	}
	return nil
}

// drain takes the member out of traffic, and gives calls under way their time.
func (o *leaveOptions) drain(ctx context.Context, root *rootClient, m *v1alpha1.MemberCluster) error {
	if o.drainTime == 0 || m.DeletionTimestamp != nil || m.Spec.Discovery == v1alpha1.DiscoveryDisabled {
		return nil
	}
	if m.Spec.Drain == nil {
		patch := fmt.Sprintf(`{"spec":{"drain":{"reason":%q}}}`, v1alpha1.ReasonLeaving)
		err := root.RESTClient.Patch(types.MergePatchType).Resource("memberclusters").Name(o.name).Param("fieldManager", joinManager).Body([]byte(patch)).Do(ctx).Error()
		if apierrors.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("draining member %s: %w%s", o.name, err, accessRemedy(err))
		}
		o.say("root: membercluster %s is drained; it leaves in %s", o.name, o.drainTime)
	} else {
		o.say("root: membercluster %s is drained already (%s); it leaves in %s", o.name, m.Spec.Drain.Reason, o.drainTime)
	}
	until := time.Now().Add(o.drainTime)
	waiting, stop := context.WithDeadline(ctx, until)
	defer stop()
	tellProgress(waiting, o.errOut, progressAfter, progressEvery, func() string {
		return fmt.Sprintf("the drain has %s left", time.Until(until).Round(time.Second))
	})
	return ctx.Err()
}

// remove deletes the MemberCluster, and waits until it is gone, with which control planes have lost their access.
func (o *leaveOptions) remove(ctx context.Context, root *rootClient) error {
	err := root.RESTClient.Delete().Resource("memberclusters").Name(o.name).Do(ctx).Error()
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("deleting member cluster %s: %w%s", o.name, err, accessRemedy(err))
	}
	err = o.awaitGone(ctx, "membercluster "+o.name, func(ctx context.Context) error {
		return root.RESTClient.Get().Resource("memberclusters").Name(o.name).SetHeader("Accept", "application/json").Do(ctx).Error()
	})
	if err == nil {
		o.say("root: membercluster %s deleted", o.name)
	}
	return err
}

// awaitGone waits until get finds nothing.
func (o *leaveOptions) awaitGone(ctx context.Context, what string, get func(context.Context) error) error {
	waiting, stop := context.WithTimeout(ctx, o.timeout)
	defer stop()
	go tellProgress(waiting, o.errOut, progressAfter, progressEvery, func() string { return what + " is being deleted" })
	for {
		err := get(waiting)
		if apierrors.IsNotFound(err) {
			return nil
		}
		select {
		case <-time.After(joinPoll):
			continue
		case <-waiting.Done():
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return errors.Join(fmt.Errorf("--timeout: %s is not gone after %s: see its finalizers", what, o.timeout), err)
	}
}

// clean deletes what join made in the member, the last first, and returns what is left.
func (o *leaveOptions) clean(ctx context.Context, member *memberClient, objects []*memberObject) (left []string, err error) {
	for _, object := range slices.Backward(objects) {
		if object.resource.Resource == "namespaces" {
			foreign, err := o.foreign(ctx, member, object.object.GetName())
			if err != nil {
				return nil, err
			}
			if len(foreign) > 0 {
				left = append(left, fmt.Sprintf("%s in the member, as there is something of others in it: %s", object, some(foreign)))
				continue
			}
		}
		uid := object.object.GetUID()
		err := object.in(member.dynamic).Delete(ctx, object.object.GetName(), metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}})
		if err != nil && !apierrors.IsNotFound(err) {
			return nil, fmt.Errorf("deleting %s in the member: %w", object, err)
		}
		err = o.awaitGone(ctx, object.String()+" in the member", func(ctx context.Context) error {
			_, err := object.in(member.dynamic).Get(ctx, object.object.GetName(), metav1.GetOptions{})
			return err
		})
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if err != nil {
			left = append(left, fmt.Sprintf("%s in the member (%v)", object, err))
			continue
		}
		o.say("member: %s deleted", object)
	}
	return left, nil
}

// everywhere is what Kubernetes, and an Istio of the member's own, make in every namespace.
var everywhere = []string{"serviceaccounts/default", "configmaps/kube-root-ca.crt", "configmaps/istio-ca-root-cert"}

// foreign are the objects in a namespace that neither join nor its cluster itself has made.
func (o *leaveOptions) foreign(ctx context.Context, member *memberClient, namespace string) ([]string, error) {
	lists, err := member.Discovery().ServerPreferredResources()
	// A group that is away has nothing to tell.
	if err != nil && !discovery.IsGroupDiscoveryFailedError(err) {
		return nil, fmt.Errorf("finding out what is in namespace %s of the member: %w", namespace, err)
	}
	var all []string
	for _, list := range lists {
		gv, err := schema.ParseGroupVersion(list.GroupVersion)
		if err != nil {
			return nil, fmt.Errorf("finding out what is in namespace %s of the member: %w", namespace, err)
		}
		for _, r := range list.APIResources {
			if !r.Namespaced || r.Name == "events" || !slices.Contains(r.Verbs, "list") {
				continue
			}
			found, err := member.dynamic.Resource(gv.WithResource(r.Name)).Namespace(namespace).List(ctx, metav1.ListOptions{Limit: pageOf})
			if apierrors.IsForbidden(err) || apierrors.IsNotFound(err) || apierrors.IsMethodNotSupported(err) {
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("finding out what is in namespace %s of the member: %w", namespace, err)
			}
			for i := range found.Items {
				object := &found.Items[i]
				own := object.GetLabels()[v1alpha1.LabelMember] == o.name
				if !own && !slices.Contains(everywhere, r.Name+"/"+object.GetName()) {
					all = append(all, r.Name+"/"+object.GetName())
				}
			}
		}
	}
	return all, nil
}
