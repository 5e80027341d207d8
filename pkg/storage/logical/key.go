package logical

import (
	"context"
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/api/validation/path"
	"k8s.io/apimachinery/pkg/runtime/schema"
	genericapirequest "k8s.io/apiserver/pkg/endpoints/request"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// Keys are
//
//	<prefix>/<group>/<resource>/<cluster>/[<namespace>/]<name>
//
// where the core group is called "core". The storage interface sees them without the
// prefix, which etcd3 adds.

// ResourcePrefix is the part of a key that names the resource: /<group>/<resource>.
func ResourcePrefix(gr schema.GroupResource) string {
	group := gr.Group
	if group == "" {
		group = "core"
	}
	return "/" + group + "/" + gr.Resource
}

// KeyRootFunc returns a genericregistry.Store.KeyRootFunc: the prefix of the
// context's virtual cluster and, if there is one, namespace. For a context without a
// virtual cluster it returns the empty key, which every storage operation refuses.
func KeyRootFunc(gr schema.GroupResource, namespaced bool) func(ctx context.Context) string {
	prefix := ResourcePrefix(gr)
	return func(ctx context.Context) string {
		cluster, err := Cluster(ctx)
		if err != nil {
			return ""
		}
		key := prefix + "/" + cluster
		if namespace := genericapirequest.NamespaceValue(ctx); namespaced && namespace != "" {
			if len(path.IsValidPathSegmentName(namespace)) > 0 {
				return ""
			}
			key += "/" + namespace
		}
		return key
	}
}

// KeyFunc returns a genericregistry.Store.KeyFunc: the key of one object of the
// context's virtual cluster and namespace.
func KeyFunc(gr schema.GroupResource, namespaced bool) func(ctx context.Context, name string) (string, error) {
	prefix := ResourcePrefix(gr)
	return func(ctx context.Context, name string) (string, error) {
		cluster, err := Cluster(ctx)
		if err != nil {
			return "", err
		}
		if name == "" {
			return "", apierrors.NewBadRequest("Name parameter required.")
		}
		if problems := path.IsValidPathSegmentName(name); len(problems) > 0 {
			return "", apierrors.NewBadRequest(fmt.Sprintf("Name parameter invalid: %q: %s", name, strings.Join(problems, ";")))
		}
		if !namespaced {
			return prefix + "/" + cluster + "/" + name, nil
		}
		namespace := genericapirequest.NamespaceValue(ctx)
		if namespace == "" {
			return "", apierrors.NewBadRequest("Namespace parameter required.")
		}
		if problems := path.IsValidPathSegmentName(namespace); len(problems) > 0 {
			return "", apierrors.NewBadRequest(fmt.Sprintf("Namespace parameter invalid: %q: %s", namespace, strings.Join(problems, ";")))
		}
		return prefix + "/" + cluster + "/" + namespace + "/" + name, nil
	}
}

// ParseKey takes a key apart. resourcePrefix is what stands before the virtual
// cluster, without a slash at its end.
func ParseKey(resourcePrefix, key string, namespaced bool) (cluster, namespace, name string, err error) {
	rest, ok := strings.CutPrefix(key, resourcePrefix+"/")
	if !ok {
		return "", "", "", fmt.Errorf("key %q is not below %s", key, resourcePrefix)
	}
	return parsePath(rest, namespaced)
}

// parsePath takes apart what follows the resource's prefix.
func parsePath(p string, namespaced bool) (cluster, namespace, name string, err error) {
	cluster, rest, _ := strings.Cut(p, "/")
	if !validName(cluster) {
		return "", "", "", fmt.Errorf("key ends in %q, where a virtual cluster's name is expected first", p)
	}
	if namespaced {
		namespace, rest, _ = strings.Cut(rest, "/")
		if namespace == "" {
			return "", "", "", fmt.Errorf("key ends in %q, where a namespace is expected second", p)
		}
	}
	if rest == "" || strings.Contains(rest, "/") {
		return "", "", "", fmt.Errorf("key ends in %q, which is not one object's", p)
	}
	return cluster, namespace, rest, nil
}

// joinPath is the inverse of parsePath.
func joinPath(cluster, namespace, name string) string {
	if namespace == "" {
		return cluster + "/" + name
	}
	return cluster + "/" + namespace + "/" + name
}

// keyCluster is the first segment of a key below resourcePrefix, and whether more
// follows it.
func keyCluster(resourcePrefix, key string) (cluster string, ok bool) {
	rest, ok := strings.CutPrefix(key, resourcePrefix)
	if !ok || !strings.HasPrefix(rest, "/") {
		return "", false
	}
	cluster, _, _ = strings.Cut(rest[1:], "/")
	return cluster, cluster != ""
}
