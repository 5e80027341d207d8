package main

import (
	"encoding/json"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/types/known/anypb"
)

func TestLoadObjectsAreOf1200Bytes(t *testing.T) {
	for _, index := range []int{0, 9999} {
		v := virtualService{"route", index}
		body := v.body(7, "")
		if len(body) < 1150 || len(body) > 1300 {
			t.Errorf("object %d has %d bytes", index, len(body))
		}
		var object struct {
			Metadata struct{ Name, Namespace, ResourceVersion string }
		}
		if err := json.Unmarshal(v.body(7, "42"), &object); err != nil {
			t.Fatal(err)
		}
		if got := object.Metadata; got.Name != v.name() || got.Namespace != v.namespace() || got.ResourceVersion != "42" {
			t.Errorf("metadata is %+v", got)
		}
	}
}

func TestLightCodecReadsAResponseWithoutItsResources(t *testing.T) {
	full := &discovery.DiscoveryResponse{
		VersionInfo: "v1", TypeUrl: virtualServiceType, Nonce: "n1",
		Resources: []*anypb.Any{{TypeUrl: "a", Value: make([]byte, 300)}, {TypeUrl: "b"}, {}},
	}
	codec := lightCodec{encoding.GetCodecV2(proto.Name)}
	data, err := codec.Marshal(full)
	if err != nil {
		t.Fatal(err)
	}
	whole := data.Materialize()
	for _, cut := range []int{0, 1, 5, len(whole) / 2, len(whole)} {
		var got response
		if err := codec.Unmarshal(mem.BufferSlice{mem.SliceBuffer(whole[:cut]), mem.SliceBuffer(whole[cut:])}, &got); err != nil {
			t.Fatalf("in buffers cut at %d: %v", cut, err)
		}
		if got.version != "v1" || got.typeURL != virtualServiceType || got.nonce != "n1" || got.resources != 3 || got.bytes != len(whole) {
			t.Errorf("in buffers cut at %d: got %+v", cut, got)
		}
	}
	if err := codec.Unmarshal(mem.BufferSlice{mem.SliceBuffer(whole[:len(whole)-1])}, &response{}); err == nil {
		t.Error("a response that ends early is not an error")
	}
}

func TestQuantile(t *testing.T) {
	for _, c := range []struct {
		name    string
		samples []float64
		q, want float64
	}{
		{"of one sample is the sample", []float64{3}, 0.99, 3},
		{"median lies between two", []float64{4, 2}, 0.5, 3},
		{"samples need no order", []float64{5, 1, 3}, 0.5, 3},
		{"highest", []float64{1, 2, 3}, 1, 3},
	} {
		if got := quantile(c.samples, c.q); got != c.want {
			t.Errorf("%s: got %v, want %v", c.name, got, c.want)
		}
	}
}

func TestParseRows(t *testing.T) {
	if got, err := parseRows("1, 12"); err != nil || len(got) != 2 || !got[1] || !got[12] {
		t.Errorf("got %v, %v", got, err)
	}
	if got, err := parseRows(""); err != nil || got != nil {
		t.Errorf("no rows: got %v, %v", got, err)
	}
	for _, bad := range []string{"0", "99", "x", "1,,2"} {
		if _, err := parseRows(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func TestResourceVersion(t *testing.T) {
	if got := resourceVersion([]byte(`{"metadata":{"name":"a","resourceVersion":"17","uid":"x"}}`)); got != "17" {
		t.Errorf("got %q", got)
	}
}
