package main

import (
	"bufio"
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/metadata/metadatainformer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/utils/ptr"

	"github.com/vmesh-io/vmesh/pkg/discovery"
	"github.com/vmesh-io/vmesh/pkg/discovery/discoverytest"
	"github.com/vmesh-io/vmesh/pkg/members"
)

// Of rows 20 and 21: how many members there are, what each has, and how many changes are timed.
const (
	viewMembers   = 50
	viewServices  = 200
	viewEndpoints = 10 // of each service
	viewNodes     = 20
	viewChanges   = 400
)

// memberAccess is how the members' APIs are reached.
type memberAccess struct {
	URLs []string
	CA   []byte
}

func viewService(i int) string { return fmt.Sprintf("service-%03d", i) }

const viewNamespace = "shop"

// managed is what every object of a cluster carries besides what it says.
func managed(manager, fields string) []metav1.ManagedFieldsEntry {
	now := metav1.Unix(1700000000, 0)
	return []metav1.ManagedFieldsEntry{{
		Manager: manager, Operation: metav1.ManagedFieldsOperationUpdate, APIVersion: "v1", Time: &now, FieldsType: "FieldsV1", FieldsV1: &metav1.FieldsV1{Raw: []byte(fields)},
	}}
}

func viewSlice(member, service, endpoints int) *discoveryv1.EndpointSlice {
	name := viewService(service)
	s := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: viewNamespace, Name: name + "-x7k2p", GenerateName: name + "-", UID: types.UID(fmt.Sprintf("5f0e4c9e-9d5c-4c9e-8d5c-%06d%06d", member, service)),
			CreationTimestamp: metav1.Unix(1700000000, 0), Generation: 3,
			Labels:          map[string]string{discoveryv1.LabelServiceName: name, discoveryv1.LabelManagedBy: "endpointslice-controller.k8s.io", "app": name},
			Annotations:     map[string]string{corev1.EndpointsLastChangeTriggerTime: "2026-01-31T12:00:00Z"},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Service", Name: name, UID: types.UID(fmt.Sprintf("6a1e4c9e-9d5c-4c9e-8d5c-%06d%06d", member, service)), Controller: ptr.To(true), BlockOwnerDeletion: ptr.To(true)}},
			ManagedFields: managed("kube-controller-manager", `{"f:addressType":{},"f:endpoints":{},"f:metadata":{"f:annotations":{".":{},"f:endpoints.kubernetes.io/last-change-trigger-time":{}},"f:generateName":{},
				"f:labels":{".":{},"f:app":{},"f:endpointslice.kubernetes.io/managed-by":{},"f:kubernetes.io/service-name":{}},"f:ownerReferences":{".":{},"k:{\"uid\":\"6a1e4c9e\"}":{}}},"f:ports":{}}`),
		},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: ptr.To("http"), Port: ptr.To(int32(8080)), Protocol: ptr.To(corev1.ProtocolTCP)}},
	}
	for e := range endpoints {
		n := service*viewEndpoints + e
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{
			Addresses:  []string{fmt.Sprintf("10.%d.%d.%d", member, n/250, n%250+1)},
			Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true), Serving: ptr.To(true), Terminating: ptr.To(false)},
			NodeName:   ptr.To(fmt.Sprintf("node-%02d.east.example.internal", n%viewNodes)), Zone: ptr.To("eu-west-1" + string(rune('a'+n%3))),
			TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: viewNamespace, Name: fmt.Sprintf("%s-6d4cf56db6-%05d", name, n), UID: types.UID(fmt.Sprintf("7b2f4c9e-9d5c-4c9e-8d5c-%06d%06d", member, n))},
		})
	}
	return s
}

// viewAPI is a member's API with all that it has.
func viewAPI(member, services int) *discoverytest.Server {
	api := discoverytest.New()
	for n := range viewNodes {
		api.Set(&metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{
			Name: fmt.Sprintf("node-%02d.east.example.internal", n), UID: types.UID(fmt.Sprintf("8c2f4c9e-9d5c-4c9e-8d5c-%06d%06d", member, n)),
			Labels: map[string]string{corev1.LabelTopologyRegion: "eu-west-1", corev1.LabelTopologyZone: "eu-west-1" + string(rune('a'+n%3)), corev1.LabelHostname: fmt.Sprintf("node-%02d", n)},
		}})
	}
	for i := range services {
		name := viewService(i)
		api.Set(&corev1.Service{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: viewNamespace, Name: name, UID: types.UID(fmt.Sprintf("6a1e4c9e-9d5c-4c9e-8d5c-%06d%06d", member, i)), CreationTimestamp: metav1.Unix(1700000000, 0),
				Labels: map[string]string{"app": name, "app.kubernetes.io/managed-by": "Helm"}, Annotations: map[string]string{"meta.helm.sh/release-name": name, "meta.helm.sh/release-namespace": viewNamespace},
				ManagedFields: managed("helm", `{"f:metadata":{"f:annotations":{".":{},"f:meta.helm.sh/release-name":{},"f:meta.helm.sh/release-namespace":{}},"f:labels":{".":{},"f:app":{},"f:app.kubernetes.io/managed-by":{}}},
					"f:spec":{"f:internalTrafficPolicy":{},"f:ports":{".":{},"k:{\"port\":80,\"protocol\":\"TCP\"}":{".":{},"f:name":{},"f:port":{},"f:protocol":{},"f:targetPort":{}}},"f:selector":{},"f:sessionAffinity":{},"f:type":{}}}`),
			},
			Spec: corev1.ServiceSpec{
				Type: corev1.ServiceTypeClusterIP, ClusterIP: fmt.Sprintf("10.96.%d.%d", i/250, i%250+1), ClusterIPs: []string{fmt.Sprintf("10.96.%d.%d", i/250, i%250+1)},
				Selector: map[string]string{"app": name}, SessionAffinity: corev1.ServiceAffinityNone, IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol},
				Ports: []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}, {Name: "grpc", Port: 9090, Protocol: corev1.ProtocolTCP}},
			},
		})
		api.Set(viewSlice(member, i, viewEndpoints))
	}
	return api
}

// viewMembersMain is the process of the members' APIs. Each has a listener of its own, with TLS and HTTP/2. It writes how they
// are reached to a file and prints a line; then, for each line MEMBER COUNT that it reads, it has the first service of a member have
// so many endpoints, and prints when it began to, in nanoseconds since the epoch.
func viewMembersMain(file, count, services string) error {
	n, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	each, err := strconv.Atoi(services)
	if err != nil {
		return err
	}
	var access memberAccess
	apis := make([]*discoverytest.Server, n)
	for i := range apis {
		apis[i] = viewAPI(i, each)
		server := httptest.NewUnstartedServer(apis[i])
		server.EnableHTTP2 = true
		server.StartTLS()
		access.URLs = append(access.URLs, server.URL)
		access.CA = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	}
	data, err := json.Marshal(access)
	if err != nil {
		return err
	}
	if err := os.WriteFile(file, data, 0o600); err != nil {
		return err
	}
	fmt.Println("ready")
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		var member, endpoints int
		if _, err := fmt.Sscan(in.Text(), &member, &endpoints); err != nil {
			return err
		}
		slice := viewSlice(member, 0, endpoints)
		begun := time.Now()
		apis[member].Set(slice)
		fmt.Println(begun.UnixNano())
	}
	return nil
}

// readerStats are what a process that reads members says of itself.
type readerStats struct {
	Anon, Heap, CPU float64 // MiB, MiB, ms
	Complete        float64 // s; until all was read
}

// ownStats are this process's after a collection.
func ownStats() (s readerStats, err error) {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		return s, err
	}
	s.CPU = float64(usage.Utime.Nano()+usage.Stime.Nano()) / 1e6
	runtime.GC()
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	s.Heap = float64(m.HeapAlloc) / (1 << 20)
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return s, err
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			kib, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			if err != nil {
				return s, err
			}
			s.Anon = kib / 1024
		}
	}
	return s, nil
}

// viewReaderMain is a process that reads the members, as vmesh does or by client-go's informers. It prints what it is without
// members, and with all of them once it has read them; then, for each line MEMBER COUNT, it waits until the first service of
// the member has so many endpoints and prints when that was; for the line stats what it is then.
func viewReaderMain(how, file, services string) error {
	each, err := strconv.Atoi(services)
	if err != nil {
		return err
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var access memberAccess
	if err := json.Unmarshal(data, &access); err != nil {
		return err
	}
	out := json.NewEncoder(os.Stdout)
	told := func(complete float64) error {
		s, err := ownStats()
		if err != nil {
			return err
		}
		s.Complete = complete
		return out.Encode(s)
	}
	if err := told(0); err != nil {
		return err
	}
	configs := make([]*rest.Config, len(access.URLs))
	for i, url := range access.URLs {
		configs[i] = &rest.Config{Host: url, TLSClientConfig: rest.TLSClientConfig{CAData: access.CA}}
	}
	start := time.Now()
	read := readByView
	if how == "informers" {
		read = readByInformers
	}
	await, err := read(context.Background(), configs, each)
	if err != nil {
		return err
	}
	if err := told(time.Since(start).Seconds()); err != nil {
		return err
	}
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		if in.Text() == "stats" {
			if err := told(0); err != nil {
				return err
			}
			continue
		}
		var member, endpoints int
		if _, err := fmt.Sscan(in.Text(), &member, &endpoints); err != nil {
			return err
		}
		seen := await(member, endpoints)
		fmt.Println("waiting")
		fmt.Println((<-seen).UnixNano())
	}
	return nil
}

// awaiting tells when the first service of a member has so many endpoints.
type awaiting func(member, endpoints int) <-chan time.Time

func viewMember(i int) string { return fmt.Sprintf("member-%03d", i) }

// readByView reads all members as vmesh does, and returns when all is read.
func readByView(ctx context.Context, configs []*rest.Config, services int) (awaiting, error) {
	v := discovery.New(nil)
	go func() { _ = v.Run(ctx) }()
	for i, config := range configs {
		v.Changed(members.Member{Name: viewMember(i), Mesh: "default", Discovered: true, Config: config})
	}
	for i := range configs {
		for r := v.Reading(viewMember(i)); !r.Synced || r.Services != services || r.Endpoints != services*viewEndpoints; r = v.Reading(viewMember(i)) {
			time.Sleep(time.Millisecond)
		}
	}
	return func(member, endpoints int) <-chan time.Time {
		seen := make(chan time.Time, 1)
		_, since := v.List("default", func(string) bool { return false })
		go func() {
			for {
				_, version, more, _ := v.Changes("default", since)
				since = version
				if s, found := v.Get("default", viewNamespace, viewService(0)); found && s.Clusters[member].Endpoints == int32(endpoints) {
					seen <- time.Now()
					return
				}
				<-more
			}
		}()
		return seen
	}, nil
}

// readByInformers does the same by shared informers, without a limit on requests.
func readByInformers(ctx context.Context, configs []*rest.Config, _ int) (awaiting, error) {
	type change struct{ member, endpoints int }
	changes := make(chan change, 100)
	for i, config := range configs {
		config = rest.CopyConfig(config)
		config.QPS = -1
		config.AcceptContentTypes, config.ContentType = kruntime.ContentTypeProtobuf, kruntime.ContentTypeProtobuf
		client, err := kubernetes.NewForConfig(config)
		if err != nil {
			return nil, err
		}
		partial, err := metadata.NewForConfig(config)
		if err != nil {
			return nil, err
		}
		factory := informers.NewSharedInformerFactory(client, 0)
		nodes := metadatainformer.NewSharedInformerFactory(partial, 0)
		factory.Core().V1().Services().Informer()
		if _, err := factory.Discovery().V1().EndpointSlices().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{UpdateFunc: func(_, obj any) {
			if s := obj.(*discoveryv1.EndpointSlice); s.Labels[discoveryv1.LabelServiceName] == viewService(0) {
				changes <- change{i, len(s.Endpoints)}
			}
		}}); err != nil {
			return nil, err
		}
		nodes.ForResource(corev1.SchemeGroupVersion.WithResource("nodes")).Informer()
		factory.Start(ctx.Done())
		nodes.Start(ctx.Done())
		defer factory.WaitForCacheSync(ctx.Done())
		defer nodes.WaitForCacheSync(ctx.Done())
	}
	return func(member, endpoints int) <-chan time.Time {
		seen := make(chan time.Time, 1)
		go func() {
			for c := range changes {
				if c == (change{member, endpoints}) {
					seen <- time.Now()
					return
				}
			}
		}()
		return seen
	}, nil
}

// lineProcess is a process of this program that answers lines with lines.
type lineProcess struct {
	cmd *exec.Cmd
	in  io.Writer
	out *bufio.Scanner
}

func startLines(ctx context.Context, args ...string) (*lineProcess, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := &lineProcess{cmd: exec.CommandContext(ctx, self, args...)}
	p.cmd.Stderr = os.Stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	p.out = bufio.NewScanner(out)
	return p, p.cmd.Start()
}

func (p *lineProcess) next() (string, error) {
	if !p.out.Scan() {
		return "", fmt.Errorf("%s has ended: %w", p.cmd.Args[1], p.cmd.Wait())
	}
	return p.out.Text(), nil
}

func (p *lineProcess) ask(format string, args ...any) (string, error) {
	if _, err := fmt.Fprintf(p.in, format+"\n", args...); err != nil {
		return "", err
	}
	return p.next()
}

func (p *lineProcess) stats(line string, err error) (s readerStats, _ error) {
	if err != nil {
		return s, err
	}
	return s, json.Unmarshal([]byte(line), &s)
}

func (p *lineProcess) stop() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait() // says that it was killed
}

// view measures what it costs to know the services of many members, and how soon changes are known.
func (b *bench) view(ctx context.Context) error {
	count, services := viewMembers, max(2, int(viewServices*min(1, b.options.scale)))
	file := filepath.Join(b.dir, "members.json")
	b.log("starting %d members of %d services", count, services)
	apis, err := startLines(ctx, "view-members", file, strconv.Itoa(count), strconv.Itoa(services))
	if err != nil {
		return err
	}
	defer apis.stop()
	if _, err := apis.next(); err != nil {
		return err
	}
	readers := []struct{ how, name string }{{"view", nameVmesh}}
	if b.options.peer {
		readers = append(readers, struct{ how, name string }{"informers", namePeer})
	}
	for range 3 {
		for _, r := range readers {
			if err := b.viewBy(ctx, apis, file, r.how, r.name, count, services); err != nil {
				return fmt.Errorf("%s: %w", r.how, err)
			}
		}
	}
	return nil
}

func (b *bench) viewBy(ctx context.Context, apis *lineProcess, file, how, name string, count, services int) error {
	reader, err := startLines(ctx, "view-reader", how, file, strconv.Itoa(services))
	if err != nil {
		return err
	}
	defer reader.stop()
	before, err := reader.stats(reader.next())
	if err != nil {
		return err
	}
	after, err := reader.stats(reader.next())
	if err != nil {
		return err
	}
	all := float64(count * services)
	b.putNamed("view.anon", name, after.Anon-before.Anon)
	b.putNamed("view.heap.service", name, (after.Heap-before.Heap)*(1<<10)/all)
	b.putNamed("view.heap.endpoint", name, (after.Heap-before.Heap)*(1<<20)/all/viewEndpoints)
	b.putNamed("view.complete", name, after.Complete)
	b.putNamed("view.complete.cpu", name, after.CPU-before.CPU)

	settled, err := reader.stats(reader.ask("stats"))
	if err != nil {
		return err
	}
	changes := viewChanges
	var latencies []float64
	for i := range changes {
		member, endpoints := i%count, 1+(i/count+1)%(viewEndpoints-1)
		if _, err := reader.ask("%d %d", member, endpoints); err != nil {
			return err
		}
		begun, err1 := apis.ask("%d %d", member, endpoints)
		seen, err2 := reader.next()
		from, err3 := strconv.ParseInt(begun, 10, 64)
		to, err4 := strconv.ParseInt(seen, 10, 64)
		if err := errors.Join(err1, err2, err3, err4); err != nil {
			return err
		}
		latencies = append(latencies, float64(to-from)/1e6)
	}
	end, err := reader.stats(reader.ask("stats"))
	if err != nil {
		return err
	}
	b.putNamed("view.change.p50", name, quantile(latencies, 0.5))
	b.putNamed("view.change.p99", name, quantile(latencies, 0.99))
	// The collection before the first figure is in it, and of no weight.
	b.putNamed("view.change.cpu", name, (end.CPU-settled.CPU)/float64(changes)*1000)
	for member := range count { // as it was, for the next
		if _, err := apis.ask("%d %d", member, viewEndpoints); err != nil {
			return err
		}
	}
	return nil
}
