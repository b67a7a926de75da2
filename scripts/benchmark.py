"""How fast it is, beside the usual ways to write it: all ratios from one run on one machine.

    python scripts/benchmark.py [--json] [--device cpu|cuda] [--seconds 3]

Peers: torchvision's transforms, sample by sample through a DataLoader with two workers; kornia's
batched augmentations (the `benchmark` extra; left out where it is not installed); the same
models written with plain nn.Conv2d and F.affine_grid and trained by torch's own optimisers, in
float32 and under autocast; and these in the loop of PyTorch's tutorials, fed by that DataLoader.
What is measured is the default recipe as it is shipped. Contenders take turns, a figure is a
median.
"""

import copy
import functools
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from stn_train.config import Config
from stn_train.data.distortion import Warping, distort
from stn_train.data.distortions import DISTORTIONS
from stn_train.data.images import ImageFormat, Images
from stn_train.data.sources import Splits, load_splits
from stn_train.geometry.grids import AffineGrid
from stn_train.geometry.transforms import TRANSFORMS
from stn_train.models.backbones import BACKBONES
from stn_train.models.convolution import Convolution, MaxPooling
from stn_train.models.network import Network
from stn_train.models.spatial_transformer import OutputLayer, SpatialTransformer
from stn_train.runs.environment import describe_environment
from stn_train.runs.machine import autocast, cores, keep_freed_memory, name_of_precision
from stn_train.tasks import TASKS
from stn_train.tasks.base import Batch
from stn_train.tasks.examples import Pass
from stn_train.trainer.state import State

BATCH = 256
DIGITS = ImageFormat((1, 28, 28), tuple("0123456789"))
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

    def parts(self, work: Callable[[], dict[str, float]]) -> dict[str, float]:
        """Medians of the seconds that calls to a function tell of its parts."""
        ends, found = time.perf_counter() + self.seconds, [work()]
        while time.perf_counter() < ends:
            found.append(work())
        return {part: median(each[part] for each in found) for part in found[0]}

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
    """A spatial transformer as tutorials write it: F.affine_grid and F.grid_sample.

    torch has no grid but the affine one, and no composition: those are ours.
    """

    def __init__(self, transformer: SpatialTransformer) -> None:
        super().__init__()
        self.localisation = nn.Sequential(rebuilt(transformer.localisation), transformer.regression)
        self.grid, self.size = transformer.transform, transformer.output_size
        self.pool, self.looks = transformer.pool, transformer.iterations

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H', W')."""
        small = F.avg_pool2d(images, self.pool)
        theta = self.localise(small)
        for _ in range(self.looks - 1):
            correction = self.localise(self.read(images, theta, small.shape[2:]))
            with torch.autocast(theta.device.type, enabled=False):
                theta = self.grid.compose(theta, correction)
        return self.read(images, theta, self.size or images.shape[2:])

    def localise(self, images: Tensor) -> Tensor:
        """Theta (B, P), float32 also under autocast: a coordinate needs its precision."""
        theta: Tensor = self.localisation(images)
        return theta.float()

    def read(self, images: Tensor, theta: Tensor, size: Sequence[int]) -> Tensor:
        """Images (B, C, H, W) warped by theta (B, P) to a size (H', W')."""
        height, width = size
        if isinstance(self.grid, AffineGrid):
            shape = [*images.shape[:2], height, width]
            grid = F.affine_grid(theta.view(-1, 2, 3), shape, align_corners=False)
        else:
            with torch.autocast(theta.device.type, enabled=False):
                grid = self.grid(theta, (height, width))
        return F.grid_sample(images, grid, align_corners=False)


class PlainRun:
    """A model the usual way, in training by torch's own optimisers.

    Muon where the config asks for it, on matrices of hidden layers; torch's takes no kernels, so
    that AdamW has these and all the rest.
    """

    def __init__(self, state: State, precision: torch.dtype = torch.float32) -> None:
        """A model of its own like a state's. precision: of autocast."""
        self.state, self.precision = state, precision
        self.model = plain(state.model).to(state.device)
        settings = state.config.train
        rates: dict[str, Any] = {
            "lr": settings.learning_rate,
            "weight_decay": settings.weight_decay,
        }
        layers = self.model.modules()
        answers = {id(each.weight) for each in layers if isinstance(each, OutputLayer)}
        matrices: list[Tensor] = []
        others: list[Tensor] = []
        for weight in self.model.parameters():
            turned = settings.optimizer == "muon" and weight.ndim == 2 and id(weight) not in answers
            (matrices if turned else others).append(weight)
        self.optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(others, **rates)]
        if matrices:
            muon = torch.optim.Muon(matrices, **rates, adjust_lr_fn="match_rms_adamw")
            self.optimizers.append(muon)

    def take_step(self, batch: Batch) -> None:
        """One step on inputs that are in memory already."""
        self.backward(batch)
        for optimizer in self.optimizers:
            optimizer.step()

    def backward(self, batch: Batch) -> None:
        """Loss and gradient."""
        smoothing = self.state.config.train.label_smoothing
        self.model.zero_grad()
        with autocast(self.precision, self.state.device):
            loss = self.state.task.loss(self.model, batch, smoothing)
        loss.backward()


def state_of(config: Config, splits: Splits, device: torch.device) -> State:
    """The state of a run at its first step."""
    return State(config, splits.to(device), device)


def shipped_config(
    backbone: str, transform: str, distortion: str = "R", task: str = "classification"
) -> Config:
    """An experiment by the default recipe."""
    return Config.model_validate(
        {"distortion": distortion, "task": task, "backbone": backbone, "transform": transform}
    )


def shipped_configs() -> Iterator[Config]:
    """By the default recipe, on digits of 28 px and on a larger canvas: all that is registered.

    The backbones and transforms of the paper's table each with each, every other transform in
    front of the FCN, every other backbone without a transformer and with the affine one, every
    other task with that one and the FCN. Of the tasks those on images: the peers have no volumes.
    """
    pairs = list(itertools.product(("FCN", "CNN"), ("none", "Aff", "Proj", "TPS")))
    pairs += [("FCN", transform) for transform in TRANSFORMS]
    pairs += list(itertools.product(BACKBONES, ("none", "Aff")))
    for distortion in ("R", "RTS"):
        for backbone, transform in dict.fromkeys(pairs):
            yield shipped_config(backbone, transform, distortion)
    for name, task in TASKS.items():
        if name != "classification" and not task.locates and len(task().shape(DIGITS)) == 3:
            yield shipped_config("FCN", "Aff", "RTS", name)


def step_rows(splits: Splits, watch: Stopwatch) -> list[Row]:
    """Training steps of the default recipe as it is shipped, distortion and optimiser included."""
    matmul = {dtype: matmul_rate(dtype, watch) for dtype in (torch.float32, torch.bfloat16)}
    rows = [
        Row(f"matrix product, {name_of_precision(dtype)}", "GFLOP/s", rate / 1e9)
        for dtype, rate in matmul.items()
    ]
    loader = per_sample_loader(splits.training, "R")
    return rows + [step_row(config, splits, loader, matmul, watch) for config in shipped_configs()]


def step_row(
    config: Config,
    splits: Splits,
    loader: DataLoader[tuple[Tensor, Tensor]],
    matmul: dict[torch.dtype, float],
    watch: Stopwatch,
) -> Row:
    """A model's step beside the plain ones, and where its time goes."""
    state = state_of(config, splits, watch.device)
    batch = state.draw_pass(0).batches(BATCH)[0]
    by_precision = {"float32": PlainRun(state), "autocast": PlainRun(state, state.precision)}

    def plain_step(run: PlainRun) -> None:
        run.take_step(state.task.batch(state.splits.training, batch.order, batch.draws))

    def tutorial_pass() -> None:
        for images, targets in loader:
            run = by_precision["float32"]
            run.take_step(Batch(images.to(watch.device), targets.to(watch.device)))

    works: dict[str, Callable[[], object]] = {"ours": lambda: state.take_step(batch)}
    works |= {name: functools.partial(plain_step, run) for name, run in by_precision.items()}
    seconds = watch.medians(**works)
    step = seconds.pop("ours")
    peers = {name: BATCH / each for name, each in seconds.items()}
    if config.cell.distortion == "R" and config.task_name == "classification":
        peers["tutorial"] = LOADED / watch.timed(tutorial_pass)
    rate = flops(state, batch) / step / matmul[state.precision]
    shares = {"of the matrix rate": rate}
    parts = watch.parts(lambda: step_in_parts(state, batch))
    whole = sum(parts.values())
    shares |= {f"of the step: {part}": seconds / whole for part, seconds in parts.items()}
    what = f"step, {config.title}, {name_of_precision(state.precision)}"
    return Row(what, "images/s", BATCH / step, peers, shares)


def step_in_parts(state: State, batch: Pass) -> dict[str, float]:
    """Take a step, and tell the seconds that each of its parts took.

    looks: the forward passes of the spatial transformers. classifier: that of all other layers,
    with the loss.
    """
    clock, parts = Clock(state.device), defaultdict[str, float](float)
    inputs = state.task.batch(state.splits.training, batch.order, batch.draws)
    parts["distortion"] = clock.lap()

    def before_looks(*_: object) -> None:
        parts["classifier"] += clock.lap()

    def after_looks(*_: object) -> None:
        parts["looks"] += clock.lap()

    transformers = state.model.transformers.values()
    hooks = [each.register_forward_pre_hook(before_looks) for each in transformers]
    hooks += [each.register_forward_hook(after_looks) for each in transformers]
    with autocast(state.precision, state.device):
        loss = state.task.loss(state.model, inputs, state.config.train.label_smoothing)
    parts["classifier"] += clock.lap()
    for hook in hooks:
        hook.remove()
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    parts["backward"] = clock.lap()
    state.optimizer.step()
    parts["optimiser"] = clock.lap()
    return {part: parts[part] for part in PARTS if part in parts}


PARTS = ("distortion", "looks", "classifier", "backward", "optimiser")
"""Of a step, in order."""


class Clock:
    """Tells the time between two calls, the device's work included."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.last = device, time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last call."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        last, self.last = self.last, time.perf_counter()
        return self.last - last


def flops(state: State, batch: Pass) -> int:
    """Floating-point operations of convolutions and matrix products in a step, as torch counts.

    The model's are those of the plain one: a faster way to compute the same is not credited with
    fewer, nor with more. The optimiser's are its own.
    """
    run = PlainRun(state)
    inputs = state.task.batch(state.splits.training, batch.order, batch.draws)
    with FlopCounterMode(display=False) as counter:
        run.backward(inputs)
    return int(counter.get_total_flops()) + optimizer_flops(state)


def optimizer_flops(state: State) -> int:
    """The same of a step of a state's optimiser."""
    for weight in state.model.parameters():
        weight.grad = torch.zeros_like(weight)
    with FlopCounterMode(display=False) as counter:
        state.optimizer.step()
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
from benchmark import BATCH, shipped_config, state_of
from stn_train.data.sources import load_splits
from stn_train.runs.machine import keep_freed_memory
backbone, threads, device, seconds = sys.argv[1:]
torch.set_num_threads(int(threads))
keep_freed_memory()
config = shipped_config(backbone, "Aff")
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


def rate_together(
    backbone: str,
    device: str,
    seconds: float,
    runs: int = 1,
    variables: Mapping[str, str] | None = None,
) -> float:
    """Images per second of training runs of ST-``backbone`` Aff at once, all together.

    Each is a process with its share of the cores as threads, and with these environment
    variables besides our own.
    """
    what = [backbone, str(max(1, cores() // runs)), device, str(seconds)]
    line = [sys.executable, "-c", STEPS_FOR_A_WHILE, *what]
    environment = {**os.environ, **(variables or {})}
    folder = Path(__file__).parent
    processes = [
        subprocess.Popen(line, stdout=subprocess.PIPE, cwd=folder, env=environment)
        for _ in range(runs)
    ]
    return sum(float(process.communicate()[0]) for process in processes)


def together_rows(watch: Stopwatch) -> list[Row]:
    """Several runs at once, each in a process with its share of the cores, beside one run."""
    device, seconds = watch.device.type, 4 * watch.seconds
    runs = cores() if device == "cpu" else 4
    rows = []
    for backbone in ("FCN", "CNN"):
        alone = rate_together(backbone, device, seconds)
        together = rate_together(backbone, device, seconds, runs)
        what = f"ST-{backbone} Aff, {runs} runs at once, a process each"
        rows.append(Row(what, "images/s", together, {"one run": alone}))
    return rows


def growth_rows(splits: Splits, device: torch.device) -> list[Row]:
    """Time per pass as the data grows."""
    config = shipped_config("FCN", "Aff")
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
