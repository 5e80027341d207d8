package release

import (
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"slices"
	"strings"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

// listPins tells which resources are pinned.
func (m *mesh) listPins(out *v1alpha1.MeshRolloutStatus) {
	if len(m.pins) == 0 {
		return
	}
	var keys []entryKey
	for key, p := range m.pins {
		version := ""
		if e, ok := m.contents[m.state.Head][key.kind].Get(key.name); ok {
			version = e.Version()
		}
		if version != p.version { // what was changed back before the abort is as it would be
			keys = append(keys, key)
		}
	}
	slices.SortFunc(keys, func(a, b entryKey) int {
		return cmp.Or(cmp.Compare(a.kind, b.kind), cmp.Compare(a.name, b.name))
	})
	out.Pinned = int32(len(keys))
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
