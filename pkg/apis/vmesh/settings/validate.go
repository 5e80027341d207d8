package settings

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-multierror"
	networking "istio.io/api/networking/v1alpha3"
	"istio.io/istio/pkg/config"
	"istio.io/istio/pkg/config/validation"
	"istio.io/istio/pkg/config/validation/agent"
	"istio.io/istio/pkg/util/protomarshal"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/yaml"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

// Validate checks all of a mesh's spec that this package makes something of; old is what it
// was before, nil if it is new.
func Validate(meshName string, spec, old *v1alpha1.MeshSpec) (warnings []string, errs field.ErrorList) {
	path := field.NewPath("spec")
	if spec.Home != nil {
		w, e := validateHome(path.Child("home"), meshName, spec.Home)
		warnings, errs = append(warnings, w...), append(errs, e...)
	}
	if old != nil && old.Home != nil && (spec.Home == nil || spec.Home.VirtualCluster != old.Home.VirtualCluster || RootNamespace(spec) != RootNamespace(old)) {
		warnings = append(warnings, fmt.Sprintf("control planes that run with the kubeconfig of virtual cluster %s, in its namespace %s, lose the mesh's settings now, and fall back to Istio's defaults: stop them, or start them anew with the new home",
			old.Home.VirtualCluster, RootNamespace(old)))
	}
	for i, n := range spec.Networks {
		for j, g := range n.Gateways {
			if g.Address == "" {
				continue
			}
			if err := CheckGateway(g.Address, GatewayPort(&g)); err != nil {
				errs = append(errs, field.Invalid(path.Child("networks").Index(i).Child("gateways").Index(j).Child("address"), g.Address, strings.TrimPrefix(reason(err), "invalid network it: ")))
			}
		}
	}
	if spec.Locality != nil {
		errs = append(errs, validateLocality(path.Child("locality"), spec.Locality)...)
	}
	return warnings, errs
}

func validateHome(path *field.Path, meshName string, home *v1alpha1.MeshHome) (warnings []string, errs field.ErrorList) {
	for _, problem := range utilvalidation.IsDNS1123Label(home.VirtualCluster) {
		errs = append(errs, field.Invalid(path.Child("virtualCluster"), home.VirtualCluster, problem))
	}
	for i, address := range home.ConfigSources {
		at := path.Child("configSources").Index(i)
		if err := checkSource(address); err != nil {
			errs = append(errs, field.Invalid(at, address, err.Error()))
		} else if !namesMesh(address, meshName) {
			warnings = append(warnings, fmt.Sprintf("%s: vmesh does not serve mesh %s at %s: that takes a host name whose first label is %s%s, unless a relay of the mesh listens there", at, meshName, address, meshHost, meshName))
		}
	}
	for i, revision := range home.Revisions {
		if revision == "" {
			continue
		}
		for _, problem := range utilvalidation.IsDNS1123Label(revision) {
			errs = append(errs, field.Invalid(path.Child("revisions").Index(i), revision, problem))
		}
	}
	if home.MeshConfig != nil {
		errs = append(errs, validateMeshConfig(path.Child("meshConfig"), home.MeshConfig.Raw)...)
	}
	return warnings, errs
}

// validateMeshConfig has each setting parsed by itself, so that an error names it.
func validateMeshConfig(path *field.Path, raw []byte) (errs field.ErrorList) {
	var members map[string]json.RawMessage
	if err := json.Unmarshal(raw, &members); err != nil {
		return field.ErrorList{field.Invalid(path, string(raw), "must be an object with settings of Istio's MeshConfig")}
	}
	had := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(members)) {
		at, value := path.Child(name), members[name]
		known, err := settingName(name)
		if err != nil {
			errs = append(errs, field.Invalid(at, name, "is no setting of Istio's MeshConfig"))
			continue
		}
		if remedy, is := owned[known]; is {
			errs = append(errs, field.Forbidden(at, "is set by vmesh: "+remedy))
			continue
		}
		if other, twice := had[known]; twice {
			errs = append(errs, field.Invalid(at, name, "is the same setting as "+other+": give it once"))
			continue
		}
		had[known] = name
		one, err := yaml.Marshal(map[string]json.RawMessage{known: value})
		if err == nil {
			_, err = parse(one)
		}
		if err != nil {
			errs = append(errs, field.Invalid(at, short(value), reason(err)))
		}
	}
	if len(errs) > 0 {
		return errs
	}
	whole, err := yaml.Marshal(members)
	if err == nil {
		_, err = parse(whole)
	}
	if err != nil {
		errs = append(errs, field.Invalid(path, short(raw), reason(err)))
	}
	return errs
}

// validateLocality asks Istio, one field at a time, and of outlier detection what would be in
// the DestinationRule.
func validateLocality(path *field.Path, l *v1alpha1.MeshLocality) (errs field.ErrorList) {
	ask := func(at *field.Path, value any, one v1alpha1.MeshLocality) {
		data, err := yaml.Marshal(localityLB(&one))
		if err == nil {
			setting := &networking.LocalityLoadBalancerSetting{}
			if err = protomarshal.ApplyYAMLStrict(string(data), setting); err == nil {
				_, err = agent.ValidateLocalityLbSetting(setting, &networking.OutlierDetection{}).Unwrap()
			}
		}
		if err != nil {
			errs = append(errs, field.Invalid(at, value, reason(err)))
		}
	}
	for i, f := range l.Failover {
		ask(path.Child("failover").Index(i), f.From+" to "+f.To, v1alpha1.MeshLocality{Failover: []v1alpha1.MeshFailover{f}})
	}
	for i, d := range l.Distribute {
		ask(path.Child("distribute").Index(i), d.From, v1alpha1.MeshLocality{Distribute: []v1alpha1.MeshDistribute{d}})
	}
	if len(errs) == 0 && len(l.Distribute) > 1 {
		ask(path.Child("distribute"), len(l.Distribute), v1alpha1.MeshLocality{Distribute: l.Distribute})
	}
	for i, label := range l.FailoverPriority {
		name, _, _ := strings.Cut(label, "=")
		for _, problem := range utilvalidation.IsQualifiedName(name) {
			errs = append(errs, field.Invalid(path.Child("failoverPriority").Index(i), label, problem))
		}
	}
	o := l.OutlierDetection
	if o == nil {
		return errs
	}
	for name, d := range map[string]*time.Duration{"interval": duration(o.Interval), "baseEjectionTime": duration(o.BaseEjectionTime)} {
		if d != nil && *d < time.Millisecond {
			errs = append(errs, field.Invalid(path.Child("outlierDetection", name), d.String(), "must be at least 1ms"))
		}
	}
	if len(errs) > 0 {
		return errs
	}
	rule := &networking.DestinationRule{}
	data, err := yaml.Marshal(Failover(l))
	if err == nil {
		err = protomarshal.ApplyYAMLStrict(string(data), rule)
	}
	if err == nil {
		_, err = validation.ValidateDestinationRule(config.Config{Meta: config.Meta{Name: "it", Namespace: "it"}, Spec: rule})
	}
	if err != nil {
		errs = append(errs, field.Invalid(path.Child("outlierDetection"), "", reason(err)))
	}
	return errs
}

// reason is Istio's error on one line.
func reason(err error) string {
	var several *multierror.Error
	if errors.As(err, &several) {
		var all []string
		for _, one := range several.Errors {
			all = append(all, reason(one))
		}
		return strings.Join(all, "; ")
	}
	return strings.Join(strings.Fields(err.Error()), " ")
}

// short bounds what an error repeats.
func short(value []byte) string {
	const enough = 200
	if len(value) > enough {
		return string(value[:enough]) + "..."
	}
	return string(value)
}

func duration(d *metav1.Duration) *time.Duration {
	if d == nil {
		return nil
	}
	return &d.Duration
}
