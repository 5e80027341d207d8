// Package history says what a change of an object is, makes the records of changes, and
// keeps them within bounds. The storage writes a record in the transaction that writes the object.
package history

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"time"

	stdflate "compress/flate"

	"github.com/klauspost/compress/flate"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

// Record is one change as it is stored.
type Record struct {
	Head
	// Before and After are the object's JSON as Content makes it; empty where there was no
	// object, or none that was kept.
	Before, After []byte
}

// Head is what a record says besides the object's content.
type Head struct {
	Operation    string   `json:"o"`
	Verb         string   `json:"v,omitempty"`
	User         string   `json:"u,omitempty"`
	Groups       []string `json:"g,omitempty"`
	Impersonator string   `json:"i,omitempty"`
	UserAgent    string   `json:"a,omitempty"`
	FieldManager string   `json:"m,omitempty"`
	APIVersion   string   `json:"x"`
	Kind         string   `json:"k"`
	Namespace    string   `json:"ns,omitempty"`
	Name         string   `json:"n"`
	UID          string   `json:"id,omitempty"`
	Generation   int64    `json:"gen,omitempty"`
	// Micros is the time, in microseconds since 1970.
	Micros int64 `json:"t"`
	// Omitted says why the content was not kept, if it was not.
	Omitted string `json:"om,omitempty"`
}

// Time is when the change was written.
func (h *Head) Time() time.Time { return time.UnixMicro(h.Micros).UTC() }

// A stored record is a byte for its form, and
//
//	uvarint length | head as JSON | uvarint length | before | after
//
// which is deflated if that makes it shorter, with the dictionary of the form.
const (
	formPlain    = 1
	formDeflated = 2
)

// dictionary is what records have in common, the most frequent last. It must never change:
// it is part of the form.
var dictionary = []byte(`"ownerReferences":[{"apiVersion":"v1","kind":"Deployment","blockOwnerDeletion":true,"controller":true"finalizers":["` +
	`{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"RoleBinding","roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"` +
	`"subjects":[{"apiGroup":"rbac.authorization.k8s.io","kind":"Group","name":"{"apiVersion":"v1","kind":"ConfigMap","data":{"` +
	`{"apiVersion":"v1","kind":"Namespace","metadata":{"labels":{"istio-injection":"enabled","kubernetes.io/metadata.name":"` +
	`"spec":{"finalizers":["kubernetes"]}{"apiVersion":"v1","kind":"Service","spec":{"ports":[{"name":"http","port":80,"protocol":"TCP","targetPort":8080}],"selector":{"app":"` +
	`{"apiVersion":"security.istio.io/v1","kind":"PeerAuthentication","spec":{"mtls":{"mode":"STRICT"}}` +
	`{"apiVersion":"security.istio.io/v1","kind":"AuthorizationPolicy","spec":{"action":"ALLOW","rules":[{"from":[{"source":{"principals":["cluster.local/ns/default/sa/` +
	`"to":[{"operation":{"methods":["GET","POST"],"paths":["/*"]}}]}],"selector":{"matchLabels":{"app":"` +
	`{"apiVersion":"networking.istio.io/v1","kind":"ServiceEntry","spec":{"endpoints":[{"address":"location":"MESH_EXTERNAL","resolution":"DNS"` +
	`{"apiVersion":"networking.istio.io/v1","kind":"Gateway","spec":{"selector":{"istio":"ingressgateway"},"servers":[{"hosts":["*"],"port":{"name":"https","number":443,"protocol":"HTTPS"},"tls":{"credentialName":"mode":"SIMPLE"` +
	`{"apiVersion":"networking.istio.io/v1","kind":"DestinationRule","spec":{"host":"subsets":[{"labels":{"version":"v1"},"name":"v1"}],"trafficPolicy":{"connectionPool":{"http":{"outlierDetection":{"loadBalancer":{"simple":"LEAST_REQUEST"` +
	`"annotations":{"kubectl.kubernetes.io/last-applied-configuration":"{\"apiVersion\":\"networking.istio.io/v1\",\"kind\":\"VirtualService\",\"metadata\":{\"annotations\":{},\"name\":\"` +
	`\"namespace\":\"default\"},\"spec\":{\"hosts\":[\"` + `\"http\":[{\"route\":[{\"destination\":{\"host\":\"` +
	`"labels":{"app.kubernetes.io/managed-by":"Helm","app.kubernetes.io/name":"` +
	`{"o":"Delete","v":"delete","u":"system:vmesh","g":["{"o":"Update","v":"patch","u":"system:serviceaccount:default:","g":["system:serviceaccounts","` +
	`{"o":"Update","v":"apply","u":"admin","g":["{"o":"Create","v":"create","u":"admin","g":["system:masters","system:authenticated"],"a":"kubectl/v1.36.0 (linux/amd64) kubernetes/` +
	`"m":"kubectl-client-side-apply","x":"security.istio.io/v1","k":"AuthorizationPolicy","m":"kubectl","x":"networking.istio.io/v1","k":"VirtualService","ns":"default","n":"` +
	`"id":"","gen":1,"t":17` +
	`{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{"name":"","namespace":"default"},"spec":{"gateways":["mesh"],"hosts":["` +
	`"http":[{"match":[{"uri":{"prefix":"/"}}],"name":"retries":{"attempts":3},"timeout":"5s","route":[{"destination":{"host":".svc.cluster.local","port":{"number":80},"subset":"v1"},"weight":100}]}]}}`)

// deflateFrom is the size from which it is worth the while.
const deflateFrom = 128

// Encode makes the stored form.
func (r *Record) Encode() []byte {
	head, err := json.Marshal(&r.Head)
	if err != nil {
		panic("encoding the head of a record: " + err.Error()) // of strings and numbers
	}
	plain := make([]byte, 0, 1+2*binary.MaxVarintLen32+len(head)+len(r.Before)+len(r.After))
	plain = append(plain, formPlain)
	plain = binary.AppendUvarint(plain, uint64(len(head)))
	plain = append(plain, head...)
	plain = binary.AppendUvarint(plain, uint64(len(r.Before)))
	plain = append(plain, r.Before...)
	plain = append(plain, r.After...)
	if len(plain) < deflateFrom {
		return plain
	}
	var out bytes.Buffer
	out.Grow(len(plain)/2 + 64)
	out.WriteByte(formDeflated)
	if err := flate.StatelessDeflate(&out, plain[1:], true, dictionary); err != nil || out.Len() >= len(plain) {
		return plain
	}
	return out.Bytes()
}

// mostRecord is how large a record can be when it is inflated: an object before and after.
const mostRecord = 16 << 20

// Decode reads the stored form.
func Decode(data []byte) (*Record, error) {
	if len(data) == 0 {
		return nil, errors.New("the record is empty")
	}
	plain := data[1:]
	switch data[0] {
	case formPlain:
	case formDeflated:
		inflated, err := io.ReadAll(io.LimitReader(stdflate.NewReaderDict(bytes.NewReader(plain), dictionary), mostRecord+1))
		if err != nil {
			return nil, fmt.Errorf("inflating the record: %w", err)
		}
		if len(inflated) > mostRecord {
			return nil, fmt.Errorf("the record is larger than %d bytes", mostRecord)
		}
		plain = inflated
	default:
		return nil, fmt.Errorf("the record is of form %d, which is not known here: it was written by a newer server", data[0])
	}
	head, rest, err := cut(plain)
	if err != nil {
		return nil, err
	}
	r := &Record{}
	if err := json.Unmarshal(head, &r.Head); err != nil {
		return nil, fmt.Errorf("the head of the record: %w", err)
	}
	if r.Before, r.After, err = cut(rest); err != nil {
		return nil, err
	}
	for _, content := range [][]byte{r.Before, r.After} {
		if len(content) > 0 && !json.Valid(content) {
			return nil, errors.New("the content in the record is not JSON")
		}
	}
	return r, nil
}

// cut takes a length and as many bytes from the front.
func cut(data []byte) (first, rest []byte, err error) {
	length, n := binary.Uvarint(data)
	if n <= 0 || length > uint64(len(data)-n) {
		return nil, nil, errors.New("the record is cut off")
	}
	end := n + int(length)
	return data[n:end:end], data[end:], nil
}

// leaderAnnotation is where client-go's leader elections write, every two seconds, into a config map:
// an istiod that lives in a virtual cluster would fill its history by itself.
const leaderAnnotation = "control-plane.alpha.kubernetes.io/leader"

// Content is what a user wrote of an object, as canonical JSON: all but the status and
// what the server keeps in the metadata, and who is a leader.
func Content(o *object.Object) []byte {
	out := o.WithBody(o.BodyWithout("status"))
	m := &out.ObjectMeta
	m.UID, m.ResourceVersion, m.Generation, m.GenerateName, m.SelfLink = "", "", 0, "", ""
	m.CreationTimestamp.Reset()
	m.ManagedFields = nil
	if _, elects := m.Annotations[leaderAnnotation]; elects {
		m.Annotations = maps.Clone(m.Annotations)
		delete(m.Annotations, leaderAnnotation)
	}
	return out.AppendJSON(make([]byte, 0, 256+len(out.Body())), o.APIVersion, o.Kind)
}
