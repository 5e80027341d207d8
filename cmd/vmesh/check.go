package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

// wouldHoldBack is the error of a check that found something.
type wouldHoldBack struct{ heldBack, refused int }

func (e wouldHoldBack) Error() string {
	var what []string
	if e.heldBack > 0 {
		what = append(what, fmt.Sprintf("hold back %d objects", e.heldBack))
	}
	if e.refused > 0 {
		what = append(what, fmt.Sprintf("be refused for %d reasons", e.refused))
	}
	return "the change would " + strings.Join(what, " and ")
}

// ExitCode is the process's.
func (wouldHoldBack) ExitCode() int { return 2 }

type checkOptions struct {
	access rootAccess
	files  []string
	output outputFormat
}

func newCheckCommand() *cobra.Command {
	o := checkOptions{output: "table"}
	cmd := &cobra.Command{
		Use:   "check -f FILE",
		Short: "Tell what a change of virtual clusters or meshes would hold back",
		Long: `Tell what a change of VirtualClusters and Meshes would do before it is made: which objects
would not reach their mesh any more, which would, and what would be refused. All files are
looked at as one change. Nothing is changed.

The exit code is 0 if nothing would be held back or refused, 2 if something would, and 1 if
that could not be found out.`,
		Example: `  # Before kubectl apply, on the server's machine
  vmesh check -f virtualcluster.yaml

  # Two virtual clusters between which a namespace moves, from another machine
  vmesh check --kubeconfig admin.kubeconfig -f shop.yaml -f checkout.yaml

  # What is already there, with one claim less
  kubectl get virtualcluster shop -o json | jq '.spec.hosts -= ["api.example.com"]' | vmesh check -f -`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.run(cmd.Context(), cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	o.access.addFlags(cmd)
	cmd.Flags().StringArrayVarP(&o.files, "filename", "f", nil, "A file with VirtualClusters and Meshes as they would be; - is the standard input.")
	o.output.addFlag(cmd, "How to print the answer: table, json or yaml.", "table")
	cmd.AddCommand(newCheckNetworkCommand())
	_ = cmd.MarkFlagFilename("filename", "yaml", "yml", "json")
	return cmd
}

func (o *checkOptions) run(ctx context.Context, in io.Reader, out, errOut io.Writer) error {
	if len(o.files) == 0 {
		return errors.New("--filename: name a file with the VirtualClusters and Meshes as they would be, or - for the standard input")
	}
	review := v1alpha1.ClaimReview{TypeMeta: metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: "ClaimReview"}}
	for _, file := range o.files {
		if err := readPlan(in, file, &review.Spec); err != nil {
			return fmt.Errorf("--filename: %s: %w", file, err)
		}
	}
	client, err := o.access.client()
	if err != nil {
		return err
	}
	body, err := json.Marshal(review)
	if err != nil {
		return err
	}
	answer := client.Post().Resource("claimreviews").SetHeader("Content-Type", "application/json").Body(body).Do(ctx)
	err = answer.Error()
	if apierrors.IsNotFound(err) {
		return errors.New("the server knows no claim reviews: is it of an older version?")
	}
	if err != nil {
		return fmt.Errorf("asking the server: %w", err)
	}
	data, err := answer.Raw()
	if err == nil {
		err = json.Unmarshal(data, &review)
	}
	if err != nil {
		return fmt.Errorf("reading the answer: %w", err)
	}
	status := review.Status
	if o.output.structured() {
		err = o.output.print(out, status)
	} else {
		err = printCheck(out, errOut, status)
	}
	if err != nil {
		return err
	}
	if status.HeldBackCount > 0 || len(status.Conflicts) > 0 {
		return wouldHoldBack{int(status.HeldBackCount), len(status.Conflicts)}
	}
	return nil
}

// readPlan adds what a file holds.
func readPlan(in io.Reader, file string, spec *v1alpha1.ClaimReviewSpec) error {
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return errors.Unwrap(err)
		}
		defer f.Close()
		in = f
	}
	documents := utilyaml.NewYAMLOrJSONDecoder(in, 4096)
	count := 0
	for n := 1; ; n++ {
		var raw json.RawMessage
		err := documents.Decode(&raw)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("document %d: %w", n, err)
		}
		if raw = bytes.TrimSpace(raw); len(raw) == 0 || string(raw) == "null" {
			continue
		}
		added, err := addPlanned(raw, spec)
		if err != nil {
			return fmt.Errorf("document %d: %w", n, err)
		}
		count += added
	}
	if count == 0 {
		return errors.New("there is no VirtualCluster or Mesh in it")
	}
	return nil
}

func addPlanned(raw json.RawMessage, spec *v1alpha1.ClaimReviewSpec) (count int, err error) {
	var is struct {
		metav1.TypeMeta `json:",inline"`
		Items           []json.RawMessage `json:"items"`
	}
	if err := json.Unmarshal(raw, &is); err != nil {
		return 0, err
	}
	switch {
	case is.Kind == "List" || is.Kind == "VirtualClusterList" || is.Kind == "MeshList":
		for i, item := range is.Items {
			added, err := addPlanned(item, spec)
			if err != nil {
				return 0, fmt.Errorf("items[%d]: %w", i, err)
			}
			count += added
		}
		return count, nil
	case is.APIVersion != v1alpha1.GroupVersion.String() || is.Kind != "VirtualCluster" && is.Kind != "Mesh":
		return 0, fmt.Errorf("it is a %s of %s: only VirtualClusters and Meshes of %s can be checked", is.Kind, is.APIVersion, v1alpha1.GroupVersion)
	}
	name := func(name string) error {
		if name == "" {
			return errors.New("metadata.name: a name is required")
		}
		return nil
	}
	if is.Kind == "Mesh" {
		var mesh v1alpha1.Mesh
		if err := yaml.UnmarshalStrict(raw, &mesh); err != nil {
			return 0, err
		}
		spec.Meshes = append(spec.Meshes, v1alpha1.PlannedMesh{Name: mesh.Name, RootNamespace: mesh.Spec.RootNamespace})
		return 1, name(mesh.Name)
	}
	var vc v1alpha1.VirtualCluster
	if err := yaml.UnmarshalStrict(raw, &vc); err != nil {
		return 0, err
	}
	spec.VirtualClusters = append(spec.VirtualClusters, v1alpha1.PlannedVirtualCluster{
		Name: vc.Name, Mesh: vc.Spec.Mesh, Namespaces: vc.Spec.Namespaces, Hosts: vc.Spec.Hosts, GuardRails: vc.Spec.GuardRails, Grants: vc.Spec.Grants,
		Handovers: vc.Spec.Handovers,
	})
	return 1, name(vc.Name)
}

func printCheck(out, errOut io.Writer, status v1alpha1.ClaimReviewStatus) error {
	for _, w := range status.Warnings {
		fmt.Fprintln(errOut, "Warning:", w)
	}
	for _, c := range status.Conflicts {
		fmt.Fprintln(errOut, "Refused:", c)
	}
	if len(status.HeldBack)+len(status.LetIn) == 0 {
		fmt.Fprintln(errOut, "\u2714 No object would be held back or let in.")
		return nil
	}
	t := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, "CHANGE\tVIRTUAL CLUSTER\tKIND\tNAMESPACE\tNAME\tREASON\tMESSAGE")
	for _, part := range []struct {
		change string
		all    []v1alpha1.ReviewedResource
		count  int32
	}{{"held back", status.HeldBack, status.HeldBackCount}, {"let in", status.LetIn, status.LetInCount}} {
		for _, r := range part.all {
			reason, message := r.Reason, r.Message
			if part.change == "let in" {
				reason, message = "", "until now: "+r.Reason
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", part.change, r.VirtualCluster, r.Kind, r.Namespace, r.Name, reason, message)
		}
		if rest := int(part.count) - len(part.all); rest > 0 {
			fmt.Fprintf(errOut, "and %d more that would be %s\n", rest, part.change)
		}
	}
	return t.Flush()
}
