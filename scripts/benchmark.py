"""How fast it is, beside the usual ways to write it: all ratios from one run on one machine.

    python scripts/benchmark.py [--json] [--device cpu|cuda] [--seconds 3]

Peers: torchvision's transforms, sample by sample through a DataLoader with two workers; kornia's
batched augmentations (the `benchmark` extra; left out where it is not installed); the same
models written with plain nn.Conv2d and F.affine_grid in eager float32; and these in the loop of
PyTorch's tutorials, fed by that DataLoader. Contenders take turns, a figure is a median.
"""

import copy
import functools
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from stn_train.config import Config
from stn_train.data.distortions import DISTORTIONS, Warping, distort
from stn_train.data.images import Images
from stn_train.data.sources import Splits, load_splits
from stn_train.geometry.transforms import AffineGrid
from stn_train.models.convolution import Convolution, MaxPooling
from stn_train.models.network import Network
from stn_train.models.spatial_transformer import SpatialTransformer
from stn_train.runs.environment import describe_environment
from stn_train.runs.machine import autocast, choose_precision, cores, keep_freed_memory
from stn_train.tasks.examples import Pass
from stn_train.trainer.state import State

BATCH = 256
LOADED = 4096
"""Digits that a DataLoader is timed on."""

TURN = 0.2
"""Seconds that a contender is timed before the next one's turn."""

GROWTH = (3438, 13750, 55000)
"""Digits in a pass: 1, 4 and 16 times as many."""


@dataclass
class Row:
    """One measurement."""

    what: str
    unit: str
    ours: float
    peers: dict[str, float] = field(default_factory=dict)
    """The others, in the same unit."""
    shares: dict[str, float] = field(default_factory=dict)
    """Of the step's time, or of the rate of a matrix product."""


class Stopwatch:
    """Times functions on a device."""

    def __init__(self, device: torch.device, seconds: float) -> None:
        """Each contender gets about this many seconds."""
        self.device, self.seconds = device, seconds

    def medians(self, **works: Callable[[], object]) -> dict[str, float]:
        """Median seconds of a call to each; they take turns, so all see the same load."""
        for work in works.values():
            self.timed(work, calls=5)  # a captured step is recorded at its fourth call
        # A turn is long enough that a contender meets its own caches, not the others'.
        calls = {name: max(1, int(TURN / self.timed(work))) for name, work in works.items()}
        times: dict[str, list[float]] = {name: [] for name in works}
        ends = time.perf_counter() + self.seconds * len(works)
        while time.perf_counter() < ends or min(map(len, times.values())) < 3:
            for name, work in works.items():
                times[name].append(self.timed(work, calls[name]))
        return {name: median(each) for name, each in times.items()}

    def timed(self, work: Callable[[], object], calls: int = 1) -> float:
        """Seconds of a call, the mean of several in a row."""
        started = time.perf_counter()
        for _ in range(calls):
            work()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - started) / calls


class PerSample(Dataset[tuple[Tensor, Tensor]]):
    """Digits distorted one at a time by a torchvision transform, as tutorials do it."""

    def __init__(self, images: Images, distortion: str) -> None:
        self.images, self.transform = images, torchvision_peer(distortion)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self.images.pixels[index].float() / 255
        return self.transform(image), self.images.labels[index]


def torchvision_peer(name: str) -> Callable[[Tensor], Tensor]:
    """The nearest thing that torchvision.transforms.v2 has to a distortion."""
    from torchvision.transforms import InterpolationMode, v2

    bilinear = InterpolationMode.BILINEAR
    scale = v2.RandomAffine(0, scale=(0.75, 1), interpolation=bilinear)
    shift = (1 / 6, 1 / 6)
    peers: dict[str, list[nn.Module]] = {
        "R": [v2.RandomRotation(90, bilinear)],
        "RTS": [v2.Pad(7), v2.RandomAffine(45, shift, (0.7, 1.2), interpolation=bilinear)],
        "P": [scale, v2.RandomPerspective(0.5, 1.0, bilinear)],
        "E": [scale, v2.ElasticTransform(50.0, 5.0, bilinear)],
    }
    composed: Callable[[Tensor], Tensor] = v2.Compose(peers[name])
    return composed


def kornia_peer(name: str) -> Callable[[Tensor], Tensor] | None:
    """The nearest thing that kornia has to a distortion, batched; None without kornia."""
    try:
        import kornia.augmentation as K
    except ImportError:
        return None
    scale = K.RandomAffine(0.0, scale=(0.75, 1.0), p=1.0)
    peers = {
        "R": [K.RandomRotation(90.0, p=1.0)],
        "RTS": [nn.ZeroPad2d(7), K.RandomAffine(45.0, (1 / 6, 1 / 6), (0.7, 1.2), p=1.0)],
        "P": [scale, K.RandomPerspective(0.5, p=1.0)],
        "E": [scale, K.RandomThinPlateSpline(0.1, p=1.0)],
    }
    return nn.Sequential(*peers[name])


def distortion_rows(images: Images, watch: Stopwatch) -> list[Row]:
    """Distorted images per second, draws included."""
    batch = images[:BATCH].to(watch.device)
    return [distortion_row(name, images, batch, watch) for name in ("R", "RTS", "P", "E")]


def distortion_row(name: str, images: Images, batch: Images, watch: Stopwatch) -> Row:
    """One distortion beside its peers."""
    distortion, generator = DISTORTIONS[name](), torch.Generator().manual_seed(0)
    assert isinstance(distortion, Warping)
    pixels, kornia = batch.pixels.float() / 255, kornia_peer(name)
    works: dict[str, Callable[[], object]] = {
        "ours": lambda: distort(batch.pixels, distortion, distortion.draw(BATCH, generator))
    }
    if kornia is not None:
        works["kornia"] = lambda: kornia(pixels)
    rates = {peer: BATCH / seconds for peer, seconds in watch.medians(**works).items()}
    loader = per_sample_loader(images, name)
    rates["torchvision"] = LOADED / watch.timed(lambda: sum(len(labels) for _, labels in loader))
    return Row(f"distortion {name}", "images/s", rates.pop("ours"), rates)


def per_sample_loader(images: Images, distortion: str) -> DataLoader[tuple[Tensor, Tensor]]:
    """A DataLoader with two workers that are running already."""
    samples = PerSample(images[:LOADED], distortion)
    loader = DataLoader(samples, BATCH, num_workers=2, persistent_workers=True)
    for _ in loader:
        pass
    return loader


def plain(network: Network) -> nn.Sequential:
    """The same network the usual way: nn.Conv2d, ReLU before pooling, F.affine_grid."""
    stages = copy.deepcopy(network)
    return nn.Sequential(*(rebuilt(stage) for stage in stages))


def rebuilt(stage: nn.Module) -> nn.Module:
    """A stage with plain modules."""
    if isinstance(stage, SpatialTransformer):
        return PlainTransformer(stage)
    if not isinstance(stage, nn.Sequential):
        return stage
    found = [plain_layer(layer) for layer in stage]
    for number in range(len(found) - 1):
        if isinstance(found[number], nn.MaxPool2d) and isinstance(found[number + 1], nn.ReLU):
            found[number : number + 2] = found[number + 1], found[number]
    return nn.Sequential(*found)


def plain_layer(layer: nn.Module) -> nn.Module:
    """A layer of ours as torch has it, others as they are."""
    if isinstance(layer, Convolution):
        return nn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel_size[0])
    if isinstance(layer, MaxPooling):
        return nn.MaxPool2d(layer.kernel_size, ceil_mode=layer.ceil_mode)
    return layer


class PlainTransformer(nn.Module):
    """A spatial transformer as tutorials write it: one look, F.affine_grid, F.grid_sample."""

    def __init__(self, transformer: SpatialTransformer) -> None:
        super().__init__()
        self.localisation = nn.Sequential(
            nn.AvgPool2d(transformer.pool) if transformer.pool > 1 else nn.Identity(),
            rebuilt(transformer.localisation),
            transformer.regression,
        )
        self.grid, self.size = transformer.transform, transformer.output_size

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H', W')."""
        theta, size = self.localisation(images), self.size or images.shape[-2:]
        if isinstance(self.grid, AffineGrid):
            shape = [*images.shape[:2], *size]
            grid = F.affine_grid(theta.view(-1, 2, 3), shape, align_corners=False)
        else:
            grid = self.grid(theta, size)
        return F.grid_sample(images, grid, align_corners=False)


def plain_rotation(pixels: Tensor) -> Tensor:
    """R the usual way, batched: F.affine_grid and F.grid_sample on float images."""
    angle = torch.empty(len(pixels), device=pixels.device).uniform_(-torch.pi / 2, torch.pi / 2)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    theta = torch.stack([cos, -sin, zero, sin, cos, zero], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, align_corners=False)


def state_of(config: Config, splits: Splits, device: torch.device) -> State:
    """The state of a run at its first step."""
    return State(config, splits.to(device), device)


def model_config(backbone: str, transform: str, precision: str, distortion: str = "R") -> Config:
    """A cell of the table, the paper's network, in a precision; the learning rate stays."""
    train = {"schedule": "constant", "learning_rate": 1e-4, "optimizer": "adamw"}
    choice = {"distortion": distortion, "backbone": backbone, "transform": transform}
    config = {**choice, "recipe": "paper", "train": {**train, "precision": precision}}
    return Config.model_validate(config)


def step_rows(splits: Splits, watch: Stopwatch) -> list[Row]:
    """Training steps of the eight models on R, batch 256, distortion included."""
    device = watch.device
    matmul = {name: matmul_rate(getattr(torch, name), watch) for name in ("float32", "bfloat16")}
    rows = [Row(f"matrix product, {name}", "GFLOP/s", rate / 1e9) for name, rate in matmul.items()]
    default = str(choose_precision("auto", device)).removeprefix("torch.")
    loader = per_sample_loader(splits.training, "R")
    for backbone in ("FCN", "CNN"):
        for transform in ("none", "Aff", "Proj", "TPS"):
            rows += model_rows(backbone, transform, default, splits, loader, matmul, watch)
    return rows


def model_rows(
    backbone: str,
    transform: str,
    default: str,
    splits: Splits,
    loader: DataLoader[tuple[Tensor, Tensor]],
    matmul: dict[str, float],
    watch: Stopwatch,
) -> list[Row]:
    """A model's step in each precision, beside the plain one, and where its time goes."""
    device = watch.device
    states = {
        precision: state_of(model_config(backbone, transform, precision), splits, device)
        for precision in dict.fromkeys([default, "float32"])
    }
    batch = states[default].draw_pass(0).batches(BATCH)[0]
    shown = states[default].splits.training[batch.order]
    peer = plain(states[default].model).to(device)
    optimizer = torch.optim.AdamW(peer.parameters(), 1e-4)
    pixels, labels = shown.pixels.float() / 255, shown.labels

    def plain_step(images: Tensor, targets: Tensor) -> None:
        optimizer.zero_grad()
        F.cross_entropy(peer(images), targets).backward()
        optimizer.step()

    def tutorial_pass() -> None:
        for images, targets in loader:
            plain_step(images.to(device), targets.to(device))

    works: dict[str, Callable[[], object]] = {
        precision: functools.partial(state.take_step, batch) for precision, state in states.items()
    }
    works["plain"] = lambda: plain_step(plain_rotation(pixels), labels)
    seconds = watch.medians(**works)
    peers = {
        "plain": BATCH / seconds["plain"],
        "tutorial": LOADED / watch.timed(tutorial_pass),
    }
    rows = []
    for precision, state in states.items():
        step = seconds[precision]
        rate = flops(state, batch) / step / matmul[precision]
        shares = {f"of the {precision} matrix product's rate": rate}
        parts = watch.medians(**part_works(state, batch))
        shares |= {f"of the step: {part}": time / step for part, time in parts.items()}
        what = f"{state.config.cell.model}, {precision}"
        rows.append(Row(what, "images/s", BATCH / step, peers, shares))
    return rows


def part_works(state: State, batch: Pass) -> dict[str, Callable[[], object]]:
    """The parts of a step, each with its own backward."""
    images, network = state.splits.training, state.model
    inputs, targets = state.task.batch(images, batch.order, batch.draws)
    *front, classifier = network

    def classify(seen: Tensor) -> None:
        with autocast(state.precision, state.device):
            logits = classifier(seen)
        F.cross_entropy(logits.float(), targets).backward()

    def distortion_alone() -> None:
        state.task.batch(images, batch.order, batch.draws)

    works: dict[str, Callable[[], object]] = {"distortion": distortion_alone}
    if not front:
        return {**works, "classifier": lambda: classify(inputs)}

    def transform() -> None:
        with autocast(state.precision, state.device):
            warped = nn.Sequential(*front)(inputs)
        warped.backward(torch.ones_like(warped))

    seen = nn.Sequential(*front)(inputs).detach().requires_grad_()
    return {**works, "transformer": transform, "classifier": lambda: classify(seen)}


def flops(state: State, batch: Pass) -> int:
    """Floating-point operations of convolutions and matrix products in a step, as torch counts."""
    with FlopCounterMode(display=False) as counter:
        state.update_weights(batch.order, *batch.draws)
    return int(counter.get_total_flops())


def matmul_rate(dtype: torch.dtype, watch: Stopwatch) -> float:
    """Floating-point operations per second of a large matrix product."""
    side = 2048
    a, b = torch.randn(2, side, side, device=watch.device, dtype=dtype).unbind(0)
    return 2 * side**3 / watch.medians(product=lambda: a @ b)["product"]


FIRST_STEP = """
import os
from stn_train.cli.train import run_train
from stn_train.trainer import observers
class Ends(observers.Observer):
    def stepped(self, step):
        os._exit(0)
observers.progress = lambda quiet: Ends()
run_train()
"""


def process_rows(device: torch.device) -> list[Row]:
    """Start-up times and the peak memory of the commands, as a user meets them."""
    where = ["--device", device.type]
    command = "from stn_train.cli.train import run_train; run_train()"
    with tempfile.TemporaryDirectory() as folder:

        def seconds(code: str, *arguments: str) -> float:
            started = time.perf_counter()
            line = [sys.executable, "-c", code, *arguments]
            subprocess.run(line, check=True, capture_output=True, cwd=folder)
            return time.perf_counter() - started

        seconds(FIRST_STEP, "--config", "rts_affine", *where)  # the disk is warm from here on
        help_seconds = median(seconds(command, "--help") for _ in range(5))
        first_step = median(seconds(FIRST_STEP, "--config", "rts_affine", *where) for _ in range(3))
        seconds(command, "--config", "rts_affine", *where, "--set", "train.epochs=1")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 2**30
    return [
        Row("stn-train --help", "s", help_seconds),
        Row("stn-train rts_affine, start to first step", "s", first_step),
        Row("stn-train rts_affine, peak memory", "GiB", peak),
    ]


STEPS_FOR_A_WHILE = """
import sys, time
import torch
from benchmark import BATCH, model_config, state_of
from stn_train.data.sources import load_splits
from stn_train.runs.machine import keep_freed_memory
backbone, threads, device, seconds = sys.argv[1:]
torch.set_num_threads(int(threads))
keep_freed_memory()
config = model_config(backbone, "Aff", "auto")
state = state_of(config, load_splits(config.data), torch.device(device))
batches = state.draw_pass(0).batches(BATCH)[:-1]
for batch in batches[:8]:
    state.take_step(batch)
steps, started = 0, time.perf_counter()
while time.perf_counter() < started + float(seconds):
    float(state.take_step(batches[steps % len(batches)]))  # waits for a GPU
    steps += 1
print(steps * BATCH / (time.perf_counter() - started))
"""


def together_rows(watch: Stopwatch) -> list[Row]:
    """Several runs at once, each in a process with its share of the cores, beside one run."""
    own, on_cpu = cores(), watch.device.type == "cpu"
    rows = []
    for backbone in ("FCN", "CNN"):
        rates = {}
        for runs in (1, own if on_cpu else 4):
            what = [backbone, str(max(1, own // runs)), watch.device.type, str(4 * watch.seconds)]
            line = [sys.executable, "-c", STEPS_FOR_A_WHILE, *what]
            folder = Path(__file__).parent
            processes = [
                subprocess.Popen(line, stdout=subprocess.PIPE, cwd=folder) for _ in range(runs)
            ]
            rates[runs] = sum(float(process.communicate()[0]) for process in processes)
        (_, alone), (runs, together) = rates.items()
        what_row = f"ST-{backbone} Aff, {runs} runs at once, a process each"
        rows.append(Row(what_row, "images/s", together, {"one run": alone}))
    return rows


def growth_rows(splits: Splits, device: torch.device) -> list[Row]:
    """Time per pass as the data grows."""
    config = model_config("FCN", "Aff", "auto")
    rows = []
    for images in GROWTH:
        part = Splits(splits.training[:images], splits.validation[:0], splits.test[:1], "")
        state = state_of(config, part, device)
        seconds = []
        for passed in range(4):
            started = time.perf_counter()
            for batch in state.draw_pass(passed).batches(BATCH):
                state.take_step(batch)
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
        rate = images / median(seconds[1:])
        rows.append(Row(f"ST-FCN Aff, a pass over {images:,} digits", "images/s", rate))
    return rows


def table(rows: list[Row]) -> str:
    """The rows as text."""
    lines = []
    for row in rows:
        peers = [f"{row.ours / rate:.1f} x {peer}" for peer, rate in row.peers.items()]
        shares = [f"{100 * share:.0f} % {what}" for what, share in row.shares.items()]
        lines.append(f"{row.what:44} {row.ours:10,.4g} {row.unit:9} {', '.join(peers + shares)}")
    return "\n".join(lines)


def main(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    seconds: Annotated[float, typer.Option(help="For each contender.")] = 3.0,
) -> None:
    """Measure how fast it is beside its peers, and print a table or JSON."""
    keep_freed_memory()
    where = torch.device(device)
    watch = Stopwatch(where, seconds)
    # First: a process that starts another lends it its own memory in the kernel's books.
    rows = process_rows(where)
    rows += together_rows(watch)
    splits = load_splits(Config().data)
    rows += distortion_rows(splits.training, watch)
    rows += step_rows(splits, watch)
    rows += growth_rows(splits, where)
    if as_json:
        environment = describe_environment(where)
        del environment["command"]  # the folders of a machine do not belong into a result
        print(json.dumps({"environment": environment, "rows": list(map(asdict, rows))}, indent=1))
    else:
        print(table(rows))


if __name__ == "__main__":
    typer.run(main)
