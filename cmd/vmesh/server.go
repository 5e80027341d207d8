package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	logsapi "k8s.io/component-base/logs/api/v1"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/apiserver"
)

func newServerCommand() *cobra.Command {
	options := apiserver.NewOptions()
	logging := logsapi.NewLoggingConfiguration()
	var config string
	cmd := &cobra.Command{
		Use:   "server",
		Short: "Run the server",
		Long: `Run the server: the API of the root and of all virtual clusters, and the xDS source for
istiod. Without flags everything is on loopback and stored in an etcd inside the process.`,
		Example: `  # A first look: everything on loopback, data in ./data
  vmesh server

  # Reached from other machines
  vmesh server --data-dir /var/lib/vmesh --bind-address 0.0.0.0 --external-url https://vmesh.example.com:7443 \
    --xds-address "" --xds-tls-address 0.0.0.0:15052

  # On an etcd cluster of your own, with flags in a file
  vmesh server --config /etc/vmesh/server.yaml --etcd-servers https://etcd-0:2379,https://etcd-1:2379`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if config != "" {
				if err := apiserver.LoadFile(cmd.Flags(), config); err != nil {
					return err
				}
			}
			flush, err := applyLogging(logging)
			if err != nil {
				return err
			}
			defer flush()
			return runServer(cmd, options)
		},
	}
	cmd.Flags().StringVar(&config, "config", "", "A YAML file with flags and their values; flags on the command line come before it.")
	options.AddFlags(cmd.Flags())
	addLoggingFlags(logging, cmd.Flags())
	_ = cmd.MarkFlagDirname("data-dir")
	_ = cmd.MarkFlagFilename("config", "yaml", "yml")
	return cmd
}

// runServer serves until the command's context ends.
func runServer(cmd *cobra.Command, options *apiserver.Options) error {
	begun := time.Now()
	var opened atomic.Pointer[apiserver.Server]
	starting, started := context.WithCancel(cmd.Context())
	defer started()
	go tellProgress(starting, cmd.ErrOrStderr(), progressAfter, progressEvery, func() string {
		server := opened.Load()
		if server == nil {
			return "opening " + options.DataDir
		}
		if err := server.NotReady(); err != nil {
			return err.Error()
		}
		return "making the first mesh and virtual cluster"
	})
	server, err := apiserver.New(cmd.Context(), options)
	if err != nil {
		return err
	}
	defer server.Close()
	opened.Store(server)
	return server.Run(cmd.Context(), func() {
		started()
		greet(cmd.OutOrStdout(), options, time.Since(begun))
	})
}

// greet tells who started the server what to type next.
func greet(w io.Writer, o *apiserver.Options, took time.Duration) {
	program := os.Args[0]
	if !filepath.IsAbs(program) && filepath.Base(program) == program {
		program = "vmesh" // found on the PATH
	}
	fmt.Fprintf(w, `vmesh is ready after %s.

  API                 %s
  root administrator  %s
  istiod connects to  %s

Three commands to go on with:

  %s kubeconfig create %s --data-dir %s > team.kubeconfig
  kubectl --kubeconfig team.kubeconfig api-resources --api-group networking.istio.io
  kubectl --kubeconfig %s get virtualclusters,meshes

`, took.Round(time.Millisecond), o.URL(), o.AdminKubeconfig(), xdsAddresses(o), program, v1alpha1.DefaultName, o.DataDir, o.AdminKubeconfig())
}

func xdsAddresses(o *apiserver.Options) string {
	switch {
	case o.XDSAddress != "" && o.XDSTLSAddress != "":
		return "xds://" + o.XDSAddress + ", with TLS xds://" + o.XDSTLSAddress
	case o.XDSTLSAddress != "":
		return "xds://" + o.XDSTLSAddress + " (TLS)"
	case o.XDSAddress != "":
		return "xds://" + o.XDSAddress
	}
	return "nothing: --xds-address and --xds-tls-address are empty"
}
