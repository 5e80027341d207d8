package kind

import (
	"context"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

// ConvertToTable prints an Object or List in the columns of a version. An object
// that cannot be read is shown by its name alone: one such object must not hide the
// others.
func (k *Kind) ConvertToTable(_ context.Context, version string, obj, options runtime.Object) (*metav1.Table, error) {
	v := k.versions[version]
	if v == nil {
		return nil, fmt.Errorf("%s has no version %q", k, version)
	}
	printer := &tablePrinter{definitions: v.columns.definitions, row: v.columns.row}
	if k.Hooks.Row != nil {
		printer.definitions, printer.row = k.Hooks.Columns, k.Hooks.Row
	}
	o, ok := options.(*metav1.TableOptions)
	if !ok || o == nil || !o.NoHeaders {
		printer.table.ColumnDefinitions = printer.definitions
	}
	// The table's encoder knows no Objects, only their metadata and trees.
	printer.trees = ok && o != nil && o.IncludeObject == metav1.IncludeObject
	switch o := obj.(type) {
	case *object.Object:
		printer.table.ResourceVersion = o.ResourceVersion
		printer.add(o)
	case *object.List:
		printer.table.ListMeta = o.ListMeta
		printer.table.Rows = make([]metav1.TableRow, 0, len(o.Items))
		for i := range o.Items {
			printer.add(&o.Items[i])
		}
	default:
		return nil, fmt.Errorf("%T cannot be printed", obj)
	}
	return &printer.table, nil
}

type tablePrinter struct {
	definitions []metav1.TableColumnDefinition
	row         func(o *object.Object) ([]any, error)
	trees       bool
	table       metav1.Table
}

func (p *tablePrinter) add(o *object.Object) {
	cells, err := p.row(o)
	if err != nil {
		cells = make([]any, len(p.definitions))
		for i := range cells {
			cells[i] = "<unreadable>"
			if p.definitions[i].Format == "name" {
				cells[i] = o.Name
			}
		}
	}
	row := metav1.TableRow{Cells: cells, Object: runtime.RawExtension{Object: o}}
	if p.trees {
		if tree, err := o.Unstructured(); err == nil {
			row.Object.Object = &unstructured.Unstructured{Object: tree}
		}
	}
	p.table.Rows = append(p.table.Rows, row)
}
