package snapshot

import (
	"github.com/vmesh-io/vmesh/pkg/apis/istio"
	"github.com/vmesh-io/vmesh/pkg/apis/kind"
)

// IstioKinds makes the kinds of a snapshot of Istio's kinds, in their order.
func IstioKinds(kinds []*kind.Kind) ([]Kind, error) {
	out := make([]Kind, len(kinds))
	for i, k := range kinds {
		r, err := istio.ResourceOf(k)
		if err != nil {
			return nil, err
		}
		out[i] = Kind{
			Resource:      k.GroupResource(),
			Name:          k.GroupKind().Kind,
			TypeURL:       r.TypeURL(),
			MessageName:   r.MessageName(),
			AppendMessage: r.AppendMessage,
		}
	}
	return out, nil
}
