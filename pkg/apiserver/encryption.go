package apiserver

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	"k8s.io/apiserver/pkg/server/healthz"
	"k8s.io/apiserver/pkg/server/options/encryptionconfig"
	encryptionmetrics "k8s.io/apiserver/pkg/server/options/encryptionconfig/metrics"
	"k8s.io/apiserver/pkg/storage/value"
	"k8s.io/klog/v2"
	"sigs.k8s.io/yaml"

	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// EncryptionOptions say how stored objects are encrypted.
type EncryptionOptions struct {
	// ConfigFile is an EncryptionConfiguration of apiserver.config.k8s.io.
	ConfigFile string
	// Reload reads the file again when it changes.
	Reload bool
}

const (
	reloadEvery = 10 * time.Second
	// reloadCheck is how long a key management service may take to answer before a new
	// configuration that names it is refused.
	reloadCheck = 20 * time.Second
	// encryptionID labels upstream's metrics.
	encryptionID = "vmesh"
)

// encryption is the encryption of what is stored. Upstream's controller for the reload
// does not tell what it has loaded, and whoever rewrites has to know.
type encryption struct {
	options      EncryptionOptions
	transformers *encryptionconfig.DynamicTransformers

	ctx   context.Context // until Close
	close context.CancelFunc

	mu     sync.Mutex
	loaded string // the hash of what is in use
	failed string // the last failure of a reload, which is told once
}

// newEncryption loads the configuration, or returns nil when there is none.
func newEncryption(o EncryptionOptions) (*encryption, error) {
	if o.ConfigFile == "" {
		return nil, nil
	}
	e := &encryption{options: o}
	e.ctx, e.close = context.WithCancel(context.Background())
	config, cancel, err := e.load()
	if err != nil {
		e.close()
		return nil, fmt.Errorf("--encryption-provider-config: %w", err)
	}
	e.loaded = config.EncryptionFileContentHash
	e.transformers = encryptionconfig.NewDynamicTransformers(config.Transformers, config.HealthChecks[0], cancel, config.KMSCloseGracePeriod)
	return e, nil
}

// load reads the file. What it starts ends with cancel.
func (e *encryption) load() (*encryptionconfig.EncryptionConfiguration, context.CancelFunc, error) {
	ctx, cancel := context.WithCancel(e.ctx)
	// As if it were reloaded in any case: then there is one check for all services.
	config, err := encryptionconfig.LoadEncryptionConfig(ctx, e.options.ConfigFile, true, encryptionID)
	if err != nil {
		cancel()
		return nil, nil, withoutKeys(err, e.options.ConfigFile)
	}
	return config, cancel, nil
}

// withoutKeys takes the keys of a configuration out of an error about it. Upstream's
// quotes a whole provider, with its keys, when it is two.
func withoutKeys(err error, file string) error {
	data, readErr := os.ReadFile(file)
	var config any
	if readErr != nil || yaml.Unmarshal(data, &config) != nil {
		return err // then it is about what is no configuration yet
	}
	text := err.Error()
	var redact func(any)
	redact = func(v any) {
		switch v := v.(type) {
		case []any:
			for _, item := range v {
				redact(item)
			}
		case map[string]any:
			for key, item := range v {
				if secret, ok := item.(string); ok && strings.EqualFold(key, "secret") && secret != "" {
					quoted, _ := json.Marshal(secret)
					text = strings.ReplaceAll(text, strings.Trim(string(quoted), `"`), "REDACTED")
					text = strings.ReplaceAll(text, secret, "REDACTED")
				}
				redact(item)
			}
		}
	}
	redact(config)
	return errors.New(text)
}

// transformer is the encryption of a resource. Its errors are ErrCorrupt but for those of
// a key management service that cannot be asked.
func (e *encryption) transformer(gr schema.GroupResource) value.Transformer {
	return lasting{e.transformers.TransformerForResource(gr), e.transformers}
}

// check tells whether the key management services answer.
func (e *encryption) check() healthz.HealthChecker { return e.transformers }

// errNotLoaded says that the file is not what is in use.
var errNotLoaded = errors.New("the encryption configuration has changed since it was read: start the server again, or start it with --encryption-provider-config-automatic-reload")

// refresh takes a changed file into use. After it, what is written is written with the
// keys that the file says; if that cannot be, it is an error, and what was in use stays so.
func (e *encryption) refresh() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	hash, err := encryptionconfig.GetEncryptionConfigHash(e.options.ConfigFile)
	if err != nil || hash == e.loaded {
		return err
	}
	if !e.options.Reload {
		return errNotLoaded
	}
	config, cancel, err := e.load()
	if err != nil {
		return err
	}
	if err := answers(e.ctx, config.HealthChecks[0]); err != nil {
		cancel()
		return err
	}
	e.transformers.Set(config.Transformers, cancel, config.HealthChecks[0], config.KMSCloseGracePeriod)
	e.loaded = config.EncryptionFileContentHash
	klog.InfoS("The encryption configuration was read anew", "file", e.options.ConfigFile)
	return nil
}

// answers waits a while for services that are new.
func answers(ctx context.Context, check healthz.HealthChecker) error {
	ctx, cancel := context.WithTimeout(ctx, reloadCheck)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "/readyz/"+check.Name(), nil)
	if err != nil {
		return err
	}
	poll := time.NewTicker(time.Second)
	defer poll.Stop()
	for {
		if err = check.Check(req); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("what it names does not answer: %w", err)
		case <-poll.C:
		}
	}
}

// run reloads the file when it changes, until ctx is done.
func (e *encryption) run(ctx context.Context) error {
	poll := time.NewTicker(reloadEvery)
	defer poll.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-poll.C:
			e.note(e.refresh())
		}
	}
}

// note logs and counts how a reload went: each failure once.
func (e *encryption) note(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	reason := ""
	if err != nil {
		reason = err.Error()
	}
	if reason == e.failed {
		return
	}
	if e.failed = reason; err == nil {
		encryptionmetrics.RecordEncryptionConfigAutomaticReloadSuccess(encryptionID, e.loaded)
		return
	}
	encryptionmetrics.RecordEncryptionConfigAutomaticReloadFailure(encryptionID)
	klog.ErrorS(err, "The encryption configuration cannot be read; the keys that were read before stay in use", "file", e.options.ConfigFile)
}

// lockedTimeout is how long to wait for etcd, to see whether its data can be decrypted.
const lockedTimeout = 5 * time.Second

// checkKeys fails if the virtual clusters or the meshes are encrypted with keys that the
// server was not given. As if they said nothing, istiod would be told to forget them.
func (s *Server) checkKeys(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, lockedTimeout)
	defer cancel()
	for _, resource := range []string{"virtualclusters", "meshes"} {
		err := s.backend.Locked(ctx, schema.GroupResource{Group: v1alpha1.GroupVersion.Group, Resource: resource})
		if errors.Is(err, logical.ErrCorrupt) {
			return fmt.Errorf("--encryption-provider-config: %w: give the configuration that has the key", err)
		}
		if err != nil { // the server will wait for what is away
			klog.FromContext(ctx).V(1).Info("Whether stored objects can be decrypted is not known yet", "reason", err.Error())
			return nil
		}
	}
	return nil
}

// lasting tells errors that last from those that pass.
type lasting struct {
	value.Transformer
	services healthz.HealthChecker
}

// kmsPrefix begins what was encrypted with a key management service.
var kmsPrefix = []byte("k8s:enc:kms:")

// TransformFromStorage implements value.Transformer.
func (l lasting) TransformFromStorage(ctx context.Context, data []byte, dataCtx value.Context) ([]byte, bool, error) {
	out, stale, err := l.Transformer.TransformFromStorage(ctx, data, dataCtx)
	if err == nil || passes(err) {
		return out, stale, err
	}
	if bytes.HasPrefix(data, kmsPrefix) {
		// Until a service has answered for the first time, all that it would read fails.
		req, badRequest := http.NewRequestWithContext(ctx, http.MethodGet, "/readyz/"+l.services.Name(), nil)
		if badRequest != nil {
			return nil, false, badRequest
		}
		if away := l.services.Check(req); away != nil {
			return nil, false, fmt.Errorf("asking the key management service: %w", away)
		}
		if out, stale, err = l.Transformer.TransformFromStorage(ctx, data, dataCtx); err == nil || passes(err) {
			return out, stale, err
		}
	}
	return nil, false, fmt.Errorf("%w: it cannot be decrypted with the keys that the server was given: %w", logical.ErrCorrupt, err)
}

// passes tells whether an error is of a service that cannot be asked now. One that was asked
// and refuses the value refuses it for good.
func passes(err error) bool {
	var several utilerrors.Aggregate
	if errors.As(err, &several) {
		for _, one := range several.Errors() {
			if passes(one) {
				return true
			}
		}
		return false
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return true
	}
	s, ok := status.FromError(err)
	if !ok {
		return false
	}
	switch s.Code() {
	case codes.InvalidArgument, codes.NotFound, codes.FailedPrecondition, codes.OutOfRange, codes.DataLoss:
		return false
	}
	return true
}
