package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

// foundIssues is the error of an analysis that found something, with the exit code that
// istioctl has for it.
type foundIssues struct{ cluster string }

func (e foundIssues) Error() string {
	return fmt.Sprintf("Istio's analyzers found issues in virtual cluster %s.\nSee https://istio.io/latest/docs/reference/config/analysis for more about causes and remedies.", e.cluster)
}

// ExitCode is the process's.
func (foundIssues) ExitCode() int { return 79 }

// levels are those of findings, the worst first.
var levels = []string{"Error", "Warning", "Info"}

// level is a flag for a threshold.
type level string

func (l *level) String() string { return string(*l) }
func (l *level) Type() string   { return "level" }

func (l *level) Set(s string) error {
	for _, known := range levels {
		if strings.EqualFold(s, known) {
			*l = level(known)
			return nil
		}
	}
	return fmt.Errorf("choose Error, Warning or Info")
}

// reached tells whether a finding is as bad as the threshold, or worse.
func (l *level) reached(f v1alpha1.Finding) bool {
	return slices.Index(levels, f.Level) <= slices.Index(levels, string(*l))
}

type analyzeOptions struct {
	access                            rootAccess
	namespace                         string
	allNamespaces                     bool
	output                            outputFormat
	outputThreshold, failureThreshold level
	color                             bool
}

func newAnalyzeCommand() *cobra.Command {
	o := analyzeOptions{output: "log", outputThreshold: "Info", failureThreshold: "Error"}
	cmd := &cobra.Command{
		Use:   "analyze NAME",
		Short: "Run Istio's analyzers over virtual cluster NAME",
		Long: `Run the analyzers of istioctl analyze over virtual cluster NAME, in the server, and print
what they find. The exit code is 79 if there is a finding of the failure threshold or
worse, as istioctl's is; with -o json and -o yaml it is 0.`,
		Example: `  # Everything in a virtual cluster, on the server's machine
  vmesh analyze shop --data-dir data

  # One namespace, from another machine
  vmesh analyze shop --kubeconfig admin.kubeconfig -n checkout

  # In a pipeline, which is to fail on warnings too
  vmesh analyze shop --kubeconfig admin.kubeconfig --failure-threshold Warning

  # The codes of all findings
  vmesh analyze shop -o json | jq -r '.[].code'`,
		Args:              oneArg("NAME"),
		ValidArgsFunction: o.access.completeClusters,
		RunE: func(cmd *cobra.Command, args []string) error {
			if !cmd.Flags().Changed("color") {
				o.color = os.Getenv("TERM") != "dumb" && isTerminal(cmd.OutOrStdout())
			}
			return o.run(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr(), args[0])
		},
	}
	o.access.addFlags(cmd)
	cmd.Flags().StringVarP(&o.namespace, "namespace", "n", "", "The namespace whose findings are printed; all by default.")
	cmd.Flags().BoolVarP(&o.allNamespaces, "all-namespaces", "A", false, "Print the findings of all namespaces, which is the default.")
	o.output.addFlag(cmd, "How to print them: log, json or yaml.", "log")
	cmd.Flags().Var(&o.outputThreshold, "output-threshold", "The least level that is printed: Error, Warning or Info.")
	cmd.Flags().Var(&o.failureThreshold, "failure-threshold", "The least level that makes the command fail: Error, Warning or Info.")
	cmd.Flags().BoolVar(&o.color, "color", false, "Print levels in color; on a terminal that is the default.")
	cmd.MarkFlagsMutuallyExclusive("namespace", "all-namespaces")
	for flag, values := range map[string][]string{"output-threshold": levels, "failure-threshold": levels} {
		_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
	}
	return cmd
}

func isTerminal(w io.Writer) bool {
	file, ok := w.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}

func (o *analyzeOptions) run(ctx context.Context, out, errOut io.Writer, cluster string) error {
	client, err := o.access.client()
	if err != nil {
		return err
	}
	data, err := client.Get().Resource("virtualclusters").Name(cluster).SubResource("analysis").DoRaw(ctx)
	switch {
	case apierrors.IsNotFound(err):
		return fmt.Errorf("there is no virtual cluster %q: see kubectl get virtualclusters", cluster)
	case err != nil:
		return fmt.Errorf("analyzing virtual cluster %s: %w", cluster, err)
	}
	var answer v1alpha1.Analysis
	if err := json.Unmarshal(data, &answer); err != nil {
		return fmt.Errorf("reading the analysis of virtual cluster %s: %w", cluster, err)
	}
	return o.print(out, errOut, cluster, answer.Status)
}

// print prints the findings as istioctl analyze does.
func (o *analyzeOptions) print(out, errOut io.Writer, cluster string, status v1alpha1.AnalysisStatus) error {
	found := false
	shown := []v1alpha1.Finding{}
	for _, f := range status.Findings {
		// What is of no namespace concerns every one.
		if o.namespace != "" && f.Namespace != "" && f.Namespace != o.namespace {
			continue
		}
		found = found || o.failureThreshold.reached(f)
		if o.outputThreshold.reached(f) {
			shown = append(shown, f)
		}
	}
	if len(status.Failed) > 0 {
		fmt.Fprintf(errOut, "Some analyzers broke off, and their findings are missing: %s. The server's log says why.\n", strings.Join(status.Failed, ", "))
	}
	if len(shown) == 0 {
		where := "virtual cluster " + cluster
		if o.namespace != "" {
			where = "namespace " + o.namespace + " of " + where
		}
		fmt.Fprintf(errOut, "\u2714 No validation issues found when analyzing %s.\n", where)
	}
	if o.output.structured() {
		return printStructured(out, o.output, shown)
	}
	for _, f := range shown {
		line := f.String()
		if o.color {
			line = colored(f.Level) + strings.TrimPrefix(line, f.Level)
		}
		if _, err := fmt.Fprintln(out, line); err != nil {
			return err
		}
	}
	if found {
		return foundIssues{cluster}
	}
	return nil
}

func colored(level string) string {
	switch level {
	case "Error":
		return "\033[1;31mError\033[0m"
	case "Warning":
		return "\033[33mWarning\033[0m"
	}
	return level + "\033[0m"
}

// printStructured prints findings with the members that istioctl's have.
func printStructured(out io.Writer, format outputFormat, all []v1alpha1.Finding) error {
	list := make([]map[string]string, len(all))
	for i, f := range all {
		list[i] = map[string]string{"code": f.Code, "level": f.Level, "message": f.Message, "documentationUrl": f.DocumentationURL}
		if f.Origin != "" {
			list[i]["origin"] = f.Origin
		}
	}
	return format.print(out, list)
}
