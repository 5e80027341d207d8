package codec

import (
	"bytes"
	"encoding/json"
	"io"
	"sync"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

// listChunk is how much of a list is encoded before it is written on: large enough
// to spare system calls, small enough that a list of any size costs no more memory.
const listChunk = 128 << 10

var buffers = sync.Pool{New: func() any {
	b := make([]byte, 0, 4<<10)
	return &b
}}

func getBuffer() *[]byte { return buffers.Get().(*[]byte) }

// putBuffer gives a buffer back, unless it has grown to what only a list needs.
func putBuffer(b *[]byte) {
	if cap(*b) <= 2*listChunk {
		buffers.Put(b)
	}
}

func (e *encoder) appendList(dst []byte, list *object.List) []byte {
	return list.AppendJSON(dst, e.version(list.APIVersion), itemKind(list), list.Kind)
}

func itemKind(list *object.List) string {
	if len(list.Items) == 0 {
		return ""
	}
	return list.Items[0].Kind
}

// stream writes a list in chunks.
func (e *encoder) stream(w io.Writer, list *object.List) error {
	buffer := getBuffer()
	defer putBuffer(buffer)
	apiVersion, kind := e.version(list.APIVersion), itemKind(list)

	dst := list.AppendHead((*buffer)[:0], apiVersion, list.Kind)
	for i := range list.Items {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = list.Items[i].AppendJSON(dst, apiVersion, kind)
		if len(dst) >= listChunk {
			if _, err := w.Write(dst); err != nil {
				return err
			}
			dst = dst[:0]
		}
	}
	dst = append(dst, "]}\n"...)
	*buffer = dst
	_, err := w.Write(dst)
	return err
}

func writeIndented(w io.Writer, data []byte) error {
	var out bytes.Buffer
	if err := json.Indent(&out, data, "", "  "); err != nil {
		return err
	}
	out.WriteByte('\n')
	_, err := out.WriteTo(w)
	return err
}
