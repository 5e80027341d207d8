package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/rest"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/grpclog"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/connectivity"
)

type checkNetworkOptions struct {
	access  rootAccess
	mesh    string
	istiod  string
	members []string
	from    string
	dial    bool
	output  outputFormat
	timeout time.Duration
}

func newCheckNetworkCommand() *cobra.Command {
	o := checkNetworkOptions{output: "table"}
	cmd := &cobra.Command{
		Use:   "network [MESH]",
		Short: "Tell whether the networks of a mesh reach each other",
		Long: `Tell whether the networks of a mesh reach each other. A control plane is asked what it tells proxies
in each member cluster: of each service, endpoints in the proxy's own network, and gateways of
others. What is missing is named, with the reason. Nothing is changed.

The control plane is asked at its plaintext port, as through kubectl port-forward. The members and
their networks are those of the root, unless --member names them.

With --dial, what proxies of one member (--from) are told is tried as well, from where this runs: a
connection to an endpoint of each member in its network, and a TLS handshake through each gateway
of the others. Run it in a pod of that member without a sidecar.

The exit code is 0 if all is connected, and 1 if something is not or that could not be found out.`,
		Example: `  # Through a port-forward to istiod, on the vmesh server's machine
  kubectl -n istio-system port-forward deployment/istiod 15010 &
  vmesh check network --istiod localhost:15010

  # In a pod of member east, which has no access to the root
  vmesh check network --istiod istiod.istio-system:15010 --member east=coast --member apart=island --from east --dial

  # Services that other networks do not reach, and why
  vmesh check network --istiod localhost:15010 -o json | jq -r '.problems[] | "\(.from) \(.to) \(.reason) \(.services)"'`,
		Args: atMostOne("MESH"), ValidArgsFunction: o.access.completeMesh,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				o.mesh = args[0]
			}
			return o.run(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	o.access.addFlags(cmd)
	cmd.Flags().StringVar(&o.istiod, "istiod", "", "The control plane's plaintext address for proxies, as localhost:15010.")
	cmd.Flags().StringArrayVar(&o.members, "member", nil, "A member cluster as NAME=NETWORK, instead of those that the root knows. May be given several times.")
	cmd.Flags().StringVar(&o.from, "from", "", "Only what proxies of this member reach.")
	cmd.Flags().BoolVar(&o.dial, "dial", false, "Try connections, too, from here, which is in the member that --from names.")
	cmd.Flags().DurationVar(&o.timeout, "timeout", time.Minute, "How long all of it may take.")
	o.output.addFlag(cmd, "How to print the answer: table, json or yaml.", "table")
	_ = cmd.RegisterFlagCompletionFunc("istiod", cobra.NoFileCompletions)
	_ = cmd.RegisterFlagCompletionFunc("member", cobra.NoFileCompletions)
	_ = cmd.RegisterFlagCompletionFunc("from", func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		return o.access.completeNames(cmd, "memberclusters", nil)
	})
	return cmd
}

// networkReport is what is printed. Its JSON is documented.
type networkReport struct {
	*connectivity.Report `json:",inline"`
	// Attempts are the connections that were tried.
	Attempts []connectivity.Attempt `json:"attempts,omitempty"`
}

func (o *checkNetworkOptions) run(ctx context.Context, out, errOut io.Writer) error {
	switch {
	case o.istiod == "":
		return errors.New("--istiod: give the control plane's plaintext address for proxies, as localhost:15010")
	case o.dial && o.from == "":
		return errors.New("--dial: say by --from in which member this runs")
	case o.timeout <= 0:
		return fmt.Errorf("--timeout: must be positive, and is %s", o.timeout)
	}
	if _, _, err := net.SplitHostPort(o.istiod); err != nil {
		return fmt.Errorf("--istiod: %w: give host:port, as localhost:15010", err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, o.timeout, fmt.Errorf("no answer within %s", o.timeout))
	defer cancel()
	var now atomic.Value
	now.Store("the members")
	telling, told := context.WithCancel(ctx)
	defer told()
	go tellProgress(telling, errOut, progressAfter, progressEvery, func() string { return now.Load().(string) })

	namespace, members, err := o.load(ctx)
	if err != nil {
		return err
	}
	if o.from != "" && !slices.ContainsFunc(members, func(m connectivity.Member) bool { return m.Name == o.from }) {
		return fmt.Errorf("--from: %q is no member of the mesh", o.from)
	}
	quietGRPC()
	connection, err := grpc.NewClient(o.istiod, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return fmt.Errorf("--istiod: %w", err)
	}
	defer connection.Close()
	report := networkReport{}
	report.Report, err = connectivity.Check(ctx, connectivity.Options{
		ControlPlane: connection, Members: members, Namespace: namespace, Progress: func(what string) { now.Store(what) },
	})
	if err != nil {
		return fmt.Errorf("asking the control plane at %s, which is to be its plaintext port (15010): %w", o.istiod, err)
	}
	if o.from != "" {
		report.of(o.from)
	}
	if o.dial {
		now.Store("connections")
		if report.Attempts, err = report.Dial(ctx, o.from, nil); err != nil {
			return err
		}
	}
	told()
	if o.output.structured() {
		err = o.output.print(out, report)
	} else {
		err = report.print(out, errOut)
	}
	if err != nil {
		return err
	}
	return report.verdict()
}

// quietGRPC keeps to itself what gRPC tells of a connection on the way: what fails in the end is told as an error.
var quietGRPC = sync.OnceFunc(func() { grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard, io.Discard)) })

// load reads who the members are, and the root namespace.
func (o *checkNetworkOptions) load(ctx context.Context) (namespace string, members []connectivity.Member, err error) {
	if len(o.members) > 0 {
		for _, given := range o.members {
			name, network, _ := strings.Cut(given, "=")
			if name == "" {
				return "", nil, fmt.Errorf("--member: %q has no name: give NAME=NETWORK", given)
			}
			if slices.ContainsFunc(members, func(m connectivity.Member) bool { return m.Name == name }) {
				return "", nil, fmt.Errorf("--member: %q is given twice", name)
			}
			members = append(members, connectivity.Member{Name: name, Network: network})
		}
		return "istio-system", members, nil
	}
	client, err := o.access.client()
	if err != nil {
		return "", nil, err
	}
	var meshes v1alpha1.MeshList
	if err := listRoot(ctx, client, "meshes", &meshes); err != nil {
		return "", nil, err
	}
	if o.mesh == "" && len(meshes.Items) == 1 {
		o.mesh = meshes.Items[0].Name
	}
	i := slices.IndexFunc(meshes.Items, func(m v1alpha1.Mesh) bool { return m.Name == o.mesh })
	switch {
	case o.mesh == "":
		return "", nil, fmt.Errorf("there are %d meshes: name one", len(meshes.Items))
	case i < 0:
		return "", nil, fmt.Errorf("there is no mesh %q: see kubectl get meshes", o.mesh)
	}
	var clusters v1alpha1.MemberClusterList
	if err := listRoot(ctx, client, "memberclusters", &clusters); err != nil {
		return "", nil, err
	}
	for _, c := range clusters.Items {
		if cmp.Or(c.Spec.Mesh, "default") != o.mesh {
			continue
		}
		m := connectivity.Member{Name: c.Name, Network: c.Spec.Network}
		switch {
		case c.Spec.Drain != nil:
			m.Out = "drained: " + c.Spec.Drain.Reason
		case c.Spec.Discovery == v1alpha1.DiscoveryDisabled:
			m.Out = "its discovery is disabled"
		}
		members = append(members, m)
	}
	if len(members) == 0 {
		return "", nil, fmt.Errorf("mesh %s has no member clusters: see kubectl get memberclusters", o.mesh)
	}
	return cmp.Or(meshes.Items[i].Spec.RootNamespace, "istio-system"), members, nil
}

func listRoot(ctx context.Context, client *rest.RESTClient, resource string, into any) error {
	data, err := client.Get().Resource(resource).SetHeader("Accept", "application/json").DoRaw(ctx)
	switch {
	case apierrors.IsNotFound(err):
		return fmt.Errorf("the server knows no %s: is it of an older version?", resource)
	case err != nil:
		return fmt.Errorf("asking for %s: %w%s", resource, err, accessRemedy(err))
	}
	return json.Unmarshal(data, into)
}

// of leaves out what other members reach.
func (r *networkReport) of(member string) {
	i := slices.IndexFunc(r.Members, func(m connectivity.MemberReport) bool { return m.Name == member })
	network := r.Members[i].Network
	r.Routes = slices.DeleteFunc(r.Routes, func(route connectivity.Route) bool { return route.From != network })
	r.Problems = slices.DeleteFunc(r.Problems, func(p connectivity.Problem) bool { return p.From != "" && p.From != member })
}

// verdict is an error if something is not connected.
func (r *networkReport) verdict() error {
	failed := 0
	for _, a := range r.Attempts {
		if a.Error != "" {
			failed++
		}
	}
	switch {
	case failed > 0:
		return fmt.Errorf("not all is connected: %d problems, and %d of %d connections failed", len(r.Problems), failed, len(r.Attempts))
	case len(r.Problems) > 0:
		return fmt.Errorf("not all is connected: %d problems", len(r.Problems))
	}
	return nil
}

// print shows the networks as rows and columns, and below what is wrong.
func (r *networkReport) print(out, errOut io.Writer) error {
	t := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	var to []string
	for _, route := range r.Routes {
		if !slices.Contains(to, route.To) {
			to = append(to, route.To)
		}
	}
	members := map[string][]string{}
	for _, m := range r.Members {
		members[m.Network] = append(members[m.Network], m.Name)
	}
	fmt.Fprint(t, "FROM\tMEMBERS")
	for _, network := range to {
		fmt.Fprintf(t, "\tTO %s", networkName(network))
	}
	for i, route := range r.Routes {
		if i == 0 || route.From != r.Routes[i-1].From {
			fmt.Fprintf(t, "\n%s\t%s", networkName(route.From), strings.Join(members[route.From], ","))
		}
		fmt.Fprintf(t, "\t%s", r.cell(route))
	}
	fmt.Fprintln(t)
	if err := t.Flush(); err != nil {
		return err
	}
	for _, w := range r.Warnings {
		fmt.Fprintln(errOut, "Warning:", w)
	}
	if len(r.Problems) > 0 {
		fmt.Fprintln(out)
		fmt.Fprintln(t, "FROM\tTO\tREASON\tSERVICES\tMESSAGE")
		for _, p := range r.Problems {
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", cmp.Or(p.From, "*"), networkName(p.To), p.Reason, firstOf(p.Services), p.Message)
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	if len(r.Attempts) > 0 {
		fmt.Fprintln(out)
		fmt.Fprintln(t, "TRIED\tNETWORK\tSERVICE\tRESULT")
		for _, a := range r.Attempts {
			what, result := "endpoint "+a.Address, "connected"
			if a.Gateway {
				what = "gateway " + a.Address
			}
			if a.Server != "" {
				result = "answered by " + a.Server
			}
			if a.Error != "" {
				result = "failed: " + a.Error
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", what, networkName(a.To), a.Service, result)
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	if r.verdict() == nil {
		fmt.Fprintln(errOut, "\u2714 All networks are connected.")
	}
	return nil
}

func (r *networkReport) cell(route connectivity.Route) string {
	text := ""
	switch route.How {
	case connectivity.NoEndpoints:
		return "no endpoints"
	case connectivity.Direct:
		text = "direct"
	case connectivity.Gateways:
		text = fmt.Sprintf("%d gateways", len(route.Gateways))
		if len(route.Gateways) == 1 {
			text = "1 gateway"
		}
	case connectivity.Broken:
		text = "no way"
	}
	if route.Reached < route.Services {
		text += fmt.Sprintf(", %d of %d services", route.Reached, route.Services)
	}
	return text
}

// firstOf are the first few.
func firstOf(services []string) string {
	const few = 2
	if len(services) <= few {
		return strings.Join(services, ",")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(services[:few], ","), len(services)-few)
}

func networkName(network string) string { return cmp.Or(network, "(none)") }
