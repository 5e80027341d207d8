// Package crds packs CustomResourceDefinitions into a small archive from which
// their heads are read quickly and their schemas one kind at a time.
package crds

import (
	"archive/zip"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/yaml"
)

// Source is the definitions' file among the manifests of the Istio module.
const Source = "charts/base/files/crd-all.gen.yaml"

const (
	headFile    = "/head.json"
	schemasFile = "/schemas.json"
)

// schemas are those of one definition; versions of equal schemas share one.
type schemas struct {
	Schemas  []*apiextensionsv1.CustomResourceValidation `json:"schemas"`
	Versions []int                                       `json:"versions"` // by position in the definition
}

// Pack makes an archive of the definitions in a stream of YAML documents.
func Pack(documents []byte) ([]byte, error) {
	var out bytes.Buffer
	archive := zip.NewWriter(&out)
	decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(documents), 4096)
	for {
		crd := &apiextensionsv1.CustomResourceDefinition{}
		if err := decoder.Decode(crd); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, fmt.Errorf("reading definitions: %w", err)
		}
		if crd.Name == "" {
			continue
		}
		if err := packOne(archive, crd); err != nil {
			return nil, fmt.Errorf("packing %s: %w", crd.Name, err)
		}
	}
	if err := archive.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

func packOne(archive *zip.Writer, crd *apiextensionsv1.CustomResourceDefinition) error {
	var s schemas
	for i := range crd.Spec.Versions {
		v := &crd.Spec.Versions[i]
		at := -1
		for j, known := range s.Schemas {
			if equality.Semantic.DeepEqual(known, v.Schema) {
				at = j
			}
		}
		if at < 0 {
			at = len(s.Schemas)
			s.Schemas = append(s.Schemas, v.Schema)
		}
		s.Versions = append(s.Versions, at)
		v.Schema = nil
	}
	if err := add(archive, crd.Name+headFile, crd); err != nil {
		return err
	}
	return add(archive, crd.Name+schemasFile, &s)
}

func add(archive *zip.Writer, name string, v any) error {
	w, err := archive.Create(name)
	if err != nil {
		return err
	}
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = w.Write(data)
	return err
}

// Archive is a packed set of definitions. It is safe for concurrent use.
type Archive struct{ files *zip.Reader }

// Open opens what Pack made.
func Open(data []byte) (*Archive, error) {
	files, err := zip.NewReader(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		return nil, fmt.Errorf("opening the packed definitions: %w", err)
	}
	return &Archive{files}, nil
}

// Heads are all definitions without their schemas.
func (a *Archive) Heads() ([]*apiextensionsv1.CustomResourceDefinition, error) {
	var heads []*apiextensionsv1.CustomResourceDefinition
	for _, f := range a.files.File {
		if !strings.HasSuffix(f.Name, headFile) {
			continue
		}
		head := &apiextensionsv1.CustomResourceDefinition{}
		if err := a.read(f.Name, head); err != nil {
			return nil, err
		}
		heads = append(heads, head)
	}
	return heads, nil
}

// Load returns the whole definition that a head was taken from.
func (a *Archive) Load(head *apiextensionsv1.CustomResourceDefinition) (*apiextensionsv1.CustomResourceDefinition, error) {
	var s schemas
	if err := a.read(head.Name+schemasFile, &s); err != nil {
		return nil, err
	}
	crd := *head
	crd.Spec.Versions = make([]apiextensionsv1.CustomResourceDefinitionVersion, len(head.Spec.Versions))
	copy(crd.Spec.Versions, head.Spec.Versions)
	if len(s.Versions) != len(crd.Spec.Versions) {
		return nil, fmt.Errorf("%s has %d versions but schemas for %d", head.Name, len(crd.Spec.Versions), len(s.Versions))
	}
	for i, at := range s.Versions {
		crd.Spec.Versions[i].Schema = s.Schemas[at]
	}
	return &crd, nil
}

func (a *Archive) read(name string, v any) error {
	f, err := a.files.Open(name)
	if err != nil {
		return fmt.Errorf("reading the packed definitions: %w", err)
	}
	data, err := io.ReadAll(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("reading %s: %w", name, err)
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("decoding %s: %w", name, err)
	}
	return nil
}
