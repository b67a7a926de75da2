"""Where a number was measured: versions, commit, hardware."""

import hashlib
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from stn_train import installed_version

PACKAGE = Path(__file__).parent


def describe_environment(device: torch.device) -> dict[str, Any]:
    """What somebody would need to know to repeat or to doubt a result."""
    version = installed_version()
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
    """SHA-256 over the package's modules: the same for a checkout and an installation of it."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
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
