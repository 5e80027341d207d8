package builtin

import (
	"encoding/json"
	"maps"
	"reflect"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// maxData is how much a config map or secret holds, in bytes.
const maxData = corev1.MaxSecretSize

func validateConfigMap(o, old *corev1.ConfigMap) field.ErrorList {
	var errs field.ErrorList
	if old != nil && old.Immutable != nil && *old.Immutable {
		errs = append(errs, kept("immutable", o.Immutable != nil && *o.Immutable)...)
		errs = append(errs, kept("data", reflect.DeepEqual(o.Data, old.Data))...)
		errs = append(errs, kept("binaryData", reflect.DeepEqual(o.BinaryData, old.BinaryData))...)
	}
	size := 0
	data, binary := field.NewPath("data"), field.NewPath("binaryData")
	for _, key := range slices.Sorted(maps.Keys(o.Data)) {
		errs = append(errs, dataKey(data, key)...)
		if _, twice := o.BinaryData[key]; twice {
			errs = append(errs, field.Invalid(data.Key(key), key, "duplicate of key present in binaryData"))
		}
		size += len(o.Data[key])
	}
	for _, key := range slices.Sorted(maps.Keys(o.BinaryData)) {
		errs = append(errs, dataKey(binary, key)...)
		size += len(o.BinaryData[key])
	}
	if size > maxData {
		errs = append(errs, field.TooLong(field.NewPath(""), "", maxData))
	}
	return errs
}

// kept is the error for a member of an immutable object that does not stay the same.
func kept(member string, same bool) field.ErrorList {
	if same {
		return nil
	}
	return field.ErrorList{field.Forbidden(field.NewPath(member), "field is immutable when `immutable` is set")}
}

func dataKey(path *field.Path, key string) field.ErrorList {
	var errs field.ErrorList
	for _, msg := range validation.IsConfigMapKey(key) {
		errs = append(errs, field.Invalid(path.Key(key), key, msg))
	}
	return errs
}

func validateSecret(o, old *corev1.Secret) field.ErrorList {
	var errs field.ErrorList
	if old != nil {
		errs = append(errs, apivalidation.ValidateImmutableField(o.Type, old.Type, field.NewPath("type"))...)
		if old.Immutable != nil && *old.Immutable {
			errs = append(errs, kept("immutable", o.Immutable != nil && *o.Immutable)...)
			errs = append(errs, kept("data", reflect.DeepEqual(o.Data, old.Data))...)
		}
	}
	data := field.NewPath("data")
	size := 0
	for _, key := range slices.Sorted(maps.Keys(o.Data)) {
		errs = append(errs, dataKey(data, key)...)
		size += len(o.Data[key])
	}
	if size > maxData {
		errs = append(errs, field.TooLong(data, "", maxData))
	}
	return append(errs, validateSecretType(o, data)...)
}

// warnOfSecret says what is not done here for a secret: nothing writes tokens that never
// end into it.
func warnOfSecret(o *corev1.Secret) []string {
	if o.Type != corev1.SecretTypeServiceAccountToken || len(o.Data[corev1.ServiceAccountTokenKey]) > 0 {
		return nil
	}
	return []string{"type: no token is put into secrets of type " + string(o.Type) + " here: ask for one that ends, by kubectl create token " +
		o.Annotations[corev1.ServiceAccountNameKey]}
}

// validateSecretType checks that a secret holds what its type promises.
func validateSecretType(o *corev1.Secret, data *field.Path) field.ErrorList {
	var errs field.ErrorList
	require := func(keys ...string) {
		for _, key := range keys {
			if _, ok := o.Data[key]; !ok {
				errs = append(errs, field.Required(data.Key(key), ""))
			}
		}
	}
	requireJSON := func(key string) {
		require(key)
		var members map[string]any
		if content, ok := o.Data[key]; ok && json.Unmarshal(content, &members) != nil {
			errs = append(errs, field.Invalid(data.Key(key), "<secret contents redacted>", "must be a JSON object"))
		}
	}
	switch o.Type {
	case corev1.SecretTypeServiceAccountToken:
		if o.Annotations[corev1.ServiceAccountNameKey] == "" {
			errs = append(errs, field.Required(field.NewPath("metadata", "annotations").Key(corev1.ServiceAccountNameKey), ""))
		}
	case corev1.SecretTypeDockercfg:
		requireJSON(corev1.DockerConfigKey)
	case corev1.SecretTypeDockerConfigJson:
		requireJSON(corev1.DockerConfigJsonKey)
	case corev1.SecretTypeBasicAuth:
		_, user := o.Data[corev1.BasicAuthUsernameKey]
		_, password := o.Data[corev1.BasicAuthPasswordKey]
		if !user && !password {
			require(corev1.BasicAuthUsernameKey, corev1.BasicAuthPasswordKey)
		}
	case corev1.SecretTypeSSHAuth:
		if len(o.Data[corev1.SSHAuthPrivateKey]) == 0 {
			errs = append(errs, field.Required(data.Key(corev1.SSHAuthPrivateKey), ""))
		}
	case corev1.SecretTypeTLS:
		require(corev1.TLSCertKey, corev1.TLSPrivateKeyKey)
	}
	return errs
}
