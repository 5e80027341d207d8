#!/usr/bin/env bash
# The cheap checks, the cheapest first.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

step() { echo "== $*" >&2; }

step gofmt
unformatted=$(git ls-files -co --exclude-standard '*.go' | xargs -r gofmt -l)
if [[ -n $unformatted ]]; then
  echo "not formatted; run gofmt -w on:" >&2
  echo "$unformatted" >&2
  exit 1
fi

step "go.mod is tidy and has no replace"
if grep -nE '^\s*replace\b|=>' go.mod; then
  echo "the product's go.mod must not replace modules" >&2
  exit 1
fi
go mod tidy -diff

step "generated files"
before=$(git ls-files -s -- pkg | sha256sum; git ls-files -co --exclude-standard -- pkg | xargs sha256sum | sha256sum)
hack/generate.sh
after=$(git ls-files -s -- pkg | sha256sum; git ls-files -co --exclude-standard -- pkg | xargs sha256sum | sha256sum)
if [[ $before != "$after" ]]; then
  echo "generated files were out of date; commit what make generate made" >&2
  git status --short -- pkg >&2
  exit 1
fi

step "go vet"
go vet ./...

step staticcheck
mkdir -p .cache/bin
go build -C hack/tools/lint -o ../../../.cache/bin/staticcheck honnef.co/go/tools/cmd/staticcheck
.cache/bin/staticcheck ./...
