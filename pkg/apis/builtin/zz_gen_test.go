package builtin

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"sort"
	"strings"
	"testing"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	eventsv1 "k8s.io/api/events/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/kube-openapi/pkg/validation/spec"
)

func TestGen(t *testing.T) {
	ref := map[string]*spec.Schema{}
	files, _ := filepath.Glob("/tmp/builtin-ref/v3-*.json")
	for _, f := range files {
		data, _ := os.ReadFile(f)
		var doc struct {
			Components struct{ Schemas map[string]*spec.Schema }
		}
		if err := json.Unmarshal(data, &doc); err != nil {
			t.Fatal(err)
		}
		for k, v := range doc.Components.Schemas {
			ref[k] = v
		}
	}
	m := modelBuilder{facts: knownFacts(), models: map[string]*spec.Schema{}}
	for _, o := range []any{corev1.Namespace{}, corev1.ConfigMap{}, corev1.Secret{}, corev1.ServiceAccount{}, corev1.Service{}, corev1.Endpoints{}, corev1.Pod{}, corev1.Node{}, corev1.Event{},
		discoveryv1.EndpointSlice{}, eventsv1.Event{}, coordinationv1.Lease{}, admissionregistrationv1.MutatingWebhookConfiguration{}, admissionregistrationv1.ValidatingWebhookConfiguration{},
		networkingv1.Ingress{}, networkingv1.IngressClass{}, rbacv1.Role{}, rbacv1.RoleBinding{}, rbacv1.ClusterRole{}, rbacv1.ClusterRoleBinding{}, apiextensionsv1.CustomResourceDefinition{}} {
		m.add(reflect.TypeOf(o))
	}
	var out []string
	for _, name := range modelNames(m.models) {
		have, want := m.models[name], ref[name]
		if want == nil {
			fmt.Println("NOREF", name)
			continue
		}
		var facts []string
		if fmt.Sprint(have.Type, have.Format, len(have.OneOf)) != fmt.Sprint(want.Type, want.Format, len(want.OneOf)) {
			fmt.Println("TYPE", name, have.Type, have.Format, want.Type, want.Format)
		}
		if want.Extensions[extMapType] == "atomic" && have.Extensions[extMapType] != "atomic" {
			facts = append(facts, "atomic: true")
		}
		var fields []string
		var names []string
		for p := range want.Properties {
			names = append(names, p)
		}
		sort.Strings(names)
		for p := range have.Properties {
			if _, ok := want.Properties[p]; !ok {
				fmt.Println("EXTRA", name, p)
			}
		}
		for _, p := range names {
			hp, ok := have.Properties[p]
			wp := want.Properties[p]
			if !ok {
				fmt.Println("MISSING", name, p)
				continue
			}
			var ff []string
			for _, e := range []string{extPatchMergeKey, extPatchStrategy} {
				if fmt.Sprint(hp.Extensions[e]) != fmt.Sprint(wp.Extensions[e]) {
					fmt.Println("PATCH", name, p, e, hp.Extensions[e], wp.Extensions[e])
				}
			}
			if fmt.Sprint(hp.Type) != fmt.Sprint(wp.Type) || hp.Format != wp.Format {
				fmt.Println("PTYPE", name, p, hp.Type, wp.Type, hp.Format, wp.Format)
			}
			if fmt.Sprint(hp.Extensions[extListType], hp.Extensions[extListMapKeys]) != fmt.Sprint(wp.Extensions[extListType], wp.Extensions[extListMapKeys]) {
				switch wp.Extensions[extListType] {
				case "map":
					ks, _ := json.Marshal(wp.Extensions[extListMapKeys])
					ff = append(ff, "keys: []string{"+strings.Trim(string(ks), "[]")+"}")
				case "set":
					ff = append(ff, "set: true")
				case "atomic":
					ff = append(ff, "atomic: true")
				default:
					fmt.Println("LIST", name, p, wp.Extensions)
				}
			}
			if wp.Extensions[extMapType] == "atomic" && hp.Extensions[extMapType] != "atomic" {
				ff = append(ff, "atomic: true")
			}
			if slices.Contains(have.Required, p) && !slices.Contains(want.Required, p) {
				ff = append(ff, "optional: true")
			}
			if !slices.Contains(have.Required, p) && slices.Contains(want.Required, p) {
				ff = append(ff, "required: true")
			}
			if wp.Default != nil {
				d, _ := json.Marshal(wp.Default)
				switch string(d) {
				case `""`, `{}`, `0`, `false`:
				default:
					if fmt.Sprint(hp.Default) != fmt.Sprint(wp.Default) {
						ff = append(ff, "value: "+string(d))
					}
				}
			}
			if hp.Description != "" && !strings.HasPrefix(strings.TrimSpace(wp.Description), strings.TrimSpace(hp.Description)) && os.Getenv("DESC") != "" {
				fmt.Printf("DESC %s %s\n%s\n%s\n", name, p, hp.Description, wp.Description)
			}
			if len(ff) > 0 {
				fields = append(fields, fmt.Sprintf("\t\t%q: {%s},", p, strings.Join(ff, ", ")))
			}
		}
		if len(fields) > 0 {
			facts = append(facts, "fields: map[string]fieldFacts{\n"+strings.Join(fields, "\n")+"\n\t}")
		}
		if len(facts) > 0 {
			out = append(out, fmt.Sprintf("\t%q: {%s},", name, strings.Join(facts, ", ")))
		}
	}
	for _, n := range out {
		fmt.Println(n)
	}
}
