// Package logical keeps the objects of many virtual clusters in one etcd and one
// watch cache per resource. Whoever reads or writes says in the context for which
// virtual cluster; nothing else reaches another one's objects.
package logical

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
)

// Root is the name of the cluster behind the unprefixed endpoint.
const Root = "root"

// ErrNoCluster is returned for a context that names no virtual cluster. There is no
// default: a forgotten name must not open another cluster.
var ErrNoCluster = errors.New("the request names no virtual cluster")

type contextKey int

const (
	clusterKey contextKey = iota
	allClustersKey
)

// WithCluster returns a context for requests of one virtual cluster. The name is not
// checked here but wherever it is used.
func WithCluster(ctx context.Context, name string) context.Context {
	return context.WithValue(ctx, clusterKey, name)
}

// Cluster returns the virtual cluster of a request, or ErrNoCluster, or an error for
// a name that cannot be one.
func Cluster(ctx context.Context) (string, error) {
	name, _ := ctx.Value(clusterKey).(string)
	if name == "" {
		return "", ErrNoCluster
	}
	if !validName(name) {
		return "", ValidName(name)
	}
	return name, nil
}

// WithAllClusters returns a context that may read the objects of every virtual
// cluster. It is for the process's own readers, never for a request; it does not
// permit writes.
func WithAllClusters(ctx context.Context) context.Context {
	return context.WithValue(ctx, allClustersKey, true)
}

func allClusters(ctx context.Context) bool {
	all, _ := ctx.Value(allClustersKey).(bool)
	return all
}

// ValidName tells why name cannot be a virtual cluster's: it must be a DNS label.
func ValidName(name string) error {
	if problems := validation.IsDNS1123Label(name); len(problems) > 0 {
		return fmt.Errorf("%q is not a virtual cluster's name: %s", name, strings.Join(problems, "; "))
	}
	return nil
}

// validName is ValidName for the hot path.
func validName(name string) bool {
	if len(name) == 0 || len(name) > validation.DNS1123LabelMaxLength {
		return false
	}
	for i := 0; i < len(name); i++ {
		c := name[i]
		alphanumeric := 'a' <= c && c <= 'z' || '0' <= c && c <= '9'
		if !alphanumeric && (c != '-' || i == 0 || i == len(name)-1) {
			return false
		}
	}
	return true
}
