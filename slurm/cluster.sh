# shellcheck shell=bash disable=SC2034
# What all scripts here share: your cluster's settings, and what is checked before anything runs.
# Sourced, never run. Every setting is an environment variable, too: VENV=/shared/venv sbatch ...

# The dataset: a folder that all nodes see, or gs://BUCKET/PREFIX.
DATA=${DATA:-${QUICKDRAW_DATA:-data/shards}}
# The run (checkpoints, metrics, reports): a folder that all nodes see, or gs://BUCKET/PREFIX.
OUTPUT=${OUTPUT:-${QUICKDRAW_OUTPUT:-runs/quickdraw}}
# The virtual environment that `make install` makes, in a folder that all nodes see.
VENV=${VENV:-.venv}
# Empty: no container. pyxis:IMAGE or apptainer:IMAGE: its Python instead of VENV's, on the code of
# this folder. IMAGE is what `srun --container-image` or `apptainer exec` takes.
CONTAINER=${CONTAINER:-}
# Folders that a container sees at their own paths, by commas; DATA and OUTPUT must be in them.
MOUNTS=${MOUNTS:-$PWD}

# Asked for what cannot work: one line that says what would, and the trainer's exit code for it.
refuse() {
  echo "error: $*" >&2
  exit 2
}

# How a step runs Python: `srun "${step[@]}" "${python[@]}" -m ...`.
step=()
case $CONTAINER in
  '')
    [ -x "$VENV/bin/python" ] ||
      refuse "VENV=$VENV: no Python there; 'make install' in $PWD makes it, before any sbatch"
    python=("$VENV/bin/python")
    ;;
  pyxis:?*)
    srun --help | grep -q -e --container-image ||
      refuse "CONTAINER=$CONTAINER: this cluster's srun has no pyxis; apptainer:IMAGE, or none, is right"
    mounts=
    for folder in ${MOUNTS//,/ }; do mounts+=${mounts:+,}$folder:$folder; done
    step+=(--container-image="${CONTAINER#*:}" --container-mounts="$mounts" --container-workdir="$PWD")
    python=(python)
    ;;
  apptainer:?*)
    command -v apptainer >/dev/null ||
      refuse "CONTAINER=$CONTAINER: no apptainer on $(hostname); pyxis:IMAGE, or none, is right"
    python=(apptainer exec --nv --bind "$MOUNTS" --pwd "$PWD" "${CONTAINER#*:}" python)
    ;;
  *) refuse "CONTAINER=$CONTAINER: pyxis:IMAGE, apptainer:IMAGE or nothing is right" ;;
esac

# A step has all processors of its node that the job has. Slurm from 22.05 on gives it one if not
# told, and none of the GPUs that --exclusive brought.
if [ -n "${SLURM_JOB_ID:-}" ]; then
  export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-$SLURM_CPUS_ON_NODE}
  gpus=${SLURM_GPUS_ON_NODE:-0}
  [ "$gpus" = 0 ] || step+=(--gpus-per-node="$gpus")
fi

require_job() {
  [ -n "${SLURM_JOB_ID:-}" ] || refuse "this is a Slurm job: sbatch $0 is right"
}

require_dataset() {
  case $DATA in
    gs://*) ;; # the program itself looks there
    *) [ -f "$DATA/manifest.json" ] ||
      refuse "DATA=$DATA: no dataset there; 'sbatch slurm/shard.sh' makes one" ;;
  esac
}
