"""Step 1: the card, the versions, and what this machine's copies and matrix products reach."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from argparse import ArgumentParser
from pathlib import Path

import torch

from benchmarks.measure import Metrics, memory_gib, processor_name, write_json
from benchmarks.train_speed.device import (
    chosen_device,
    copied_bytes_per_second,
    device_name,
    matrix_flops_per_second,
)
from quickdraw_dist.run.checkpoint.files import versions

_GPU_BYTES, _HOST_BYTES = 2**31, 2**29
_GPU_SIDE, _CPU_SIDE = 8_192, 512


def main() -> int:
    """Measure, and keep the results up to date after each measurement."""
    arguments = ArgumentParser("python -m benchmarks.gpu.facts", description=__doc__)
    arguments.add_argument("--results", type=Path, required=True)
    options = arguments.parse_args()
    device = chosen_device()
    found = machine(device)
    write_json(options.results, found)
    for measure in (matrix_products, copies):
        found |= measure(device)
        write_json(options.results, found)
    for name, value in found.items():
        print(f"{name:40} {value}")
    return 0


def machine(device: torch.device) -> Metrics:
    """Name hardware and versions."""
    found: Metrics = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "device": device_name(device),
        "cores": os.cpu_count(),
        "processor": processor_name(),
        "host_memory_bytes": round(memory_gib() * 2**30),
        "python": platform.python_version(),
        "versions": versions(),
        "cuda": torch.version.cuda,
    }
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        found |= {
            "driver": _driver(),
            "cudnn": torch.backends.cudnn.version(),
            "nccl": ".".join(map(str, torch.cuda.nccl.version())),
            "gpu_memory_bytes": card.total_memory,
            "multiprocessors": card.multi_processor_count,
            "compute_capability": f"{card.major}.{card.minor}",
        }
    return found


def _driver() -> str:
    """Version of the driver, as nvidia-smi says it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError) as error:
        return f"unknown ({error})"
    return done.stdout.splitlines()[0].strip()


def matrix_products(device: torch.device) -> Metrics:
    """Rates of the largest products in each number format, in operations per second."""
    side = _GPU_SIDE if device.type == "cuda" else _CPU_SIDE
    kinds = {"bf16": torch.bfloat16, "fp32": torch.float32}
    if device.type == "cuda":  # CPUs multiply fp16 element by element
        kinds["fp16"] = torch.float16
    rates = {name: matrix_flops_per_second(device, kind, side) for name, kind in kinds.items()}
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        rates["tf32"] = matrix_flops_per_second(device, torch.float32, side)
        torch.set_float32_matmul_precision("highest")
    return {f"{name}_flops_per_second": round(rate) for name, rate in rates.items()}


def copies(device: torch.device) -> Metrics:
    """Rates of copies, in bytes copied per second: within the host's memory and, with a GPU, within
    its memory and between the two, from pageable and from pinned memory."""
    host = torch.randint(256, (_HOST_BYTES,), dtype=torch.uint8)
    found = {"host_copy": copied_bytes_per_second(host, torch.empty_like(host))}
    if device.type == "cuda":
        source = torch.randint(256, (_GPU_BYTES,), dtype=torch.uint8, device=device)
        found["device_copy"] = copied_bytes_per_second(source, torch.empty_like(source))
        target = torch.empty_like(host, device=device)
        found["pageable_to_device"] = copied_bytes_per_second(host, target)
        pinned = host.pin_memory()
        found["pinned_to_device"] = copied_bytes_per_second(pinned, target)
        found["device_to_pinned"] = copied_bytes_per_second(target, pinned)
    return {f"{name}_bytes_per_second": round(rate) for name, rate in found.items()}


if __name__ == "__main__":
    sys.exit(main())
