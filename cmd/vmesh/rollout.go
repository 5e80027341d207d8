package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

// rolloutPoll is how often a rollout is looked at that is waited for.
const rolloutPoll = 500 * time.Millisecond

// rolloutAborted is the error of waiting for a rollout that was aborted.
type rolloutAborted struct{ mesh string }

func (e rolloutAborted) Error() string {
	return fmt.Sprintf("the rollout of mesh %s was aborted: see vmesh rollout status %s", e.mesh, e.mesh)
}

// ExitCode is the process's.
func (rolloutAborted) ExitCode() int { return 3 }

func newRolloutCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rollout",
		Short: "Follow, promote and abort the releases of a mesh that has stages",
		Example: `  vmesh rollout status
  vmesh rollout promote
  vmesh rollout abort`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newRolloutStatusCommand(), newRolloutPromoteCommand(), newRolloutAbortCommand())
	return cmd
}

// rolloutOptions are what all of them take.
type rolloutOptions struct {
	access  rootAccess
	mesh    string
	output  outputFormat
	wait    bool
	watch   bool
	timeout time.Duration
}

func (o *rolloutOptions) command(use, short, long, example string, run func(ctx context.Context, cmd *cobra.Command, client *rest.RESTClient) error) *cobra.Command {
	cmd := &cobra.Command{
		Use: use + " [MESH]", Short: short, Long: long, Example: example,
		Args: atMostOne("MESH"), ValidArgsFunction: o.access.completeMesh,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.mesh = v1alpha1.DefaultName
			if len(args) > 0 {
				o.mesh = args[0]
			}
			client, err := o.access.client()
			if err != nil {
				return err
			}
			ctx := cmd.Context()
			if o.timeout > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeoutCause(ctx, o.timeout, fmt.Errorf("--timeout: it took longer than %s", o.timeout))
				defer cancel()
			}
			err = run(ctx, cmd, client)
			if end, bounded := ctx.Deadline(); bounded && errors.Is(err, context.DeadlineExceeded) && !time.Now().Before(end) {
				<-ctx.Done() // the connection may have noticed before the context
				return context.Cause(ctx)
			}
			return err
		},
	}
	o.access.addFlags(cmd)
	cmd.Flags().DurationVar(&o.timeout, "timeout", 0, "How long to wait at most; for ever by default.")
	return cmd
}

func newRolloutStatusCommand() *cobra.Command {
	var o rolloutOptions
	cmd := o.command("status", "Show where the releases of a mesh stand", `Show which stage a rollout has come to, what it waits for, and what an aborted one has left
pinned. MESH is default, if it is not given. With --wait it returns when the rollout is
complete; the exit code is 3 if it was aborted.`, `  # Where do we stand?
  vmesh rollout status

  # In a pipeline: until all stages have it, for an hour at most
  vmesh rollout status --kubeconfig admin.kubeconfig --wait --timeout 1h

  # Follow it
  vmesh rollout status --watch

  # What is pinned
  vmesh rollout status -o json | jq '.pinnedResources'`,
		func(ctx context.Context, cmd *cobra.Command, client *rest.RESTClient) error {
			if o.wait || o.watch {
				return o.follow(ctx, client, cmd.OutOrStdout(), cmd.ErrOrStderr())
			}
			status, err := o.get(ctx, client)
			if err != nil {
				return err
			}
			return o.print(cmd.OutOrStdout(), status)
		})
	o.output.addFlag(cmd, "How to print it: json or yaml; by default as text.")
	cmd.Flags().BoolVar(&o.wait, "wait", false, "Wait until the rollout is complete or aborted, and print then.")
	cmd.Flags().BoolVarP(&o.watch, "watch", "w", false, "Print each change, until interrupted.")
	cmd.MarkFlagsMutuallyExclusive("wait", "watch")
	return cmd
}

func newRolloutPromoteCommand() *cobra.Command {
	var o rolloutOptions
	cmd := o.command("promote", "Let the next stage have what the present one has", `Let the next stage have at once what the present one has, whether or not its bake time is over.
It promotes what it has looked at: if another change joins meanwhile, nothing is promoted and
the command fails. It is what kubectl annotate mesh MESH vmesh.io/promote=ID does in the root,
with ID of the mesh's status.rollout.`, `  # The next stage
  vmesh rollout promote

  # All that are left, one after the other, each once the one before has it
  while vmesh rollout promote; do sleep 60; done`,
		func(ctx context.Context, cmd *cobra.Command, client *rest.RESTClient) error {
			before, err := o.underway(ctx, client)
			if err != nil {
				return err
			}
			after, err := o.ask(ctx, client, v1alpha1.AnnotationPromote, before)
			if err != nil {
				return err
			}
			if number(after.ID) == number(before.ID) && generation(after.ID) != generation(before.ID) {
				return fmt.Errorf("nothing was promoted: another change has joined the rollout meanwhile: see vmesh rollout status %s", o.mesh)
			}
			if after.ID == "" {
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "mesh %q promoted: all stages receive it\n", o.mesh)
			} else {
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "mesh %q promoted: stage %s receives it\n", o.mesh, after.Stage)
			}
			return err
		})
	return cmd
}

func newRolloutAbortCommand() *cobra.Command {
	var o rolloutOptions
	cmd := o.command("abort", "Return all stages to what they had before the rollout", `Return all stages to what they had before the rollout, with all that has joined it. What it
changed stays at its last good form until it is written again: the objects themselves are as
they were written. It is what kubectl annotate mesh MESH vmesh.io/abort=ID does in the root,
with ID of the mesh's status.rollout.`, `  # Now
  vmesh rollout abort

  # From another machine
  vmesh rollout abort east --kubeconfig admin.kubeconfig`,
		func(ctx context.Context, cmd *cobra.Command, client *rest.RESTClient) error {
			before, err := o.underway(ctx, client)
			if err != nil {
				return err
			}
			after, err := o.ask(ctx, client, v1alpha1.AnnotationAbort, before)
			if err != nil {
				return err
			}
			if after.Phase == v1alpha1.RolloutComplete && after.Pinned == 0 {
				return fmt.Errorf("the rollout of mesh %s was complete before it could be aborted", o.mesh)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "mesh %q aborted: all stages return to what they had, %d resources are pinned\n", o.mesh, after.Pinned)
			return err
		})
	return cmd
}

// get reads where the releases stand.
func (o *rolloutOptions) get(ctx context.Context, client *rest.RESTClient) (*v1alpha1.MeshRolloutStatus, error) {
	data, err := client.Get().Resource("meshes").Name(o.mesh).SetHeader("Accept", "application/json").DoRaw(ctx)
	return o.read(data, err)
}

func (o *rolloutOptions) read(data []byte, err error) (*v1alpha1.MeshRolloutStatus, error) {
	switch {
	case apierrors.IsNotFound(err):
		return nil, fmt.Errorf("there is no mesh %q: see kubectl get meshes", o.mesh)
	case err != nil:
		return nil, fmt.Errorf("mesh %s: %w%s", o.mesh, err, accessRemedy(err))
	}
	var mesh v1alpha1.Mesh
	if err := json.Unmarshal(data, &mesh); err != nil {
		return nil, fmt.Errorf("reading mesh %s: %w", o.mesh, err)
	}
	switch {
	case mesh.Spec.Rollout == nil:
		return nil, fmt.Errorf("mesh %s has no stages: all control planes receive changes at once, see spec.rollout", o.mesh)
	case mesh.Status.Rollout == nil:
		return &v1alpha1.MeshRolloutStatus{Phase: v1alpha1.RolloutWaiting, Message: "The server has not looked yet"}, nil
	}
	return mesh.Status.Rollout, nil
}

// underway is get for those who need a rollout.
func (o *rolloutOptions) underway(ctx context.Context, client *rest.RESTClient) (*v1alpha1.MeshRolloutStatus, error) {
	status, err := o.get(ctx, client)
	if err == nil && status.ID == "" {
		return nil, fmt.Errorf("no rollout of mesh %s is under way: see vmesh rollout status %s", o.mesh, o.mesh)
	}
	return status, err
}

// ask writes an annotation and waits until the rollout has moved.
func (o *rolloutOptions) ask(ctx context.Context, client *rest.RESTClient, annotation string, status *v1alpha1.MeshRolloutStatus) (*v1alpha1.MeshRolloutStatus, error) {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]string{annotation: status.ID}}})
	if err != nil {
		return nil, err
	}
	data, err := client.Patch(types.MergePatchType).Resource("meshes").Name(o.mesh).Body(patch).SetHeader("Accept", "application/json").DoRaw(ctx)
	if _, err := o.read(data, err); err != nil {
		return nil, err
	}
	for {
		now, err := o.get(ctx, client)
		if err != nil {
			return nil, err
		}
		// An abort is of the rollout, whatever joins it meanwhile.
		if now.ID != status.ID && (annotation != v1alpha1.AnnotationAbort || number(now.ID) != number(status.ID)) {
			return now, nil
		}
		select {
		case <-time.After(rolloutPoll):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func number(id string) string { n, _, _ := strings.Cut(id, "."); return n }

func generation(id string) string {
	_, rest, _ := strings.Cut(id, ".")
	g, _, _ := strings.Cut(rest, ".")
	return g
}

// follow looks until the rollout has ended, or with --watch until it is interrupted.
func (o *rolloutOptions) follow(ctx context.Context, client *rest.RESTClient, out, errOut io.Writer) error {
	last := ""
	for {
		status, err := o.get(ctx, client)
		if err != nil {
			return err
		}
		line := fmt.Sprintf("%s: %s", status.Phase, status.Message)
		if status.Message == "" {
			line = string(status.Phase)
		}
		ended := status.Phase == v1alpha1.RolloutComplete || status.Phase == v1alpha1.RolloutAborted
		switch {
		case o.wait && ended:
			if err := o.print(out, status); err != nil {
				return err
			}
			if status.Phase == v1alpha1.RolloutAborted {
				return rolloutAborted{o.mesh}
			}
			return nil
		case line == last:
		case o.wait:
			fmt.Fprintln(errOut, line)
		case o.output.structured():
			if err := o.print(out, status); err != nil {
				return err
			}
		default:
			fmt.Fprintf(out, "%s  %s\n", time.Now().Format(time.TimeOnly), line)
		}
		last = line
		select {
		case <-time.After(rolloutPoll):
		case <-ctx.Done():
			if o.watch && errors.Is(ctx.Err(), context.Canceled) {
				return nil
			}
			return context.Cause(ctx)
		}
	}
}

func (o *rolloutOptions) print(out io.Writer, s *v1alpha1.MeshRolloutStatus) error {
	if o.output.structured() {
		return o.output.print(out, s)
	}
	fmt.Fprintf(out, "Mesh %s: %s\n", o.mesh, s.Phase)
	if s.Message != "" {
		fmt.Fprintln(out, s.Message)
	}
	if s.ID != "" {
		fmt.Fprintf(out, "%d resources changed", s.Changes)
		if s.StartedAt != nil {
			fmt.Fprintf(out, ", begun %s ago", time.Since(s.StartedAt.Time).Round(time.Second))
		}
		if s.PromotionAt != nil {
			fmt.Fprintf(out, ", the next stage in %s", max(0, time.Until(s.PromotionAt.Time)).Round(time.Second))
		}
		fmt.Fprintln(out)
	}
	w := tabwriter.NewWriter(out, 6, 4, 3, ' ', 0)
	fmt.Fprintln(w, "\nSTAGE\tVERSION\tCONTROL PLANES\tCURRENT")
	for _, stage := range s.Stages {
		mark := ""
		if stage.Name == s.Stage {
			mark = "*"
		}
		fmt.Fprintf(w, "%s%s\t%s\t%d\t%d\n", stage.Name, mark, stage.Version, stage.ControlPlanes, stage.Current)
	}
	if err := w.Flush(); err != nil || s.Pinned == 0 {
		return err
	}
	fmt.Fprintln(w, "\nPINNED\tNAMESPACE\tNAME\tHELD")
	for _, p := range s.PinnedResources {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", p.Kind, p.Namespace, p.Name, p.Held)
	}
	if more := int(s.Pinned) - len(s.PinnedResources); more > 0 {
		fmt.Fprintf(w, "and %d more\n", more)
	}
	return w.Flush()
}
