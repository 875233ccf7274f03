#!/bin/bash
# Merge the groups that slurm/shard.sh made and verify the dataset: every checksum, every row once.
#
# Before   sbatch slurm/shard.sh, which submits this script itself
# Submit   SOURCE=... DATA=... sbatch slurm/verify.sh     same values as for the array
#SBATCH --job-name=quickdraw-verify
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --mem-per-cpu=2G
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

# The source of the shards.
SOURCE=${SOURCE:-gs://quickdraw_dataset/full/numpy_bitmap}
# DATA, VENV, CONTAINER: slurm/cluster.sh.

[ -f slurm/cluster.sh ] || { echo "error: $PWD is not the repository's folder. Run sbatch there." >&2; exit 2; }
. slurm/cluster.sh
require_job

# --worker and --of: a job submitted from an array inherits the array's variables.
srun "${step[@]}" "${python[@]}" -m jobs.shard --source "$SOURCE" --dest "$DATA" --merge \
  --worker 0 --of 1 "$@"
srun "${step[@]}" "${python[@]}" -m jobs.verify "$DATA"
