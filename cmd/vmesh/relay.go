package main

import (
	"errors"
	"time"

	"github.com/spf13/cobra"
	logsapi "k8s.io/component-base/logs/api/v1"
	"k8s.io/component-base/metrics/legacyregistry"

	"github.com/vmesh-io/vmesh/pkg/relay"
)

func newRelayCommand() *cobra.Command {
	options := relay.NewOptions()
	logging := logsapi.NewLoggingConfiguration()
	cmd := &cobra.Command{
		Use:   "relay",
		Short: "Run a relay beside istiod",
		Long: `Run a relay beside istiod. It receives a mesh from vmesh over TLS, with an identity that the
mesh's spec.receivers allow, and is istiod's config source on loopback. What it has it keeps on
disk: istiod starts and runs while no vmesh answers.`,
		Example: `  # An identity for it, without rights of its own, and the mesh's consent
  vmesh kubeconfig create root --user relay-east --group relays -o relay.kubeconfig
  kubectl --kubeconfig data/admin.kubeconfig patch mesh default --type merge \
    -p '{"spec":{"receivers":[{"kind":"User","name":"relay-east"}]}}'

  # Beside istiod, which then is started with --meshConfig mesh.yaml
  vmesh relay --upstream vmesh-0.example.com:15052,vmesh-1.example.com:15052 --kubeconfig relay.kubeconfig \
    --name relay-east --labels region=east --write-mesh-config mesh.yaml`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			flush, err := applyLogging(logging)
			if err != nil {
				return err
			}
			defer flush()
			r, err := relay.New(cmd.Context(), options, legacyregistry.MustRegister)
			if err != nil {
				return err
			}
			return r.Run(cmd.Context())
		},
	}
	options.AddFlags(cmd.Flags())
	addLoggingFlags(logging, cmd.Flags())
	_ = cmd.MarkFlagDirname("cache-dir")
	cmd.AddCommand(newRelayMeshConfigCommand())
	return cmd
}

func newRelayMeshConfigCommand() *cobra.Command {
	options := relay.NewOptions()
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "mesh-config",
		Short: "Print the mesh configuration that istiod needs to find the relay",
		Long: `Print istiod's mesh configuration with the relay's shards as its configSources. istiod reads them
at its start only: give it the file before, and restart it when their number has changed. With
--shards auto their number is what the relay has kept in its --cache-dir.`,
		Example: `  vmesh relay mesh-config --cache-dir /var/lib/vmesh-relay --mesh-config /etc/istio/config/mesh > mesh.yaml`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := options.ValidateSource(); err != nil {
				return err
			}
			deadline := time.Now().Add(wait)
			for {
				data, err := relay.MeshConfig(options)
				if err == nil {
					_, err = cmd.OutOrStdout().Write(data)
					return err
				}
				if !errors.Is(err, relay.ErrNoShards) || time.Now().After(deadline) {
					return err
				}
				select {
				case <-time.After(100 * time.Millisecond):
				case <-cmd.Context().Done():
					return err
				}
			}
		},
	}
	options.AddSourceFlags(cmd.Flags())
	cmd.Flags().DurationVar(&wait, "wait", 0, "How long to wait for a relay that has yet to choose the number of shards.")
	_ = cmd.MarkFlagDirname("cache-dir")
	return cmd
}
