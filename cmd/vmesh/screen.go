package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/duration"
)

// screenWidth is what a screen takes at most, unless it is wide.
const screenWidth = 100

// screen prints meshes for people.
type screen struct {
	out  io.Writer
	now  time.Time
	wide bool
	err  error
}

func (s *screen) line(format string, args ...any) {
	if s.err == nil {
		_, s.err = fmt.Fprintln(s.out, s.cut(strings.TrimRight(fmt.Sprintf(format, args...), " ")))
	}
}

// cut makes a line fit, and what others wrote harmless for a terminal.
func (s *screen) cut(text string) string {
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, text)
	if s.wide {
		return text
	}
	return truncate(text, screenWidth)
}

func truncate(text string, width int) string {
	if utf8.RuneCountInString(text) <= width {
		return text
	}
	return string([]rune(text)[:max(0, width-3)]) + "..."
}

// table prints rows under a head, without columns that are empty. When they are too wide for
// the screen, the widest columns are cut.
func (s *screen) table(head []string, rows [][]string) {
	widths := make([]int, len(head))
	for _, row := range rows {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	const gap, least = 3, 8
	total := -gap
	for i, title := range head {
		if widths[i] > 0 || i == 0 {
			widths[i] = max(widths[i], len(title))
			total += widths[i] + gap
		}
	}
	for ; total > screenWidth && !s.wide && slices.Max(widths) > least; total-- {
		widths[slices.Index(widths, slices.Max(widths))]--
	}
	for _, row := range append([][]string{head}, rows...) {
		var b strings.Builder
		for i, cell := range row {
			if widths[i] > 0 {
				fmt.Fprintf(&b, "%-*s%*s", widths[i], truncate(cell, widths[i]), gap, "")
			}
		}
		s.line("%s", b.String())
	}
}

// ago is how long ago a time was, in a few letters.
func (s *screen) ago(t time.Time) string { return duration.HumanDuration(max(0, s.now.Sub(t))) }

// meshes prints a line for each mesh.
func (s *screen) meshes(reports []meshReport) {
	var rows [][]string
	for _, r := range reports {
		proxies := ""
		if r.Proxies != nil {
			proxies = fmt.Sprintf("%d/%d", r.Proxies.Synced, r.Proxies.Connected)
		}
		rows = append(rows, []string{
			r.Mesh, string(r.Ready), fmt.Sprintf("%d/%d", r.Acknowledged, r.Connected), proxies, fmt.Sprint(r.VirtualClusters), fmt.Sprint(r.Resources), fmt.Sprint(r.HeldBack), r.Version,
		})
	}
	s.table([]string{"MESH", "READY", "IN STEP", "PROXIES", "VIRTUAL CLUSTERS", "RESOURCES", "HELD BACK", "VERSION"}, rows)
}

// mesh prints one.
func (s *screen) mesh(r *meshReport) {
	state := map[metav1.ConditionStatus]string{metav1.ConditionTrue: "ready", metav1.ConditionFalse: "not ready"}[r.Ready]
	if state == "" {
		state = "not served yet"
	}
	switch r.InStep {
	case metav1.ConditionTrue:
		state += ", in step"
	case metav1.ConditionFalse:
		state += ", behind"
	}
	s.line("Mesh %s: %s", r.Mesh, state)
	if r.Ready == metav1.ConditionFalse {
		s.line("  %s", r.ReadyMessage)
	}
	if r.InStep == metav1.ConditionFalse {
		s.line("  %s", r.InStepMessage)
	}
	for _, problem := range r.Problems {
		s.line("  %s", problem)
	}
	s.line("  serves          %s of %s%s%s", count(int(r.Resources), "resource"), count(int(r.VirtualClusters), "virtual cluster"),
		unless(r.HeldBack == 0, fmt.Sprintf(", %d held back", r.HeldBack)), unless(r.Unsendable == 0, fmt.Sprintf(", %d cannot be sent", r.Unsendable)))
	s.line("  version         %s", r.Version)
	if r.Connected == 0 {
		s.line("  control planes  none is connected")
	} else {
		s.line("  control planes  %d of %d connected are in step%s", r.Acknowledged, r.Connected, unless(len(r.Servers) < 2, fmt.Sprintf(", on %d servers", len(r.Servers))))
	}
	if r.Proxies != nil {
		s.line("  proxies         %d of %d connected have it", r.Proxies.Synced, r.Proxies.Connected)
	}
	if r.Rollout != nil {
		s.rollout(r.Rollout)
	}
	s.controlPlanes(r)
	s.members(r)
	s.heldBack(r)
	s.claims(r)
	s.changes(r)
	s.events(r)
}

func (s *screen) rollout(r *rolloutState) {
	var stages []string
	for _, stage := range r.Stages {
		stages = append(stages, fmt.Sprintf("%s %d/%d", stage.Name, stage.Current, stage.ControlPlanes))
	}
	s.line("  rollout         %s%s%s%s", r.Phase, unless(r.Stage == "", " at stage "+r.Stage), unless(len(stages) == 0, ": "+strings.Join(stages, ", ")),
		unless(r.Changes == 0, fmt.Sprintf("; %s on the way", count(r.Changes, "change"))))
	if r.Message != "" {
		s.line("                  %s", r.Message)
	}
	if r.Pinned > 0 {
		s.line("                  %s held at the last good form", count(r.Pinned, "resource"))
	}
}

func (s *screen) controlPlanes(r *meshReport) {
	if len(r.ControlPlanes) == 0 {
		return
	}
	s.line("")
	var rows [][]string
	for _, c := range r.ControlPlanes {
		state, since := "in step", s.ago(c.ConnectedSince)
		switch c.State {
		case "Gone":
			state, since = "gone", ""
			if c.DisconnectedAt != nil {
				since = s.ago(*c.DisconnectedAt)
			}
		case "Behind":
			state = fmt.Sprintf("behind by %.0fs", c.LagSeconds)
		case "Refused":
			state = "refused " + c.Error
		case "Starting":
			state = "starting"
		}
		proxies := ""
		if c.Proxies != nil {
			proxies = fmt.Sprintf("%d/%d", c.Proxies.Synced, c.Proxies.Connected)
		}
		row := []string{c.Name, c.Revision, c.Stage, state, since, proxies}
		if s.wide {
			row = append(row, c.Version, c.Server, c.Address, c.ID)
		}
		rows = append(rows, row)
	}
	head := []string{"CONTROL PLANE", "REVISION", "STAGE", "STATE", "SINCE", "PROXIES"}
	if s.wide {
		head = append(head, "VERSION", "SERVER", "ADDRESS", "ID")
	}
	const most = 30
	left := len(rows) - most
	if s.wide || left <= 0 {
		s.table(head, rows)
		return
	}
	s.table(head, rows[:most])
	s.line("and %d more: -o wide", left)
}

func (s *screen) members(r *meshReport) {
	if len(r.Members) == 0 {
		return
	}
	s.line("")
	const most = 30
	var rows [][]string
	for _, m := range r.Members {
		if !s.wide && len(rows) == most {
			break
		}
		state := map[metav1.ConditionStatus]string{metav1.ConditionTrue: "ready", metav1.ConditionFalse: m.Reason}[m.Ready]
		switch {
		case m.Drained != "":
			state = "drained: " + m.Drained
		case state == "":
			state = "not known yet"
		}
		row := []string{m.Name, m.Network, state, fmt.Sprint(m.Services), fmt.Sprintf("%d/%d", m.ReadyEndpoints, m.Endpoints)}
		if s.wide {
			row = append(row, m.Version, unless(m.Ready == metav1.ConditionTrue, m.Message))
		}
		rows = append(rows, row)
	}
	head := []string{"MEMBER", "NETWORK", "STATE", "SERVICES", "READY"}
	if s.wide {
		head = append(head, "VERSION", "MESSAGE")
	}
	s.table(head, rows)
	s.more(len(r.Members), len(rows), "-o wide has them")
}

func (s *screen) heldBack(r *meshReport) {
	if len(r.HeldBackObjects) == 0 {
		return
	}
	s.line("")
	var rows [][]string
	for _, o := range s.first(len(r.HeldBackObjects)) {
		h := r.HeldBackObjects[o]
		rows = append(rows, []string{h.VirtualCluster, h.Kind + " " + h.Namespace + "/" + h.Name, h.Reason, h.Message})
	}
	s.table([]string{"HELD BACK IN", "OBJECT", "REASON", "MESSAGE"}, rows)
	s.more(int(r.HeldBack), len(rows), "kubectl get virtualcluster NAME -o yaml has them")
}

func (s *screen) claims(r *meshReport) {
	if len(r.Claims) == 0 {
		return
	}
	s.line("")
	const most = 10
	var rows [][]string
	for _, c := range r.Claims {
		if !s.wide && len(rows) == most {
			break
		}
		held := ""
		if c.HeldBack > 0 {
			held = fmt.Sprint(c.HeldBack)
		}
		rows = append(rows, []string{c.VirtualCluster, join(c.Namespaces), join(c.Hosts), held})
	}
	s.table([]string{"VIRTUAL CLUSTER", "NAMESPACES", "HOSTS", "HELD BACK"}, rows)
	s.more(len(r.Claims), len(rows), "-o wide has them")
}

func (s *screen) changes(r *meshReport) {
	if len(r.Changes) == 0 {
		return
	}
	s.line("")
	var rows [][]string
	for _, i := range s.first(len(r.Changes)) {
		c := r.Changes[i]
		name := c.Name
		if c.Namespace != "" {
			name = c.Namespace + "/" + name
		}
		rows = append(rows, []string{s.ago(c.Time), c.VirtualCluster, c.User, c.Operation, c.Kind + " " + name, c.What})
	}
	s.table([]string{"CHANGED", "IN", "BY", "HOW", "OBJECT", "WHAT"}, rows)
}

func (s *screen) events(r *meshReport) {
	if len(r.Events) == 0 {
		return
	}
	s.line("")
	var rows [][]string
	for _, i := range s.first(len(r.Events)) {
		e := r.Events[i]
		times := ""
		if e.Count > 1 {
			times = fmt.Sprintf(" (%d times)", e.Count)
		}
		rows = append(rows, []string{s.ago(e.Time), e.Reason, e.Message + times})
	}
	s.table([]string{"HAPPENED", "REASON", "MESSAGE"}, rows)
}

// first are the indexes that are shown of n.
func (s *screen) first(n int) []int {
	if !s.wide {
		n = min(n, shownLines)
	}
	out := make([]int, n)
	for i := range out {
		out[i] = i
	}
	return out
}

func (s *screen) more(all, shown int, where string) {
	if all > shown {
		s.line("and %d more: %s", all-shown, where)
	}
}

func join[T ~string](values []T) string {
	texts := make([]string, len(values))
	for i, v := range values {
		texts[i] = string(v)
	}
	return strings.Join(texts, ",")
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func unless(not bool, text string) string {
	if not {
		return ""
	}
	return text
}
