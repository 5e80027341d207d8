package kind

import (
	"context"
	"fmt"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/registry/customresource/tableconvertor"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/registry/rest"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

type tableColumns struct {
	convertor rest.TableConvertor
}

func newTableColumns(columns []apiextensionsv1.CustomResourceColumnDefinition) (tableColumns, error) {
	if len(columns) == 0 {
		columns = []apiextensionsv1.CustomResourceColumnDefinition{
			{Name: "Age", Type: "date", Description: metav1.ObjectMeta{}.SwaggerDoc()["creationTimestamp"], JSONPath: ".metadata.creationTimestamp"},
		}
	}
	c, err := tableconvertor.New(columns)
	return tableColumns{c}, err
}

// ConvertToTable prints an Object or List in the columns of a version.
func (k *Kind) ConvertToTable(ctx context.Context, version string, obj, options runtime.Object) (*metav1.Table, error) {
	v := k.versions[version]
	if v == nil {
		return nil, fmt.Errorf("%s has no version %q", k, version)
	}
	if k.Hooks.Row != nil {
		return k.rows(obj, options)
	}
	switch o := obj.(type) {
	case *object.Object:
		u, err := o.Unstructured()
		if err != nil {
			return nil, err
		}
		return v.table.convertor.ConvertToTable(ctx, &unstructured.Unstructured{Object: u}, options)
	case *object.List:
		list := &unstructured.UnstructuredList{}
		list.SetResourceVersion(o.ResourceVersion)
		list.SetContinue(o.Continue)
		list.SetRemainingItemCount(o.RemainingItemCount)
		for i := range o.Items {
			u, err := o.Items[i].Unstructured()
			if err != nil {
				return nil, err
			}
			list.Items = append(list.Items, unstructured.Unstructured{Object: u})
		}
		return v.table.convertor.ConvertToTable(ctx, list, options)
	}
	return nil, fmt.Errorf("%T cannot be printed", obj)
}

// rows prints by the kind's own hook. An object that cannot be read is shown by its
// name alone: one such object must not hide the others.
func (k *Kind) rows(obj, options runtime.Object) (*metav1.Table, error) {
	table := &metav1.Table{}
	if o, ok := options.(*metav1.TableOptions); !ok || !o.NoHeaders {
		table.ColumnDefinitions = k.Hooks.Columns
	}
	add := func(o *object.Object) {
		cells, err := k.Hooks.Row(o)
		if err != nil {
			cells = make([]any, len(k.Hooks.Columns))
			for i := range cells {
				cells[i] = "<unreadable>"
				if k.Hooks.Columns[i].Format == "name" {
					cells[i] = o.Name
				}
			}
		}
		table.Rows = append(table.Rows, metav1.TableRow{Cells: cells, Object: runtime.RawExtension{Object: o}})
	}
	switch o := obj.(type) {
	case *object.Object:
		table.ResourceVersion = o.ResourceVersion
		add(o)
	case *object.List:
		table.ListMeta = o.ListMeta
		for i := range o.Items {
			add(&o.Items[i])
		}
	default:
		return nil, fmt.Errorf("%T cannot be printed", obj)
	}
	return table, nil
}
