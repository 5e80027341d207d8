package apiserver

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/endpoints/handlers/responsewriters"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// RewritePath is where the root takes orders to rewrite a part of what is stored, by
// POST. The query says what: virtualCluster, resource (RESOURCE or RESOURCE.GROUP, several
// times), and continue, which is the answer's to the part before. The answer is a Rewrite.
const RewritePath = "/storage/rewrite"

const (
	// rewriteLimit and rewriteTime bound a part: then the client hears of progress, and can
	// go away without losing any.
	rewriteLimit = 1000
	rewriteTime  = 2 * time.Second
)

// Rewrite is what became of a part of what is stored.
type Rewrite struct {
	// Total is how many objects there are to look at; it is in the first answer.
	Total *int64 `json:"total,omitempty"`
	// Rewritten objects are now stored as new ones are; Current ones were already.
	Rewritten int `json:"rewritten"`
	Current   int `json:"current"`
	// Unreadable objects cannot be decrypted, and stay as they are.
	Unreadable []UnreadableObject `json:"unreadable,omitempty"`
	// Continue goes on with the next part. It is empty when all is done.
	Continue string `json:"continue,omitempty"`
}

// UnreadableObject is an object that cannot be decrypted.
type UnreadableObject struct {
	VirtualCluster string `json:"virtualCluster"`
	Resource       string `json:"resource"`
	// Object is NAMESPACE/NAME, or NAME.
	Object string `json:"object"`
	Reason string `json:"reason"`
}

// serveRewrite rewrites a part of what is stored.
func (s *Server) serveRewrite(w http.ResponseWriter, req *http.Request) {
	answer, err := s.rewrite(req)
	if err != nil {
		responsewriters.ErrorNegotiated(err, s.root.server.Serializer, schema.GroupVersion{}, w, req)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(answer) // the caller has gone
}

func (s *Server) rewrite(req *http.Request) (*Rewrite, error) {
	ctx := req.Context()
	if req.Method != http.MethodPost {
		return nil, apierrors.NewMethodNotSupported(schema.GroupResource{Resource: "storage"}, strings.ToLower(req.Method))
	}
	order, err := s.readRewrite(req.URL.Query())
	if err != nil {
		return nil, err
	}
	if order.Cluster != "" && order.Cluster != logical.Root {
		exists, _, _, err := s.clusters.State(ctx, order.Cluster)
		if err != nil {
			return nil, err
		}
		if !exists {
			return nil, apierrors.NewNotFound(v1alpha1.GroupVersion.WithResource("virtualclusters").GroupResource(), order.Cluster)
		}
	}
	if s.encryption != nil {
		// Not with a key that is on its way out.
		if err := s.encryption.refresh(); err != nil {
			return nil, apierrors.NewConflict(schema.GroupResource{Resource: "storage"}, "rewrite", err)
		}
	}
	// What stages of meshes have are copies of objects of all virtual clusters.
	stages := order.Cluster == "" && s.encryption != nil
	answer := &Rewrite{}
	if order.From == "" {
		total, err := s.backend.CountRewrite(ctx, order)
		if err == nil && stages {
			var copies int64
			copies, err = s.stages.CountRewrite(ctx, order.Resources)
			total += copies
		}
		if err != nil {
			return nil, apierrors.NewInternalError(err)
		}
		answer.Total = &total
	}
	var done logical.Rewritten
	if stages && strings.HasPrefix(order.From, s.stages.Prefix()) {
		done, err = s.stages.Rewrite(ctx, order)
	} else if done, err = s.backend.Rewrite(ctx, order); stages && done.Next == "" {
		done.Next = s.stages.Prefix()
	}
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	answer.Rewritten, answer.Current = done.Rewritten, done.Current
	for _, u := range done.Unreadable {
		answer.Unreadable = append(answer.Unreadable, UnreadableObject{VirtualCluster: u.Cluster, Resource: u.Resource.String(), Object: u.Object, Reason: u.Reason})
	}
	answer.Continue = base64.RawURLEncoding.EncodeToString([]byte(done.Next))
	return answer, nil
}

func (s *Server) readRewrite(query url.Values) (logical.Rewrite, error) {
	order := logical.Rewrite{Limit: rewriteLimit, Time: rewriteTime}
	for name, values := range query {
		switch name {
		case "virtualCluster":
			order.Cluster = values[0]
			if err := logical.ValidName(order.Cluster); err != nil {
				return order, apierrors.NewBadRequest(fmt.Sprintf("virtualCluster: %v", err))
			}
		case "resource":
			for _, name := range values {
				gr := schema.ParseGroupResource(name)
				if !slices.Contains(s.resources, gr) {
					return order, apierrors.NewBadRequest(fmt.Sprintf("resource: %q is none that is stored: give its plural name, and its group if it has one, as in secrets or gateways.networking.istio.io", name))
				}
				order.Resources = append(order.Resources, gr)
			}
		case "continue":
			from, err := base64.RawURLEncoding.DecodeString(values[0])
			if err != nil || !strings.HasPrefix(string(from), s.options.Etcd.Prefix+"/") && !strings.HasPrefix(string(from), s.stages.Prefix()) {
				return order, apierrors.NewBadRequest("continue: it is not what an answer said")
			}
			order.From = string(from)
		default:
			return order, apierrors.NewBadRequest(fmt.Sprintf("%s: there is no such parameter: there are virtualCluster, resource and continue", name))
		}
	}
	return order, nil
}
