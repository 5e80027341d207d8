package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/rest"

	"github.com/vmesh-io/vmesh/pkg/apiserver"
)

func newStorageCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "storage",
		Short:   "Look after what the server stores",
		Example: `  vmesh storage rewrite`,
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newStorageRewriteCommand())
	return cmd
}

// unreadable is the error of a rewriting that had to leave objects as they are.
type unreadable int

func (u unreadable) Error() string {
	return fmt.Sprintf("%d objects cannot be decrypted with the keys that the server was given, and stay as they are.\n"+
		"If a key is missing, put it back into the server's encryption configuration, and rewrite again.", int(u))
}

// ExitCode is the process's.
func (unreadable) ExitCode() int { return 2 }

type rewriteOptions struct {
	access    rootAccess
	resources []string
	cluster   string
	output    outputFormat
}

func newStorageRewriteCommand() *cobra.Command {
	var o rewriteOptions
	cmd := &cobra.Command{
		Use:   "rewrite",
		Short: "Store all objects with the newest encryption key",
		Long: `Store all objects as new ones are stored: encrypted with the first key of the server's
encryption configuration, or not at all if it says so, and in the version of the API that is
stored. Objects that are stored so already are left alone, so an interrupted run goes on when it
is started again. Nothing that an object says changes but its resourceVersion.

The exit code is 2 if there are objects that cannot be decrypted; they are listed and stay as they are.`,
		Example: `  # After a key was added as the first one, and before the old one is removed
  vmesh storage rewrite --data-dir data

  # The secrets of one virtual cluster, from another machine
  vmesh storage rewrite --kubeconfig admin.kubeconfig --resource secrets --virtual-cluster shop

  # The figures for a script
  vmesh storage rewrite -o json | jq .rewritten`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.run(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	o.access.addFlags(cmd)
	cmd.Flags().StringSliceVar(&o.resources, "resource", nil, "Only objects of this resource, RESOURCE or RESOURCE.GROUP; may be given several times.")
	cmd.Flags().StringVar(&o.cluster, "virtual-cluster", "", "Only objects of this virtual cluster, or of the root if it is root.")
	o.output.addFlag(cmd, "How to print what was done: json or yaml; by default in words.")
	_ = cmd.RegisterFlagCompletionFunc("virtual-cluster", func(cmd *cobra.Command, _ []string, toComplete string) ([]string, cobra.ShellCompDirective) {
		return o.access.completeClusters(cmd, nil, toComplete)
	})
	return cmd
}

func (o *rewriteOptions) run(ctx context.Context, out, errOut io.Writer) error {
	client, err := o.access.client()
	if err != nil {
		return err
	}
	var done, total atomic.Int64
	working, ended := context.WithCancel(ctx)
	defer ended()
	go tellProgress(working, errOut, progressAfter, progressEvery, func() string {
		return fmt.Sprintf("%d of %d objects are done", done.Load(), total.Load())
	})
	sum := apiserver.Rewrite{Unreadable: []apiserver.UnreadableObject{}}
	for first := true; first || sum.Continue != ""; first = false {
		part, err := o.part(ctx, client, sum.Continue)
		if err != nil {
			return o.explain(err, int(done.Load()))
		}
		if part.Total != nil {
			sum.Total = part.Total
			total.Store(*part.Total)
		}
		sum.Rewritten, sum.Current = sum.Rewritten+part.Rewritten, sum.Current+part.Current
		sum.Unreadable = append(sum.Unreadable, part.Unreadable...)
		sum.Continue = part.Continue
		done.Add(int64(part.Rewritten + part.Current + len(part.Unreadable)))
	}
	ended()
	return o.print(out, errOut, sum)
}

// part has the server rewrite the next objects.
func (o *rewriteOptions) part(ctx context.Context, client *rest.RESTClient, from string) (*apiserver.Rewrite, error) {
	request := client.Post().AbsPath(apiserver.RewritePath)
	if o.cluster != "" {
		request.Param("virtualCluster", o.cluster)
	}
	for _, r := range o.resources {
		request.Param("resource", r)
	}
	if from != "" {
		request.Param("continue", from)
	}
	result := request.Do(ctx)
	if err := result.Error(); err != nil { // Raw's does not say what the server said
		return nil, err
	}
	data, err := result.Raw()
	if err != nil {
		return nil, err
	}
	var part apiserver.Rewrite
	if err := json.Unmarshal(data, &part); err != nil {
		return nil, fmt.Errorf("reading the answer: %w", err)
	}
	return &part, nil
}

func (o *rewriteOptions) explain(err error, done int) error {
	switch {
	case apierrors.IsNotFound(err):
		return fmt.Errorf("--virtual-cluster: there is no virtual cluster %q: see kubectl get virtualclusters", o.cluster)
	case done == 0:
		return fmt.Errorf("rewriting: %w%s", err, accessRemedy(err))
	}
	return fmt.Errorf("rewriting ended after %d objects: %w\nWhat was rewritten stays so; start the command again to go on%s", done, err, accessRemedy(err))
}

func (o *rewriteOptions) print(out, errOut io.Writer, sum apiserver.Rewrite) error {
	var err error
	if o.output.structured() {
		err = o.output.print(out, sum)
	} else {
		for _, u := range sum.Unreadable {
			fmt.Fprintf(errOut, "virtual cluster %s: %s %s: %s\n", u.VirtualCluster, u.Resource, u.Object, u.Reason)
		}
		_, err = fmt.Fprintf(out, "%d rewritten, %d already current, %d unreadable\n", sum.Rewritten, sum.Current, len(sum.Unreadable))
	}
	if err != nil {
		return err
	}
	if len(sum.Unreadable) > 0 {
		return unreadable(len(sum.Unreadable))
	}
	return nil
}
