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

// seeHelp adds where to read what the command takes.
func seeHelp(cmd *cobra.Command, err error) error {
	return fmt.Errorf("%w\nSee '%s --help'", err, cmd.CommandPath())
}

// atMostOne refuses more than one argument, which the help calls what.
func atMostOne(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) > 1 {
			return seeHelp(cmd, fmt.Errorf("%s takes at most one %s, and was given %d", cmd.CommandPath(), what, len(args)))
		}
		return nil
	}
}

// noArgs refuses arguments; where there are commands below, one is a command that there is not.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 && cmd.HasSubCommands() {
		return seeHelp(cmd, fmt.Errorf("unknown command %q for %q", args[0], cmd.CommandPath()))
	}
	if len(args) > 0 {
		return seeHelp(cmd, fmt.Errorf("%s takes no argument, and was given %q", cmd.CommandPath(), args[0]))
	}
	return nil
}

// oneArg wants one argument.
func oneArg(name string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != 1 {
			return seeHelp(cmd, fmt.Errorf("%s takes one %s, and was given %d", cmd.CommandPath(), name, len(args)))
		}
		return nil
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
		Example: `  # Start a server: everything on loopback, data in ./data
  vmesh server

  # Work in its first virtual cluster
  vmesh kubeconfig create default > team.kubeconfig
  kubectl --kubeconfig team.kubeconfig get virtualservices -A

  # Complete commands in this shell
  source <(vmesh completion bash)`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return seeHelp(cmd, err) })
	cmd.AddCommand(newServerCommand(), newKubeconfigCommand(), newCertificatesCommand(), newStatusCommand(), newAnalyzeCommand(), newCheckCommand(),
		newHistoryCommand(), newRollbackCommand(), newTrafficCommand(), newRolloutCommand(), newJoinCommand(), newLeaveCommand(), newRelayCommand(), newStorageCommand(), newVersionCommand())
	return cmd
}
