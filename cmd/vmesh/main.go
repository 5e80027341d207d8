// Command vmesh serves virtual clusters for Istio's configuration, and has the tools
// to work with them.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := newCommand().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func newCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "vmesh",
		Short: "Virtual clusters for Istio's configuration",
		Long: `vmesh serves many small, isolated virtual clusters that hold Istio's configuration,
and pushes what teams write there to the shared istiod.`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	cmd.AddCommand(newServerCommand(), newKubeconfigCommand(), newVersionCommand())
	return cmd
}
