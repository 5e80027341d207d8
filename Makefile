# make help lists what there is.
SHELL := /bin/bash
.DEFAULT_GOAL := help

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo 0.0.0-dev)
COMMIT  ?= $(shell git rev-parse --short HEAD 2>/dev/null || echo unknown)
DATE    ?= $(shell git log -1 --format=%cI 2>/dev/null || echo 1970-01-01T00:00:00Z)
PKG     := github.com/vmesh-io/vmesh
LDFLAGS := -s -w -X $(PKG)/pkg/version.Version=$(VERSION) -X $(PKG)/pkg/version.Commit=$(COMMIT) -X $(PKG)/pkg/version.Date=$(DATE)

.PHONY: help
help: ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## Build bin/vmesh.
	@echo "building bin/vmesh (a few minutes the first time)" >&2
	@go build -ldflags '$(LDFLAGS)' -o bin/vmesh ./cmd/vmesh

.PHONY: run
run: build ## Build and start the server on embedded defaults, data in ./data.
	@exec bin/vmesh server

.PHONY: demo
demo: build ## Show it: vmesh, a real istiod, two versions of a service, live traffic.
	@go run ./test/demo $(DEMO)

.PHONY: test
test: verify unit e2e ## Check everything: formatting, generated files, unit tests, tests with real processes.

.PHONY: verify
verify: ## Check formatting, vet, lint and that generated files are up to date.
	@hack/verify.sh

.PHONY: unit
unit: ## Run the unit tests with the race detector.
	go test -race -timeout 20m ./cmd/... ./pkg/...

.PHONY: tools
tools: ## Build the programs that tests and benchmarks run, once: kubectl, etcd, kube-apiserver, kube-controller-manager, istiod, istioctl.
	@for tool in kubectl etcd kube-apiserver kube-controller-manager istiod istioctl; do hack/tool.sh $$tool >/dev/null || exit 1; done

.PHONY: e2e
e2e: build tools ## Run the tests with real processes: kubectl, istiod, kube-apiserver, gRPC.
	go test -timeout 40m ./test/...

.PHONY: chaos
chaos: build tools ## Kill processes of a mesh at random for DURATION (10m), in the order of SEED.
	go test -count=1 -timeout 0 -v -run TestNothingIsLostWhateverIsKilled ./test/chaos -args -duration $(or $(DURATION),10m) -seed $(or $(SEED),0) -topology direct $(CHAOS)

.PHONY: fuzz
fuzz: ## Run every fuzz target for FUZZTIME (10s).
	@hack/fuzz.sh $(or $(FUZZTIME),10s)

.PHONY: bench
bench: build ## Measure vmesh against kube-apiserver; see docs/benchmarks.md.
	go run ./test/bench $(BENCH)

.PHONY: generate
generate: ## Make the generated files anew.
	@hack/generate.sh

.PHONY: clean
clean: ## Remove what was built, tools included, and the data of make run.
	rm -rf bin .cache data
