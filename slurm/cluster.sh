# shellcheck shell=bash disable=SC2034
# Shared by all scripts here: the settings of your cluster, and the checks before anything runs.
# Sourced, never run. Every setting is also an environment variable: VENV=/shared/venv sbatch ...

# The dataset: a folder that all nodes see, or gs://BUCKET/PREFIX.
DATA=${DATA:-${QUICKDRAW_DATA:-data/shards}}
# The run (checkpoints, metrics, reports): a folder that all nodes see, or gs://BUCKET/PREFIX.
OUTPUT=${OUTPUT:-${QUICKDRAW_OUTPUT:-runs/quickdraw}}
# The virtual environment that `make install` makes, in a folder that all nodes see.
VENV=${VENV:-.venv}
# Empty: no container. pyxis:IMAGE or apptainer:IMAGE: the image's Python instead of VENV's, with
# the code of this folder. IMAGE is an argument of `srun --container-image` or `apptainer exec`.
CONTAINER=${CONTAINER:-}
# Folders that a container sees at the same paths, comma-separated; DATA and OUTPUT must be in them.
MOUNTS=${MOUNTS:-$PWD}

# Print one line, "SUBJECT: problem. Remedy.", and exit with the trainer's code for refused input.
refuse() {
  echo "error: $*" >&2
  exit 2
}

# How a step runs Python: `srun "${step[@]}" "${python[@]}" -m ...`.
step=()
case $CONTAINER in
  '')
    [ -x "$VENV/bin/python" ] ||
      refuse "VENV=$VENV: no Python there. Run 'make install' in $PWD before sbatch."
    python=("$VENV/bin/python")
    ;;
  pyxis:?*)
    srun --help | grep -q -e --container-image ||
      refuse "CONTAINER=$CONTAINER: this cluster's srun has no pyxis. Use apptainer:IMAGE or none."
    mounts=
    for folder in ${MOUNTS//,/ }; do mounts+=${mounts:+,}$folder:$folder; done
    step+=(--container-image="${CONTAINER#*:}" --container-mounts="$mounts" --container-workdir="$PWD")
    python=(python)
    ;;
  apptainer:?*)
    command -v apptainer >/dev/null ||
      refuse "CONTAINER=$CONTAINER: no apptainer on $(hostname). Use pyxis:IMAGE or none."
    python=(apptainer exec --nv --bind "$MOUNTS" --pwd "$PWD" "${CONTAINER#*:}" python)
    ;;
  *) refuse "CONTAINER=$CONTAINER: not a container. Use pyxis:IMAGE, apptainer:IMAGE or nothing." ;;
esac

# A step gets all of the job's processors on its node. From 22.05 on, Slurm's default is one
# processor, and none of the GPUs that --exclusive brought.
if [ -n "${SLURM_JOB_ID:-}" ]; then
  export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-$SLURM_CPUS_ON_NODE}
  gpus=${SLURM_GPUS_ON_NODE:-0}
  [ "$gpus" = 0 ] || step+=(--gpus-per-node="$gpus")
fi

require_job() {
  [ -n "${SLURM_JOB_ID:-}" ] || refuse "$0: not in a Slurm job. Run sbatch $0."
}

require_dataset() {
  case $DATA in
    gs://*) ;; # the command itself checks it
    *) [ -f "$DATA/manifest.json" ] ||
      refuse "DATA=$DATA: no dataset there. Run 'sbatch slurm/shard.sh' to make one." ;;
  esac
}
