package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/rest"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

func newKubeconfigListCommand() *cobra.Command {
	var access rootAccess
	var output outputFormat
	var user string
	cmd := &cobra.Command{
		Use:   "list [NAME]",
		Short: "List the kubeconfigs of virtual cluster NAME, or all",
		Long: `List the kubeconfigs that were made and not revoked, of virtual cluster NAME or of all, with
when they expire and when they were last used, give or take ten minutes. It is what kubectl get
kubeconfigs lists in the root. The record of an expired kubeconfig is kept for a week.`,
		Example: `  # All
  vmesh kubeconfig list --data-dir data

  # Those of one virtual cluster, with the fingerprints of their certificates
  vmesh kubeconfig list shop --kubeconfig admin.kubeconfig -o wide

  # Those that nobody has ever used
  vmesh kubeconfig list -o json | jq -r '.items[] | select(.status.lastUsed == null) | .metadata.name'`,
		Args:              atMostOne("NAME"),
		ValidArgsFunction: access.completeClusters,
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := access.client()
			if err != nil {
				return err
			}
			cluster := ""
			if len(args) > 0 {
				cluster = args[0]
			}
			request := selectKubeconfigs(client.Get(), cluster, user)
			if output.structured() {
				request = request.SetHeader("Accept", "application/json")
			} else {
				request = request.SetHeader("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io")
			}
			data, err := request.DoRaw(cmd.Context())
			if err != nil {
				return fmt.Errorf("listing kubeconfigs: %w%s", err, accessRemedy(err))
			}
			return printKubeconfigs(cmd.OutOrStdout(), cmd.ErrOrStderr(), data, output)
		},
	}
	access.addFlags(cmd)
	cmd.Flags().StringVar(&user, "user", "", "Only those of a user.")
	output.addFlag(cmd, "How to print them: wide, json or yaml; by default a table.", "wide")
	return cmd
}

func selectKubeconfigs(request *rest.Request, cluster, user string) *rest.Request {
	selector := fields.Set{}
	if cluster != "" {
		selector["spec.virtualCluster"] = cluster
	}
	if user != "" {
		selector["spec.user"] = user
	}
	return request.Resource("kubeconfigs").Param("fieldSelector", selector.AsSelector().String())
}

// printKubeconfigs prints a list as the server gave it, or its table as kubectl does.
func printKubeconfigs(out, errOut io.Writer, data []byte, output outputFormat) (err error) {
	if output.structured() {
		return output.print(out, json.RawMessage(data))
	}
	var table metav1.Table
	if err := json.Unmarshal(data, &table); err != nil {
		return fmt.Errorf("reading the list of kubeconfigs: %w", err)
	}
	if len(table.Rows) == 0 {
		_, err = fmt.Fprintln(errOut, "No kubeconfigs found")
		return err
	}
	w := tabwriter.NewWriter(out, 6, 4, 3, ' ', 0)
	shown := func(i int) bool { return table.ColumnDefinitions[i].Priority == 0 || output == "wide" }
	line := func(cell func(i int) string) {
		var cells []string
		for i := range table.ColumnDefinitions {
			if shown(i) {
				cells = append(cells, cell(i))
			}
		}
		fmt.Fprintln(w, strings.Join(cells, "\t"))
	}
	line(func(i int) string { return strings.ToUpper(table.ColumnDefinitions[i].Name) })
	for _, row := range table.Rows {
		line(func(i int) string {
			if row.Cells[i] == nil {
				return "<none>"
			}
			return fmt.Sprint(row.Cells[i])
		})
	}
	return w.Flush()
}

func newKubeconfigRevokeCommand() *cobra.Command {
	var access rootAccess
	var cluster, user string
	cmd := &cobra.Command{
		Use:   "revoke NAME...",
		Short: "Revoke kubeconfigs",
		Long: `Revoke kubeconfigs, by the names that vmesh kubeconfig list shows, or all of a virtual cluster
or a user. It acts at once: the next request is refused and watches end. It cannot be undone.
It is what kubectl delete kubeconfigs does in the root. An admin.kubeconfig that is revoked is
made anew by its server within ten seconds; copies of it are worthless.`,
		Example: `  # One
  vmesh kubeconfig revoke shop-alice-x7k2p --data-dir data

  # All that alice has, in whichever virtual cluster
  vmesh kubeconfig revoke --user alice --kubeconfig admin.kubeconfig

  # Those that she has for one
  vmesh kubeconfig revoke --virtual-cluster shop --user alice`,
		Args: func(cmd *cobra.Command, args []string) error {
			// A variable that is not set must not make the choice a wider one.
			for name, value := range map[string]string{"virtual-cluster": cluster, "user": user} {
				if cmd.Flags().Changed(name) && value == "" {
					return fmt.Errorf("--%s: must not be empty", name)
				}
			}
			switch chosen := cluster != "" || user != ""; {
			case len(args) == 0 && !chosen:
				return seeHelp(cmd, fmt.Errorf("%s takes the NAME of each kubeconfig, or --virtual-cluster or --user, and was given nothing", cmd.CommandPath()))
			case len(args) > 0 && chosen:
				return seeHelp(cmd, errors.New("give either names, or --virtual-cluster and --user"))
			}
			return nil
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			return access.completeNames(cmd, "kubeconfigs", args)
		},
		RunE: func(cmd *cobra.Command, names []string) error {
			client, err := access.client()
			if err != nil {
				return err
			}
			if len(names) == 0 {
				data, err := selectKubeconfigs(client.Get(), cluster, user).SetHeader("Accept", "application/json").DoRaw(cmd.Context())
				if err != nil {
					return fmt.Errorf("listing kubeconfigs: %w%s", err, accessRemedy(err))
				}
				if names = objectNames(data); len(names) == 0 {
					return errors.New("there is no such kubeconfig: see vmesh kubeconfig list")
				}
			}
			return revokeKubeconfigs(cmd, client, names)
		},
	}
	access.addFlags(cmd)
	cmd.Flags().StringVar(&cluster, "virtual-cluster", "", "Revoke those of a virtual cluster, or of root.")
	cmd.Flags().StringVar(&user, "user", "", "Revoke those of a user.")
	_ = cmd.RegisterFlagCompletionFunc("virtual-cluster", access.completeClusters)
	return cmd
}

// revokeKubeconfigs revokes all that it can, and says what it could not.
func revokeKubeconfigs(cmd *cobra.Command, client *rest.RESTClient, names []string) error {
	var errs []error
	for _, name := range names {
		err := client.Delete().Resource("kubeconfigs").Name(name).Do(cmd.Context()).Error()
		switch {
		case apierrors.IsNotFound(err):
			errs = append(errs, fmt.Errorf("there is no kubeconfig %q: see vmesh kubeconfig list", name))
		case err != nil:
			errs = append(errs, fmt.Errorf("revoking kubeconfig %s: %w%s", name, err, accessRemedy(err)))
		default:
			fmt.Fprintf(cmd.OutOrStdout(), "kubeconfig.%s %q revoked\n", v1alpha1.GroupVersion.Group, name)
		}
	}
	return errors.Join(errs...)
}
