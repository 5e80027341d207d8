package parity

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/vmesh-io/vmesh/test/e2e/rawapi"
)

// answer is what is compared of a response: all of it, but for what no two servers share.
type answer struct {
	Status      int      `json:"status"`
	ContentType string   `json:"contentType,omitempty"`
	Warnings    []string `json:"warnings,omitempty"`
	Allow       string   `json:"allow,omitempty"`
	Body        any      `json:"body,omitempty"`
}

func normalize(r *rawapi.Response) answer {
	a := answer{Status: r.Status, ContentType: r.Header.Get("Content-Type"), Warnings: r.Header.Values("Warning"), Allow: r.Header.Get("Allow")}
	slices.Sort(a.Warnings)
	switch {
	case strings.HasPrefix(a.ContentType, "application/json"):
		a.Body = normalizeJSON(r.Body)
	case a.ContentType == "application/yaml":
		if data, err := yaml.YAMLToJSON(r.Body); err == nil {
			a.Body = normalizeJSON(data)
		}
	default:
		a.Body = string(r.Body)
	}
	return a
}

// normalizeJSON decodes a body; a watch's body is a list of its events.
func normalizeJSON(data []byte) any {
	decoder := json.NewDecoder(bytes.NewReader(data))
	var docs []any
	for decoder.More() {
		var doc any
		if err := decoder.Decode(&doc); err != nil {
			return fmt.Sprintf("broken JSON (%v): %s", err, data)
		}
		docs = append(docs, scrub(doc))
	}
	if len(docs) == 1 {
		return docs[0]
	}
	return docs
}

var (
	times  = regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$`)
	uids   = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`)
	ages   = regexp.MustCompile(`^(\d+[smh])+$|^<unknown>$`)
	record = regexp.MustCompile(`in record \(\d+\)`)
	random = regexp.MustCompile(`-[bcdfghjklmnpqrstvwxz2456789]{5}\b`)
	// Whole objects are quoted with their members in any order.
	quoted = regexp.MustCompile(`Invalid value: "\{\\"apiVersion.*\}"`)
	// What kube-apiserver adds to errors when it did not get to a schema's rules is for people.
	unchecked = regexp.MustCompile(`(?:\[(.*), |)<nil>: Invalid value: null: some validation rules were not checked[^\]]*?(?:\](.*)|$)`)
)

// scrub replaces what differs between any two servers: times, uids, revisions, generated names.
func scrub(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for key, value := range v {
			switch text, isText := value.(string); {
			case key == "continue" && text == "":
				delete(v, key) // lists of custom resources have it, those of Go types do not
			case isText && text != "" && (key == "resourceVersion" || key == "continue"):
				v[key] = "<" + key + ">"
			case key == "details":
				v[key] = scrubDetails(value)
			default:
				v[key] = scrub(value)
			}
		}
	case []any:
		for i := range v {
			v[i] = scrub(v[i])
		}
	case string:
		switch {
		case times.MatchString(v):
			return "<time>"
		case ages.MatchString(v):
			return "<age>"
		}
		for _, r := range []struct {
			pattern *regexp.Regexp
			with    string
		}{{uids, "<uid>"}, {record, "in record (<resourceVersion>)"}, {quoted, "Invalid value: <object>"}, {unchecked, "$1$2"}, {random, "-<random>"}} {
			v = r.pattern.ReplaceAllString(v, r.with)
		}
		return v
	}
	return v
}

// scrubDetails also sorts causes, whose order a map decides.
func scrubDetails(v any) any {
	v = scrub(v)
	if m, ok := v.(map[string]any); ok {
		if causes, ok := m["causes"].([]any); ok {
			causes = slices.DeleteFunc(causes, func(c any) bool { return strings.Contains(fmt.Sprint(c), "some validation rules were not checked") })
			m["causes"] = causes
			slices.SortFunc(causes, func(a, b any) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
		}
	}
	return v
}

// render shows an answer for a diff.
func render(a answer) string {
	data, err := yaml.Marshal(a)
	if err != nil {
		return err.Error()
	}
	return string(data)
}
