"""Choice of device and precision."""

import platform
import subprocess
import sys

import pytest
import torch

from stn_train.errors import ConfigError
from stn_train.runs.machine import autocast, choose_device, choose_precision, seed_generator

CPU = torch.device("cpu")


@pytest.fixture
def available(monkeypatch):
    """Say which accelerators there are."""

    def available(*names: str) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in names)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in names)

    return available


@pytest.mark.parametrize(
    ("there", "chosen"),
    [([], "cpu"), (["mps"], "mps"), (["cuda"], "cuda"), (["cuda", "mps"], "cuda")],
)
def test_auto_is_the_best_there_is(available, there, chosen):
    available(*there)
    assert choose_device("auto").type == chosen


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_named_device_is_taken(available, name):
    available("cuda")
    assert choose_device(name).type == name


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_device_that_is_not_there_is_told(available, name):
    available()
    with pytest.raises(ConfigError, match=f"--device {name}: .*: auto, cpu$"):
        choose_device(name)


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_named_precision_is_taken(name):
    assert choose_precision(name, CPU) == getattr(torch, name)


@pytest.mark.parametrize(
    ("instructions", "chosen"),
    [
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": False, "amx_bf16": True}, torch.bfloat16),
        ({"avx512_f": True, "avx512_bf16": False}, torch.float32),
        ({"neon": True}, torch.float32),
    ],
)
def test_auto_is_bfloat16_where_the_processor_has_it(monkeypatch, instructions, chosen):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions, raising=False)
    assert choose_precision("auto", CPU) == chosen


def test_auto_is_float32_where_torch_cannot_tell(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert choose_precision("auto", CPU) == torch.float32
    assert choose_precision("auto", torch.device("mps")) == torch.float32


@pytest.mark.parametrize("native", [True, False])
def test_auto_on_cuda_asks_the_gpu(monkeypatch, native):
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: native or including_emulation
    )
    chosen = choose_precision("auto", torch.device("cuda"))
    assert chosen == (torch.bfloat16 if native else torch.float32)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_autocast_computes_layers_in_that_precision(precision):
    with autocast(precision, CPU):
        assert torch.nn.Linear(2, 2)(torch.zeros(1, 2)).dtype == precision


def test_dropout_follows_the_seed():
    dropped = []
    for seed in (1, 1, 2):
        seed_generator(seed, CPU)
        dropped.append(torch.nn.functional.dropout(torch.ones(100)))
    assert dropped[0].equal(dropped[1])
    assert not dropped[0].equal(dropped[2])


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_seed_goes_to_the_generator_of_the_device(monkeypatch, name):
    seeds = []
    monkeypatch.setattr(getattr(torch, name), "manual_seed", seeds.append)
    before = torch.default_generator.get_state()
    seed_generator(7, torch.device(name))
    assert seeds == [7]
    assert torch.default_generator.get_state().equal(before)


PAGES_NEEDED = """
import resource, torch
from stn_train.runs.machine import keep_freed_memory
keep_freed_memory()
for turn in range(12):  # where the heap grows at first depends on where it lies
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    held = [torch.ones(6_000_000) for _ in range(4)]  # 24 MB each
    del held
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_used_again_without_new_pages():
    done = subprocess.run([sys.executable, "-c", PAGES_NEEDED], capture_output=True, check=True)
    assert int(done.stdout) < 2000  # of 23,438 pages of 4 KiB


PAGES_HELD = """
import torch
from stn_train.runs.machine import hand_back_freed_memory, keep_freed_memory


def pages() -> int:
    return int(open("/proc/self/statm").read().split()[1])


keep_freed_memory()
held = [torch.ones(6_000_000) for _ in range(4)]  # 24 MB each
last = torch.ones(1000)  # lies behind them
most = pages()
del held
kept = pages()
hand_back_freed_memory()
print(most - kept, most - pages())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_handed_back():
    done = subprocess.run([sys.executable, "-c", PAGES_HELD], capture_output=True, check=True)
    while_kept, after = map(int, done.stdout.split())
    assert while_kept < 2000 < 20_000 < after  # of 23,438 pages of 4 KiB
