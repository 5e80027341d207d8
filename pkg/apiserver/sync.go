package apiserver

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/component-base/metrics/legacyregistry"

	"github.com/vmesh-io/vmesh/pkg/apis/kind"
	"github.com/vmesh-io/vmesh/pkg/apis/object"
	"github.com/vmesh-io/vmesh/pkg/apis/vmesh/v1alpha1"
	"github.com/vmesh-io/vmesh/pkg/registry/resource"
	"github.com/vmesh-io/vmesh/pkg/registry/vmesh"
	"github.com/vmesh-io/vmesh/pkg/sync/snapshot"
	"github.com/vmesh-io/vmesh/pkg/sync/status"
	"github.com/vmesh-io/vmesh/pkg/sync/xds"
)

// assembleSync makes the meshes' config source: snapshots of what the watch caches
// hold, served to control planes.
func (s *Server) assembleSync(mesh []*kind.Kind, meshes *resource.Store, creds *credentials) error {
	kinds, err := snapshot.IstioKinds(mesh)
	if err != nil {
		return err
	}
	builder := snapshot.NewBuilder(kinds, snapshot.NewMetrics(legacyregistry.MustRegister))
	server := xds.New(builder, xds.Options{Metrics: xds.NewMetrics(legacyregistry.MustRegister)})
	reporter := status.NewReporter(meshStatus{meshes}, builder, server)
	s.synced = builder.Synced()

	plain, err := listenXDS("--xds-address", s.options.XDSAddress)
	if err != nil {
		return err
	}
	secure, err := listenXDS("--xds-tls-address", s.options.XDSTLSAddress)
	if err != nil {
		return errors.Join(err, closeListener(plain))
	}
	s.closers = append(s.closers, func() { _, _ = closeListener(plain), closeListener(secure) }) // closed already when they have served
	tlsConfig := &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		// Read at each handshake, which is rare: a renewed certificate needs no restart.
		pair, err := tls.LoadX509KeyPair(creds.certFile, creds.keyFile)
		return &pair, err
	}}

	for _, source := range builder.Sources() {
		s.loops = append(s.loops, loop{"observing " + source.Resource.String(), func(ctx context.Context) error {
			return s.backend.Observe(ctx, source.Resource, source.Observer)
		}})
	}
	s.loops = append(s.loops,
		loop{"snapshot", func(ctx context.Context) error { builder.Run(ctx); return nil }},
		loop{"mesh status", func(ctx context.Context) error { reporter.Run(ctx); return nil }},
	)
	if plain != nil || secure != nil {
		s.loops = append(s.loops, loop{"xDS server", func(ctx context.Context) error {
			return server.Serve(ctx, plain, secure, tlsConfig)
		}})
	}
	return nil
}

func listenXDS(flag, address string) (net.Listener, error) {
	if address == "" {
		return nil, nil
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	return l, nil
}

func closeListener(l net.Listener) error {
	if l == nil {
		return nil
	}
	return l.Close()
}

// snapshotReady says whether control planes can be answered.
func (s *Server) snapshotReady() error {
	select {
	case <-s.synced:
		return nil
	default:
		return errors.New("the snapshots of the meshes are not built yet")
	}
}

// meshStatus writes statuses through the storage, as any client would.
type meshStatus struct{ meshes *resource.Store }

// UpdateMeshStatus implements status.Writer.
func (m meshStatus) UpdateMeshStatus(ctx context.Context, name string, mutate func(*v1alpha1.MeshStatus) error) error {
	_, _, err := m.meshes.StatusREST(vmesh.Version).Update(vmesh.RootContext(ctx), name,
		rest.DefaultUpdatedObjectInfo(nil, func(_ context.Context, _, old runtime.Object) (runtime.Object, error) {
			o := old.(*object.Object).DeepCopy()
			var mesh v1alpha1.Mesh
			if err := o.Into(&mesh); err != nil {
				return nil, err
			}
			if err := mutate(&mesh.Status); err != nil {
				return nil, err
			}
			return o, vmesh.SetStatus(o, mesh.Status)
		}), rest.ValidateAllObjectFunc, rest.ValidateAllObjectUpdateFunc, false, &metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) {
		return nil // deleted meanwhile
	}
	return err
}
