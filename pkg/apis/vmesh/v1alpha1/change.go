package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// Change is one accepted write of an object of a virtual cluster: who changed what, when,
// and what the object was before and after. It is served in the virtual cluster, to those who
// may read the object, and cannot be written. Its name is the revision of the write, which
// is the resourceVersion that the object got by it. A Change is in the namespace of its object; those
// of a namespace are in it, and those of other objects without one in default.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Namespaced,path=changes,singular=change
// +kubebuilder:selectablefield:JSONPath=`.object.kind`
// +kubebuilder:selectablefield:JSONPath=`.object.name`
// +kubebuilder:selectablefield:JSONPath=`.user.name`
// +kubebuilder:selectablefield:JSONPath=`.operation`
type Change struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// When it was written, by the clock of the server that wrote it.
	Time metav1.MicroTime `json:"time"`
	// What was asked for: create, update, patch, apply, delete or deletecollection.
	Verb string `json:"verb"`
	// What became of the object: Create, Update or Delete.
	// +kubebuilder:validation:Enum=Create;Update;Delete
	Operation ChangeOperation `json:"operation"`
	// Who wrote.
	User ChangeUser `json:"user"`
	// Who acted as the user, if somebody did.
	// +optional
	Impersonator string `json:"impersonator,omitempty"`
	// The program, as it calls itself.
	// +optional
	UserAgent string `json:"userAgent,omitempty"`
	// The field manager that was asked for, or that follows from the program.
	// +optional
	FieldManager string `json:"fieldManager,omitempty"`
	// What was written.
	Object ChangedObject `json:"object"`
	// What is different, in short: the paths that differ, or created or deleted.
	// +optional
	What string `json:"what,omitempty"`
	// The object before, without its status and what the server keeps in its metadata.
	// Absent if there was none.
	// +optional
	// +kubebuilder:pruning:PreserveUnknownFields
	// +kubebuilder:validation:Type=object
	Before *runtime.RawExtension `json:"before,omitempty"`
	// The object after. Absent if there is none any more.
	// +optional
	// +kubebuilder:pruning:PreserveUnknownFields
	// +kubebuilder:validation:Type=object
	After *runtime.RawExtension `json:"after,omitempty"`
	// Why before and after are missing, if they are: then the change cannot be undone.
	// +optional
	Omitted string `json:"omitted,omitempty"`
}

// ChangeOperation is what became of an object.
type ChangeOperation string

// The operations.
const (
	ChangeCreate ChangeOperation = "Create"
	ChangeUpdate ChangeOperation = "Update"
	ChangeDelete ChangeOperation = "Delete"
)

// ChangeUser is who wrote.
type ChangeUser struct {
	// The user's name. What vmesh does by itself is system:vmesh's.
	Name string `json:"name"`
	// The user's groups.
	// +optional
	// +listType=atomic
	Groups []string `json:"groups,omitempty"`
}

// ChangedObject names an object.
type ChangedObject struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	// The resource, as in virtualservices.
	Resource string `json:"resource"`
	// +optional
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
	// +optional
	UID string `json:"uid,omitempty"`
	// The object's generation after the change.
	// +optional
	Generation int64 `json:"generation,omitempty"`
}

// ChangeList is a list of changes, the newest first.
//
// +kubebuilder:object:root=true
type ChangeList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Change `json:"items"`
}
