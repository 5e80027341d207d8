package traffic

import (
	_ "embed"
	"fmt"
)

// Target is the greeter service as a client dials it.
const Target = "greeter.demo.example:80"

// VersionHeader, with a version for its value, picks that version once ByHeader is applied.
const VersionHeader = "x-version"

//go:embed service.yaml
var service string

// Service is the config, in YAML, that makes two backends of versions v1 and v2 the subsets of one service: the namespace
// demo, a ServiceEntry and a DestinationRule.
func Service(v1, v2 *Backend) string { return fmt.Sprintf(service, v1.Port, v2.Port) }

// Weights is a VirtualService that splits the calls between the versions.
func Weights(v1, v2 int) string { return fmt.Sprintf(virtualService, weights(v1, v2)) }

// ByHeader is a VirtualService that sends calls with VersionHeader "v2" to v2 and splits all others.
func ByHeader(v1, v2 int) string {
	return fmt.Sprintf(virtualService, fmt.Sprintf(`  - match:
    - headers:
        %s:
          exact: v2
    route:
    - destination:
        host: greeter.demo.example
        subset: v2
`, VersionHeader)+weights(v1, v2))
}

const virtualService = `apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: greeter
  namespace: demo
spec:
  hosts:
  - greeter.demo.example
  http:
%s`

func weights(v1, v2 int) string {
	return fmt.Sprintf(`  - route:
    - destination:
        host: greeter.demo.example
        subset: v1
      weight: %d
    - destination:
        host: greeter.demo.example
        subset: v2
      weight: %d
`, v1, v2)
}
