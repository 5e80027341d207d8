package history

import (
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/duration"

	"github.com/vmesh-io/vmesh/pkg/apis/kind"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
)

// Hooks are those of the kind.
func Hooks() kind.Hooks {
	column := func(name, format string, priority int32, description string) metav1.TableColumnDefinition {
		return metav1.TableColumnDefinition{Name: name, Type: "string", Format: format, Priority: priority, Description: description}
	}
	return kind.Hooks{
		Selectors: Selectors(),
		Columns: []metav1.TableColumnDefinition{
			column("Revision", "name", 0, "The revision of the write, which is the name of the change"),
			column("Age", "", 0, "How long ago it was"),
			column("User", "", 0, "Who wrote"),
			column("Verb", "", 0, "What was asked for"),
			column("Object", "", 0, "What was written"),
			column("What", "", 0, "What is different"),
			column("Time", "", 1, "When it was"),
			column("Impersonator", "", 1, "Who acted as the user"),
			column("Manager", "", 1, "The field manager"),
			column("User-Agent", "", 1, "The program"),
		},
		Row: func(o *object.Object) ([]any, error) {
			var c v1alpha1.Change
			if err := o.Into(&c); err != nil {
				return nil, err
			}
			return []any{
				o.Name, duration.HumanDuration(time.Since(c.Time.Time)), c.User.Name, c.Verb, strings.ToLower(c.Object.Kind) + "/" + c.Object.Name, c.What,
				c.Time.UTC().Format(time.RFC3339), orNone(c.Impersonator), orNone(c.FieldManager), orNone(c.UserAgent),
			}, nil
		},
	}
}

func orNone(s string) string {
	if s == "" {
		return "<none>"
	}
	return s
}
