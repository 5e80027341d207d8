package openapi

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/munnerz/goautoneg"
	"k8s.io/klog/v2"
)

const jsonType = "application/json"

// document is served as JSON and, if it has an encoder for it, as protobuf. A failure
// to build it is not kept: the next request tries again.
type document struct {
	build    func() ([]byte, error)
	encode   func(json []byte) ([]byte, error)
	protobuf []string // names of the protobuf form, the one to answer with first

	mu   sync.Mutex
	etag string
	json []byte // compressed, as is proto
	prot []byte
}

func newDocument(build func() ([]byte, error), encode func([]byte) ([]byte, error), protobuf ...string) *document {
	return &document{build: build, encode: encode, protobuf: protobuf}
}

// hash tells contents apart.
func (d *document) hash() (string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, err := d.jsonLocked(); err != nil {
		return "", err
	}
	return d.etag, nil
}

// content gives the compressed form in a media type, and its hash.
func (d *document) content(mediaType string) ([]byte, string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	compressed, err := d.jsonLocked()
	if err != nil || mediaType == jsonType {
		return compressed, d.etag, err
	}
	if d.prot == nil {
		plain, err := decompress(compressed)
		if err != nil {
			return nil, "", err
		}
		encoded, err := d.encode(plain)
		if err != nil {
			return nil, "", fmt.Errorf("encoding as protobuf: %w", err)
		}
		if d.prot, err = compress(encoded); err != nil {
			return nil, "", err
		}
	}
	return d.prot, d.etag, nil
}

func (d *document) jsonLocked() ([]byte, error) {
	if d.json != nil {
		return d.json, nil
	}
	plain, err := d.build()
	if err != nil {
		return nil, err
	}
	compressed, err := compress(plain)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(plain)
	d.json, d.etag = compressed, strings.ToUpper(hex.EncodeToString(sum[:]))
	return d.json, nil
}

// ServeHTTP implements http.Handler.
func (d *document) ServeHTTP(w http.ResponseWriter, r *http.Request) { d.serve(w, r, "") }

func (d *document) serve(w http.ResponseWriter, r *http.Request, caching string) {
	mediaType := d.negotiate(r.Header.Get("Accept"))
	w.Header().Set("Vary", "Accept, Accept-Encoding")
	if mediaType == "" {
		w.WriteHeader(http.StatusNotAcceptable)
		return
	}
	content, etag, err := d.content(mediaType)
	if err != nil {
		fail(w, err)
		return
	}
	if acceptsGzip(r.Header.Get("Accept-Encoding")) {
		w.Header().Set("Content-Encoding", "gzip")
	} else if content, err = decompress(content); err != nil {
		fail(w, err)
		return
	}
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("Etag", strconv.Quote(etag))
	if caching != "" {
		w.Header().Set("Cache-Control", caching)
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
}

// negotiate picks the media type to answer with, none if nothing fits.
func (d *document) negotiate(accept string) string {
	if accept == "" {
		return jsonType
	}
	for _, clause := range goautoneg.ParseAccept(accept) {
		name := clause.Type + "/" + clause.SubType
		switch {
		case name == jsonType, name == "application/*", name == "*/*":
			return jsonType
		case slices.Contains(d.protobuf, name):
			return d.protobuf[0]
		}
	}
	return ""
}

func acceptsGzip(header string) bool {
	for _, coding := range strings.Split(header, ",") {
		name, parameters, _ := strings.Cut(strings.TrimSpace(coding), ";")
		if strings.TrimSpace(name) == "gzip" {
			q, weighted := strings.CutPrefix(strings.ReplaceAll(parameters, " ", ""), "q=")
			weight, err := strconv.ParseFloat(q, 64)
			return !weighted || err != nil || weight > 0
		}
	}
	return false
}

func fail(w http.ResponseWriter, err error) {
	klog.Background().Error(err, "describing the API")
	http.Error(w, "the description of the API cannot be made: "+err.Error(), http.StatusServiceUnavailable)
}

func compress(plain []byte) ([]byte, error) {
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	if _, err := z.Write(plain); err != nil {
		return nil, fmt.Errorf("compressing: %w", err)
	}
	if err := z.Close(); err != nil {
		return nil, fmt.Errorf("compressing: %w", err)
	}
	return bytes.Clone(out.Bytes()), nil
}

func decompress(compressed []byte) ([]byte, error) {
	z, err := gzip.NewReader(bytes.NewReader(compressed))
	if err != nil {
		return nil, fmt.Errorf("decompressing: %w", err)
	}
	plain, err := io.ReadAll(z)
	if err != nil {
		return nil, fmt.Errorf("decompressing: %w", err)
	}
	return plain, nil
}
