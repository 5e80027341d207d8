package apiserver

import (
	"context"
	"errors"
	"net/http/httptest"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/storage/value"
	kmsservice "k8s.io/kms/pkg/service"

	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// keyService is a key management service that can go away.
type keyService struct{ away atomic.Bool }

var errServiceAway = status.Error(codes.Unavailable, "the vault is sealed")

func (s *keyService) Encrypt(_ context.Context, _ string, data []byte) (*kmsservice.EncryptResponse, error) {
	if s.away.Load() {
		return nil, errServiceAway
	}
	out := make([]byte, len(data))
	for i, b := range data {
		out[i] = b ^ 0x55
	}
	return &kmsservice.EncryptResponse{Ciphertext: out, KeyID: "1"}, nil
}

func (s *keyService) Decrypt(ctx context.Context, uid string, r *kmsservice.DecryptRequest) ([]byte, error) {
	out, err := s.Encrypt(ctx, uid, r.Ciphertext)
	if err != nil {
		return nil, err
	}
	return out.Ciphertext, nil
}

func (s *keyService) Status(context.Context) (*kmsservice.StatusResponse, error) {
	if s.away.Load() {
		return nil, errServiceAway
	}
	return &kmsservice.StatusResponse{Version: "v2", Healthz: "ok", KeyID: "1"}, nil
}

func TestAKeyServiceThatIsAwayLosesNothing(t *testing.T) {
	service := &keyService{}
	socket := filepath.Join(t.TempDir(), "kms.sock")
	server := kmsservice.NewGRPCService(socket, time.Second, service)
	served := make(chan error, 1)
	go func() { served <- server.ListenAndServe() }()
	defer func() {
		server.Shutdown()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()
	file := encryptionFile(t, encryptionOf("  - kms: {apiVersion: v2, name: vault, timeout: 5s, endpoint: \"unix://"+socket+"\"}\n"))
	open := func() *encryption {
		t.Helper()
		e, err := newEncryption(EncryptionOptions{ConfigFile: file})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(e.close)
		return e
	}
	secrets := schema.GroupResource{Resource: "secrets"}
	at, other := value.DefaultContext("/registry/core/secrets/a/default/x"), value.DefaultContext("/registry/core/secrets/b/default/x")
	probe := httptest.NewRequest("GET", "/readyz", nil)

	first := open()
	deadline := time.Now().Add(time.Minute)
	for first.check().Check(probe) != nil && time.Now().Before(deadline) {
		time.Sleep(50 * time.Millisecond)
	}
	stored, err := first.transformer(secrets).TransformToStorage(t.Context(), []byte("{}"), at)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := first.transformer(secrets).TransformFromStorage(t.Context(), stored, other); !errors.Is(err, logical.ErrCorrupt) {
		t.Errorf("copied to another key: got %v", err)
	}

	service.away.Store(true)
	later := open()
	if err := later.check().Check(probe); err == nil {
		t.Error("it is said to be ready")
	}
	if _, _, err := later.transformer(secrets).TransformFromStorage(t.Context(), stored, at); err == nil || errors.Is(err, logical.ErrCorrupt) {
		t.Errorf("without the service: got %v", err)
	}
	service.away.Store(false)
	for deadline = time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		out, _, err := later.transformer(secrets).TransformFromStorage(t.Context(), stored, at)
		if err == nil && string(out) == "{}" {
			break
		}
		if errors.Is(err, logical.ErrCorrupt) || time.Now().After(deadline) {
			t.Fatalf("with the service again: got %q, %v", out, err)
		}
	}
}
