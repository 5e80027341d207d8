package harness

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

// istiodNamespace is where istiod keeps its CA and its leader elections; it does not start without it.
const istiodNamespace = "istio-system"

// IstiodOptions says where an istiod gets its config from.
type IstiodOptions struct {
	// Dir takes the log and all that istiod writes. Required.
	Dir string
	// Binary is the istiod to run; built from its module when empty.
	Binary string
	// Kubeconfig is istiod's own Kubernetes API. It panics without one, whatever feeds its config. Required.
	Kubeconfig string
	// Home has istiod read its settings where the Mesh keeps them, in Kubeconfig's API, which is all that it is given then: no
	// XDSAddresses, and no file.
	Home bool
	// Revision is istiod's; empty for none.
	Revision string
	// XDSAddresses are host:port of MCP-over-xDS servers, each a config source of its own that istiod merges.
	XDSAddresses []string
	// WatchKubernetes makes istiod read its config from the CRDs of Kubeconfig's API, as it does when nothing is configured.
	WatchKubernetes bool
	// WithoutServices keeps that API's Services out of istiod's service registry, though istiod still watches them. Only
	// together with WatchKubernetes: otherwise istiod opens no Kubernetes client and panics.
	WithoutServices bool
	// Debounce is how long istiod waits for more changes before it pushes; zero leaves istiod's default of 100 ms.
	Debounce time.Duration
	// PodName is what istiod calls itself towards its config sources; "istiod-0" when empty.
	PodName string
	// ExtraArgs and ExtraEnv go to istiod last, so they win.
	ExtraArgs, ExtraEnv []string
}

// Istiod is a running istiod, with everything it serves on loopback.
type Istiod struct {
	*Process
	// GRPCAddress is the plaintext xDS endpoint for proxies. It and the others outlive a restart.
	GRPCAddress string
	// DebugURL is the base of the /debug pages, MetricsURL the page of metrics.
	DebugURL, MetricsURL string

	options IstiodOptions
	ports   []int
}

// StartIstiod starts an istiod and waits until it has read all its config sources and serves proxies.
func StartIstiod(ctx context.Context, options IstiodOptions) (*Istiod, error) {
	if options.Binary == "" {
		binary, err := Tool(ctx, "istiod")
		if err != nil {
			return nil, err
		}
		options.Binary = binary
	}
	ports, err := FreePorts(5)
	if err != nil {
		return nil, err
	}
	istiod := &Istiod{
		GRPCAddress: loopback(ports[1]), DebugURL: "http://" + loopback(ports[0]), MetricsURL: "http://" + loopback(ports[2]) + "/metrics",
		options: options, ports: ports,
	}
	if err := istiod.start(ctx); err != nil {
		return nil, err
	}
	return istiod, nil
}

// Restart stops istiod and starts it anew with the same options and ports.
func (i *Istiod) Restart(ctx context.Context) error {
	if err := i.Stop(ctx); err != nil {
		return err
	}
	return i.start(ctx)
}

func (i *Istiod) start(ctx context.Context) error {
	options := i.options
	dir, err := filepath.Abs(options.Dir)
	if err != nil {
		return err
	}
	kubeconfig, err := filepath.Abs(options.Kubeconfig)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := ensureNamespace(ctx, kubeconfig, istiodNamespace); err != nil {
		return err
	}
	args := []string{"discovery"}
	if !options.Home {
		meshConfig, err := options.meshConfig()
		if err != nil {
			return err
		}
		meshConfigFile := filepath.Join(dir, "mesh.json")
		if err := os.WriteFile(meshConfigFile, meshConfig, 0o644); err != nil {
			return err
		}
		args = append(args, "--meshConfig", meshConfigFile)
	}
	registries := "Kubernetes"
	if options.WithoutServices {
		registries = ""
	}
	cmd := exec.Command(options.Binary, append(append(args,
		"--kubeconfig", kubeconfig,
		"--registries="+registries,
		"--httpAddr", loopback(i.ports[0]),
		"--grpcAddr", i.GRPCAddress,
		"--secureGRPCAddr=",
		"--httpsAddr", loopback(i.ports[3]),
		"--monitoringAddr", loopback(i.ports[2]),
		"--ctrlz_address", "127.0.0.1",
		"--ctrlz_port", strconv.Itoa(i.ports[4]),
	), options.ExtraArgs...)...)
	cmd.Dir = dir // istiod looks for its certificates below ./etc and ./var
	cmd.Env = append(os.Environ(), "POD_NAMESPACE="+istiodNamespace, "POD_NAME="+cmp.Or(options.PodName, "istiod-0"))
	if options.Debounce > 0 {
		cmd.Env = append(cmd.Env, "PILOT_DEBOUNCE_AFTER="+options.Debounce.String())
	}
	if options.Revision != "" {
		cmd.Env = append(cmd.Env, "REVISION="+options.Revision)
	}
	cmd.Env = append(cmd.Env, options.ExtraEnv...)

	i.Process, err = StartProcess("istiod", filepath.Join(dir, "istiod.log"), cmd)
	if err != nil {
		return err
	}
	err = i.waitReady(ctx, func(ctx context.Context) error {
		// The gRPC port opens last. Asking /ready before would fill the end of the log, where the cause of a failure is.
		connection, err := new(net.Dialer).DialContext(ctx, "tcp", i.GRPCAddress)
		if err != nil {
			return err
		}
		defer connection.Close()
		_, err = get(ctx, http.DefaultClient, i.DebugURL+"/ready")
		return err
	})
	if err != nil {
		return errors.Join(err, i.Kill())
	}
	return nil
}

// meshConfig is istiod's own config file; it takes JSON as the YAML that JSON is.
func (o IstiodOptions) meshConfig() ([]byte, error) {
	type object = map[string]any
	var sources []object
	for _, address := range o.XDSAddresses {
		sources = append(sources, object{"address": "xds://" + address, "tlsSettings": object{"mode": "DISABLE"}})
	}
	if o.WatchKubernetes {
		sources = append(sources, object{"address": "k8s://"})
	}
	return json.Marshal(object{"configSources": sources})
}

// Debug returns one of the pages below /debug.
func (i *Istiod) Debug(ctx context.Context, page string) ([]byte, error) {
	return get(ctx, http.DefaultClient, i.DebugURL+"/debug/"+page)
}

// Configz returns the config that istiod holds, merged from all its sources, as Kubernetes objects.
func (i *Istiod) Configz(ctx context.Context) ([]unstructured.Unstructured, error) {
	body, err := get(ctx, http.DefaultClient, i.DebugURL+"/debug/configz")
	if err != nil {
		return nil, err
	}
	var objects []unstructured.Unstructured
	if err := json.Unmarshal(body, &objects); err != nil {
		return nil, fmt.Errorf("decoding configz: %w", err)
	}
	return objects, nil
}

func ensureNamespace(ctx context.Context, kubeconfig, name string) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	_, err = client.CoreV1().Namespaces().Create(ctx, namespace, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("creating namespace %s: %w", name, err)
	}
	return nil
}
