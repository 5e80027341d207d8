// Command vmesh serves virtual clusters for Istio's configuration, and has the tools
// to work with them.
package main

import (
	"context"
	"errors"
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
		os.Exit(exitCode(err))
	}
}

// exitCode is 1, unless the error has one of its own.
func exitCode(err error) int {
	var own interface{ ExitCode() int }
	if errors.As(err, &own) {
		return own.ExitCode()
	}
	return 1
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
	cmd.AddCommand(newServerCommand(), newKubeconfigCommand(), newAnalyzeCommand(), newVersionCommand())
	return cmd
}
