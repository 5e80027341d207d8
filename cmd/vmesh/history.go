package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/duration"
	utiljson "k8s.io/apimachinery/pkg/util/json"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

type historyOptions struct {
	access      clusterAccess
	since       time.Duration
	user        string
	output      outputFormat
	limit       int
	diff, color bool
}

func newHistoryCommand() *cobra.Command {
	var o historyOptions
	cmd := &cobra.Command{
		Use:   "history [KIND/NAME]",
		Short: "List the changes of a virtual cluster: who, when, what",
		Long: `List the accepted changes of a virtual cluster, the newest first: of a namespace, of all, or of
one object. Only changes of objects that you may read are shown. They are what kubectl
get changes lists. Status, and what programs write all the time (leases, events, endpoints, pods,
nodes), is no change; secrets have no history. The server keeps changes for a time, and up to
a number and a size (vmesh server --history-age, --history-changes, --history-size).`,
		Example: `  # The changes of a namespace, the newest first
  vmesh history -n checkout

  # What anybody did to one object, as diffs
  vmesh history virtualservice/reviews -n checkout --diff

  # What alice did in the last hour, everywhere
  vmesh history -A --user alice --since 1h

  # One change
  vmesh history show 48213`,
		Args: atMostOne("KIND/NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.color = colors(cmd)
			return o.run(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr(), args)
		},
	}
	o.access.addFlags(cmd)
	cmd.Flags().BoolVarP(&o.access.allNamespaces, "all-namespaces", "A", false, "List the changes of all namespaces.")
	cmd.Flags().DurationVar(&o.since, "since", 0, "Only changes that are no older, as in 1h.")
	cmd.Flags().StringVar(&o.user, "user", "", "Only changes of a user.")
	cmd.Flags().IntVar(&o.limit, "limit", 0, "At most so many changes; 0 for all.")
	cmd.Flags().BoolVar(&o.diff, "diff", false, "Print each change as a diff.")
	o.output.addFlag(cmd, "How to print them: wide, json or yaml; by default a table.", "wide")
	cmd.MarkFlagsMutuallyExclusive("namespace", "all-namespaces")
	cmd.MarkFlagsMutuallyExclusive("diff", "output")
	cmd.AddCommand(newHistoryShowCommand())
	return cmd
}

// colors says whether output is for eyes that like colors.
func colors(cmd *cobra.Command) bool {
	return os.Getenv("TERM") != "dumb" && os.Getenv("NO_COLOR") == "" && isTerminal(cmd.OutOrStdout())
}

func (o *historyOptions) run(ctx context.Context, out, errOut io.Writer, args []string) error {
	switch {
	case o.since < 0:
		return fmt.Errorf("--since: %s must not be negative", o.since)
	case o.limit < 0:
		return fmt.Errorf("--limit: %d must not be negative; 0 is all", o.limit)
	}
	client, err := o.access.client()
	if err != nil {
		return err
	}
	namespace, selector := client.namespace, fields.Set{}
	if o.user != "" {
		selector["user.name"] = o.user
	}
	if len(args) > 0 {
		ref, err := client.resolve(args[0])
		if err != nil {
			return err
		}
		selector["object.kind"], selector["object.name"] = ref.gvk.Kind, ref.name
		if !ref.namespaced {
			namespace = ref.changesNamespace()
		}
	}
	if o.access.allNamespaces {
		namespace = metav1.NamespaceAll
	}
	var found []v1alpha1.Change
	err = client.eachChange(ctx, namespace, selector.AsSelector().String(), func(c *v1alpha1.Change) bool {
		if o.since > 0 && time.Since(c.Time.Time) > o.since {
			return false
		}
		found = append(found, *c)
		return o.limit == 0 || len(found) < o.limit
	})
	if err != nil {
		return err
	}
	if len(found) == 0 && !o.output.structured() {
		_, err := fmt.Fprintln(errOut, "No changes found")
		return err
	}
	if o.diff {
		for i := range found {
			if err := showChange(out, &found[i], o.color); err != nil {
				return err
			}
		}
		return nil
	}
	return o.print(out, found)
}

// changesNamespace is where the changes of an object without a namespace are.
func (r objectRef) changesNamespace() string {
	if r.gvk.Group == "" && r.gvk.Kind == "Namespace" {
		return r.name
	}
	return metav1.NamespaceDefault
}

func (o *historyOptions) print(out io.Writer, found []v1alpha1.Change) error {
	if o.output.structured() {
		list := v1alpha1.ChangeList{Items: found}
		if found == nil {
			list.Items = []v1alpha1.Change{}
		}
		list.APIVersion, list.Kind = v1alpha1.GroupVersion.String(), "ChangeList"
		return o.output.print(out, list)
	}
	w := tabwriter.NewWriter(out, 6, 4, 3, ' ', 0)
	row := func(namespace, revision, age, user, verb, object, what string, wide ...string) {
		cells := []string{revision, age, user, verb, object, what}
		if o.access.allNamespaces {
			cells = append([]string{namespace}, cells...)
		}
		if o.output == "wide" {
			cells = append(cells, wide...)
		}
		fmt.Fprintln(w, strings.Join(cells, "\t"))
	}
	row("NAMESPACE", "REVISION", "AGE", "USER", "VERB", "OBJECT", "WHAT", "TIME", "IMPERSONATOR", "MANAGER", "USER-AGENT")
	for i := range found {
		c := &found[i]
		row(c.Namespace, c.Name, duration.HumanDuration(time.Since(c.Time.Time)), c.User.Name, c.Verb, nameOf(c), c.What,
			c.Time.UTC().Format(time.RFC3339), orNone(c.Impersonator), orNone(c.FieldManager), orNone(c.UserAgent))
	}
	return w.Flush()
}

func orNone(s string) string {
	if s == "" {
		return "<none>"
	}
	return s
}

func nameOf(c *v1alpha1.Change) string { return strings.ToLower(c.Object.Kind) + "/" + c.Object.Name }

func newHistoryShowCommand() *cobra.Command {
	var access clusterAccess
	cmd := &cobra.Command{
		Use:   "show REVISION",
		Short: "Show one change as a diff",
		Example: `  vmesh history show 48213
  vmesh history show 48213 -n checkout`,
		Args: oneArg("REVISION"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := strconv.ParseUint(args[0], 10, 63); err != nil {
				return seeHelp(cmd, fmt.Errorf("%q is not a revision: see vmesh history", args[0]))
			}
			client, err := access.client()
			if err != nil {
				return err
			}
			change, err := client.change(cmd.Context(), args[0], access.namespace)
			if err != nil {
				return err
			}
			return showChange(cmd.OutOrStdout(), change, colors(cmd))
		},
	}
	access.addFlags(cmd)
	return cmd
}

// change gets a change of a namespace; without one, of the context's or else of any.
func (c *clusterClient) change(ctx context.Context, revision, namespace string) (*v1alpha1.Change, error) {
	got, err := c.Resource(changesResource).Namespace(c.namespace).Get(ctx, revision, metav1.GetOptions{})
	if err == nil {
		var change v1alpha1.Change
		return &change, runtime.DefaultUnstructuredConverter.FromUnstructured(got.Object, &change)
	}
	if namespace != "" || !apierrors.IsNotFound(err) && !apierrors.IsForbidden(err) {
		return nil, historyError(err)
	}
	var found *v1alpha1.Change
	listErr := c.eachChange(ctx, metav1.NamespaceAll, "metadata.name="+revision, func(c *v1alpha1.Change) bool {
		found = c
		return false
	})
	switch {
	case found != nil:
		return found, nil
	case apierrors.IsForbidden(listErr):
		return nil, fmt.Errorf("there is no change %s that you may read in namespace %s: give its namespace by -n", revision, c.namespace)
	case listErr != nil:
		return nil, listErr
	}
	return nil, fmt.Errorf("there is no change %s that you may read: see vmesh history -A", revision)
}

// showChange prints a change as git shows a commit.
func showChange(out io.Writer, c *v1alpha1.Change, color bool) error {
	title := "change " + c.Name
	if color {
		title = "\033[33m" + title + "\033[0m"
	}
	user := c.User.Name
	if c.Impersonator != "" {
		user += " (impersonated by " + c.Impersonator + ")"
	}
	object := nameOf(c)
	if c.Object.Namespace != "" {
		object = c.Object.Namespace + "/" + object
	}
	fmt.Fprintf(out, "%s\nUser:    %s\nTime:    %s\nVerb:    %s\n", title, user, c.Time.UTC().Format(time.RFC3339), c.Verb)
	if c.UserAgent != "" {
		fmt.Fprintf(out, "Program: %s\n", c.UserAgent)
	}
	if _, err := fmt.Fprintf(out, "Object:  %s (%s)\n\n", object, c.Object.APIVersion); err != nil {
		return err
	}
	if c.Omitted != "" {
		_, err := fmt.Fprintf(out, "There is no diff: %s.\n\n", c.Omitted)
		return err
	}
	before, err := content(c.Before)
	if err != nil {
		return fmt.Errorf("change %s: before: %w", c.Name, err)
	}
	after, err := content(c.After)
	if err != nil {
		return fmt.Errorf("change %s: after: %w", c.Name, err)
	}
	if err := writeDiff(out, object, before, after, color); err != nil {
		return err
	}
	_, err = fmt.Fprintln(out)
	return err
}

// content is an object in a change; nil if there is none.
func content(raw *runtime.RawExtension) (map[string]any, error) {
	if raw == nil || len(raw.Raw) == 0 {
		return nil, nil
	}
	var out map[string]any
	return out, utiljson.Unmarshal(raw.Raw, &out) // whole numbers as int64, as of what is read from the API
}
