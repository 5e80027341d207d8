package jsonscan_test

import (
	"bytes"
	"encoding/json"
	"math/big"
	"reflect"
	"testing"

	"github.com/vmesh-io/vmesh/pkg/apis/kind/jsonscan"
)

// tree reads a value as encoding/json would; ok is false where the cursor refuses.
func tree(c *jsonscan.Cursor) (v any, ok bool) {
	switch c.Peek() {
	case '{':
		m := map[string]any{}
		ok = c.Members(func(name []byte) bool {
			key := string(name)
			value, ok := tree(c)
			m[key] = value
			return ok
		})
		return m, ok
	case '[':
		items := []any{}
		ok = c.Items(func() bool {
			item, ok := tree(c)
			items = append(items, item)
			return ok
		})
		return items, ok
	case '"':
		return c.Text()
	case 't', 'f':
		return c.Boolean()
	case 'n':
		return nil, c.Null()
	}
	text, integer := c.Number()
	if text == nil {
		return nil, false
	}
	if _, isInt := new(big.Int).SetString(string(text), 10); isInt != integer {
		return nil, false
	}
	return json.Number(text), true
}

func read(data []byte) (any, bool) {
	c := jsonscan.New(data)
	v, ok := tree(c)
	return v, ok && c.AtEnd()
}

func TestCursor(t *testing.T) {
	for _, c := range []struct {
		name, data string
		ok         bool
	}{
		{"an object", ` { "a" : [ 1 , -2.5e+3 , true , false , null , "x" ] , "b":{} } `, true},
		{"escapes", `["\u00e4\n\"", "ä", {"\"k\"":0}]`, true},
		{"nothing", ``, false},
		{"an object without end", `{"a":1`, false},
		{"a list without comma", `[1 2]`, false},
		{"a comma too many", `[1,]`, false},
		{"a name without quotes", `{a:1}`, false},
		{"two values", `1 2`, false},
		{"a number with a zero in front", `01`, false},
		{"a number with a plus in front", `+1`, false},
		{"a number without digits after the point", `1.`, false},
		{"a number without exponent", `1e`, false},
		{"a minus alone", `-`, false},
		{"a word", `nul`, false},
		{"a string with a line break", "\"a\nb\"", false},
		{"a string without end", `"a\"`, false},
		{"a bad escape", `"\x"`, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, ok := read([]byte(c.data)); ok != c.ok {
				t.Errorf("taken: %v, want %v", ok, c.ok)
			}
			scan := jsonscan.New([]byte(c.data))
			if raw, ok := scan.Raw(); c.ok && (!ok || !scan.AtEnd() || len(raw) == 0) {
				t.Errorf("not skipped")
			}
		})
	}
}

func FuzzCursor(f *testing.F) {
	f.Add([]byte(`{"a":[1,-2.5e3,true,null,"x\u00e4"],"b":{"c":""}}`))
	f.Add([]byte("[\"\xff\", 0, -0.0E-1]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, ok := read(data)
		if !ok {
			return
		}
		if !json.Valid(data) {
			t.Fatal("what is no JSON was taken")
		}
		var want any
		decoder := json.NewDecoder(bytes.NewReader(data))
		decoder.UseNumber()
		if err := decoder.Decode(&want); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(want, got) {
			t.Fatalf("got %v, want %v", got, want)
		}
	})
}
