package main

import (
	"fmt"
)

// namespaces is over how many the objects are spread.
const namespaces = 50

const resourcePath = "/apis/networking.istio.io/v1/virtualservices"

// virtualService is one of the objects of the load, as a team would write it: 1.2 KB of JSON.
type virtualService struct {
	prefix string // of the name; "route" for those of the load
	index  int
}

func (v virtualService) namespace() string { return fmt.Sprintf("team-%02d", v.index%namespaces) }
func (v virtualService) name() string      { return fmt.Sprintf("%s-%05d", v.prefix, v.index) }

// collection is the path that it is created under, item its own.
func (v virtualService) collection() string {
	return "/apis/networking.istio.io/v1/namespaces/" + v.namespace() + "/virtualservices"
}
func (v virtualService) item() string { return v.collection() + "/" + v.name() }

// body is the object's JSON. Another revision is another weight and annotation; resourceVersion may be empty.
func (v virtualService) body(revision int, resourceVersion string) []byte {
	metadata := fmt.Sprintf(`"name":%q,"namespace":%q,"labels":{"app":"shop-%05d","team":%q},"annotations":{"bench.vmesh.io/revision":"%08d"}`,
		v.name(), v.namespace(), v.index, v.namespace(), revision)
	if resourceVersion != "" {
		metadata += fmt.Sprintf(`,"resourceVersion":%q`, resourceVersion)
	}
	host := fmt.Sprintf("%s-%05d.%s.svc.cluster.local", v.prefix, v.index, v.namespace())
	canary := revision % 100
	return fmt.Appendf(nil, `{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{%s},"spec":{`+
		`"hosts":[%[2]q,"%[3]s-%05[4]d.shop.example.com"],"gateways":["istio-ingress/public","mesh"],"exportTo":["."],"http":[`+
		`{"name":"beta","match":[{"headers":{"x-user-group":{"exact":"beta"},"x-client-version":{"prefix":"2."}},"uri":{"prefix":"/api/v1/orders"},"method":{"exact":"GET"}}],`+
		`"route":[{"destination":{"host":%[2]q,"subset":"v2","port":{"number":8080}},"headers":{"response":{"add":{"x-served-by":"canary"}}}}],`+
		`"timeout":"5s","retries":{"attempts":3,"perTryTimeout":"1500ms","retryOn":"5xx,reset,connect-failure"}},`+
		`{"name":"default","route":[{"destination":{"host":%[2]q,"subset":"v1","port":{"number":8080}},"weight":%[5]d},`+
		`{"destination":{"host":%[2]q,"subset":"v2","port":{"number":8080}},"weight":%[6]d}],`+
		`"timeout":"10s","retries":{"attempts":2,"perTryTimeout":"3s","retryOn":"gateway-error,connect-failure"},"corsPolicy":{"allowOrigins":[{"exact":"https://shop.example.com"}],"allowMethods":["GET","POST"],"maxAge":"24h"}}]}}`,
		metadata, host, v.prefix, v.index, 100-canary, canary)
}

func namespaceBody(index int) []byte {
	return fmt.Appendf(nil, `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"team-%02d"}}`, index)
}
