"""The scripts of slurm/ with a container runtime. Neither pyxis nor apptainer is available as a
package, so these are stand-ins that take the options which their manuals have, and refuse others;
what they would run in a container, they run."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.cluster.support.slurm import SOURCE, Slurm

APPTAINER = """#!/bin/bash
[ "$1 $2 $3 $5" = "exec --nv --bind --pwd" ] || { echo "apptainer: what? $*"; exit 255; }
cd "$6"; echo "in $7, which sees $4"
shift 7
PATH={python}:$PATH exec "$@"
"""

PYXIS = """#!/bin/bash
[ "$*" != --help ] || { {srun} --help; echo "--container-image=..."; exit; }
options=()
while [ $# -gt 0 ]; do
  case $1 in
    --container-image=*) image=${1#*=} ;;
    --container-mounts=*) mounts=${1#*=} ;;
    --container-workdir=*) folder=${1#*=} ;;
    --*) options+=("$1") ;;
    *) break ;;
  esac
  shift
done
cd "$folder"; echo "in $image, which sees $mounts"
PATH={python}:$PATH exec {srun} "${options[@]}" "$@"
"""


@pytest.mark.parametrize(
    ("runtime", "program", "code", "mounts"),
    [
        ("apptainer", "apptainer", APPTAINER, "/data,/scratch"),
        ("pyxis", "srun", PYXIS, "/data:/data,/scratch:/scratch"),
    ],
)
def test_runtime(
    slurm: Slurm, sharded: Path, tmp_path: Path, runtime: str, program: str, code: str, mounts: str
) -> None:
    real = shutil.which("srun")
    code = code.replace("{srun}", str(real)).replace("{python}", str(Path(sys.executable).parent))
    (tmp_path / program).write_text(code)
    (tmp_path / program).chmod(0o755)
    job = slurm.submit(
        "slurm/verify.sh",
        CONTAINER=f"{runtime}:quickdraw:1.0",
        MOUNTS="/data,/scratch",
        VENV="nowhere",
        PATH=f"{tmp_path}:{os.environ['PATH']}",
        **SOURCE,
    )
    slurm.completes(job)
    assert f"in quickdraw:1.0, which sees {mounts}\n" in slurm.said(job)
    assert "every row exactly once" in slurm.said(job)
