#!/bin/bash
# Evaluate the best checkpoint of a run: metrics as JSON, and a page with charts.
#
# Before   sbatch slurm/train.sh
# Submit   sbatch slurm/evaluate.sh                     on the test split
#          sbatch slurm/evaluate.sh --split val --report report-val
#SBATCH --job-name=quickdraw-evaluate
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

# DATA, OUTPUT (the run to evaluate), VENV, CONTAINER: slurm/cluster.sh.

[ -f slurm/cluster.sh ] || { echo "error: $PWD is not the repository's folder. Run sbatch there." >&2; exit 2; }
. slurm/cluster.sh
require_job
require_dataset

srun "${step[@]}" "${python[@]}" -m jobs.evaluate --checkpoint "$OUTPUT" --data "$DATA" "$@"
