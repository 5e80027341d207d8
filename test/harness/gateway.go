package harness

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/vmesh-io/vmesh/test/traffic"
)

// gatewayEnv has a test's own binary be a gateway: what there is to build of one is in it already.
const gatewayEnv = "VMESH_TEST_GATEWAY"

// Gateway is a running east-west gateway.
type Gateway struct {
	*Process
	Host string
	Port int

	dir     string
	options traffic.GatewayOptions
}

// StartGateway starts an east-west gateway, on a free port of loopback unless the options say where, and waits until it listens. Only
// for tests whose TestMain is Main.
func StartGateway(ctx context.Context, dir string, options traffic.GatewayOptions) (*Gateway, error) {
	if options.Listen == "" {
		ports, err := FreePorts(1)
		if err != nil {
			return nil, err
		}
		options.Listen = loopback(ports[0])
	}
	address, err := net.ResolveTCPAddr("tcp", options.Listen)
	if err != nil {
		return nil, err
	}
	gateway := &Gateway{Host: address.IP.String(), Port: address.Port, dir: dir, options: options}
	return gateway, gateway.start(ctx)
}

// Restart stops the gateway, unless it has ended already, and starts it again where it was.
func (g *Gateway) Restart(ctx context.Context) error {
	if err := g.Stop(ctx); err != nil {
		return err
	}
	return g.start(ctx)
}

func (g *Gateway) start(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	encoded, err := json.Marshal(g.options)
	if err != nil {
		return err
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), gatewayEnv+"="+string(encoded))
	process, err := StartProcess("gateway", filepath.Join(g.dir, "gateway-"+g.options.Network+".log"), cmd)
	if err != nil {
		return err
	}
	g.Process = process
	err = g.waitReady(ctx, func(ctx context.Context) error {
		connection, err := new(net.Dialer).DialContext(ctx, "tcp", g.options.Listen)
		if err != nil {
			return err
		}
		return connection.Close()
	})
	if err != nil {
		return errors.Join(err, g.Kill())
	}
	return nil
}

// beGateway is a gateway's whole life, if this process is to be one.
func beGateway() {
	encoded, is := os.LookupEnv(gatewayEnv)
	if !is {
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	var options traffic.GatewayOptions
	err := json.Unmarshal([]byte(encoded), &options)
	if err == nil {
		err = traffic.RunGateway(ctx, options)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}
