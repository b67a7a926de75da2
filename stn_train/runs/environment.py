"""Where a number was measured, and what a report of a problem needs: versions, hardware, data."""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from stn_train.data.mnist import load_mnist
from stn_train.data.source import data_directory
from stn_train.errors import ConfigError, DataError
from stn_train.runs.machine import choose_device

PACKAGE = Path(__file__).parent.parent

SOURCE_FILES = ("*.py", "*.html")
"""The files of the package that decide what it does, besides the shipped data."""

EXTRAS = ("tensorboard", "onnx", "onnxscript", "onnxruntime", "ray", "kornia")
"""Packages that only some commands need."""

VARIABLES = (
    "STN_DATA_DIR",
    "XDG_CACHE_HOME",
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "CUDA_VISIBLE_DEVICES",
)


def describe_environment(device: torch.device) -> dict[str, Any]:
    """What somebody would need to know to repeat or to doubt a result."""
    version = version_of("stn_train")
    return {
        "stn_train": version,
        "commit": commit(version),
        "source_sha256": source_sha256(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: metadata.version(name) for name in ("torchvision", "numpy", "matplotlib")},
        "platform": platform.platform(),
        "device": device.type,
        "hardware": hardware(device),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def version_of(package: str) -> str:
    """The version of an installed package; a checkout need not be one."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def commit(version: str) -> str | None:
    """The commit of the code that runs: of the checkout, else as the version names it."""
    if (PACKAGE.parent / ".git").exists():
        try:
            describe = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
            return subprocess.run(
                describe, cwd=PACKAGE.parent, capture_output=True, text=True, check=True
            ).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return None
    # hatch-vcs writes "0.1.dev7+g1a2b3c4.d20260101": g and the commit, then d and the date.
    hashed, *date = version.partition("+")[2].split(".")
    if not hashed.startswith("g"):
        return None
    return hashed.removeprefix("g") + ("-dirty" if date else "")


def source_sha256() -> str:
    """SHA-256 over the package's modules and templates, with their paths.

    The same for a checkout and an installation of it.
    """
    digest = hashlib.sha256()
    found = [path for pattern in SOURCE_FILES for path in PACKAGE.rglob(pattern)]
    for name, path in sorted((path.relative_to(PACKAGE).as_posix(), path) for path in found):
        digest.update(name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def hardware(device: torch.device) -> str:
    """The name of the processor or the GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line for line in lines if line.startswith("model name"))
        return name.split(":", 1)[1].strip()
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def examine(device: str, data_dir: Path | None) -> dict[str, Any]:
    """What this machine has, for ``stn-train --doctor``: text, numbers, or lists of text.

    device: as on the command line; if it is unavailable, that is said and the CPU described.
    """
    chosen, problems = torch.device("cpu"), []
    try:
        chosen = choose_device(device)
    except ConfigError as error:
        problems = error.problems
    environment = describe_environment(chosen)
    del environment["command"]
    data = data_directory(data_dir)
    return environment | {
        "devices": [*devices(), *problems],
        "extras": [f"{name} {version_of(name)}" for name in EXTRAS],
        "variables": [f"{name}={os.environ[name]}" for name in VARIABLES if name in os.environ],
        "mnist": [shipped_mnist()],
        "other data": f"looked for in {data.absolute()}",
        "free disk": [free_disk(path) for path in (Path(), data)],
    }


def devices() -> list[str]:
    """What could be computed on."""
    found = [f"cpu: {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"]
    for number in range(torch.cuda.device_count()):
        found.append(f"cuda:{number}: {torch.cuda.get_device_name(number)}")
    if torch.backends.mps.is_available():
        found.append("mps")
    return found


def shipped_mnist() -> str:
    """Whether the files of MNIST inside the package are whole."""
    try:
        training, test = load_mnist()
    except DataError as error:
        return str(error)
    return f"shipped with the package, whole: {len(training):,} training, {len(test):,} test digits"


def free_disk(path: Path) -> str:
    """The room where a folder is, or would be made."""
    there = next(
        folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists()
    )
    return f"{path.absolute()}: {shutil.disk_usage(there).free / 1e9:.1f} GB"
