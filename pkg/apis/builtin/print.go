package builtin

import (
	"cmp"
	"fmt"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	eventsv1 "k8s.io/api/events/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/duration"
)

// What kubectl prints for a cell that has nothing to show.
const (
	none    = "<none>"
	unset   = "<unset>"
	unknown = "<unknown>"
)

// shown is how many of several things a cell names.
const shown = 3

func age(t metav1.Time) string { return since(t.Time) }

func since(t time.Time) string {
	if t.IsZero() {
		return unknown
	}
	return duration.HumanDuration(time.Since(t))
}

func createdAt(t metav1.Time) string {
	if t.IsZero() {
		return unknown
	}
	return t.UTC().Format(time.RFC3339)
}

func orEmpty(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// some names the first few of a list. The empty list is shown by the text given.
func some(all []string, empty string) string {
	switch {
	case len(all) == 0:
		return empty
	case len(all) > shown:
		return fmt.Sprintf("%s + %d more...", strings.Join(all[:shown], ","), len(all)-shown)
	}
	return strings.Join(all, ",")
}

func serviceCells(o *corev1.Service) []any {
	var ports []string
	for _, p := range o.Spec.Ports {
		port := strconv.Itoa(int(p.Port))
		if p.NodePort > 0 {
			port += ":" + strconv.Itoa(int(p.NodePort))
		}
		ports = append(ports, port+"/"+string(p.Protocol))
	}
	return []any{
		o.Name, string(o.Spec.Type), cmp.Or(o.Spec.ClusterIP, none), externalAddress(o), cmp.Or(strings.Join(ports, ","), none),
		age(o.CreationTimestamp), labels.FormatLabels(o.Spec.Selector),
	}
}

func externalAddress(o *corev1.Service) string {
	switch o.Spec.Type {
	case corev1.ServiceTypeExternalName:
		return o.Spec.ExternalName
	case corev1.ServiceTypeLoadBalancer:
		var balancers []string
		for _, i := range o.Status.LoadBalancer.Ingress {
			balancers = append(balancers, cmp.Or(i.IP, i.Hostname))
		}
		slices.Sort(balancers)
		return cmp.Or(strings.Join(append(balancers, o.Spec.ExternalIPs...), ","), "<pending>")
	}
	return cmp.Or(strings.Join(o.Spec.ExternalIPs, ","), none)
}

func endpointsText(subsets []corev1.EndpointSubset) string {
	var all []string
	for _, s := range subsets {
		for _, a := range s.Addresses {
			if len(s.Ports) == 0 {
				all = append(all, a.IP)
			}
		}
		for _, p := range s.Ports {
			for _, a := range s.Addresses {
				all = append(all, net.JoinHostPort(a.IP, strconv.Itoa(int(p.Port))))
			}
		}
	}
	return some(all, none)
}

func endpointSliceCells(o *discoveryv1.EndpointSlice) []any {
	var ports, addresses []string
	for _, p := range o.Ports {
		switch {
		case p.Port != nil:
			ports = append(ports, strconv.Itoa(int(*p.Port)))
		case p.Name != nil:
			ports = append(ports, *p.Name)
		default:
			ports = append(ports, "*")
		}
	}
	for _, e := range o.Endpoints {
		addresses = append(addresses, e.Addresses...)
	}
	return []any{o.Name, string(o.AddressType), some(ports, unset), some(addresses, unset), age(o.CreationTimestamp)}
}

func podCells(o *corev1.Pod) []any {
	s := podSummary(o)
	restarts := strconv.Itoa(s.restarts)
	if s.restarts > 0 && !s.lastRestart.IsZero() {
		restarts += " (" + since(s.lastRestart) + " ago)"
	}
	ip := ""
	if len(o.Status.PodIPs) > 0 {
		ip = o.Status.PodIPs[0].IP
	}
	gates := none
	if len(o.Spec.ReadinessGates) > 0 {
		met := 0
		for _, g := range o.Spec.ReadinessGates {
			if podCondition(o, g.ConditionType) {
				met++
			}
		}
		gates = fmt.Sprintf("%d/%d", met, len(o.Spec.ReadinessGates))
	}
	return []any{
		o.Name, fmt.Sprintf("%d/%d", s.ready, s.containers), s.status, restarts, age(o.CreationTimestamp),
		cmp.Or(ip, none), cmp.Or(o.Spec.NodeName, none), cmp.Or(o.Status.NominatedNodeName, none), gates,
	}
}

// podState is what one line can say of a pod.
type podState struct {
	status            string
	ready, containers int
	restarts          int
	lastRestart       time.Time
}

func (s *podState) countRestarts(c *corev1.ContainerStatus) {
	s.restarts += int(c.RestartCount)
	if t := c.LastTerminationState.Terminated; t != nil && t.FinishedAt.After(s.lastRestart) {
		s.lastRestart = t.FinishedAt.Time
	}
}

func podSummary(o *corev1.Pod) podState {
	s := podState{status: cmp.Or(o.Status.Reason, string(o.Status.Phase)), containers: len(o.Spec.Containers)}
	for _, c := range o.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Reason == corev1.PodReasonSchedulingGated {
			s.status = corev1.PodReasonSchedulingGated
		}
	}
	sidecars := map[string]bool{}
	for _, c := range o.Spec.InitContainers {
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			sidecars[c.Name] = true
			s.containers++
		}
	}
	initializing := s.initContainers(o, sidecars)
	if !initializing || podCondition(o, corev1.PodInitialized) {
		s.mainContainers(o, sidecars)
	}
	finished := o.Status.Phase == corev1.PodSucceeded || o.Status.Phase == corev1.PodFailed
	switch {
	case o.DeletionTimestamp != nil && o.Status.Reason == "NodeLost":
		s.status = "Unknown"
	case o.DeletionTimestamp != nil && !finished:
		s.status = "Terminating"
	}
	return s
}

// initContainers tells how far initialization is, and whether it goes on.
func (s *podState) initContainers(o *corev1.Pod, sidecars map[string]bool) bool {
	for i := range o.Status.InitContainerStatuses {
		c := &o.Status.InitContainerStatuses[i]
		s.countRestarts(c)
		switch t, w := c.State.Terminated, c.State.Waiting; {
		case t != nil && t.ExitCode == 0:
			continue
		case sidecars[c.Name] && c.Started != nil && *c.Started:
			if c.Ready {
				s.ready++
			}
			continue
		case t != nil:
			s.status = "Init:" + ended(t)
		case w != nil && w.Reason != "" && w.Reason != "PodInitializing":
			s.status = "Init:" + w.Reason
		default:
			s.status = fmt.Sprintf("Init:%d/%d", i, len(o.Spec.InitContainers))
		}
		return true
	}
	return false
}

func (s *podState) mainContainers(o *corev1.Pod, sidecars map[string]bool) {
	// Once they run, restarts of what only initialized no longer matter.
	s.restarts, s.lastRestart = 0, time.Time{}
	for i := range o.Status.InitContainerStatuses {
		if c := &o.Status.InitContainerStatuses[i]; sidecars[c.Name] {
			s.countRestarts(c)
		}
	}
	running, failure := false, ""
	for i := len(o.Status.ContainerStatuses) - 1; i >= 0; i-- {
		c := &o.Status.ContainerStatuses[i]
		s.countRestarts(c)
		switch t, w := c.State.Terminated, c.State.Waiting; {
		case w != nil && w.Reason != "":
			s.status = w.Reason
		case t != nil:
			s.status = ended(t)
			if t.ExitCode != 0 {
				failure = s.status
			}
		case c.Ready && c.State.Running != nil:
			running = true
			s.ready++
		}
	}
	if s.status != "Completed" {
		return
	}
	switch {
	case running && podCondition(o, corev1.PodReady):
		s.status = "Running"
	case failure != "":
		s.status = failure
	case running:
		s.status = "NotReady"
	}
}

func ended(t *corev1.ContainerStateTerminated) string {
	switch {
	case t.Reason != "":
		return t.Reason
	case t.Signal != 0:
		return fmt.Sprintf("Signal:%d", t.Signal)
	}
	return fmt.Sprintf("ExitCode:%d", t.ExitCode)
}

func podCondition(o *corev1.Pod, kind corev1.PodConditionType) bool {
	for _, c := range o.Status.Conditions {
		if c.Type == kind {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

const nodeRolePrefix = "node-role.kubernetes.io/"

func nodeCells(o *corev1.Node) []any {
	status := "Unknown"
	for _, c := range o.Status.Conditions {
		if c.Type == corev1.NodeReady {
			status = "NotReady"
			if c.Status == corev1.ConditionTrue {
				status = "Ready"
			}
		}
	}
	if o.Spec.Unschedulable {
		status += ",SchedulingDisabled"
	}
	var roles []string
	for key, value := range o.Labels {
		if role, ok := strings.CutPrefix(key, nodeRolePrefix); ok && role != "" {
			roles = append(roles, role)
		} else if key == "kubernetes.io/role" && value != "" {
			roles = append(roles, value)
		}
	}
	slices.Sort(roles)
	info := o.Status.NodeInfo
	kernel := cmp.Or(info.KernelVersion, unknown)
	if info.Architecture != "" {
		kernel += " (" + info.Architecture + ")"
	}
	return []any{
		o.Name, status, cmp.Or(strings.Join(slices.Compact(roles), ","), none), age(o.CreationTimestamp), info.KubeletVersion,
		nodeAddress(o, corev1.NodeInternalIP), nodeAddress(o, corev1.NodeExternalIP),
		cmp.Or(info.OSImage, unknown), kernel, cmp.Or(info.ContainerRuntimeVersion, unknown),
	}
}

func nodeAddress(o *corev1.Node, kind corev1.NodeAddressType) string {
	for _, a := range o.Status.Addresses {
		if a.Type == kind {
			return a.Address
		}
	}
	return none
}

func eventCells(o *corev1.Event) []any {
	first := cmp.Or(unlessZero(o.FirstTimestamp.Time), since(o.EventTime.Time))
	last := cmp.Or(unlessZero(o.LastTimestamp.Time), first)
	count := max(o.Count, 1)
	if o.Series != nil {
		last, count = since(o.Series.LastObservedTime.Time), o.Series.Count
	}
	target := strings.ToLower(o.InvolvedObject.Kind)
	if o.InvolvedObject.Name != "" {
		target += "/" + o.InvolvedObject.Name
	}
	source := cmp.Or(o.Source.Component, o.ReportingController)
	if instance := cmp.Or(o.Source.Host, o.ReportingInstance); instance != "" {
		source += ", " + instance
	}
	return []any{
		last, o.Type, o.Reason, target, o.InvolvedObject.FieldPath, source, strings.TrimSpace(o.Message), first, int64(count), o.Name,
	}
}

func unlessZero(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return since(t)
}

// coreEvent is an event of the newer group in the form of the core group.
func coreEvent(o *eventsv1.Event) *corev1.Event {
	e := &corev1.Event{
		ObjectMeta: o.ObjectMeta, InvolvedObject: o.Regarding, Reason: o.Reason, Message: o.Note, Type: o.Type, Source: o.DeprecatedSource,
		EventTime: o.EventTime, FirstTimestamp: o.DeprecatedFirstTimestamp, LastTimestamp: o.DeprecatedLastTimestamp, Count: o.DeprecatedCount,
		ReportingController: o.ReportingController, ReportingInstance: o.ReportingInstance,
	}
	if o.Series != nil {
		e.Series = &corev1.EventSeries{Count: o.Series.Count, LastObservedTime: o.Series.LastObservedTime}
	}
	return e
}

func ingressCells(o *networkingv1.Ingress) []any {
	var hosts []string
	for _, r := range o.Spec.Rules {
		if r.Host != "" {
			hosts = append(hosts, r.Host)
		}
	}
	var addresses []string
	for _, i := range o.Status.LoadBalancer.Ingress {
		addresses = append(addresses, cmp.Or(i.IP, i.Hostname))
	}
	slices.Sort(addresses)
	ports := "80"
	if len(o.Spec.TLS) > 0 {
		ports = "80, 443"
	}
	class := none
	if o.Spec.IngressClassName != nil {
		class = *o.Spec.IngressClassName
	}
	return []any{o.Name, class, some(hosts, "*"), strings.Join(addresses, ","), ports, age(o.CreationTimestamp)}
}

func ingressClassCells(o *networkingv1.IngressClass) []any {
	name := o.Name
	if o.Annotations[networkingv1.AnnotationIsDefaultIngressClass] == "true" {
		name += " (default)"
	}
	parameters := none
	if p := o.Spec.Parameters; p != nil {
		parameters = p.Kind
		if p.APIGroup != nil {
			parameters += "." + *p.APIGroup
		}
		parameters += "/" + p.Name
	}
	return []any{name, o.Spec.Controller, parameters, age(o.CreationTimestamp)}
}

func bindingCells(meta metav1.ObjectMeta, role rbacv1.RoleRef, subjects []rbacv1.Subject) []any {
	by := map[string][]string{}
	for _, s := range subjects {
		name := s.Name
		if s.Kind == rbacv1.ServiceAccountKind && s.Namespace != "" {
			name = s.Namespace + "/" + name
		}
		by[s.Kind] = append(by[s.Kind], name)
	}
	list := func(kind string) string { return strings.Join(by[kind], ", ") }
	return []any{
		meta.Name, role.Kind + "/" + role.Name, age(meta.CreationTimestamp),
		list(rbacv1.UserKind), list(rbacv1.GroupKind), list(rbacv1.ServiceAccountKind),
	}
}

func definitionCells(o *apiextensionsv1.CustomResourceDefinition) []any {
	var served []string
	for _, v := range o.Spec.Versions {
		if !v.Served {
			continue
		}
		name := v.Name
		if v.Storage {
			name += "(storage)"
		}
		served = append(served, name)
	}
	established := false
	for _, c := range o.Status.Conditions {
		established = established || c.Type == apiextensionsv1.Established && c.Status == apiextensionsv1.ConditionTrue
	}
	return []any{
		o.Name, string(o.Spec.Scope), strings.Join(served, ","), createdAt(o.CreationTimestamp),
		o.Spec.Group, o.Spec.Names.Kind, strings.Join(o.Spec.Names.ShortNames, ","), established,
	}
}

func paramKindText(k *admissionregistrationv1.ParamKind) string {
	if k == nil {
		return unset
	}
	return k.APIVersion + "/" + k.Kind
}

func paramRefText(r *admissionregistrationv1.ParamRef) string {
	switch {
	case r == nil || r.Name == "" && r.Selector == nil:
		return unset
	case r.Name == "":
		return r.Selector.String()
	case r.Namespace == "":
		return "*/" + r.Name
	}
	return r.Namespace + "/" + r.Name
}
