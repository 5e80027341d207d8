package traffic

import (
	"context"
	"fmt"
	"maps"
	"net"
	"strings"
)

// Wires are what a place reaches: the beginnings of pods' addresses, as "10.1.", and those of the loopback addresses where they
// really listen, as "127.1.". Kubernetes takes no loopback address for that of a pod, and so two networks may have the same
// addresses, each with pods of its own. What is outside of 10.0.0.0/8 is public: all reach it.
type Wires map[string]string

// Join is what places that share a network reach.
func Join(wires ...Wires) Wires {
	all := Wires{}
	for _, w := range wires {
		maps.Copy(all, w)
	}
	return all
}

// Resolve is where an address, with or without a port, really is. It fails for what is in another network.
func (w Wires) Resolve(address string) (string, error) {
	for pods, loopback := range w {
		if rest, found := strings.CutPrefix(address, pods); found {
			return loopback + rest, nil
		}
	}
	if strings.HasPrefix(address, "10.") {
		return "", fmt.Errorf("no route to %s: it is in another network", address)
	}
	return address, nil
}

// Dial connects to an address, if it is one that the place reaches.
func (w Wires) Dial(ctx context.Context, address string) (net.Conn, error) {
	real, err := w.Resolve(address)
	if err != nil {
		return nil, err
	}
	return new(net.Dialer).DialContext(ctx, "tcp", real)
}
