#!/bin/bash
# Shard: an array of workers, then a job that merges and verifies their shards.
#
# Before   make install
# Submit   sbatch slurm/shard.sh                        the official drawings, 39.5 GB read
#          SOURCE=/data/numpy_bitmap DATA=/data/shards sbatch --array=0-31 slurm/shard.sh
#          sbatch slurm/shard.sh --shard.classes cat dog    settings come last
# Check    squeue --me; tail slurm-*.out               the last has "every row exactly once"
# Stop     scancel JOB; the same sbatch resumes
#SBATCH --job-name=quickdraw-shard
#SBATCH --array=0-7
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --mem-per-cpu=2G
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

# A folder or gs:// prefix of .npy files, one per class, or 'synthetic:?classes=20&per_class=1000'.
SOURCE=${SOURCE:-gs://quickdraw_dataset/full/numpy_bitmap}
# The script that the first task submits to run after the whole array; empty: none.
FOLLOW=${FOLLOW-slurm/verify.sh}
# DATA (the shards' folder), VENV, CONTAINER: slurm/cluster.sh.

[ -f slurm/cluster.sh ] || { echo "error: $PWD is not the repository's folder. Run sbatch there." >&2; exit 2; }
. slurm/cluster.sh
require_job
[ -n "${SLURM_ARRAY_TASK_ID:-}" ] || refuse "$0: not in a job array. Run sbatch --array=0-7 $0."

if [ "$SLURM_ARRAY_TASK_ID" = "${SLURM_ARRAY_TASK_MIN:-0}" ] && [ -n "$FOLLOW" ] && [ -z "${SLURM_RESTART_COUNT:-}" ]; then
  SOURCE=$SOURCE sbatch --dependency="afterok:$SLURM_ARRAY_JOB_ID" "$FOLLOW" "$@" ||
    echo "warning: sbatch failed on this node. When the array is done, run: sbatch $FOLLOW" >&2
fi
# jobs.shard reads its worker number and the number of workers from the array's variables.
srun "${step[@]}" "${python[@]}" -m jobs.shard --source "$SOURCE" --dest "$DATA" \
  --processes "$SRUN_CPUS_PER_TASK" "$@"
