package oidc

import (
	"fmt"
	"os"
	"strings"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/apis/apiserver"
	"k8s.io/apiserver/pkg/apis/apiserver/install"
	"k8s.io/apiserver/pkg/apis/apiserver/validation"
	authenticationcel "k8s.io/apiserver/pkg/authentication/cel"

	"github.com/vmesh-io/vmesh/pkg/authn"
)

// decoder reads configurations, with every field known.
var decoder = func() runtime.Decoder {
	scheme := runtime.NewScheme()
	install.Install(scheme)
	return serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDecoder()
}()

// load reads and judges a configuration, and gives the bytes that it was read from. own
// is the URL of the root.
func load(file, own string) (*apiserver.AuthenticationConfiguration, string, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, "", err
	}
	config, err := parse(data, own)
	if err != nil {
		err = fmt.Errorf("%s: %w", file, err)
	}
	return config, string(data), err
}

func parse(data []byte, own string) (*apiserver.AuthenticationConfiguration, error) {
	obj, err := runtime.Decode(decoder, data)
	if err != nil {
		return nil, fmt.Errorf("it must be an AuthenticationConfiguration of apiserver.config.k8s.io/v1: %w", err)
	}
	config, ok := obj.(*apiserver.AuthenticationConfiguration)
	if !ok {
		return nil, fmt.Errorf("it must be an AuthenticationConfiguration of apiserver.config.k8s.io/v1, and is a %T", obj)
	}
	errs := validation.ValidateAuthenticationConfiguration(authenticationcel.NewDefaultCompiler(), config, []string{own})
	for i, jwt := range config.JWT {
		path := field.NewPath("jwt").Index(i)
		issuer := path.Child("issuer")
		if strings.HasPrefix(jwt.Issuer.URL, own+"/clusters/") {
			errs = append(errs, field.Invalid(issuer.Child("url"), jwt.Issuer.URL, "virtual clusters are issuers for themselves: their tokens are known without being listed here"))
		}
		if jwt.Issuer.EgressSelectorType != "" {
			errs = append(errs, field.Forbidden(issuer.Child("egressSelectorType"), "there is no egress selector here: leave it out"))
		}
		for j, extra := range jwt.ClaimMappings.Extra {
			domain, _, _ := strings.Cut(extra.Key, "/")
			if name := strings.TrimSuffix(authn.ExtraPrefix, "/"); domain == name || strings.HasSuffix(domain, "."+name) {
				errs = append(errs, field.Invalid(path.Child("claimMappings", "extra").Index(j).Child("key"), extra.Key, "keys of "+name+" are vmesh's own: choose another domain"))
			}
		}
	}
	return config, errs.ToAggregate()
}
