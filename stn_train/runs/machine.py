"""Where to compute, in which precision, and how memory is held meanwhile."""

import ctypes
import os
import platform

import torch

from stn_train.errors import ConfigError


def choose_device(name: str) -> torch.device:
    """The device that ``auto``, ``cpu``, ``cuda`` or ``mps`` stands for here.

    Raises ConfigError, naming those there are, where it is not available.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(device for device, there in available.items() if there)
    if not available.get(name, False):
        there = ", ".join(device for device, is_there in available.items() if is_there)
        raise ConfigError([f"--device {name}: not available here; available: auto, {there}"])
    return torch.device(name)


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """The type that ``auto``, ``float32`` or ``bfloat16`` stands for on a device."""
    if name == "auto":
        name = "bfloat16" if multiplies_bfloat16(device) else "float32"
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def name_of_precision(precision: torch.dtype) -> str:
    """What results and tables call it: float32, bfloat16."""
    return str(precision).removeprefix("torch.")


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the hardware has instructions for it; emulated, it is slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):  # since torch 2.11
        processor = torch.cpu.get_capabilities()
        return bool(processor.get("avx512_bf16") or processor.get("amx_bf16"))
    return False


def autocast(precision: torch.dtype, device: torch.device) -> torch.autocast:
    """A context in which the layers of a network compute in this precision."""
    return torch.autocast(device.type, precision, enabled=precision != torch.float32)


def seed_generator(seed: int, device: torch.device) -> None:
    """Seed the generator that dropout on this device draws from.

    `torch.manual_seed` seeds those of all devices; without a GPU it records the call stack for
    one that may come, which takes as long as a layer of a small network.
    """
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


def wait_for(device: torch.device) -> None:
    """Wait until a device has finished its queue; a CPU has none."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def cores() -> int:
    """How many processor cores this process may use: all, unless it was given fewer."""
    given = getattr(os, "sched_getaffinity", None)  # Linux has it
    return len(given(0)) if given else os.cpu_count() or 1


def keep_freed_memory() -> None:
    """Have the C library keep freed memory for the next step instead of handing it back.

    A training step on the CPU allocates the same tensors again and again. By default glibc
    returns the large ones to the kernel, which must clear every page anew: a quarter of the
    step of a CNN. Does nothing with another C library.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    trim_threshold, mmap_threshold = -1, -3  # from malloc.h
    libc = ctypes.CDLL(None)
    libc.mallopt(trim_threshold, 512 << 20)
    libc.mallopt(mmap_threshold, 32 << 20)  # the most that it takes


def hand_back_freed_memory() -> None:
    """Return what is freed to the system, between parts of a program that need other sizes.

    Does nothing with another C library than glibc.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
