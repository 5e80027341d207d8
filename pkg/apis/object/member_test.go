package object

import (
	"reflect"
	"testing"
)

func TestAMemberIsSetInItsPlace(t *testing.T) {
	for _, c := range []struct{ name, body, member, want string }{
		{"alone", `{}`, "status", `"status":{"x":1}`},
		{"last", `{"spec":{"a":[1,"}"]}}`, "status", `"spec":{"a":[1,"}"]},"status":{"x":1}`},
		{"first", `{"spec":{},"status":2}`, "data", `"data":{"x":1},"spec":{},"status":2`},
		{"between", `{"spec":{},"webhooks":[]}`, "status", `"spec":{},"status":{"x":1},"webhooks":[]`},
		{"in place of the last", `{"spec":{},"status":{"y":[2]}}`, "status", `"spec":{},"status":{"x":1}`},
		{"in place of the first", `{"spec":{},"status":{"y":[2]}}`, "spec", `"spec":{"x":1},"status":{"y":[2]}`},
		{"in place of all", `{"spec":{}}`, "spec", `"spec":{"x":1}`},
		{"in place of the middle", `{"data":1,"spec":"s","status":null}`, "spec", `"data":1,"spec":{"x":1},"status":null`},
		{"with a key that is escaped", `{"a\"b":1}`, "a\"b", `"a\"b":{"x":1}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, withTree := range []bool{false, true} {
				o := &Object{}
				if err := o.UnmarshalJSON([]byte(c.body)); err != nil {
					t.Fatal(err)
				}
				content, err := o.Content()
				if err != nil {
					t.Fatal(err)
				}
				before := string(o.Body())
				shared := o.DeepCopy()
				if withTree {
					if err := o.SetContent(content); err != nil {
						t.Fatal(err)
					}
				}
				if err := o.SetMember(c.member, map[string]any{"x": int64(1)}); err != nil {
					t.Fatal(err)
				}
				if string(o.Body()) != c.want || o.HasContent() != withTree {
					t.Errorf("got %s", o.Body())
				}
				if string(shared.Body()) != before {
					t.Errorf("a body that is shared became %s", shared.Body())
				}
				if again, err := parseMembers(o.Body()); err != nil {
					t.Error(err)
				} else if tree, _ := o.Content(); !reflect.DeepEqual(again, tree) {
					t.Errorf("the tree is %v, the body %v", tree, again)
				}
			}
		})
	}
}
