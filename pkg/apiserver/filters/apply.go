package filters

import (
	"bytes"
	"io"
	"mime"
	"net/http"
	"net/url"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/serializer/cbor/direct"
	"k8s.io/apimachinery/pkg/types"
	genericfeatures "k8s.io/apiserver/pkg/features"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	kjson "sigs.k8s.io/json"
)

// WithFastApply turns the bodies of server-side applies that are JSON, as kubectl and
// client-go send them under the name of YAML, into CBOR. The handler reads such a body
// three times, and reading JSON as YAML is most of what an apply costs. Bodies that
// are not plain JSON, or have keys twice, go on as they are and are judged there.
func WithFastApply(handler http.Handler, maxBytes int64) http.Handler {
	if !utilfeature.DefaultFeatureGate.Enabled(genericfeatures.CBORServingAndStorage) {
		return handler
	}
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Method != http.MethodPatch || req.Body == nil {
			handler.ServeHTTP(w, req)
			return
		}
		if mediaType, _, err := mime.ParseMediaType(req.Header.Get("Content-Type")); err != nil || mediaType != string(types.ApplyYAMLPatchType) {
			handler.ServeHTTP(w, req)
			return
		}
		// One byte more than may be: the handler then refuses the body as too large.
		body, err := io.ReadAll(io.LimitReader(req.Body, maxBytes+1))
		out := *req
		out.Body = replay{io.MultiReader(bytes.NewReader(body), failing{err}, req.Body), req.Body}
		if encoded := jsonToCBOR(body); err == nil && encoded != nil {
			out.Header = req.Header.Clone()
			out.Header.Set("Content-Type", string(types.ApplyCBORPatchType))
			// Field validation of an apply is about keys that stand twice, which these do not:
			// fields that the schema does not have are refused in any case.
			out.URL = withoutFieldValidation(req.URL)
			out.Body = replay{bytes.NewReader(encoded), req.Body}
			out.ContentLength = int64(len(encoded))
		}
		handler.ServeHTTP(w, &out)
	})
}

// withoutFieldValidation is a URL whose query asks for none.
func withoutFieldValidation(u *url.URL) *url.URL {
	out, query := *u, u.Query()
	switch query.Get("fieldValidation") {
	case "", metav1.FieldValidationStrict, metav1.FieldValidationWarn, metav1.FieldValidationIgnore:
		query.Set("fieldValidation", metav1.FieldValidationIgnore)
		out.RawQuery = query.Encode()
	}
	return &out
}

// jsonToCBOR is nil for what is not a JSON object with distinct keys.
func jsonToCBOR(body []byte) []byte {
	if trimmed := bytes.TrimLeft(body, " \t\r\n"); len(trimmed) == 0 || trimmed[0] != '{' {
		return nil
	}
	tree := map[string]any{}
	if strict, err := kjson.UnmarshalStrict(body, &tree); err != nil || len(strict) > 0 {
		return nil
	}
	encoded, err := direct.Marshal(tree)
	if err != nil {
		return nil
	}
	return encoded
}

// replay reads what was read already, and closes what it was read from.
type replay struct {
	io.Reader
	io.Closer
}

// failing hands on the error that ended the first reading, if any.
type failing struct{ err error }

func (f failing) Read([]byte) (int, error) {
	if f.err != nil {
		return 0, f.err
	}
	return 0, io.EOF
}
