#!/usr/bin/env bash
# Prints the path of a tool that tests, demo and benchmarks run as a real process, building it first when needed:
#
#   hack/tool.sh istiod | istioctl | kube-apiserver | kube-controller-manager | kubectl | etcd
#
# Each tool is built from the Go module under hack/tools that pins it, so a machine needs only Go, git, bash and
# coreutils. Only the path goes to stdout; progress goes to stderr.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# Each module under hack/tools stands alone, also when a developer keeps a workspace.
export GOWORK=off

case "${1-}" in
istiod)                  module=istio              package=istio.io/istio/pilot/cmd/pilot-discovery        minutes=5 ;;
istioctl)                module=istio              package=istio.io/istio/istioctl/cmd/istioctl            minutes=3 ;;
kube-apiserver)          module=kubernetes         package=k8s.io/kubernetes/cmd/kube-apiserver            minutes=6 ;;
kube-controller-manager) module=controller-manager package=k8s.io/kubernetes/cmd/kube-controller-manager   minutes=6 ;;
kubectl)                 module=kubernetes         package=k8s.io/kubernetes/cmd/kubectl                   minutes=2 ;;
etcd)                    module=etcd               package=go.etcd.io/etcd/server/v3                       minutes=1 ;;
*)
  echo "usage: hack/tool.sh istiod|istioctl|kube-apiserver|kube-controller-manager|kubectl|etcd" >&2
  exit 2
  ;;
esac
name=$1

# Any kubectl talks to any apiserver we test, so the one at hand saves a build.
if [[ $name == kubectl ]] && command -v kubectl; then
  exit
fi

# Without these a binary calls itself "unknown" or v0.0.0, which clients refuse or report.
case $module in
istio)
  version=$(cd hack/tools/istio && go list -m -f '{{.Version}}' istio.io/istio)
  ldflags="-X istio.io/istio/pkg/version.buildVersion=$version"
  ;;
kubernetes | controller-manager)
  version=$(cd "hack/tools/$module" && go list -m -f '{{.Version}}' k8s.io/kubernetes)
  IFS=. read -r major minor _ <<<"${version#v}"
  ldflags=
  for pkg in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
    ldflags+=" -X $pkg.gitVersion=$version -X $pkg.gitMajor=$major -X $pkg.gitMinor=$minor -X $pkg.gitTreeState=clean"
  done
  ;;
*)
  ldflags=
  ;;
esac

build() {
  # CGO off: the same binary with or without a C compiler on the machine.
  CGO_ENABLED=0 go build -C "hack/tools/$module" -trimpath -ldflags "-s -w $ldflags" -o "$1" "$package"
}

# Everything that decides what is built, so a stale binary is never run and a fresh one never rebuilt.
hash=$({
  cat "hack/tools/$module/go.mod" "hack/tools/$module/go.sum"
  go version
  declare -f build
  echo "$package $ldflags"
} | sha256sum | cut -c1-16)

cache=$PWD/.cache/tools
binary=$cache/$name-$hash
if [[ ! -x $binary ]]; then
  mkdir -p "$cache"
  # One build at a time for all tools: each takes every core and gigabytes of memory.
  exec 9>"$cache/lock"
  flock 9
  if [[ ! -x $binary ]]; then
    echo "building $name from its Go module, this takes about $minutes min, once" >&2
    # A build that is cut short must leave nothing that looks like a tool.
    trap 'rm -f "$binary.tmp"' EXIT
    build "$binary.tmp" 9>&-
    mv "$binary.tmp" "$binary"
    echo "built $name" >&2
  fi
fi
echo "$binary"
