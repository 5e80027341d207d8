package harness

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/utils/ptr"

	"google.golang.org/grpc/credentials"

	"github.com/vmesh-io/vmesh/test/traffic"
)

// TLSModeLabel, with the value "istio", says that a pod takes mutual TLS.
const TLSModeLabel = "security.istio.io/tlsMode"

// MemberOptions says how to run a member cluster.
type MemberOptions struct {
	// Dir takes all that it writes. Required.
	Dir string
	// EtcdURL is where it stores, below a prefix of its own: members may share an etcd. Required.
	EtcdURL string
	// Name is what the mesh calls it; "member-INDEX" when empty.
	Name string
	// Index, from 1 to 199, tells the members of a test apart: their backends listen on 127.INDEX.x.y.
	Index int
	// PodIndex says that its pods' addresses are 10.PODINDEX.x.y; Index when zero. Members of the same PodIndex overlap.
	PodIndex int
	// Binary is the kube-apiserver to run; built from its module when empty.
	Binary string
	// ExtraArgs go to kube-apiserver last, so they win.
	ExtraArgs []string
}

// Member is a cluster with a real API and real servers for pods. It has no kubelets, no schedulers and no controllers: what they do
// is done by its methods, which may be called from several goroutines.
type Member struct {
	*KubeAPIServer
	Name string
	// Client is an administrator's.
	Client kubernetes.Interface
	// Wires are those of its pods.
	Wires traffic.Wires
	// Port is the one that all backends of all members of this process listen on.
	Port int

	pods, servers string // how their addresses begin
	mu            sync.Mutex
	next          int
	backends      []*Backend
}

// A port that other tests' processes have not, as addresses are not told apart by process.
var backendPort = sync.OnceValues(func() (int, error) {
	ports, err := FreePorts(1)
	if err != nil {
		return 0, err
	}
	return ports[0], nil
})

// StartMember starts a member and waits until it is ready.
func StartMember(ctx context.Context, options MemberOptions) (*Member, error) {
	if options.Index < 1 || options.Index > 199 || options.PodIndex < 0 || options.PodIndex > 199 {
		return nil, fmt.Errorf("a member has an index from 1 to 199, not %d (of pods: %d)", options.Index, options.PodIndex)
	}
	port, err := backendPort()
	if err != nil {
		return nil, err
	}
	name := cmp.Or(options.Name, fmt.Sprintf("member-%d", options.Index))
	api, err := StartKubeAPIServer(ctx, KubeAPIServerOptions{
		Dir: options.Dir, EtcdURL: options.EtcdURL, Binary: options.Binary,
		// Nobody makes service accounts for namespaces here, and a pod would need one.
		ExtraArgs: append([]string{"--etcd-prefix", "/" + name, "--disable-admission-plugins", "ServiceAccount"}, options.ExtraArgs...),
	})
	if err != nil {
		return nil, err
	}
	m := &Member{
		KubeAPIServer: api, Name: name, Port: port,
		pods: fmt.Sprintf("10.%d.", cmp.Or(options.PodIndex, options.Index)), servers: fmt.Sprintf("127.%d.", options.Index),
	}
	m.Wires = traffic.Wires{m.pods: m.servers}
	config, err := clientcmd.BuildConfigFromFlags("", api.Kubeconfig)
	if err != nil {
		return nil, errors.Join(err, api.Kill())
	}
	config.QPS = -1
	if m.Client, err = kubernetes.NewForConfig(config); err != nil {
		return nil, errors.Join(err, api.Kill())
	}
	return m, nil
}

// Close stops the API and all backends. Stop, of the API, leaves the backends serving.
func (m *Member) Close(ctx context.Context) error {
	m.mu.Lock()
	backends := slices.Clone(m.backends)
	m.mu.Unlock()
	errs := []error{m.Stop(ctx)}
	for _, b := range backends {
		errs = append(errs, b.StopServer())
	}
	return errors.Join(errs...)
}

// InlineKubeconfig is an administrator's kubeconfig, with all that it needs.
func (m *Member) InlineKubeconfig() ([]byte, error) { return os.ReadFile(m.Kubeconfig) }

// RemoteSecret is the Secret by which an istiod whose own API has it reads the member, with an administrator's access.
func (m *Member) RemoteSecret() (*corev1.Secret, error) {
	kubeconfig, err := m.InlineKubeconfig()
	if err != nil {
		return nil, err
	}
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{
			Name: "istio-remote-secret-" + m.Name, Namespace: istiodNamespace, Labels: map[string]string{"istio/multiCluster": "true"},
		},
		Data: map[string][]byte{m.Name: kubeconfig},
	}, nil
}

// AddNamespace makes a namespace, unless it is there.
func (m *Member) AddNamespace(ctx context.Context, name string) error {
	return ensureNamespace(ctx, m.Kubeconfig, name)
}

// AddNode makes a node in a region and zone; either may be empty.
func (m *Member) AddNode(ctx context.Context, name, region, zone string) error {
	labels := map[string]string{corev1.LabelHostname: name}
	if region != "" {
		labels[corev1.LabelTopologyRegion] = region
	}
	if zone != "" {
		labels[corev1.LabelTopologyZone] = zone
	}
	_, err := m.Client.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}, metav1.CreateOptions{})
	return err
}

// AddService makes a service, and its namespace if there is none. Without ports, it has port 80, named grpc. Calls go to its
// backends by EndpointSlices, which AddBackend writes.
func (m *Member) AddService(ctx context.Context, namespace, name string, ports ...corev1.ServicePort) error {
	if err := m.AddNamespace(ctx, namespace); err != nil {
		return err
	}
	if len(ports) == 0 {
		ports = []corev1.ServicePort{{Name: "grpc", Port: 80}}
	}
	_, err := m.Client.CoreV1().Services(namespace).Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace},
		Spec:       corev1.ServiceSpec{Ports: ports, Selector: map[string]string{"app": name}},
	}, metav1.CreateOptions{})
	return err
}

// BackendOptions says what a member's backend is.
type BackendOptions struct {
	// Namespace and Service are whose backend it is; the service must exist. Required.
	Namespace, Service string
	// Name is the pod's; by default, one that no other pod of a member has.
	Name string
	// Node is where it runs; none when empty.
	Node string
	// Version is what it answers, and its label version.
	Version string
	// Labels are the pod's, besides app and version.
	Labels map[string]string
	// ServiceAccount is the pod's; "default" when empty.
	ServiceAccount string
	// Credentials are the server's. With them the pod has the label that it takes mutual TLS.
	Credentials credentials.TransportCredentials
	// NotReady has it begin so.
	NotReady bool
}

// Backend is a pod of a member: a real server that the member's API tells of.
type Backend struct {
	// Name is the pod's, IP its address, and Address (host:port) where the server really listens.
	Name, IP, Address string

	member  *Member
	options BackendOptions
	mu      sync.Mutex
	server  *traffic.Backend // nil while it is stopped
}

// AddBackend starts a server and tells the API of it: a Pod that runs and is ready, and an EndpointSlice.
func (m *Member) AddBackend(ctx context.Context, options BackendOptions) (*Backend, error) {
	service, err := m.Client.CoreV1().Services(options.Namespace).Get(ctx, options.Service, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	m.next++
	n := m.next
	host := fmt.Sprintf("%d.%d", n/250, n%250+1)
	b := &Backend{
		Name: cmp.Or(options.Name, fmt.Sprintf("%s-%s-%d", options.Service, m.Name, n)), IP: m.pods + host, Address: fmt.Sprintf("%s%s:%d", m.servers, host, m.Port),
		member: m, options: options,
	}
	m.backends = append(m.backends, b)
	m.mu.Unlock()
	if err := b.StartServer(); err != nil {
		return nil, err
	}
	pod, err := m.Client.CoreV1().Pods(options.Namespace).Create(ctx, b.pod(), metav1.CreateOptions{})
	if err != nil {
		return nil, err
	}
	slice := b.slice(service, pod.UID)
	if _, err := m.Client.DiscoveryV1().EndpointSlices(options.Namespace).Create(ctx, slice, metav1.CreateOptions{}); err != nil {
		return nil, err
	}
	return b, b.SetReady(ctx, !options.NotReady)
}

func (b *Backend) pod() *corev1.Pod {
	labels := map[string]string{"app": b.options.Service}
	if b.options.Version != "" {
		labels["version"] = b.options.Version
	}
	if b.options.Credentials != nil {
		labels[TLSModeLabel] = "istio"
	}
	for key, value := range b.options.Labels {
		labels[key] = value
	}
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: b.Name, Namespace: b.options.Namespace, Labels: labels},
		Spec: corev1.PodSpec{
			NodeName: b.options.Node, ServiceAccountName: cmp.Or(b.options.ServiceAccount, "default"),
			Containers: []corev1.Container{{Name: "greeter", Image: "greeter", Ports: []corev1.ContainerPort{{ContainerPort: int32(b.member.Port)}}}},
		},
	}
}

func (b *Backend) slice(service *corev1.Service, pod types.UID) *discoveryv1.EndpointSlice {
	endpoint := discoveryv1.Endpoint{
		Addresses:  []string{b.IP},
		Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(false), Serving: ptr.To(false), Terminating: ptr.To(false)},
		TargetRef:  &corev1.ObjectReference{Kind: "Pod", Namespace: b.options.Namespace, Name: b.Name, UID: pod},
	}
	if b.options.Node != "" {
		endpoint.NodeName = &b.options.Node
	}
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Name: b.Name, Namespace: b.options.Namespace, Labels: map[string]string{discoveryv1.LabelServiceName: service.Name, discoveryv1.LabelManagedBy: "harness"},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Service", Name: service.Name, UID: service.UID}},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints:   []discoveryv1.Endpoint{endpoint},
	}
	for _, port := range service.Spec.Ports {
		slice.Ports = append(slice.Ports, discoveryv1.EndpointPort{Name: ptr.To(port.Name), Port: ptr.To(int32(b.member.Port)), Protocol: ptr.To(corev1.ProtocolTCP)})
	}
	return slice
}

// SetReady says in the pod's status and in the EndpointSlice whether it is ready, as a kubelet and the controller do.
func (b *Backend) SetReady(ctx context.Context, ready bool) error {
	status := corev1.ConditionFalse
	if ready {
		status = corev1.ConditionTrue
	}
	pods := b.member.Client.CoreV1().Pods(b.options.Namespace)
	pod, err := pods.Get(ctx, b.Name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	pod.Status.Phase, pod.Status.PodIP, pod.Status.PodIPs = corev1.PodRunning, b.IP, []corev1.PodIP{{IP: b.IP}}
	pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: status}}
	if _, err := pods.UpdateStatus(ctx, pod, metav1.UpdateOptions{}); err != nil {
		return err
	}
	slices := b.member.Client.DiscoveryV1().EndpointSlices(b.options.Namespace)
	slice, err := slices.Get(ctx, b.Name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	slice.Endpoints[0].Conditions.Ready, slice.Endpoints[0].Conditions.Serving = &ready, &ready
	_, err = slices.Update(ctx, slice, metav1.UpdateOptions{})
	return err
}

// Remove takes it out of the API and stops the server, in this order.
func (b *Backend) Remove(ctx context.Context) error {
	err := b.member.Client.DiscoveryV1().EndpointSlices(b.options.Namespace).Delete(ctx, b.Name, metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	// Nobody would end it, as a kubelet does.
	err = b.member.Client.CoreV1().Pods(b.options.Namespace).Delete(ctx, b.Name, metav1.DeleteOptions{GracePeriodSeconds: new(int64)})
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	return b.StopServer()
}

// StopServer ends the server and leaves it registered: what dies before anybody has noticed.
func (b *Backend) StopServer() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.server == nil {
		return nil
	}
	server := b.server
	b.server = nil
	return server.Stop()
}

// StartServer starts the server where it was, unless it runs.
func (b *Backend) StartServer() (err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.server != nil {
		return nil
	}
	b.server, err = traffic.StartBackendWith(traffic.BackendOptions{
		Address: b.Address, Version: b.options.Version, Name: b.Name, Cluster: b.member.Name, Credentials: b.options.Credentials,
	})
	return err
}
