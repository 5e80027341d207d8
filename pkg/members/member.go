// Package members keeps the connections to member clusters: it reaches their APIs, watches
// their health, renews the access to them, and gives control planes theirs.
package members

import (
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

// Member is a member cluster as those who read it need it. It is never changed: what changes
// is told of with a new one.
type Member struct {
	Name, Mesh, Network string
	UID                 types.UID
	// Locality is where it is as far as its nodes do not say so.
	Locality v1alpha1.Locality
	// Drained and Discovered say whether it is out of traffic, and whether control planes read its services.
	Drained, Discovered bool
	// Config reaches its API; nil while nothing usable is known. It is the same pointer as long
	// as the access is the same.
	Config *rest.Config
	// AwaySince is since when its API does not answer; zero while it does.
	AwaySince time.Time
}

// Follower is told of members, one call at a time.
type Follower interface {
	// Changed tells of a member that is new, or of which something has changed.
	Changed(Member)
	// Gone tells that a member is none any more.
	Gone(name string)
}

// Reading is what a reader of a member's services knows of it.
type Reading struct {
	// Synced says whether all has been read at least once.
	Synced bool
	// Trouble is what keeps it from reading on; empty while it does.
	Trouble string
	// How many there are.
	Services, Endpoints, ReadyEndpoints, Nodes int
	// Localities are those of its nodes, as REGION/ZONE, sorted.
	Localities []string
	// Overlaps are the members of the same network with which it shares pod addresses, with an example.
	Overlaps map[string]string
}

// Reader reads the services of members.
type Reader interface {
	// Reading is what is known of a member now.
	Reading(name string) Reading
	// OnlyIn are the services that a member has ready endpoints of, and no other of its mesh has that is reachable and
	// not drained: how many, and the first of them, at most most, as NAMESPACE/NAME. It takes time by the number of services.
	OnlyIn(name string, most int) (services int, first []string)
}

// Address is one by which a service is reached from outside its cluster.
type Address struct {
	// Host is an IP address or a name.
	Host string
	// Ports are those that the service has.
	Ports []int32
}

// Gateways looks up services of members by which their network is reached.
type Gateways interface {
	// Addresses are those of a service: of its load balancer, or else its external IPs. found says
	// whether the member has the service, as far as is known.
	Addresses(member, namespace, name string) (addresses []Address, found bool)
}
