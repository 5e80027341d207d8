#!/usr/bin/env bash
# Makes every generated file anew: deepcopy functions and definitions of vmesh's own API, and the packed definitions
# of Istio's kinds.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

mkdir -p .cache/bin
go build -C hack/tools/generate -o ../../../.cache/bin/controller-gen sigs.k8s.io/controller-tools/cmd/controller-gen
.cache/bin/controller-gen object crd paths=./pkg/apis/vmesh/... output:crd:dir=pkg/apis/vmesh/v1alpha1/crds
go generate ./pkg/...
