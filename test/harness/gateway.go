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
}

// StartGateway starts an east-west gateway, on a free port of loopback unless the options say where, and waits until it listens. Only
// for tests whose TestMain is Main.
func StartGateway(ctx context.Context, dir string, options traffic.GatewayOptions) (*Gateway, error) {
	gateway := &Gateway{Host: "127.0.0.1"}
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
	gateway.Host, gateway.Port = address.IP.String(), address.Port
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	encoded, err := json.Marshal(options)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), gatewayEnv+"="+string(encoded))
	if gateway.Process, err = StartProcess("gateway", filepath.Join(dir, "gateway-"+options.Network+".log"), cmd); err != nil {
		return nil, err
	}
	err = gateway.waitReady(ctx, func(ctx context.Context) error {
		connection, err := new(net.Dialer).DialContext(ctx, "tcp", options.Listen)
		if err != nil {
			return err
		}
		return connection.Close()
	})
	if err != nil {
		return nil, errors.Join(err, gateway.Kill())
	}
	return gateway, nil
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
