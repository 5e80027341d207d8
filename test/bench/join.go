package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/test/harness"
	"github.com/vmesh-io/vmesh/test/traffic"
)

// Of row 22: how often the member joins in each way, and once before that does not count.
const joinRounds = 10

// joining is a mesh of one member and another that comes and goes, both with a backend of one service, and who calls it.
type joining struct {
	binary   string
	vmesh    *harness.Vmesh
	home     kubernetes.Interface
	root     dynamic.Interface
	stays    *harness.Member
	comes    *harness.Member
	client   *traffic.Client
	stoppers []func(context.Context) error
}

func (j *joining) stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var errs []error
	for i := range j.stoppers {
		errs = append(errs, j.stoppers[len(j.stoppers)-1-i](ctx))
	}
	return errors.Join(errs...)
}

func (b *bench) startJoining(ctx context.Context, j *joining) error {
	dir := filepath.Join(b.dir, "join")
	started := func(stop func(context.Context) error) { j.stoppers = append(j.stoppers, stop) }
	etcd, err := harness.StartEtcd(ctx, harness.EtcdOptions{Dir: filepath.Join(dir, "etcd")})
	if err != nil {
		return err
	}
	started(etcd.Stop)
	if j.vmesh, err = harness.StartVmesh(ctx, harness.VmeshOptions{DataDir: filepath.Join(dir, "vmesh"), Binary: b.vmeshBinary}); err != nil {
		return err
	}
	started(j.vmesh.Stop)
	if err := j.vmesh.Home(ctx, "default", "default"); err != nil {
		return err
	}
	kubeconfig, err := j.vmesh.Kubeconfig(ctx, "default")
	if err != nil {
		return err
	}
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	if j.home, err = kubernetes.NewForConfig(config); err != nil {
		return err
	}
	if config, err = clientcmd.BuildConfigFromFlags("", j.vmesh.AdminKubeconfig); err != nil {
		return err
	}
	config.QPS = -1
	if j.root, err = dynamic.NewForConfig(config); err != nil {
		return err
	}
	for i, into := range []**harness.Member{&j.stays, &j.comes} {
		name := []string{"stays", "comes"}[i]
		m, err := harness.StartMember(ctx, harness.MemberOptions{Dir: filepath.Join(dir, name), EtcdURL: etcd.URL, Name: name, Index: i + 1, Binary: b.apiserverBinary})
		if err != nil {
			return err
		}
		started(m.Close)
		if err := m.AddService(ctx, "demo", "greeter"); err != nil {
			return err
		}
		if _, err := m.AddBackend(ctx, harness.BackendOptions{Namespace: "demo", Service: "greeter"}); err != nil {
			return err
		}
		*into = m
	}
	controllers, err := j.comes.StartControllers(ctx, "namespace-controller") // else the namespace of a join would not go
	if err != nil {
		return err
	}
	started(controllers.Stop)
	if err := j.does(ctx, "join", j.stays); err != nil {
		return err
	}
	istiod, err := harness.StartIstiod(ctx, harness.IstiodOptions{Dir: filepath.Join(dir, "istiod"), Kubeconfig: kubeconfig, Home: true})
	if err != nil {
		return err
	}
	started(istiod.Stop)
	j.client, err = traffic.DialPlaced(istiod.GRPCAddress, traffic.Place{Reach: traffic.Join(j.stays.Wires, j.comes.Wires)}, "greeter.demo.svc.cluster.local:80")
	if err != nil {
		return err
	}
	started(func(context.Context) error { return j.client.Close() })
	return nil
}

// does runs vmesh join or leave.
func (j *joining) does(ctx context.Context, command string, m *harness.Member, flags ...string) error {
	args := append([]string{command, m.Name, "--kubeconfig", m.Kubeconfig, "--root-kubeconfig", j.vmesh.AdminKubeconfig}, flags...)
	if out, err := exec.CommandContext(ctx, j.binary, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("vmesh %s: %w: %s", command, err, out)
	}
	return nil
}

// called is when the member that comes first answers a call, or, with gone, when so many calls in a row were answered by the other.
func (j *joining) called(ctx context.Context, gone bool) (time.Time, error) {
	const row = 200
	for others := 0; ; {
		answer, err := j.client.Ask(ctx, nil)
		if err != nil {
			return time.Time{}, fmt.Errorf("calling: %w", err)
		}
		switch comes := answer.Cluster == j.comes.Name; {
		case comes && !gone:
			return time.Now(), nil
		case comes:
			others = 0
		default:
			if others++; gone && others == row {
				return time.Now(), nil
			}
		}
		time.Sleep(time.Millisecond)
	}
}

// ready is when the MemberCluster says that it is.
func (j *joining) ready(ctx context.Context) (time.Time, error) {
	for {
		u, err := j.root.Resource(v1alpha1.GroupVersion.WithResource("memberclusters")).Get(ctx, j.comes.Name, metav1.GetOptions{})
		if ctx.Err() != nil {
			return time.Time{}, ctx.Err()
		}
		if err == nil { // until join has made it, there is none
			m := &v1alpha1.MemberCluster{}
			if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, m); err != nil {
				return time.Time{}, err
			}
			if meta.IsStatusConditionTrue(m.Status.Conditions, v1alpha1.ConditionReady) {
				return time.Now(), nil
			}
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// during runs something that lets the member come, and says when the member first answers a call.
func (j *joining) during(ctx context.Context, come func() error) (begun, called time.Time, err error) {
	type answered struct {
		at  time.Time
		err error
	}
	first := make(chan answered, 1)
	begun = time.Now()
	go func() {
		at, err := j.called(ctx, false)
		first <- answered{at, err}
	}()
	err = come()
	a := <-first
	return begun, a.at, errors.Join(err, a.err)
}

// join measures how soon a member that joins is called.
func (b *bench) join(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Minute)
	defer cancel()
	j := &joining{binary: b.vmeshBinary}
	defer func() { err = errors.Join(err, j.stop()) }()
	b.log("starting two members and an istiod")
	if err := b.startJoining(ctx, j); err != nil {
		return err
	}
	if _, err := j.called(ctx, true); err != nil {
		return err
	}
	for round := range joinRounds + 1 {
		if err := b.joinByVmesh(ctx, j, round > 0); err != nil {
			return fmt.Errorf("vmesh join: %w", err)
		}
		if b.options.peer {
			if err := b.joinByHand(ctx, j, round > 0); err != nil {
				return fmt.Errorf("by hand: %w", err)
			}
		}
	}
	return nil
}

func (b *bench) joinByVmesh(ctx context.Context, j *joining, counts bool) error {
	type was struct {
		at  time.Time
		err error
	}
	became := make(chan was, 1)
	var done time.Time
	begun, called, err := j.during(ctx, func() error {
		go func() {
			at, err := j.ready(ctx)
			became <- was{at, err}
		}()
		err := j.does(ctx, "join", j.comes, "--wait=false")
		done = time.Now()
		return err
	})
	if err != nil {
		return err
	}
	ready := <-became
	if ready.err != nil {
		return ready.err
	}
	if counts {
		b.putNamed("join.steps", nameVmesh, milliseconds(done.Sub(begun)))
		b.putNamed("join.ready", nameVmesh, milliseconds(ready.at.Sub(begun)))
		b.putNamed("join.called", nameVmesh, milliseconds(called.Sub(begun)))
		b.putNamed("join.rest", nameVmesh, milliseconds(called.Sub(done)))
	}
	left := time.Now()
	if err := j.does(ctx, "leave", j.comes, "--yes", "--drain-time", "1s"); err != nil {
		return err
	}
	if counts {
		b.putNamed("join.leave", nameVmesh, milliseconds(time.Since(left)))
	}
	_, err = j.called(ctx, true)
	return err
}

// joinByHand makes the Secret by which istiod reads a member, with an access that is there already.
func (b *bench) joinByHand(ctx context.Context, j *joining, counts bool) error {
	secret, err := j.comes.RemoteSecret()
	if err != nil {
		return err
	}
	secrets := j.home.CoreV1().Secrets(secret.Namespace)
	var done time.Time
	begun, called, err := j.during(ctx, func() error {
		_, err := secrets.Create(ctx, secret, metav1.CreateOptions{})
		done = time.Now()
		return err
	})
	if err != nil {
		return err
	}
	if counts {
		b.putNamed("join.called", namePeer, milliseconds(called.Sub(begun)))
		b.putNamed("join.rest", namePeer, milliseconds(called.Sub(done)))
	}
	if err := secrets.Delete(ctx, secret.Name, metav1.DeleteOptions{}); err != nil {
		return err
	}
	_, err = j.called(ctx, true)
	return err
}
