#!/bin/bash
# Train on any number of nodes. Stopped by the scheduler, the job saves and queues itself again.
#
# Before   make install; sbatch slurm/shard.sh. From nothing to a model: docs/clusters.md
# Submit   sbatch slurm/train.sh                        one whole node, one rank per GPU
#          sbatch --nodes=4 --partition=gpu slurm/train.sh --train.epochs 2 --config my.yaml
#          sbatch --oversubscribe --gpus-per-node=2 --cpus-per-task=16 --mem=64G slurm/train.sh
#          NPROC=2 DEVICE=cpu sbatch slurm/train.sh     without GPUs
# Check    squeue --me; tail -f slurm-JOB.out
# Stop     scancel JOB                              saves and ends; the same sbatch resumes
#          scancel --signal=USR1 --batch JOB        saves and is queued again
#
# Needs Slurm 22.05 or newer. A short time limit is no problem: the requeued job resumes.
#SBATCH --job-name=quickdraw-train
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
set -euo pipefail

# Device of the ranks: cuda or cpu.
DEVICE=${DEVICE:-cuda}
# Ranks per node; empty: one per GPU, or one if DEVICE is cpu.
NPROC=${NPROC:-}
# A folder that Prometheus watches (monitoring/prometheus.yaml): while the job runs, a file there
# lists the ranks' endpoints, which are open to other machines. Empty: only to their own node.
TARGETS=${TARGETS:-}
# DATA, OUTPUT, VENV, CONTAINER: slurm/cluster.sh. Settings of the trainer: after the script's
# name, or QUICKDRAW_... in the environment.

[ -f slurm/cluster.sh ] || { echo "error: $PWD is not the repository's folder. Run sbatch there." >&2; exit 2; }
. slurm/cluster.sh
require_job
require_dataset
if [ "$DEVICE" != cpu ] && [ "$gpus" = 0 ]; then
  refuse "DEVICE=$DEVICE: this job was given no GPU. Use sbatch --partition=... with GPU nodes," \
    "or --gpus-per-node=N (without GPUs: NPROC=2 DEVICE=cpu)."
fi
[ "$DEVICE" = cpu ] && ranks=${NPROC:-1} || ranks=${NPROC:-$gpus}

hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${hosts%%$'\n'*}
port=$((20000 + SLURM_JOB_ID % 10000)) # below the range of ephemeral ports

if [ -n "$TARGETS" ]; then
  [ -d "$TARGETS" ] ||
    refuse "TARGETS=$TARGETS: no such folder. Set it to the folder that Prometheus watches."
  export QUICKDRAW_METRICS__HOST=${QUICKDRAW_METRICS__HOST:-0.0.0.0}
  endpoints=
  for host in $hosts; do
    for ((rank = 0; rank < ranks; rank++)); do
      endpoints+=${endpoints:+, }\"$host:$((${QUICKDRAW_METRICS__PORT:-9400} + rank))\"
    done
  done
  targets=$TARGETS/$SLURM_JOB_ID.json
  trap 'rm -f "$targets"' EXIT
  echo "[{\"targets\": [$endpoints], \"labels\": {\"job\": \"quickdraw-$SLURM_JOB_ID\"}}]" >"$targets"
fi

echo "job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)): $SLURM_NNODES nodes of $ranks ranks," \
  "$DEVICE, head $head:$port"
# PET_NODE_RANK is torchrun's --node-rank. When one node's launcher ends, Slurm gives the others
# --wait seconds: ranks that were told to stop end one by one, each with its own exit code.
# shellcheck disable=SC2016  # expanded on each node
srun --kill-on-bad-exit=0 --wait=60 "${step[@]}" \
  bash -c 'PET_NODE_RANK=$SLURM_NODEID exec "$@"' bash \
  "${python[@]}" -m quickdraw_dist.launch \
  --nnodes="$SLURM_NNODES" --nproc-per-node="$ranks" \
  --master-addr="$head" --master-port="$port" --rdzv-id="$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}" \
  -m quickdraw_dist.train \
  --data "$DATA" --output "$OUTPUT" --train.device "$DEVICE" "$@" &
task=$!
# USR1: the time limit is near, or the node is wanted. TERM: scancel, do not queue again.
requeue=yes
trap 'echo "asked to stop"; kill -USR1 "$task" || true' USR1
trap 'requeue=no; kill -USR1 "$task" || true' TERM

# A trapped signal interrupts `wait`: the step has ended when its process is gone.
while kill -0 "$task" 2>/dev/null; do wait "$task" || true; done
code=0
wait "$task" || code=$?

if [ "$code" = 85 ] && [ "$requeue" = yes ]; then
  echo "exit code 85: back into the queue"
  scontrol requeue "$SLURM_JOB_ID" ||
    echo "warning: not requeued. Run the same sbatch to resume." >&2
fi
exit "$code"
