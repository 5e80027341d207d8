package clusters

import (
	"fmt"
	"testing"

	"github.com/vmesh-io/vmesh/test/harness"
)

func TestAServiceOfSeveralMembersIsOne(t *testing.T) {
	ctx, ns := start(t)
	serve(ctx, t, shared.east, ns, "eu-1")
	serve(ctx, t, shared.west, ns, "eu-2")
	client := from(t, shared.east, ns, "eu-1")
	goes(ctx, t, "of two members", client, share{"east": 50, "west": 50})
	serve(ctx, t, shared.south, ns, "ap-1")
	goes(ctx, t, "of three members", client, share{"east": 33.3, "west": 33.3, "south": 33.3})
	goes(ctx, t, "wherever the caller is", from(t, shared.south, ns, "ap-1"), share{"east": 33.3, "west": 33.3, "south": 33.3})
	// By endpoints, and not by clusters.
	serve(ctx, t, shared.south, ns, "ap-1")
	goes(ctx, t, "of two endpoints in a member", client, share{"east": 25, "west": 25, "south": 50})
}

// nearest has endpoints that fail left out, without which Istio has no order of localities.
const nearest = `apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: greeter, namespace: %s}
spec:
  host: greeter.%[1]s.svc.cluster.local
  trafficPolicy:
    outlierDetection: {consecutive5xxErrors: 1, interval: 1s, baseEjectionTime: 5s, maxEjectionPercent: 100}
`

func TestCallsGoToTheNearestThatServes(t *testing.T) {
	ctx, ns := start(t)
	must(t, harness.Apply(ctx, shared.kubeconfig, fmt.Sprintf(nearest, ns)))
	east := serve(ctx, t, shared.east, ns, "eu-1")
	west := serve(ctx, t, shared.west, ns, "eu-2")
	south := serve(ctx, t, shared.south, ns, "ap-1")
	client := from(t, shared.east, ns, "eu-1")
	goes(ctx, t, "local first", client, share{"east": 100})
	goes(ctx, t, "local first in the south", from(t, shared.south, ns, "ap-1"), share{"south": 100})

	// Endpoints that vanish.
	must(t, east.SetReady(ctx, false))
	goes(ctx, t, "to the same region", client, share{"west": 100})
	must(t, west.SetReady(ctx, false))
	goes(ctx, t, "to another region", client, share{"south": 100})
	must(t, west.SetReady(ctx, true))
	goes(ctx, t, "back to the region", client, share{"west": 100})
	must(t, east.SetReady(ctx, true))
	goes(ctx, t, "back home", client, share{"east": 100})

	// Endpoints that fail, and nobody says so.
	must(t, east.StopServer())
	goes(ctx, t, "from one that fails to the same region", client, share{"west": 100})
	must(t, west.StopServer())
	goes(ctx, t, "from one that fails to another region", client, share{"south": 100})
	must(t, west.StartServer())
	goes(ctx, t, "back to one that serves again in the region", client, share{"west": 100})
	must(t, east.StartServer())
	goes(ctx, t, "back home to one that serves again", client, share{"east": 100})
	must(t, south.StopServer())
	goes(ctx, t, "of those that are far, nothing is noticed", client, share{"east": 100})
}
