package openapi

import (
	"os"
	"testing"
	"time"

	"github.com/vmesh-io/vmesh/pkg/apis/builtin"
	"github.com/vmesh-io/vmesh/pkg/apis/istio"
)

func TestTiming(t *testing.T) {
	b, err := builtin.Kinds()
	if err != nil {
		t.Fatal(err)
	}
	i, err := istio.Kinds()
	if err != nil {
		t.Fatal(err)
	}
	s := New(append(b, i...))
	for p, d := range s.v3 {
		start := time.Now()
		if _, err := d.hash(); err != nil {
			t.Error(p, err)
		}
		t.Log(p, time.Since(start), len(d.json))
		if dir := os.Getenv("DUMP"); dir != "" {
			data, _ := decompress(d.json)
			os.WriteFile(dir+"/"+string(replace(p))+".json", data, 0o644)
		}
	}
	start := time.Now()
	if _, err := s.v2.hash(); err != nil {
		t.Error(err)
	}
	t.Log("v2", time.Since(start), len(s.v2.json))
	start = time.Now()
	c, _, err := s.v2.content(protobufV2)
	t.Log("v2 proto", time.Since(start), len(c), err)
	if dir := os.Getenv("DUMP"); dir != "" {
		data, _ := decompress(s.v2.json)
		os.WriteFile(dir+"/v2.json", data, 0o644)
	}
}

func replace(p string) []byte {
	b := []byte(p)
	for i := range b {
		if b[i] == '/' {
			b[i] = '_'
		}
	}
	return b
}
