"""What a report of a problem needs: versions, devices, data, disk."""

import os
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from stn_train.device import choose_device
from stn_train.environment import describe_environment
from stn_train.errors import ConfigError, DataError
from stn_train.mnist import FILES, data_directories, find_raw, read_idx

EXTRAS = ("tensorboard", "onnx", "onnxscript", "onnxruntime", "kornia")
"""Packages that only some commands need."""

VARIABLES = ("STN_DATA_DIR", "XDG_CACHE_HOME", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")


def examine(device: str, data_dir: Path | None = None) -> dict[str, Any]:
    """What this machine has: text, numbers, or lists of text.

    device: as on the command line; where it is unavailable, that is said and the CPU described.
    """
    chosen, problems = torch.device("cpu"), []
    try:
        chosen = choose_device(device)
    except ConfigError as error:
        problems = error.problems
    environment = describe_environment(chosen)
    del environment["command"]
    return environment | {
        "devices": [*devices(), *problems],
        "extras": [f"{name} {version_of(name)}" for name in EXTRAS],
        "variables": [f"{name}={os.environ[name]}" for name in VARIABLES if name in os.environ],
        "mnist": mnist(data_dir),
        "free disk": [free_disk(path) for path in (Path(), data_directories(data_dir)[-1])],
    }


def devices() -> list[str]:
    """What could be computed on."""
    found = [f"cpu: {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"]
    for number in range(torch.cuda.device_count()):
        found.append(f"cuda:{number}: {torch.cuda.get_device_name(number)}")
    if torch.backends.mps.is_available():
        found.append("mps")
    return found


def free_disk(path: Path) -> str:
    """The room where a folder is, or would be made."""
    there = next(
        folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists()
    )
    return f"{path.absolute()}: {shutil.disk_usage(there).free / 1e9:.1f} GB"


def version_of(package: str) -> str:
    """The version of an installed package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def mnist(data_dir: Path | None) -> list[str]:
    """Where MNIST is and whether it is whole, or where it was looked for."""
    raw = find_raw(data_dir)
    if raw is None:
        return ["not found", *(f"looked in {each}" for each in data_directories(data_dir))]
    try:
        for file in FILES:
            read_idx(raw, file)
    except DataError as error:
        return [str(error)]
    return [f"{raw}: four files, whole"]
