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

// revisions numbers the resourceVersions of a case's objects in the order in which they
// are seen, so that a write which must not happen shows.
type revisions map[string]string

func (r revisions) name(resourceVersion string) string {
	if _, ok := r[resourceVersion]; !ok {
		r[resourceVersion] = fmt.Sprintf("<revision %d>", len(r)+1)
	}
	return r[resourceVersion]
}

// An alpha format that vmesh speaks and the peer, by default, does not.
var cborOffers = regexp.MustCompile(`,\s+application/(apply-patch\+)?cbor(-seq)?`)

func normalize(r *rawapi.Response, seen revisions) answer {
	a := answer{Status: r.Status, ContentType: r.Header.Get("Content-Type"), Warnings: r.Header.Values("Warning"), Allow: r.Header.Get("Allow")}
	slices.Sort(a.Warnings)
	switch {
	case strings.HasPrefix(a.ContentType, "application/json"):
		a.Body = normalizeJSON(r.Body, seen)
	case a.ContentType == "application/yaml":
		if data, err := yaml.YAMLToJSON(r.Body); err == nil {
			a.Body = normalizeJSON(data, seen)
		}
	default:
		a.Body = string(r.Body)
	}
	return a
}

// normalizeJSON decodes a body; a watch's body is a list of its events.
func normalizeJSON(data []byte, seen revisions) any {
	decoder := json.NewDecoder(bytes.NewReader(data))
	var docs []any
	for decoder.More() {
		var doc any
		if err := decoder.Decode(&doc); err != nil {
			return fmt.Sprintf("broken JSON (%v): %s", err, data)
		}
		docs = append(docs, scrub(doc, seen))
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
func scrub(v any, seen revisions) any {
	switch v := v.(type) {
	case map[string]any:
		scrubItems(v)
		scrubDistributed(v)
		for key, value := range v {
			switch text, isText := value.(string); {
			case key == "continue" && text == "":
				delete(v, key) // lists of custom resources have it, those of Go types do not
			case key == "continue":
				v[key] = "<continue>"
			case key == "resourceVersion" && isText && text != "" && v["uid"] != nil:
				v[key] = seen.name(text)
			case key == "resourceVersion" && isText && text != "":
				v[key] = "<resourceVersion>"
			default:
				v[key] = scrub(value, seen)
			}
		}
		if status, ok := v["f:status"].(map[string]any); ok {
			delete(status, ".") // who made the status: vmesh, when it put its condition there
		}
		if entries, ok := v["managedFields"].([]any); ok {
			sortByText(entries) // else by time, whose order within a second is chance
		}
		if causes, ok := v["causes"].([]any); ok {
			causes = slices.DeleteFunc(causes, func(c any) bool { return strings.Contains(fmt.Sprint(c), "some validation rules were not checked") })
			sortByText(causes)
			v["causes"] = causes
		}
		return v
	case []any:
		for i := range v {
			v[i] = scrub(v[i], seen)
		}
		return v
	case string:
		return scrubText(v)
	}
	return v
}

// scrubDistributed takes away the condition by which vmesh says whether control planes have
// an object, which no other server has.
func scrubDistributed(o map[string]any) {
	status, _ := o["status"].(map[string]any)
	conditions, ok := status["conditions"].([]any)
	if !ok {
		return
	}
	rest := slices.DeleteFunc(conditions, func(c any) bool {
		m, _ := c.(map[string]any)
		return m["type"] == "Distributed"
	})
	if len(rest) == len(conditions) {
		return
	}
	if status["conditions"] = rest; len(rest) == 0 {
		delete(status, "conditions")
	}
	if len(status) == 0 {
		delete(o, "status")
	}
}

// scrubItems takes from a list's items the type that the list has told already: lists of
// Go types do not repeat it.
func scrubItems(list map[string]any) {
	kind, _ := list["kind"].(string)
	items, _ := list["items"].([]any)
	for _, item := range items {
		if o, ok := item.(map[string]any); ok && o["kind"] == strings.TrimSuffix(kind, "List") && o["apiVersion"] == list["apiVersion"] {
			delete(o, "kind")
			delete(o, "apiVersion")
		}
	}
}

func scrubText(s string) string {
	switch {
	case times.MatchString(s):
		return "<time>"
	case ages.MatchString(s):
		return "<age>"
	}
	for _, r := range []struct {
		pattern *regexp.Regexp
		with    string
	}{
		{uids, "<uid>"}, {record, "in record (<resourceVersion>)"}, {quoted, "Invalid value: <object>"}, {unchecked, "$1$2"},
		{cborOffers, ""}, {random, "-<random>"},
	} {
		s = r.pattern.ReplaceAllString(s, r.with)
	}
	return s
}

func sortByText(list []any) {
	slices.SortFunc(list, func(a, b any) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
}

// render shows an answer for a diff.
func render(a answer) string {
	data, err := yaml.Marshal(a)
	if err != nil {
		return err.Error()
	}
	return string(data)
}
