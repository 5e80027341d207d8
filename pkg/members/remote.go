package members

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

// What a Secret for control planes looks like.
const (
	remotePrefix       = "istio-remote-secret-"
	labelMultiCluster  = "istio/multiCluster"
	annotationMember   = "vmesh.io/member-cluster"
	annotationIstioFor = "networking.istio.io/cluster"
)

// RemoteSecretName is the name of the Secret by which control planes have access to a member.
func RemoteSecretName(member string) string { return remotePrefix + member }

func cutRemoteName(name string) (member string, ok bool) {
	member, ok = strings.CutPrefix(name, remotePrefix)
	return member, ok && member != ""
}

// isOurs says whether a Secret for control planes was written by vmesh: one of either mark is left
// if somebody has taken the other away.
func isOurs(labels, annotations map[string]string, member string) bool {
	return labels[v1alpha1.LabelManagedBy] == v1alpha1.ManagedBy && labels[labelMultiCluster] != "" || annotations[annotationMember] == member
}

// remoteSecret is the Secret by which control planes have access to a member.
func remoteSecret(namespace, member string, kubeconfig []byte) *corev1.Secret {
	return &corev1.Secret{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace, Name: RemoteSecretName(member),
			Labels:      map[string]string{labelMultiCluster: "true", v1alpha1.LabelManagedBy: v1alpha1.ManagedBy},
			Annotations: map[string]string{annotationMember: member, annotationIstioFor: member},
		},
		Type: corev1.SecretTypeOpaque,
		Data: map[string][]byte{member: kubeconfig},
	}
}

// errTaken says that a Secret of the name is somebody else's.
type errTaken struct{ at placement }

func (e errTaken) Error() string {
	return fmt.Sprintf("the Secret %s/%s of virtual cluster %s was not written by vmesh, and is left as it is: delete it, and vmesh writes its own", e.at.namespace, e.at.name, e.at.cluster)
}

// place writes the Secret by which the control planes of a home have access to a member.
func (k *Keeper) place(ctx context.Context, home, namespace, member string, kubeconfig []byte) error {
	want := remoteSecret(namespace, member, kubeconfig)
	has, err := k.config.Storage.Secret(ctx, home, namespace, want.Name, false)
	if err != nil {
		return err
	}
	if has == nil {
		return k.config.Storage.WriteSecret(ctx, home, want)
	}
	same := maps.EqualFunc(has.Data, want.Data, bytes.Equal)
	if !same && !isOurs(has.Labels, has.Annotations, member) {
		return errTaken{placement{home, namespace, want.Name}}
	}
	if same && contains(has.Labels, want.Labels) && contains(has.Annotations, want.Annotations) {
		return nil
	}
	next := has.DeepCopy()
	next.TypeMeta = want.TypeMeta
	next.Data = want.Data
	next.Labels, next.Annotations = merge(has.Labels, want.Labels), merge(has.Annotations, want.Annotations)
	return k.config.Storage.WriteSecret(ctx, home, next)
}

func contains(all, some map[string]string) bool {
	for k, v := range some {
		if has, ok := all[k]; !ok || has != v {
			return false
		}
	}
	return true
}

func merge(a, b map[string]string) map[string]string {
	out := maps.Clone(a)
	if out == nil {
		out = map[string]string{}
	}
	maps.Copy(out, b)
	return out
}

// takeBack deletes a Secret for control planes, if it is vmesh's.
func (k *Keeper) takeBack(ctx context.Context, at placement, member string) error {
	has, err := k.config.Storage.Secret(ctx, at.cluster, at.namespace, at.name, true)
	if err != nil || has == nil || !isOurs(has.Labels, has.Annotations, member) {
		return err
	}
	return k.config.Storage.DeleteSecret(ctx, at.cluster, has)
}

// takeAllBack deletes the Secrets for control planes of a member everywhere but at one place, which may be none.
func (k *Keeper) takeAllBack(ctx context.Context, member string, but placement) error {
	for _, at := range k.placedOf(member) {
		if at == but {
			continue
		}
		if err := k.takeBack(ctx, at, member); err != nil {
			return err
		}
	}
	return nil
}

// homeOf is where the control planes of a mesh look for access to members.
func homeOf(mesh *v1alpha1.Mesh) (cluster, namespace string) {
	namespace = mesh.Spec.RootNamespace
	if namespace == "" {
		namespace = "istio-system"
	}
	return mesh.Spec.Home.VirtualCluster, namespace
}
