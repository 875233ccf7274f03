#!/bin/bash
# From drawings to an evaluated model: shard, verify, train, evaluate, each after the previous one.
#
# Before   make install
# Submit   bash slurm/pipeline.sh                       on a login node, without sbatch
#          DATA=/data/shards OUTPUT=/data/run NODES=2 bash slurm/pipeline.sh --train.epochs 2
# Check    squeue --me
# Again    the same command: every job skips finished work
set -euo pipefail

# Number of workers that shard.
WORKERS=${WORKERS:-8}
# Number of nodes that train.
NODES=${NODES:-1}
# Options of sbatch for sharding and verifying, such as '--partition=cpu --account=mine'.
CPU_OPTIONS=${CPU_OPTIONS:-}
# Options of sbatch for training and evaluating, such as '--partition=gpu --time=2:00:00'.
GPU_OPTIONS=${GPU_OPTIONS:-}
# SOURCE: slurm/shard.sh. DEVICE, NPROC: slurm/train.sh. The rest: slurm/cluster.sh.

cd "$(dirname "$0")/.."
. slurm/cluster.sh
read -ra cpu <<<"$CPU_OPTIONS"
read -ra gpu <<<"$GPU_OPTIONS"

# submit WHAT AFTER OPTIONS... SCRIPT: prints the job's number, and a line to stderr.
submit() {
  local what=$1 after=$2 job
  shift 2
  job=$(sbatch --parsable ${after:+--dependency="afterok:$after"} "$@")
  job=${job%%;*} # with several clusters: JOB;CLUSTER
  echo "$what: job $job${after:+, after $after}" >&2
  echo "$job"
}

shard=$(FOLLOW='' submit shard '' "${cpu[@]}" --array="0-$((WORKERS - 1))" slurm/shard.sh)
verify=$(submit verify "$shard" "${cpu[@]}" slurm/verify.sh)
train=$(submit train "$verify" --kill-on-invalid-dep=yes "${gpu[@]}" --nodes="$NODES" slurm/train.sh "$@")
submit evaluate "$train" "${gpu[@]}" slurm/evaluate.sh >/dev/null
