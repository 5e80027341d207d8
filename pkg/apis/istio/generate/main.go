// Command generate writes Istio's definitions, as the Istio module embeds them, in
// the compact form that package istio reads at start.
package main

import (
	"fmt"
	"os"

	"github.com/vmesh-io/vmesh/pkg/apis/istio/internal/crds"
	"istio.io/istio/manifests"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: generate FILE")
		os.Exit(2)
	}
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(path string) error {
	source, err := manifests.FS.ReadFile(crds.Source)
	if err != nil {
		return err
	}
	packed, err := crds.Pack(source)
	if err != nil {
		return err
	}
	return os.WriteFile(path, packed, 0o644)
}
