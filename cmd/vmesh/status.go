package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/rest"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

const (
	statusEvery = 2 * time.Second
	// clustersEvery is how often --watch lists the virtual clusters, which may be many.
	clustersEvery = 10 * time.Second
	// maxChangesFrom is of how many virtual clusters recent changes are asked for.
	maxChangesFrom = 50
	// What the text shows of each, and what all forms have.
	shownLines, keptLines = 5, 20
)

// notInStep is the error of --exit-code.
type notInStep struct{ meshes []string }

func (e notInStep) Error() string { return "not in step: " + strings.Join(e.meshes, ", ") }

// ExitCode is the process's.
func (notInStep) ExitCode() int { return 3 }

type statusOptions struct {
	access   rootAccess
	output   outputFormat
	watch    bool
	exitCode bool

	clusters       *v1alpha1.VirtualClusterList // as listed last
	clustersListed time.Time
}

func newStatusCommand() *cobra.Command {
	var o statusOptions
	cmd := &cobra.Command{
		Use:   "status [MESH]",
		Short: "Show a mesh on one screen: what is served, and who has it",
		Long: `Show a mesh: its control planes, with who is behind and by how much, the proxies that relays
report, what is held back, which virtual cluster claims what, and what has happened lately.
Without MESH it is the only one there is, or a line for each of several.

A control plane is in step when it has acknowledged all that it was sent. The exit code is 0;
with --exit-code it is 3 if a mesh is not ready, or a control plane has been behind for more than
five seconds, or none is connected. Errors have 1.

-o json and yaml give an object with what is shown, or a list of them without MESH. Members
are added to it, and not taken away.`,
		Example: `  # The only mesh, on the server's machine
  vmesh status --data-dir data

  # A mesh, redrawn as it changes
  vmesh status production --kubeconfig admin.kubeconfig --watch

  # Has everybody got it? For a pipeline
  vmesh status production --exit-code > /dev/null

  # Control planes that are behind, and since when
  vmesh status production -o json | jq -r '.controlPlanes[] | select(.state != "InStep") | "\(.name) \(.state) \(.behindSince)"'`,
		Args: atMostOne("MESH"), ValidArgsFunction: o.access.completeMesh,
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := o.access.client()
			if err != nil {
				return err
			}
			mesh := ""
			if len(args) > 0 {
				mesh = args[0]
			}
			if o.watch {
				return o.follow(cmd.Context(), client, cmd.OutOrStdout(), cmd.ErrOrStderr(), mesh, statusEvery)
			}
			reports, err := o.load(cmd.Context(), client, mesh)
			if err != nil {
				return err
			}
			if err := o.print(cmd.OutOrStdout(), reports, mesh, time.Now()); err != nil {
				return err
			}
			return o.verdict(reports)
		},
	}
	o.access.addFlags(cmd)
	o.output.addFlag(cmd, "How to print it: wide, json or yaml; by default as a screen of 100 columns.", "wide")
	cmd.Flags().BoolVarP(&o.watch, "watch", "w", false, "Go on showing it: redrawn on a terminal, and appended when it changes elsewhere. Until it is interrupted.")
	cmd.Flags().BoolVar(&o.exitCode, "exit-code", false, "Exit with 3 if a mesh is not ready, or not all control planes are in step.")
	cmd.MarkFlagsMutuallyExclusive("watch", "exit-code")
	return cmd
}

// meshReport is what is shown of a mesh. Its JSON is documented.
type meshReport struct {
	Mesh    string `json:"mesh"`
	Version string `json:"version,omitempty"`
	// Ready and InStep are the conditions of the Mesh: True, False or Unknown.
	Ready         metav1.ConditionStatus `json:"ready"`
	ReadyMessage  string                 `json:"readyMessage,omitempty"`
	InStep        metav1.ConditionStatus `json:"inStep"`
	InStepMessage string                 `json:"inStepMessage,omitempty"`
	// Problems are what other conditions of the Mesh say that are False.
	Problems []string `json:"problems,omitempty"`

	VirtualClusters int32 `json:"virtualClusters"`
	Resources       int32 `json:"resources"`
	HeldBack        int32 `json:"heldBack"`
	Unsendable      int   `json:"unsendable"`

	Connected       int32               `json:"controlPlanesConnected"`
	Acknowledged    int32               `json:"controlPlanesInStep"`
	Proxies         *proxyCounts        `json:"proxies,omitempty"`
	Servers         []string            `json:"servers,omitempty"`
	ControlPlanes   []controlPlaneState `json:"controlPlanes"`
	Members         []memberState       `json:"members"`
	Rollout         *rolloutState       `json:"rollout,omitempty"`
	HeldBackObjects []heldBackObject    `json:"heldBackObjects"`
	Claims          []claim             `json:"claims"`
	Changes         []recentChange      `json:"changes"`
	Events          []recentEvent       `json:"events"`
}

type proxyCounts struct {
	Connected int32 `json:"connected"`
	Synced    int32 `json:"synced"`
}

// controlPlaneState is one control plane. State is InStep, Behind, Refused, Starting (it has
// acknowledged nothing yet) or Gone.
type controlPlaneState struct {
	Name           string            `json:"name"`
	ID             string            `json:"id"`
	Server         string            `json:"server,omitempty"`
	Address        string            `json:"address,omitempty"`
	Revision       string            `json:"revision,omitempty"`
	Stage          string            `json:"stage,omitempty"`
	Labels         map[string]string `json:"labels,omitempty"`
	State          string            `json:"state"`
	Version        string            `json:"version,omitempty"`
	ConnectedSince time.Time         `json:"connectedSince"`
	DisconnectedAt *time.Time        `json:"disconnectedAt,omitempty"`
	BehindSince    *time.Time        `json:"behindSince,omitempty"`
	LagSeconds     float64           `json:"lagSeconds"`
	Error          string            `json:"error,omitempty"`

	Proxies *v1alpha1.ProxyStatus `json:"proxies,omitempty"`
}

// memberState is one member cluster. Ready is its condition: True, False or Unknown.
type memberState struct {
	Name           string                 `json:"name"`
	Network        string                 `json:"network,omitempty"`
	Ready          metav1.ConditionStatus `json:"ready"`
	Reason         string                 `json:"reason,omitempty"`
	Message        string                 `json:"message,omitempty"`
	Drained        string                 `json:"drained,omitempty"` // why
	Version        string                 `json:"version,omitempty"`
	Services       int32                  `json:"services"`
	Endpoints      int32                  `json:"endpoints"`
	ReadyEndpoints int32                  `json:"readyEndpoints"`
}

// rolloutState is where a staged rollout stands: Mesh.status.rollout, whole in JSON.
type rolloutState struct {
	raw     json.RawMessage
	Phase   string
	Message string
	Stage   string
	Changes int
	Pinned  int
	Stages  []struct {
		Name                   string
		ControlPlanes, Current int
	}
}

func (r *rolloutState) MarshalJSON() ([]byte, error) { return r.raw, nil }

func (r *rolloutState) UnmarshalJSON(data []byte) error {
	type plain rolloutState
	r.raw = bytes.Clone(data)
	return json.Unmarshal(data, (*plain)(r))
}

type heldBackObject struct {
	VirtualCluster            string `json:"virtualCluster"`
	v1alpha1.HeldBackResource `json:",inline"`
}

type claim struct {
	VirtualCluster string                      `json:"virtualCluster"`
	Namespaces     []v1alpha1.NamespacePattern `json:"namespaces,omitempty"`
	Hosts          []v1alpha1.HostPattern      `json:"hosts,omitempty"`
	HeldBack       int32                       `json:"heldBack"`
}

type recentChange struct {
	Time           time.Time `json:"time"`
	VirtualCluster string    `json:"virtualCluster"`
	User           string    `json:"user"`
	Operation      string    `json:"operation"`
	Kind           string    `json:"kind"`
	Namespace      string    `json:"namespace,omitempty"`
	Name           string    `json:"name"`
	What           string    `json:"what,omitempty"`
}

type recentEvent struct {
	Time    time.Time `json:"time"`
	Type    string    `json:"type"`
	Reason  string    `json:"reason"`
	Message string    `json:"message"`
	Count   int32     `json:"count"`
}

// storedMesh is a Mesh with what its status may have besides.
type storedMesh struct {
	metav1.ObjectMeta `json:"metadata"`
	Status            struct {
		v1alpha1.MeshStatus `json:",inline"`
		Rollout             *rolloutState `json:"rollout,omitempty"`
	} `json:"status"`
}

// load asks for one mesh, or for all when none is named.
func (o *statusOptions) load(ctx context.Context, client *rest.RESTClient, mesh string) ([]meshReport, error) {
	request := client.Get().Resource("meshes")
	if mesh != "" {
		request = request.Name(mesh)
	}
	data, err := request.SetHeader("Accept", "application/json").DoRaw(ctx)
	switch {
	case apierrors.IsNotFound(err):
		return nil, fmt.Errorf("there is no mesh %q: see kubectl get meshes", mesh)
	case err != nil:
		return nil, fmt.Errorf("asking for meshes: %w%s", err, accessRemedy(err))
	}
	var list struct {
		Items []storedMesh `json:"items"`
	}
	if mesh != "" {
		list.Items = make([]storedMesh, 1)
		err = json.Unmarshal(data, &list.Items[0])
	} else {
		err = json.Unmarshal(data, &list)
	}
	if err != nil {
		return nil, fmt.Errorf("reading meshes: %w", err)
	}
	if time.Since(o.clustersListed) >= clustersEvery {
		if o.clusters, err = listClusters(ctx, client); err != nil {
			return nil, err
		}
		o.clustersListed = time.Now()
	}
	reports := make([]meshReport, 0, len(list.Items))
	for i := range list.Items {
		r := newMeshReport(&list.Items[i], o.clusters.Items, time.Now())
		// A line for each of several has no place for these.
		if len(list.Items) == 1 || o.output.structured() {
			if r.Members, err = membersOf(ctx, client, r.Mesh); err == nil {
				r.Events, err = recentEvents(ctx, client, &list.Items[i])
			}
			if err == nil {
				r.Changes, err = recentChanges(ctx, client, r.Claims)
			}
			if err != nil {
				return nil, err
			}
		}
		reports = append(reports, r)
	}
	return reports, nil
}

func listClusters(ctx context.Context, client *rest.RESTClient) (*v1alpha1.VirtualClusterList, error) {
	data, err := client.Get().Resource("virtualclusters").Param("resourceVersion", "0").SetHeader("Accept", "application/json").DoRaw(ctx)
	if err != nil {
		return nil, fmt.Errorf("asking for virtual clusters: %w%s", err, accessRemedy(err))
	}
	list := &v1alpha1.VirtualClusterList{}
	if err := json.Unmarshal(data, list); err != nil {
		return nil, fmt.Errorf("reading virtual clusters: %w", err)
	}
	return list, nil
}

// newMeshReport makes of a mesh and all virtual clusters what is shown.
func newMeshReport(mesh *storedMesh, clusters []v1alpha1.VirtualCluster, now time.Time) meshReport {
	status := &mesh.Status.MeshStatus
	r := meshReport{
		Mesh: mesh.Name, Version: status.Version, VirtualClusters: status.VirtualClusters, Resources: status.Resources, HeldBack: status.HeldBack, Unsendable: len(status.Quarantined),
		Connected: status.Connected, Acknowledged: status.InStep, Rollout: mesh.Status.Rollout,
		ControlPlanes: []controlPlaneState{}, Members: []memberState{}, HeldBackObjects: []heldBackObject{}, Claims: []claim{}, Changes: []recentChange{}, Events: []recentEvent{},
		Ready: metav1.ConditionUnknown, InStep: metav1.ConditionUnknown,
	}
	if c := meta.FindStatusCondition(status.Conditions, v1alpha1.ConditionReady); c != nil {
		r.Ready, r.ReadyMessage = c.Status, c.Message
	}
	if c := meta.FindStatusCondition(status.Conditions, v1alpha1.ConditionInStep); c != nil {
		r.InStep, r.InStepMessage = c.Status, c.Message
	}
	for _, t := range []string{v1alpha1.ConditionHomeReady, v1alpha1.ConditionSettingsCurrent, v1alpha1.ConditionNetworksConnected} {
		if c := meta.FindStatusCondition(status.Conditions, t); c != nil && c.Status == metav1.ConditionFalse {
			r.Problems = append(r.Problems, c.Message)
		}
	}
	for _, s := range status.Servers {
		r.Servers = append(r.Servers, s.Name)
	}
	reported := false
	for i := range status.ControlPlanes {
		c := &status.ControlPlanes[i]
		reported = reported || c.Proxies != nil
		r.ControlPlanes = append(r.ControlPlanes, stateOf(c, now))
	}
	if reported {
		r.Proxies = &proxyCounts{status.Proxies, status.SyncedProxies}
	}
	for i := range clusters {
		vc := &clusters[i]
		if vc.Spec.Mesh != mesh.Name {
			continue
		}
		r.Claims = append(r.Claims, claim{vc.Name, vc.Spec.Namespaces, vc.Spec.Hosts, vc.Status.HeldBackCount})
		for _, held := range vc.Status.HeldBack {
			if len(r.HeldBackObjects) < 10*keptLines {
				r.HeldBackObjects = append(r.HeldBackObjects, heldBackObject{vc.Name, held})
			}
		}
	}
	slices.SortFunc(r.Claims, func(a, b claim) int { return cmp.Compare(a.VirtualCluster, b.VirtualCluster) })
	return r
}

func stateOf(c *v1alpha1.ControlPlaneStatus, now time.Time) controlPlaneState {
	s := controlPlaneState{
		Name: c.Name(), ID: c.ID, Server: c.Server, Address: c.Address, Revision: c.Revision, Stage: c.Stage, Labels: c.Labels, Version: c.Version,
		ConnectedSince: c.ConnectedSince.UTC(), Proxies: c.Proxies, State: "Behind",
	}
	if c.DisconnectedAt != nil {
		at := c.DisconnectedAt.UTC()
		s.DisconnectedAt = &at
	}
	if c.BehindSince != nil && c.Connected {
		since := c.BehindSince.UTC()
		s.BehindSince, s.LagSeconds = &since, max(0, now.Sub(since).Truncate(time.Second).Seconds())
	}
	refused := c.Refused()
	switch {
	case !c.Connected:
		s.State = "Gone"
	case refused != nil:
		s.State, s.Error = "Refused", refused.Kind()+": "+refused.Error
	case c.Acknowledged():
		s.State = "InStep"
	case !slices.ContainsFunc(c.Kinds, func(k v1alpha1.ControlPlaneKindStatus) bool { return k.AckedAt != nil }):
		s.State = "Starting"
	}
	return s
}

// membersOf are the member clusters of a mesh. Who may not read them sees none.
func membersOf(ctx context.Context, client *rest.RESTClient, mesh string) ([]memberState, error) {
	members := []memberState{}
	data, err := client.Get().Resource("memberclusters").Param("resourceVersion", "0").SetHeader("Accept", "application/json").DoRaw(ctx)
	switch {
	case apierrors.IsForbidden(err), apierrors.IsNotFound(err): // an older server has none
		return members, nil
	case err != nil:
		return nil, fmt.Errorf("asking for member clusters: %w%s", err, accessRemedy(err))
	}
	var list v1alpha1.MemberClusterList
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, fmt.Errorf("reading member clusters: %w", err)
	}
	for i := range list.Items {
		m := &list.Items[i]
		if m.Spec.Mesh != mesh {
			continue
		}
		s := memberState{
			Name: m.Name, Network: m.Spec.Network, Ready: metav1.ConditionUnknown, Version: m.Status.Version,
			Services: m.Status.Services, Endpoints: m.Status.Endpoints, ReadyEndpoints: m.Status.ReadyEndpoints,
		}
		if m.Spec.Drain != nil {
			s.Drained = m.Spec.Drain.Reason
		}
		if c := meta.FindStatusCondition(m.Status.Conditions, v1alpha1.ConditionReady); c != nil {
			s.Ready, s.Reason, s.Message = c.Status, c.Reason, c.Message
		}
		members = append(members, s)
	}
	return members, nil
}

// recentEvents are the events about a mesh, the newest first. Who may not read events sees
// none.
func recentEvents(ctx context.Context, client *rest.RESTClient, mesh *storedMesh) ([]recentEvent, error) {
	selector := fields.Set{"involvedObject.kind": "Mesh", "involvedObject.name": mesh.Name}
	data, err := client.Get().AbsPath("/api/v1/namespaces", metav1.NamespaceDefault, "events").Param("fieldSelector", selector.AsSelector().String()).
		SetHeader("Accept", "application/json").DoRaw(ctx)
	switch {
	case apierrors.IsForbidden(err):
		return []recentEvent{}, nil
	case err != nil:
		return nil, fmt.Errorf("asking for the events of mesh %s: %w", mesh.Name, err)
	}
	var list corev1.EventList
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, fmt.Errorf("reading the events of mesh %s: %w", mesh.Name, err)
	}
	events := []recentEvent{}
	for i := range list.Items {
		e := &list.Items[i]
		if e.InvolvedObject.UID == mesh.UID {
			events = append(events, recentEvent{e.LastTimestamp.UTC(), e.Type, e.Reason, e.Message, e.Count})
		}
	}
	slices.SortStableFunc(events, func(a, b recentEvent) int { return b.Time.Compare(a.Time) })
	return events[:min(len(events), keptLines)], nil
}

// recentChanges are the newest changes of the virtual clusters of a mesh. Those of servers that
// keep no history, and of virtual clusters that the caller may not enter, are left out.
func recentChanges(ctx context.Context, client *rest.RESTClient, of []claim) ([]recentChange, error) {
	changes := []recentChange{}
	for _, c := range of[:min(len(of), maxChangesFrom)] {
		data, err := client.Get().AbsPath("/clusters", c.VirtualCluster, "apis", v1alpha1.GroupVersion.String(), "changes").Param("limit", fmt.Sprint(keptLines)).
			SetHeader("Accept", "application/json").DoRaw(ctx)
		if apierrors.IsNotFound(err) || apierrors.IsForbidden(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("asking for the changes of virtual cluster %s: %w", c.VirtualCluster, err)
		}
		var list struct {
			Items []struct {
				Time      metav1.MicroTime       `json:"time"`
				User      struct{ Name string }  `json:"user"`
				Operation string                 `json:"operation"`
				Object    corev1.ObjectReference `json:"object"`
				What      string                 `json:"what"`
			} `json:"items"`
		}
		if err := json.Unmarshal(data, &list); err != nil {
			return nil, fmt.Errorf("reading the changes of virtual cluster %s: %w", c.VirtualCluster, err)
		}
		for _, i := range list.Items {
			changes = append(changes, recentChange{i.Time.UTC(), c.VirtualCluster, i.User.Name, i.Operation, i.Object.Kind, i.Object.Namespace, i.Object.Name, i.What})
		}
	}
	slices.SortStableFunc(changes, func(a, b recentChange) int { return b.Time.Compare(a.Time) })
	return changes[:min(len(changes), keptLines)], nil
}

// verdict is the error of --exit-code.
func (o *statusOptions) verdict(reports []meshReport) error {
	var behind []string
	for _, r := range reports {
		switch {
		case r.Ready != metav1.ConditionTrue:
			behind = append(behind, fmt.Sprintf("mesh %s is not ready: %s", r.Mesh, r.ReadyMessage))
		case r.InStep != metav1.ConditionTrue:
			behind = append(behind, fmt.Sprintf("mesh %s: %s", r.Mesh, r.InStepMessage))
		}
	}
	if !o.exitCode || len(behind) == 0 {
		return nil
	}
	return notInStep{behind}
}

// follow shows it again and again until ctx ends. What cannot be asked for is said, and tried
// again.
func (o *statusOptions) follow(ctx context.Context, client *rest.RESTClient, out, errOut io.Writer, mesh string, every time.Duration) error {
	terminal := isTerminal(out)
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	var shown []meshReport
	for first := true; ; first = false {
		reports, err := o.load(ctx, client, mesh)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && first:
			return err
		case err != nil:
			fmt.Fprintln(errOut, "error:", err)
		default:
			var screen bytes.Buffer
			if err := o.print(&screen, reports, mesh, time.Now()); err != nil {
				return err
			}
			switch {
			case terminal:
				_, err = fmt.Fprintf(out, "\033[H\033[2J%s", screen.Bytes())
			case first || !reflect.DeepEqual(timeless(reports), timeless(shown)):
				if !o.output.structured() {
					_, err = fmt.Fprintf(out, "--- %s\n", time.Now().UTC().Format(time.RFC3339))
				} else if o.output == "yaml" {
					_, err = fmt.Fprintln(out, "---")
				}
				if err == nil {
					_, err = out.Write(screen.Bytes())
				}
				shown = reports
			}
			if err != nil {
				return err
			}
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// timeless are reports without what changes by itself.
func timeless(reports []meshReport) []meshReport {
	out := slices.Clone(reports)
	for i := range out {
		out[i].ControlPlanes = slices.Clone(out[i].ControlPlanes)
		for j := range out[i].ControlPlanes {
			c := &out[i].ControlPlanes[j]
			c.LagSeconds = 0
			if c.Proxies != nil {
				proxies := *c.Proxies
				proxies.ObservedAt = metav1.Time{}
				c.Proxies = &proxies
			}
		}
	}
	return out
}

// print prints reports. Without the name of a mesh, structured forms are lists.
func (o *statusOptions) print(out io.Writer, reports []meshReport, mesh string, now time.Time) error {
	if !o.output.structured() {
		s := screen{out: out, now: now, wide: o.output == "wide"}
		switch {
		case len(reports) == 0:
			s.line("There is no mesh.")
		case len(reports) > 1:
			s.meshes(reports)
		default:
			s.mesh(&reports[0])
		}
		return s.err
	}
	var value any = reports
	if mesh != "" && len(reports) == 1 {
		value = reports[0]
	}
	if o.output == "json" && o.watch {
		return json.NewEncoder(out).Encode(value) // a line each
	}
	return o.output.print(out, value)
}
