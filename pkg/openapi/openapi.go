// Package openapi serves what clients learn the API from: /openapi/v3 with one document
// for each group version, and /openapi/v2 with one for everything. A document is built
// when it is first asked for and kept as compressed bytes, never as a tree.
package openapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"sync"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/server/mux"
	"k8s.io/kube-openapi/pkg/handler"
	"k8s.io/kube-openapi/pkg/handler3"
	"k8s.io/kube-openapi/pkg/spec3"
	"k8s.io/kube-openapi/pkg/validation/spec"

	"github.com/vmesh-io/vmesh/pkg/apis/kind"
)

const (
	rootV2 = "/openapi/v2"
	rootV3 = "/openapi/v3"

	protobufV2 = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
	protobufV3 = "application/com.github.proto-openapi.spec.v3.v1.0+protobuf"
	// How older clients call them.
	protobufV2Old = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"
	protobufV3Old = "application/com.github.proto-openapi.spec.v3@v1.0+protobuf"
)

// Service answers for a set of kinds. It is safe for concurrent use.
type Service struct {
	v2       *document
	v3       map[string]*document // by path under /openapi/v3
	contents *document            // the list of v3 documents
}

// New makes the service of the kinds. Nothing is built yet.
func New(kinds []*kind.Kind) *Service {
	s := &Service{v3: map[string]*document{}}
	byPath := map[string][]served{}
	for _, k := range kinds {
		for _, version := range k.Versions() {
			path := pathOf(k.GVK(version).GroupVersion())
			byPath[path] = append(byPath[path], served{k, version})
		}
	}
	for path, kinds := range byPath {
		s.v3[path] = newDocument(func() ([]byte, error) { return buildV3(kinds) }, handler3.ToV3ProtoBinary, protobufV3, protobufV3Old)
	}
	s.v2 = newDocument(func() ([]byte, error) { return buildV2(kinds) }, handler.ToProtoBinary, protobufV2, protobufV2Old)
	s.contents = newDocument(s.listV3, nil)
	return s
}

// Install serves the kinds' descriptions on a mux.
func Install(m *mux.PathRecorderMux, kinds []*kind.Kind) { New(kinds).Install(m) }

// Install serves the descriptions on a mux.
func (s *Service) Install(m *mux.PathRecorderMux) {
	m.Handle(rootV2, s.v2)
	m.Handle(rootV3, s.contents)
	m.HandlePrefix(rootV3+"/", http.HandlerFunc(s.serveV3))
}

// serveV3 serves the document of a group version. A request that names a hash gets what
// has that hash, for good, or is sent to where the document is now.
func (s *Service) serveV3(w http.ResponseWriter, r *http.Request) {
	path := strings.Trim(strings.TrimPrefix(r.URL.Path, rootV3), "/")
	if path == "" {
		s.contents.ServeHTTP(w, r)
		return
	}
	d, ok := s.v3[path]
	if !ok {
		http.NotFound(w, r)
		return
	}
	hash := r.URL.Query().Get("hash")
	if hash == "" {
		d.ServeHTTP(w, r)
		return
	}
	current, err := d.hash()
	if err != nil {
		fail(w, err)
		return
	}
	if hash != current {
		http.Redirect(w, r, locate(path, current), http.StatusMovedPermanently)
		return
	}
	d.serve(w, r, "public, immutable, max-age=31536000")
}

func locate(path, hash string) string {
	return (&url.URL{Path: rootV3 + "/" + path, RawQuery: url.Values{"hash": {hash}}.Encode()}).String()
}

// listV3 lists the documents with their hashes, for which it has to build them.
func (s *Service) listV3() ([]byte, error) {
	var mu sync.Mutex
	var errs []error
	list := handler3.OpenAPIV3Discovery{Paths: map[string]handler3.OpenAPIV3DiscoveryGroupVersion{}}
	limit := make(chan struct{}, runtime.GOMAXPROCS(0))
	var wg sync.WaitGroup
	for path, d := range s.v3 {
		wg.Go(func() {
			limit <- struct{}{}
			hash, err := d.hash()
			<-limit
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs = append(errs, err)
				return
			}
			list.Paths[path] = handler3.OpenAPIV3DiscoveryGroupVersion{ServerRelativeURL: locate(path, hash)}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return json.Marshal(list)
}

// served is a kind in one of its versions.
type served struct {
	kind    *kind.Kind
	version string
}

func pathOf(gv schema.GroupVersion) string {
	if gv.Group == "" {
		return "api/" + gv.Version
	}
	return "apis/" + gv.String()
}

func info() *spec.Info {
	return &spec.Info{InfoProps: spec.InfoProps{Title: "Kubernetes", Version: "v1.37.2"}}
}

// buildV3 joins the descriptions of the kinds of one group version. What several of
// them refer to is the same in each.
func buildV3(kinds []served) ([]byte, error) {
	all := &spec3.OpenAPI{
		Version: "3.0.0", Info: info(), Paths: &spec3.Paths{Paths: map[string]*spec3.Path{}},
		Components: &spec3.Components{Schemas: map[string]*spec.Schema{}},
	}
	for _, s := range kinds {
		doc, err := s.kind.OpenAPIV3(s.version)
		if err != nil {
			return nil, err
		}
		for path, p := range doc.Paths.Paths {
			all.Paths.Paths[path] = p
		}
		for name, model := range doc.Components.Schemas {
			if all.Components.Schemas[name] == nil {
				all.Components.Schemas[name] = model
			}
		}
	}
	data, err := json.Marshal(all)
	if err != nil {
		return nil, fmt.Errorf("encoding the OpenAPI v3 document of %s: %w", kinds[0].kind.GVK(kinds[0].version).GroupVersion(), err)
	}
	return data, nil
}

// buildV2 joins the descriptions of all kinds. Versions of a kind come in the order of
// preference, kinds in that of the table, so that every process says the same.
func buildV2(kinds []*kind.Kind) ([]byte, error) {
	all := &spec.Swagger{SwaggerProps: spec.SwaggerProps{
		Swagger: "2.0", Info: info(), Paths: &spec.Paths{Paths: map[string]spec.PathItem{}}, Definitions: spec.Definitions{},
		Parameters: map[string]spec.Parameter{},
	}}
	for _, k := range kinds {
		for _, version := range slices.Clone(k.Versions()) {
			doc, err := k.OpenAPIV2(version)
			if err != nil {
				return nil, err
			}
			for path, p := range doc.Paths.Paths {
				all.Paths.Paths[path] = p
			}
			for name, parameter := range doc.Parameters {
				all.Parameters[name] = parameter
			}
			for name, definition := range doc.Definitions {
				if _, ok := all.Definitions[name]; !ok {
					all.Definitions[name] = definition
				}
			}
		}
	}
	data, err := all.MarshalJSON()
	if err != nil {
		return nil, fmt.Errorf("encoding the OpenAPI v2 document: %w", err)
	}
	return data, nil
}
