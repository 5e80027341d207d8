package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

// rollbackManager is the field manager of what a rollback writes.
const rollbackManager = "vmesh-rollback"

// replacePatience is how long it may take to replace an object, once that has begun.
const replacePatience = 30 * time.Second

// incomplete is the error of a rollback of which a part was refused.
type incomplete struct{ refused, all int }

func (e incomplete) Error() string {
	return fmt.Sprintf("%d of %d objects are not as they were; when the reason is gone, run the command again", e.refused, e.all)
}

// ExitCode is the process's.
func (incomplete) ExitCode() int { return 2 }

type rollbackOptions struct {
	access           clusterAccess
	revision, moment string
	all, yes, quiet  bool
	dryRun           string
	color            bool
	in               io.Reader
	out, errOut      io.Writer
}

func newRollbackCommand() *cobra.Command {
	o := rollbackOptions{}
	cmd := &cobra.Command{
		Use:   "rollback (KIND/NAME | -n NAMESPACE | --all) (--to-revision REVISION | --to-time TIME)",
		Short: "Undo changes: of one object, of a namespace, or of a virtual cluster",
		Long: `Bring one object, all objects of a namespace, or those of a whole virtual cluster back to
what they were when a revision had been written, or at a time. To undo change R and all
since, go to revision R-1.

What is to be done is shown first, as diffs, and asked about on a terminal. It is done by ordinary
writes under your name, so admission, RBAC, quotas and protection decide as ever, and what
they refuse is told. Objects that were deleted since come back (as new ones, with new UIDs), and objects that were
made since are deleted. What was deleted and made anew since, with what cannot be changed such as another roleRef, is
replaced. Nothing that somebody changes meanwhile is overwritten. Run again, the command has nothing left to do.

It undoes changes that the history has, of objects that you may read. If the history does not reach back so far, nothing is done.
Secrets, events, leases, endpoints, pods and nodes have no history and stay as they are; so do namespaces
that were made since. Statuses are not brought back.

The exit code is 0 if all is as it was, 2 if a part was refused, and 1 if nothing was done.`,
		Example: `  # What would it take to undo change 48213 of one object?
  vmesh rollback virtualservice/reviews -n checkout --to-revision 48212 --dry-run=server

  # A namespace as it was an hour ago
  vmesh rollback -n checkout --to-time 1h

  # Everything, in a pipeline
  vmesh rollback --all --to-time 2026-01-31T12:00:00Z --yes`,
		Args: atMostOne("KIND/NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.color, o.in, o.out, o.errOut = colors(cmd), cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr()
			object := ""
			if len(args) > 0 {
				object = args[0]
			}
			if err := o.check(object); err != nil {
				return seeHelp(cmd, err)
			}
			return o.run(cmd.Context(), object)
		},
	}
	o.access.addFlags(cmd)
	cmd.Flags().BoolVar(&o.all, "all", false, "Undo the changes of all namespaces, and of what is in none.")
	cmd.Flags().StringVar(&o.revision, "to-revision", "", "The revision to go back to: the changes after it are undone.")
	cmd.Flags().StringVar(&o.moment, "to-time", "", "The time to go back to, as in 2026-01-31T12:00:00Z, or how long ago, as in 90m.")
	cmd.Flags().BoolVarP(&o.yes, "yes", "y", false, "Do not ask.")
	cmd.Flags().BoolVarP(&o.quiet, "quiet", "q", false, "Print what is to be done without diffs.")
	cmd.Flags().StringVar(&o.dryRun, "dry-run", "none", "client: only show what would be done; server: have the server check each write as well.")
	_ = cmd.RegisterFlagCompletionFunc("dry-run", cobra.FixedCompletions([]string{"none", "client", "server"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func (o *rollbackOptions) check(object string) error {
	switch {
	case (o.revision == "") == (o.moment == ""):
		return errors.New("say how far to go back: give one of --to-revision and --to-time")
	case !slices.Contains([]string{"none", "client", "server"}, o.dryRun):
		return fmt.Errorf("--dry-run: %q is none of none, client and server", o.dryRun)
	case o.all && object != "":
		return fmt.Errorf("give either %s or --all", object)
	case o.all && o.access.namespace != "":
		return errors.New("give either --namespace or --all")
	case !o.all && object == "" && o.access.namespace == "":
		return errors.New("say what to undo: give KIND/NAME, -n NAMESPACE, or --all")
	}
	if o.revision != "" {
		if n, err := strconv.ParseInt(o.revision, 10, 64); err != nil || n <= 0 {
			return fmt.Errorf("--to-revision: %q is not a revision: see vmesh history", o.revision)
		}
		return nil
	}
	if ago, err := time.ParseDuration(o.moment); err == nil {
		if ago < 0 {
			return fmt.Errorf("--to-time: %s must not be negative: it is how long ago", ago)
		}
		o.moment = time.Now().Add(-ago).UTC().Format(time.RFC3339Nano)
	} else if _, err := time.Parse(time.RFC3339Nano, o.moment); err != nil {
		return fmt.Errorf("--to-time: %q is neither a time, as in 2026-01-31T12:00:00Z, nor how long ago, as in 90m", o.moment)
	}
	return nil
}

func (o *rollbackOptions) run(ctx context.Context, object string) error {
	client, err := o.access.client()
	if err != nil {
		return err
	}
	namespace, selector := client.namespace, fields.Set{}
	if o.all {
		namespace = metav1.NamespaceAll
	}
	if object != "" {
		ref, err := client.resolve(object)
		if err != nil {
			return err
		}
		selector["object.kind"], selector["object.name"] = ref.gvk.Kind, ref.name
		if !ref.namespaced {
			namespace = ref.changesNamespace()
		}
	}
	if o.revision != "" {
		selector["sinceRevision"] = o.revision
	} else {
		selector["sinceTime"] = o.moment
	}
	var changes []*v1alpha1.Change
	if err := client.eachChange(ctx, namespace, selector.AsSelector().String(), func(c *v1alpha1.Change) bool {
		// What is in no namespace is not a namespace's, but for itself.
		if object != "" || o.all || c.Object.Namespace != "" || c.Object.Kind == "Namespace" {
			changes = append(changes, c)
		}
		return true
	}); err != nil {
		return fmt.Errorf("nothing was done: %w", err)
	}
	all, err := targets(changes)
	if err != nil {
		return err
	}
	steps, err := client.plan(ctx, all, o.tell("reading", len(all)))
	if err != nil {
		return fmt.Errorf("nothing was done: %w", err)
	}
	do, err := o.show(steps, len(changes))
	if err != nil {
		return err
	}
	blocked := 0
	for _, s := range steps {
		if s.action == refuse {
			blocked++
		}
	}
	if do > 0 && o.dryRun != "client" {
		if o.dryRun == "none" {
			if err := confirm(o.in, o.errOut, o.yes, do); err != nil {
				return err
			}
		}
		refused := o.apply(ctx, client, steps, do)
		blocked += refused
		if err := context.Cause(ctx); err != nil {
			return fmt.Errorf("interrupted; what was done stays so, and the same command goes on: %w", err)
		}
		if _, err := fmt.Fprintf(o.out, "Written: %d of %d objects.\n", do-refused, do); err != nil {
			return err
		}
	}
	if blocked > 0 {
		return incomplete{blocked, len(steps)}
	}
	return nil
}

// show prints the plan, and returns how many writes it takes.
func (o *rollbackOptions) show(steps []*step, changes int) (do int, err error) {
	counts := map[action]int{}
	for _, s := range steps {
		counts[s.action]++
		line := fmt.Sprintf("%s %s", s.action, s)
		if s.note != "" {
			line += " (" + s.note + ")"
		}
		if _, err := fmt.Fprintln(o.out, line); err != nil {
			return 0, err
		}
		if o.quiet || s.action == keep || s.action == refuse {
			continue
		}
		var before, after map[string]any
		if s.current != nil {
			before = written(s.current.Object)
		}
		if s.object != nil {
			after = written(s.object.Object)
		}
		if err := writeDiff(o.out, s.String(), before, after, o.color); err != nil {
			return 0, err
		}
	}
	do = counts[create] + counts[update] + counts[remove]
	if do == 0 && counts[refuse] == 0 {
		_, err = fmt.Fprintf(o.out, "Nothing to do: all is as it was (changes since: %d).\n", changes)
		return 0, err
	}
	_, err = fmt.Fprintf(o.out, "Changes since: %d. Objects to create: %d, to update: %d, to delete: %d; that cannot be brought back: %d.\n",
		changes, counts[create], counts[update], counts[remove], counts[refuse])
	return do, err
}

// confirm asks, on a terminal, unless that was said yes to.
func confirm(in io.Reader, errOut io.Writer, yes bool, n int) error {
	if yes {
		return nil
	}
	file, ok := in.(*os.File)
	if !ok || !term.IsTerminal(int(file.Fd())) {
		return errors.New("nothing was done: there is no terminal to ask on: give --yes")
	}
	fmt.Fprintf(errOut, "Objects to write: %d. Go on? [y/N] ", n)
	answer, err := bufio.NewReader(file).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if answer = strings.ToLower(strings.TrimSpace(answer)); answer != "y" && answer != "yes" {
		return errors.New("nothing was done")
	}
	return nil
}

// tell returns what to call after each of many objects: it says now and then how far it has come.
func (o *rollbackOptions) tell(doing string, all int) func() {
	done, next := 0, time.Now().Add(progressAfter)
	return func() {
		if done++; time.Now().After(next) && done < all {
			fmt.Fprintf(o.errOut, "%s: %d of %d\n", doing, done, all)
			next = time.Now().Add(progressAfter)
		}
	}
}

// apply does the steps, and returns how many were refused. What was refused before
// something was deleted is tried once more: that may have been what refused it.
func (o *rollbackOptions) apply(ctx context.Context, client *clusterClient, steps []*step, all int) (refused int) {
	suffix := ""
	if o.dryRun == "server" {
		suffix = " (server dry run)"
	}
	told := o.tell("writing", all)
	attempt := func(s *step, last bool) bool {
		err := client.do(ctx, s, o.dryRun == "server")
		switch {
		case err == nil:
			fmt.Fprintf(o.out, "%s %s%s\n", s, past[s.action], suffix)
			return true
		case ctx.Err() != nil:
			return false
		case last || s.action == replace: // what the plan was made of is gone
			fmt.Fprintf(o.errOut, "error: %s was not %s: %s\n", s, past[s.action], reason(err, o.dryRun == "server"))
		}
		return false
	}
	var again []*step
	for _, s := range steps {
		if s.action == keep || s.action == refuse || ctx.Err() != nil {
			continue
		}
		switch {
		case attempt(s, s.action == remove):
		case s.action == remove || s.action == replace:
			refused++
		default:
			again = append(again, s)
		}
		told()
	}
	for _, s := range again {
		if ctx.Err() != nil || !attempt(s, true) {
			refused++
		}
	}
	return refused
}

var past = map[action]string{create: "created", update: "updated", remove: "deleted", replace: "replaced"}

// reason is why a write was refused, and what to do where it is not plain.
func reason(err error, dryRun bool) string {
	text := err.Error()
	switch {
	case apierrors.IsConflict(err):
		text += "; it was changed meanwhile: run the command again to see how it is now"
	case apierrors.IsNotFound(err) && dryRun:
		text += "; in a dry run, what it needs was not created"
	}
	return text
}

// do writes what a step says. What there is must be as it was when the plan was made.
func (c *clusterClient) do(ctx context.Context, s *step, dryRun bool) error {
	var dry []string
	if dryRun {
		dry = []string{metav1.DryRunAll}
	}
	resource := c.of(s.target)
	var err error
	switch s.action {
	case create:
		_, err = resource.Create(ctx, s.object, metav1.CreateOptions{DryRun: dry, FieldManager: rollbackManager})
	case update:
		_, err = resource.Update(ctx, s.object, metav1.UpdateOptions{DryRun: dry, FieldManager: rollbackManager})
		if apierrors.IsInvalid(err) && s.remade {
			err = c.replace(ctx, resource, s, dry, err)
		}
	case remove:
		err = c.delete(ctx, resource, s, dry)
	}
	return err
}

// delete deletes what there was when the plan was made.
func (c *clusterClient) delete(ctx context.Context, resource dynamic.ResourceInterface, s *step, dry []string) error {
	uid, revision := s.current.GetUID(), s.current.GetResourceVersion()
	err := resource.Delete(ctx, s.name, metav1.DeleteOptions{DryRun: dry, Preconditions: &metav1.Preconditions{UID: &uid, ResourceVersion: &revision}})
	if apierrors.IsNotFound(err) {
		err = nil // with its owner, say
	}
	return err
}

// replace deletes an object that cannot be changed, and makes what there was. If that is refused
// after all, it makes what it has deleted once more. It is not interrupted between the two.
func (c *clusterClient) replace(ctx context.Context, resource dynamic.ResourceInterface, s *step, dry []string, why error) error {
	if finalizers := s.current.GetFinalizers(); len(finalizers) > 0 {
		return fmt.Errorf("%w; nor can it be deleted and made anew at once, for it has finalizers (%s)", why, strings.Join(finalizers, ", "))
	}
	// Under another name, for what is there is in the way.
	probe := s.recreated()
	probe.SetName("")
	probe.SetGenerateName(s.name + "-")
	_, err := resource.Create(ctx, probe, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}, FieldManager: rollbackManager})
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), replacePatience)
	defer cancel()
	if err == nil {
		err = c.delete(ctx, resource, s, dry)
	}
	if err != nil {
		return fmt.Errorf("%w; nor can it be deleted and made anew: %w", why, err)
	}
	s.action = replace
	if len(dry) == 0 {
		_, err = resource.Create(ctx, s.recreated(), metav1.CreateOptions{FieldManager: rollbackManager})
	}
	if err == nil {
		return nil
	}
	err = fmt.Errorf("%w; nor can it be made anew: %w", why, err)
	now := target{gvr: s.gvr, then: s.current.Object}
	if _, lost := resource.Create(ctx, now.recreated(), metav1.CreateOptions{FieldManager: rollbackManager}); lost != nil {
		err = fmt.Errorf("%w; it is deleted now, and cannot be made as it was a moment ago either: %w", err, lost)
	}
	return err
}

func (c *clusterClient) of(t *target) dynamic.ResourceInterface {
	if t.namespace == "" {
		return c.Resource(t.gvr)
	}
	return c.Resource(t.gvr).Namespace(t.namespace)
}

// listFrom is the number of objects of a kind and namespace from which a list is cheaper than as many gets.
const listFrom = 5

// plan reads what there is of the targets, and makes the steps, in order.
func (c *clusterClient) plan(ctx context.Context, all []*target, told func()) ([]*step, error) {
	type group struct {
		schema.GroupVersionResource
		namespace string
	}
	groups := map[group][]*target{}
	for _, t := range all {
		g := group{t.gvr, t.namespace}
		groups[g] = append(groups[g], t)
	}
	var steps []*step
	add := func(t *target, current *unstructured.Unstructured) {
		if s := t.plan(current); s != nil {
			steps = append(steps, s)
		}
		told()
	}
	for _, of := range groups {
		present, listed, err := c.list(ctx, of)
		if err != nil {
			return nil, err
		}
		for _, t := range of {
			if listed {
				add(t, present[t.name])
				continue
			}
			current, err := c.of(t).Get(ctx, t.name, metav1.GetOptions{})
			if apierrors.IsNotFound(err) {
				current, err = nil, nil
			}
			if err != nil {
				return nil, fmt.Errorf("reading %s: %w", t, err)
			}
			add(t, current)
		}
	}
	sortSteps(steps)
	return steps, nil
}

// list reads objects of one kind and namespace by name, if there are many and the user may.
func (c *clusterClient) list(ctx context.Context, of []*target) (map[string]*unstructured.Unstructured, bool, error) {
	if len(of) < listFrom {
		return nil, false, nil
	}
	present := map[string]*unstructured.Unstructured{}
	options := metav1.ListOptions{Limit: 500}
	for {
		list, err := c.of(of[0]).List(ctx, options)
		if apierrors.IsForbidden(err) {
			return nil, false, nil
		}
		if err != nil {
			return nil, false, fmt.Errorf("listing %s: %w", of[0].gvr.Resource, err)
		}
		for i := range list.Items {
			present[list.Items[i].GetName()] = &list.Items[i]
		}
		if options.Continue = list.GetContinue(); options.Continue == "" {
			return present, true, nil
		}
	}
}
