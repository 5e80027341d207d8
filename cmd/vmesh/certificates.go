package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/util/duration"

	"github.com/vmesh-io/vmesh/pkg/apiserver"
	"github.com/vmesh-io/vmesh/pkg/pki"
)

func newCertificatesCommand() *cobra.Command {
	dataDir := apiserver.NewOptions().DataDir
	var output outputFormat
	cmd := &cobra.Command{
		Use:   "certificates",
		Short: "Show a server's own certificates",
		Long: `Show the certificates in a server's data directory, and when they end. The server renews them
while it runs; nothing needs to be done. Those that it has given to others are in vmesh
kubeconfig list.`,
		Example: `  vmesh certificates --data-dir data
  vmesh certificates -o json
  vmesh certificates rotate client-ca`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			all, err := apiserver.Certificates(dataDir)
			if errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("--data-dir: %w: give the data directory of a server that has been started", err)
			}
			if err != nil {
				return err
			}
			return printCertificates(cmd.OutOrStdout(), all, output)
		},
	}
	cmd.PersistentFlags().StringVar(&dataDir, "data-dir", dataDir, "The data directory of the server.")
	_ = cmd.MarkPersistentFlagDirname("data-dir")
	output.addFlag(cmd, "How to print them: json or yaml; by default a table.")
	cmd.AddCommand(newRotateCommand(&dataDir))
	return cmd
}

func printCertificates(out io.Writer, all []apiserver.CertificateInfo, output outputFormat) error {
	if output.structured() {
		return output.print(out, all)
	}
	w := tabwriter.NewWriter(out, 6, 4, 3, ' ', 0)
	fmt.Fprintln(w, "NAME\tSUBJECT\tSTATE\tEXPIRES\tIN")
	for _, c := range all {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", c.Name, c.Subject, c.State, c.Expires.UTC().Format(time.RFC3339), duration.HumanDuration(time.Until(c.Expires)))
	}
	return w.Flush()
}

func newRotateCommand(dataDir *string) *cobra.Command {
	authorities := []string{"client-ca", "server-ca"}
	var after time.Duration
	var discard bool
	cmd := &cobra.Command{
		Use:   "rotate client-ca|server-ca",
		Short: "Have an authority followed by a new one",
		Long: `Make a new authority in a server's data directory. The server sees it within ten seconds, with
no restart. It is trusted from then on and signs after --after; the old one stays trusted until
its end, so no kubeconfig has to be made anew. Where several servers share one etcd, copy
client-ca.*, server-ca.* from DATA/pki to the others before it signs.

With --discard-old the new one signs at once and the old one is not trusted any more, as when
its key is in wrong hands: every kubeconfig has to be made anew, and istiods need the new
server-ca.crt.`,
		Example: `  vmesh certificates rotate server-ca --data-dir data
  vmesh certificates rotate client-ca --after 0s
  vmesh certificates rotate client-ca --discard-old`,
		ValidArgs: authorities,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return seeHelp(cmd, fmt.Errorf("%s takes client-ca or server-ca, and was given %d arguments", cmd.CommandPath(), len(args)))
			}
			if !slices.Contains(authorities, args[0]) {
				return seeHelp(cmd, fmt.Errorf("%q is no authority: choose client-ca or server-ca", args[0]))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if after < 0 || after > pki.AuthorityLifetime/10 {
				return fmt.Errorf("--after: %s is not from 0s to 8760h", after)
			}
			dir := filepath.Join(*dataDir, "pki")
			if _, err := os.Stat(filepath.Join(dir, args[0]+".crt")); err != nil {
				return fmt.Errorf("--data-dir: %w: give the data directory of a server that has been started", err)
			}
			authority, err := pki.LoadOrCreateAuthority(dir, args[0])
			if err != nil {
				return err
			}
			if discard {
				if err := authority.Replace(); err != nil {
					return err
				}
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s was replaced: what the old one signed is refused\n", args[0])
				return err
			}
			if err := authority.Rotate(after); err != nil {
				return err
			}
			latest := authority.Generations()[0]
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: %s is trusted and signs from %s on\n", args[0], latest.Subject, latest.Signs.UTC().Format(time.RFC3339))
			return err
		},
	}
	cmd.Flags().DurationVar(&after, "after", 24*time.Hour, "When the new one begins to sign.")
	cmd.Flags().BoolVar(&discard, "discard-old", false, "Trust the old one no more, and sign with the new one at once.")
	cmd.MarkFlagsMutuallyExclusive("after", "discard-old")
	return cmd
}
