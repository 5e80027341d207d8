package release

import (
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"maps"
	"slices"
	"strings"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

// listPins tells which resources are pinned.
func (m *mesh) listPins(out *v1alpha1.MeshRolloutStatus) {
	if len(m.pins) == 0 {
		return
	}
	keys := slices.SortedFunc(maps.Keys(m.pins), func(a, b entryKey) int {
		return cmp.Or(cmp.Compare(a.kind, b.kind), cmp.Compare(a.name, b.name))
	})
	for _, key := range keys[:min(len(keys), maxPinned)] {
		namespace, name, _ := strings.Cut(key.name, "/")
		held := "Absent"
		if _, ok := m.contents[m.state.Head][key.kind].Get(key.name); ok {
			held = "Previous"
		}
		out.PinnedResources = append(out.PinnedResources, v1alpha1.PinnedResource{
			Kind: m.r.config.Store.kinds[key.kind].Name, Namespace: namespace, Name: name, Held: held,
		})
	}
}

func hash(text string) string {
	sum := sha256.Sum256([]byte(text))
	return base64.RawURLEncoding.EncodeToString(sum[:12])
}
