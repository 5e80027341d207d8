package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/pmezard/go-difflib/difflib"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"sigs.k8s.io/yaml"
)

// writeDiff prints a unified diff of two objects as YAML, either of which may be nil.
func writeDiff(out io.Writer, name string, before, after map[string]any, color bool) error {
	from, to := "a/"+name, "b/"+name
	if before == nil {
		from = "/dev/null"
	}
	if after == nil {
		to = "/dev/null"
	}
	a, b := forReaders(before), forReaders(after)
	if apiequality.Semantic.DeepEqual(a, b) { // then it is what readers are spared that differs
		a, b = before, after
	}
	was, err := yamlLines(a)
	if err != nil {
		return err
	}
	is, err := yamlLines(b)
	if err != nil {
		return err
	}
	text, err := difflib.GetUnifiedDiffString(difflib.UnifiedDiff{A: was, B: is, FromFile: from, ToFile: to, Context: 3})
	if err != nil {
		return err
	}
	for line := range strings.Lines(text) {
		if color {
			line = coloredDiff(line)
		}
		if _, err := io.WriteString(out, line); err != nil {
			return err
		}
	}
	return nil
}

func coloredDiff(line string) string {
	code := ""
	switch {
	case strings.HasPrefix(line, "---"), strings.HasPrefix(line, "+++"):
		code = "1"
	case strings.HasPrefix(line, "@@"):
		code = "36"
	case strings.HasPrefix(line, "-"):
		code = "31"
	case strings.HasPrefix(line, "+"):
		code = "32"
	default:
		return line
	}
	return fmt.Sprintf("\033[%sm%s\033[0m\n", code, strings.TrimSuffix(line, "\n"))
}

func yamlLines(object map[string]any) ([]string, error) {
	if object == nil {
		return nil, nil
	}
	data, err := yaml.Marshal(object)
	if err != nil {
		return nil, err
	}
	return slices.Collect(strings.Lines(string(data))), nil
}

// forReaders is an object without what kubectl apply remembers of it, which says everything twice.
func forReaders(object map[string]any) map[string]any {
	metadata, _ := object["metadata"].(map[string]any)
	annotations, _ := metadata["annotations"].(map[string]any)
	if _, has := annotations[corev1.LastAppliedConfigAnnotation]; !has {
		return object
	}
	annotations = maps.Clone(annotations)
	delete(annotations, corev1.LastAppliedConfigAnnotation)
	metadata = maps.Clone(metadata)
	metadata["annotations"] = annotations
	if len(annotations) == 0 {
		delete(metadata, "annotations")
	}
	object = maps.Clone(object)
	object["metadata"] = metadata
	return object
}
