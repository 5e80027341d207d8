// Package istio is the table of Istio's kinds: definitions, validation and wire
// form of everything that Istio's control plane reads as configuration. All of it
// comes from the Istio module itself, so that what is accepted here is what istiod
// accepts.
package istio

import (
	_ "embed"
	"fmt"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"

	"istio.io/istio/pkg/config/schema/collections"

	"github.com/vmesh-io/vmesh/pkg/apis/istio/internal/crds"
	"github.com/vmesh-io/vmesh/pkg/apis/kind"
)

//go:generate go run ./generate crds.zip

// packed are the definitions as the Istio module has them, made by go generate.
//
//go:embed crds.zip
var packed []byte

// Kinds are all kinds of the Istio module's Pilot collections, in the collections'
// order, in every version that their definitions serve. Their schemas are read
// when they are first needed.
func Kinds() ([]*kind.Kind, error) {
	archive, err := crds.Open(packed)
	if err != nil {
		return nil, err
	}
	heads, err := archive.Heads()
	if err != nil {
		return nil, err
	}
	byName := make(map[string]*apiextensionsv1.CustomResourceDefinition, len(heads))
	for _, head := range heads {
		byName[head.Name] = head
	}
	var kinds []*kind.Kind
	rules, plans := kind.NewRuleCache(), plans{}
	for _, s := range collections.Pilot.All() {
		head := byName[s.Plural()+"."+s.Group()]
		if head == nil {
			return nil, fmt.Errorf("the Istio module has no definition of %s", s.Kind())
		}
		r, err := newResource(s, plans)
		if err != nil {
			return nil, err
		}
		k, err := kind.New(head, kind.Hooks{
			Load:     func() (*apiextensionsv1.CustomResourceDefinition, error) { return archive.Load(head) },
			Validate: r.validate,
			Rules:    rules,
			Origin:   r,
		})
		if err != nil {
			return nil, err
		}
		kinds = append(kinds, k)
	}
	return kinds, nil
}
