package istio

import (
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

func TestAConditionIsSetAmongOthers(t *testing.T) {
	now := time.Date(2026, 5, 6, 7, 8, 9, 0, time.UTC)
	const set = `{"lastTransitionTime":"2026-05-06T07:08:09Z","message":"m","observedGeneration":4,"reason":"R","status":"True","type":"Distributed"}`
	c := Condition{Status: metav1.ConditionTrue, Reason: "R", Message: "m", ObservedGeneration: 4}
	for _, test := range []struct {
		name, status, want string
		condition          *Condition
	}{
		{"the first", ``, `"spec":{},"status":{"conditions":[` + set + `]}`, &c},
		{"beside another", `,"status":{"conditions":[{"type":"Reconciled"}],"x":1}`, `"spec":{},"status":{"conditions":[{"type":"Reconciled"},` + set + `],"x":1}`, &c},
		{"again", `,"status":{"conditions":[` + set + `]}`, `"spec":{},"status":{"conditions":[` + set + `]}`, &c},
		{"of the same status since then", `,"status":{"conditions":[{"type":"Distributed","status":"True","lastTransitionTime":"2026-05-06T07:08:09Z","message":"old","observedGeneration":"3"}]}`,
			`"spec":{},"status":{"conditions":[` + set + `]}`, &Condition{Status: metav1.ConditionTrue, Reason: "R", Message: "m", ObservedGeneration: 4}},
		{"away", `,"status":{"conditions":[` + set + `],"x":1}`, `"spec":{},"status":{"x":1}`, nil},
		{"away where there is none", `,"status":{"conditions":[]}`, `"spec":{},"status":{"conditions":[]}`, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			o := &object.Object{}
			if err := o.UnmarshalJSON([]byte(`{"metadata":{"name":"x"},"spec":{}` + test.status + `}`)); err != nil {
				t.Fatal(err)
			}
			at := now
			if test.name == "again" || test.name == "of the same status since then" {
				at = now.Add(time.Hour)
			}
			if err := SetCondition(o, ConditionDistributed, test.condition, at); err != nil {
				t.Fatal(err)
			}
			if string(o.Body()) != test.want {
				t.Errorf("got  %s\nwant %s", o.Body(), test.want)
			}
			got, has := GetCondition(o, ConditionDistributed)
			if has != (test.condition != nil) || has && (!got.Is(*test.condition) || !got.LastTransitionTime.Equal(now)) {
				t.Errorf("read as %v", got)
			}
		})
	}
}

func TestAStatusOfAnotherFormHasNoConditions(t *testing.T) {
	for _, status := range []string{`1`, `{"conditions":{"Distributed":1}}`, `"Distributed"`} {
		o := &object.Object{}
		if err := o.UnmarshalJSON([]byte(`{"metadata":{"name":"x"},"status":` + status + `}`)); err != nil {
			t.Fatal(err)
		}
		before := string(o.Body())
		if _, has := GetCondition(o, ConditionDistributed); has {
			t.Errorf("%s has one", status)
		}
		if err := SetCondition(o, ConditionDistributed, &Condition{}, time.Now()); err == nil || string(o.Body()) != before {
			t.Errorf("%s became %s, %v", status, o.Body(), err)
		}
	}
}
