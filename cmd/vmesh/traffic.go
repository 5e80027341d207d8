package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/retry"

	"github.com/vmesh-io/vmesh/pkg/apis/istio"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

const (
	trafficPoll = 200 * time.Millisecond
	// betweenAtMost is for how long the second of two writes waits for the first to be live.
	betweenAtMost = 20 * time.Second
	// settle is what proxies get, after control planes have acknowledged a change, before what it needs no more is taken away.
	settle = 2 * time.Second
)

type trafficOptions struct {
	access        clusterAccess
	rule          trafficRule
	split         []string
	failover      []string
	clusters      []string
	clear         bool
	yes, quiet    bool
	wait          bool
	timeout       time.Duration
	dryRun        string
	output        outputFormat
	color         bool
	in            io.Reader
	out, errOut   io.Writer
	betweenAtMost time.Duration // for tests
	settle        time.Duration
}

func newTrafficCommand() *cobra.Command {
	o := trafficOptions{betweenAtMost: betweenAtMost, settle: settle}
	cmd := &cobra.Command{
		Use:   "traffic SERVICE",
		Short: "Say how a service is called across clusters: local, preferred, split, drained",
		Long: `Say in one line to which member clusters calls of a service go; without a flag, show it. It is written as
a VirtualService and a DestinationRule with a subset for each cluster, both called SERVICE-clusters. Each command
says all: what the one before said of the service is replaced, and --clear takes it away.

  --local-only    calls stay in the caller's cluster, and fail where it has no endpoint
  --local-first   the caller's cluster, and the others when none of its endpoints answers
  --prefer        one cluster for all callers, and the others when none of its endpoints answers
  --failover      from a region that does not answer to another region, before all others. Istio
                  goes by regions here, those of the nodes, and not by clusters
  --split         shares of the calls in percent, whether or not a cluster answers
  --drain         no calls to these clusters; the rest shares them by the number of its endpoints

Clusters are those that kubectl get meshservices shows. --local-only and --drain name them one by one: run the command again
when a cluster has joined; until then its callers call all clusters, or those that are not drained.

What is to be written is shown first, as diffs, and asked about on a terminal. It is written under your name as
any change: rights, quotas and history apply, and what analysis finds is printed. If there is a VirtualService for the
service with one plain route, the subsets come into that route; one that has more to say is left
alone, and the command refused. If there is a DestinationRule with a policy, the order of endpoints comes into it.

The exit code is 0 if all is written, or there is nothing to write, 2 if a part was refused, and 1 if nothing was done.`,
		Example: `  # Which clusters serve it, and what is in force?
  vmesh traffic reviews -n shop

  # Keep calls in the cluster
  vmesh traffic reviews -n shop --local-only

  # Blue/green from cluster west to cluster east, in steps
  vmesh traffic reviews -n shop --split west=90,east=10 --yes --wait
  vmesh traffic reviews -n shop --split west=0,east=100 --yes --wait

  # Take one service out of a cluster, and back in
  vmesh traffic reviews -n shop --drain west
  vmesh traffic reviews -n shop --clear`,
		Args: oneArg("SERVICE"), ValidArgsFunction: o.access.completeService,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.color, o.in, o.out, o.errOut = colors(cmd), cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr()
			if err := o.check(args[0]); err != nil {
				return seeHelp(cmd, err)
			}
			return o.run(cmd.Context(), args[0])
		},
	}
	o.access.addFlags(cmd)
	f := cmd.Flags()
	f.BoolVar(&o.rule.localOnly, "local-only", false, "Keep calls in the caller's cluster.")
	f.BoolVar(&o.rule.localFirst, "local-first", false, "Prefer the caller's cluster.")
	f.StringVar(&o.rule.prefer, "prefer", "", "Prefer a cluster.")
	f.StringSliceVar(&o.split, "split", nil, "The share of each cluster in percent, as in east=90,west=10.")
	f.StringSliceVar(&o.failover, "failover", nil, "Where a region fails over to, as in us-east=us-west; also with --local-first and --prefer.")
	f.StringSliceVar(&o.rule.drain, "drain", nil, "The clusters that get no calls; with --local-only, the rest keep theirs.")
	f.BoolVar(&o.clear, "clear", false, "Back to the default: take away what this command has written.")
	f.StringSliceVar(&o.clusters, "clusters", nil, "Clusters that have the service, besides those that the server knows.")
	f.BoolVarP(&o.yes, "yes", "y", false, "Do not ask.")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "Print what is to be done without diffs.")
	f.BoolVar(&o.wait, "wait", false, "Wait until all control planes have it (condition Distributed).")
	f.DurationVar(&o.timeout, "timeout", time.Minute, "How long --wait waits at most; 0 for ever.")
	f.StringVar(&o.dryRun, "dry-run", "none", "client: only show what would be done; server: have the server check each write as well.")
	o.output.addFlag(cmd, "How to print what is in force: json or yaml; by default as text.")
	complete := func(flag string, of func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective)) {
		_ = cmd.RegisterFlagCompletionFunc(flag, of)
	}
	complete("dry-run", cobra.FixedCompletions([]string{"none", "client", "server"}, cobra.ShellCompDirectiveNoFileComp))
	complete("prefer", o.access.completeServiceClusters(""))
	complete("drain", o.access.completeServiceClusters(""))
	complete("failover", cobra.NoFileCompletions)
	complete("clusters", cobra.NoFileCompletions)
	complete("split", o.access.completeServiceClusters("="))
	return cmd
}

func (o *trafficOptions) check(service string) (err error) {
	if strings.ContainsAny(service, "./") {
		return fmt.Errorf("%q is not the name of a service: give the name, and its namespace by -n", service)
	}
	if o.rule.split, err = parseSplit(o.split); err != nil {
		return err
	}
	if o.rule.failover, err = parseFailover(o.failover); err != nil {
		return err
	}
	for _, list := range []struct {
		flag  string
		names []string
	}{{"drain", o.rule.drain}, {"clusters", o.clusters}} {
		if slices.ContainsFunc(list.names, func(name string) bool { return name == "" || strings.Contains(name, "=") }) {
			return fmt.Errorf("--%s: give names of clusters, as in east,west", list.flag)
		}
	}
	var exclusive []string
	for flag, given := range map[string]bool{
		"--local-only": o.rule.localOnly && len(o.rule.drain) == 0, "--local-first": o.rule.localFirst, "--prefer": o.rule.prefer != "", "--split": len(o.rule.split) > 0,
		"--drain": len(o.rule.drain) > 0, "--clear": o.clear,
	} {
		if given {
			exclusive = append(exclusive, flag)
		}
	}
	slices.Sort(exclusive)
	if len(o.rule.failover) > 0 && (o.rule.routes() || o.clear) {
		exclusive = append(exclusive, "--failover")
	}
	switch {
	case len(exclusive) > 1:
		return fmt.Errorf("%s: give one of them", strings.Join(exclusive, " and "))
	case strings.ContainsAny(o.rule.prefer, ",="):
		return errors.New("--prefer: give one cluster: Istio ranks endpoints by being in it or not. The order among the others goes by region, see --failover")
	case !slices.Contains([]string{"none", "client", "server"}, o.dryRun):
		return fmt.Errorf("--dry-run: %q is none of none, client and server", o.dryRun)
	case o.output.structured() && o.changes():
		return errors.New("--output is for what is in force: without flags that change it")
	case o.timeout < 0:
		return fmt.Errorf("--timeout: %s must not be negative", o.timeout)
	}
	return nil
}

// changes says whether something is to be written.
func (o *trafficOptions) changes() bool { return o.clear || o.rule.routes() || o.rule.ranks() }

// writeWarnings prints what the server says of writes.
type writeWarnings struct {
	o    *trafficOptions
	told map[string]bool
}

// HandleWarningHeader prints a warning once.
func (w *writeWarnings) HandleWarningHeader(code int, _, text string) {
	if code != 299 || text == "" || w.told[text] {
		return
	}
	w.told[text] = true
	w.o.warn(text)
}

func (o *trafficOptions) warn(text string) { fmt.Fprintln(o.errOut, "Warning:", text) }

func (o *trafficOptions) run(ctx context.Context, service string) error {
	client, err := o.access.client()
	if err != nil {
		return err
	}
	view, all, err := client.loadTraffic(ctx, service, o.clusters)
	if err != nil {
		return err
	}
	if !o.changes() {
		return o.show(view, all)
	}
	warnings, err := view.check(&o.rule)
	if err != nil {
		return fmt.Errorf("nothing was done: %w", err)
	}
	for _, s := range all.elsewhere {
		gateways, _, _ := unstructured.NestedStringSlice(s.Object, "spec", "gateways")
		warnings = append(warnings, fmt.Sprintf("VirtualService %s/%s routes calls that come in by gateway %s: those do not follow", view.namespace, s.GetName(), strings.Join(gateways, ", ")))
	}
	steps, err := planTraffic(view, &o.rule, all)
	if err != nil {
		return fmt.Errorf("nothing was done: %w", err)
	}
	for _, s := range steps {
		line := fmt.Sprintf("%s %s", s.action, s)
		if s.current != nil && s.current.GetLabels()[managedByLabel] != trafficManager {
			line += " (yours: its other fields stay)"
		}
		fmt.Fprintln(o.out, line)
		if o.quiet {
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
			return err
		}
	}
	for _, w := range warnings {
		o.warn(w)
	}
	if len(steps) == 0 {
		_, err := fmt.Fprintln(o.out, "Nothing to do: it is so already.")
		return err
	}
	if o.dryRun == "client" {
		return nil
	}
	if o.dryRun == "none" {
		if err := confirm(o.in, o.errOut, o.yes, len(steps)); err != nil {
			return err
		}
	}
	config := rest.CopyConfig(client.config)
	config.WarningHandler = &writeWarnings{o, map[string]bool{}}
	if client.Interface, err = dynamic.NewForConfig(config); err != nil {
		return err
	}
	return o.apply(ctx, client, steps)
}

// apply does the steps, one after the other: each is live before the next, which may need it.
func (o *trafficOptions) apply(ctx context.Context, client *clusterClient, steps []*trafficStep) error {
	suffix := ""
	if o.dryRun == "server" {
		suffix = " (server dry run)"
	}
	var wrote []*trafficStep
	for i, s := range steps {
		err := client.writeTraffic(ctx, s, o.dryRun == "server")
		if cause := context.Cause(ctx); cause != nil {
			return fmt.Errorf("interrupted; what was done stays so, and the same command goes on: %w", cause)
		}
		if err != nil {
			fmt.Fprintf(o.errOut, "error: %s was not %s: %s\n", s, past[s.action], trafficReason(err, o.dryRun == "server"))
			if len(wrote) == 0 {
				return errors.New("nothing was done")
			}
			return incomplete{len(steps) - i, len(steps)}
		}
		fmt.Fprintf(o.out, "%s %s%s\n", s, past[s.action], suffix)
		wrote = append(wrote, s)
		if o.dryRun == "none" && i+1 < len(steps) {
			if err := o.between(ctx, client, s, steps[i+1]); err != nil {
				return err
			}
		}
	}
	if !o.wait || o.dryRun != "none" {
		return nil
	}
	if o.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, o.timeout, fmt.Errorf("--timeout: it took longer than %s; all is written", o.timeout))
		defer cancel()
	}
	for _, s := range wrote {
		if s.action == remove {
			continue // of which nobody says when it is gone
		}
		state, err := o.distributed(ctx, client, s, false)
		if err != nil {
			return fmt.Errorf("%w: %s: %s", err, s, state)
		}
		fmt.Fprintf(o.out, "%s is live: %s\n", s, state)
	}
	return nil
}

// between waits until a write is live before the next, so that no route is without its subset. It is not waited
// for what does not reach control planes anyway.
func (o *trafficOptions) between(ctx context.Context, client *clusterClient, s, next *trafficStep) error {
	limited, cancel := context.WithTimeoutCause(ctx, o.betweenAtMost, errors.New("it takes too long"))
	defer cancel()
	state := ""
	if s.action != remove {
		var err error
		if state, err = o.distributed(limited, client, s, true); err != nil && ctx.Err() == nil {
			o.warn(fmt.Sprintf("%s is not live after %s (%s): going on all the same; calls may fail until it is", s, o.betweenAtMost, state))
		}
	}
	// Proxies go on calling by a route for a moment after control planes have changed it.
	if subsets := next.current != nil && len(subsetsOf(next.current)) > 0 && (next.object == nil || len(subsetsOf(next.object)) == 0); subsets {
		select {
		case <-time.After(o.settle):
		case <-ctx.Done():
		}
	}
	if err := context.Cause(ctx); err != nil {
		return fmt.Errorf("interrupted; what was done stays so, and the same command goes on: %w", err)
	}
	return nil
}

// distributed waits until control planes have what a step wrote, and says how it stands. If it is live or nothing,
// it also returns when no control plane will have it for reasons that waiting does not mend.
func (o *trafficOptions) distributed(ctx context.Context, client *clusterClient, s *trafficStep, orNothing bool) (string, error) {
	state := make(chan string, 1)
	set := func(text string) {
		select {
		case <-state:
		default:
		}
		state <- text
	}
	last := "not yet looked at"
	set(last)
	telling, stop := context.WithCancel(ctx)
	told := make(chan struct{})
	go func() {
		defer close(told)
		tellProgress(telling, o.errOut, progressAfter, progressEvery, func() string {
			text := <-state
			state <- text
			return s.String() + ": " + text
		})
	}()
	defer func() { stop(); <-told }()
	for {
		got, err := client.of(s.target).Get(ctx, s.name, metav1.GetOptions{})
		switch {
		case ctx.Err() != nil:
			return last, context.Cause(ctx)
		case err != nil:
			return last, err
		}
		condition, err := distributedCondition(got)
		if err != nil {
			return last, err
		}
		if condition != nil {
			last = condition.Reason + ": " + condition.Message
			current := condition.ObservedGeneration == 0 || condition.ObservedGeneration >= got.GetGeneration()
			if current && condition.Status == metav1.ConditionTrue {
				return condition.Message, nil
			}
			// Pending, and behind by a little, pass; the rest is not the write's.
			if current && orNothing && condition.Status == metav1.ConditionFalse && !strings.HasPrefix(condition.Reason, "ControlPlane") {
				return last, nil
			}
		}
		set(last)
		select {
		case <-time.After(trafficPoll):
		case <-ctx.Done():
			return last, context.Cause(ctx)
		}
	}
}

// distributedCondition is the condition of an object; nil if it has none.
func distributedCondition(o *unstructured.Unstructured) (*metav1.Condition, error) {
	conditions, _, err := unstructured.NestedSlice(o.Object, "status", "conditions")
	if err != nil {
		return nil, err
	}
	for _, item := range conditions {
		fields, _ := item.(object)
		if fields["type"] != istio.ConditionDistributed {
			continue
		}
		c := &metav1.Condition{}
		c.Reason, _ = fields["reason"].(string)
		c.Message, _ = fields["message"].(string)
		status, _ := fields["status"].(string)
		c.Status = metav1.ConditionStatus(status)
		switch n := fields["observedGeneration"].(type) { // Istio's own API has it as text in JSON
		case int64:
			c.ObservedGeneration = n
		case string:
			_, _ = fmt.Sscan(n, &c.ObservedGeneration)
		}
		return c, nil
	}
	return nil, nil
}

// trafficReason is why a write was refused.
func trafficReason(err error, dryRun bool) string {
	if apierrors.IsConflict(err) {
		return err.Error() + "; it was written by somebody else: run the command again to see how it is now"
	}
	return reason(err, dryRun)
}

// writeTraffic does a step. What there is must be as it was when the plan was made.
func (c *clusterClient) writeTraffic(ctx context.Context, s *trafficStep, dryRun bool) error {
	if s.action == remove {
		return c.do(ctx, s.step, dryRun)
	}
	options := metav1.ApplyOptions{FieldManager: trafficManager, Force: s.action == update}
	if dryRun {
		options.DryRun = []string{metav1.DryRunAll}
	}
	after, err := c.of(s.target).Apply(ctx, s.name, s.applied, options)
	if err != nil || !s.release || dryRun {
		return err
	}
	return c.disown(ctx, s, after)
}

// disown gives up the fields of an object that have become its writer's again. The server writes its status at once, so
// it takes several attempts at times.
func (c *clusterClient) disown(ctx context.Context, s *trafficStep, o *unstructured.Unstructured) error {
	generation := o.GetGeneration()
	return retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		fields := slices.DeleteFunc(o.GetManagedFields(), func(m metav1.ManagedFieldsEntry) bool { return m.Manager == trafficManager })
		patch, err := json.Marshal([]object{
			{"op": "replace", "path": "/metadata/resourceVersion", "value": o.GetResourceVersion()},
			{"op": "replace", "path": "/metadata/managedFields", "value": fields},
		})
		if err != nil {
			return err
		}
		_, err = c.of(s.target).Patch(ctx, s.name, types.JSONPatchType, patch, metav1.PatchOptions{FieldManager: trafficManager})
		if !apierrors.IsConflict(err) {
			return err
		}
		now, getErr := c.of(s.target).Get(ctx, s.name, metav1.GetOptions{})
		if apierrors.IsNotFound(getErr) {
			return nil
		}
		if getErr != nil {
			return getErr
		}
		if now.GetUID() != o.GetUID() || now.GetGeneration() != generation {
			return nil // somebody has written it, and will be told of the fields when he applies them
		}
		o = now
		return err
	})
}

// loadTraffic reads what the mesh knows of a service, and what the virtual cluster says of it.
func (c *clusterClient) loadTraffic(ctx context.Context, service string, given []string) (*serviceView, *trafficObjects, error) {
	found, err := c.meshService(ctx, service)
	if err != nil {
		return nil, nil, err
	}
	view := newServiceView(c.namespace, service, found, given)
	services, err := c.Resource(virtualServices).Namespace(c.namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, nil, fmt.Errorf("listing virtual services of namespace %s: %w", c.namespace, err)
	}
	rules, err := c.Resource(destinationRules).Namespace(c.namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, nil, fmt.Errorf("listing destination rules of namespace %s: %w", c.namespace, err)
	}
	all, err := view.sortOut(services.Items, rules.Items)
	return view, all, err
}

// meshService is the mesh's view of a service; nil if there is none, or it may not be seen.
func (c *clusterClient) meshService(ctx context.Context, name string) (*v1alpha1.MeshService, error) {
	got, err := c.Resource(meshServices).Namespace(c.namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) || apierrors.IsForbidden(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("asking which clusters have %s/%s: %w", c.namespace, name, err)
	}
	service := &v1alpha1.MeshService{}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(got.Object, service); err != nil {
		return nil, fmt.Errorf("reading mesh service %s/%s: %w", c.namespace, name, err)
	}
	return service, nil
}

// completeService completes the name of a service.
func (a *clusterAccess) completeService(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	client, err := a.client()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	list, err := client.Resource(meshServices).Namespace(client.namespace).List(cmd.Context(), metav1.ListOptions{})
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for i := range list.Items {
		names = append(names, list.Items[i].GetName())
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// completeServiceClusters completes the clusters of the service that is named, the last of several with commas, with
// what follows a name.
func (a *clusterAccess) completeServiceClusters(after string) func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
		const nothing = cobra.ShellCompDirectiveNoFileComp
		if len(args) == 0 {
			return nil, nothing
		}
		client, err := a.client()
		if err != nil {
			return nil, nothing
		}
		service, err := client.meshService(cmd.Context(), args[0])
		if err != nil || service == nil {
			return nil, nothing
		}
		before := typed[:strings.LastIndex(typed, ",")+1]
		var values []string
		for _, c := range service.Status.Clusters {
			if !strings.Contains(","+before, ","+c.Name+",") && !strings.Contains(","+before, ","+c.Name+"=") {
				values = append(values, before+c.Name+after)
			}
		}
		return values, nothing | cobra.ShellCompDirectiveNoSpace
	}
}
