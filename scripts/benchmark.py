"""How fast it is, beside the usual ways to write it: all ratios from one run on one machine.

    python scripts/benchmark.py [--json] [--device cpu|cuda] [--data-dir DIR] [--seconds 3]

Peers: torchvision's transforms, sample by sample through a DataLoader with two workers; kornia's
batched augmentations (the `benchmark` extra; left out where it is not installed); the same
models written with plain nn.Conv2d and F.affine_grid in eager float32; and these in the loop of
PyTorch's tutorials, fed by that DataLoader. Contenders take turns, a figure is a median.
"""

import argparse
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

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from stn_train.config import Config
from stn_train.convolution import SingleChannelConv2d
from stn_train.data import Plan, Splits, load_splits
from stn_train.device import autocast, choose_precision, cores, keep_freed_memory
from stn_train.digits import Digits
from stn_train.distortions import DISTORTIONS, distort
from stn_train.environment import describe_environment
from stn_train.models import DigitClassifier, build_model
from stn_train.training import Training
from stn_train.transforms import AffineGrid

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

    def __init__(self, digits: Digits, distortion: str) -> None:
        self.digits, self.transform = digits, torchvision_peer(distortion)

    def __len__(self) -> int:
        return len(self.digits)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self.digits.images[index][None].float() / 255
        return self.transform(image), self.digits.labels[index]


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


def distortion_rows(digits: Digits, watch: Stopwatch) -> list[Row]:
    """Distorted images per second, draws included."""
    batch = digits[:BATCH].to(watch.device)
    return [distortion_row(name, digits, batch, watch) for name in ("R", "RTS", "P", "E")]


def distortion_row(name: str, digits: Digits, batch: Digits, watch: Stopwatch) -> Row:
    """One distortion beside its peers."""
    distortion, generator = DISTORTIONS[name](), torch.Generator().manual_seed(0)
    pixels, kornia = batch.images[:, None].float() / 255, kornia_peer(name)
    works: dict[str, Callable[[], object]] = {
        "ours": lambda: distort(batch.images, distortion, distortion.draw(BATCH, generator))
    }
    if kornia is not None:
        works["kornia"] = lambda: kornia(pixels)
    rates = {peer: BATCH / seconds for peer, seconds in watch.medians(**works).items()}
    loader = per_sample_loader(digits, name)
    rates["torchvision"] = LOADED / watch.timed(lambda: sum(len(labels) for _, labels in loader))
    return Row(f"distortion {name}", "images/s", rates.pop("ours"), rates)


def per_sample_loader(digits: Digits, distortion: str) -> DataLoader[tuple[Tensor, Tensor]]:
    """A DataLoader with two workers that are running already."""
    samples = PerSample(digits[:LOADED], distortion)
    loader = DataLoader(samples, BATCH, num_workers=2, persistent_workers=True)
    for _ in loader:
        pass
    return loader


class Plain(nn.Module):
    """The same model the usual way: nn.Conv2d, ReLU before pooling, F.affine_grid."""

    def __init__(self, model: DigitClassifier) -> None:
        super().__init__()
        self.classifier, self.pool = rebuilt(model.classifier), model.pool
        transformer = model.transformer
        self.localisation: nn.Module | None = None
        if transformer is not None:
            self.localisation = nn.Sequential(
                nn.AvgPool2d(transformer.pool) if transformer.pool > 1 else nn.Identity(),
                rebuilt(transformer.localisation),
                transformer.regression,
            )
            self.grid, self.size = transformer.transform, transformer.output_size

    def forward(self, images: Tensor) -> Tensor:
        """(B, 1, C, C) -> logits (B, 10)."""
        if self.localisation is not None:
            theta, size = self.localisation(images), self.size or images.shape[-2:]
            if isinstance(self.grid, AffineGrid):
                shape = [len(images), 1, *size]
                grid = F.affine_grid(theta.view(-1, 2, 3), shape, align_corners=False)
            else:
                grid = self.grid(theta, size)
            images = F.avg_pool2d(F.grid_sample(images, grid, align_corners=False), self.pool)
        logits: Tensor = self.classifier(images)
        return logits


def rebuilt(layers: nn.Module) -> nn.Sequential:
    """A copy with plain convolutions and with ReLU before pooling."""
    assert isinstance(layers, nn.Sequential)
    found = [
        nn.Conv2d(1, layer.out_channels, layer.kernel_size[0])
        if isinstance(layer, SingleChannelConv2d)
        else layer
        for layer in layers
    ]
    for number in range(len(found) - 1):
        if isinstance(found[number], nn.MaxPool2d) and isinstance(found[number + 1], nn.ReLU):
            found[number : number + 2] = found[number + 1], found[number]
    return nn.Sequential(*found)


def plain_rotation(pixels: Tensor) -> Tensor:
    """R the usual way, batched: F.affine_grid and F.grid_sample on float images."""
    angle = torch.empty(len(pixels), device=pixels.device).uniform_(-torch.pi / 2, torch.pi / 2)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    theta = torch.stack([cos, -sin, zero, sin, cos, zero], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, align_corners=False)


def training_of(config: Config, splits: Splits, device: torch.device) -> Training:
    """A training that can go on for ever."""
    return Training(config, splits.to(device), device)


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
    trainings = {
        precision: training_of(model_config(backbone, transform, precision), splits, device)
        for precision in dict.fromkeys([default, "float32"])
    }
    batch = trainings[default].draw_pass(0).batches(BATCH)[0]
    digits = trainings[default].splits.training
    plain = Plain(build_model(trainings[default].config)).to(device)
    optimizer = torch.optim.AdamW(plain.parameters(), 1e-4)
    pixels, labels = digits.images[batch.order][:, None].float() / 255, digits.labels[batch.order]

    def plain_step(images: Tensor, targets: Tensor) -> None:
        optimizer.zero_grad()
        F.cross_entropy(plain(images), targets).backward()
        optimizer.step()

    def tutorial_pass() -> None:
        for images, targets in loader:
            plain_step(images.to(device), targets.to(device))

    works: dict[str, Callable[[], object]] = {
        precision: functools.partial(training.take_step, batch)
        for precision, training in trainings.items()
    }
    works["plain"] = lambda: plain_step(plain_rotation(pixels), labels)
    seconds = watch.medians(**works)
    peers = {
        "plain": BATCH / seconds["plain"],
        "tutorial": LOADED / watch.timed(tutorial_pass),
    }
    rows = []
    for precision, training in trainings.items():
        step = seconds[precision]
        rate = flops(training, batch) / step / matmul[precision]
        shares = {f"of the {precision} matrix product's rate": rate}
        parts = watch.medians(**part_works(training, batch))
        shares |= {f"of the step: {part}": time / step for part, time in parts.items()}
        what = f"{training.config.cell.removesuffix(' on R')}, {precision}"
        rows.append(Row(what, "images/s", BATCH / step, peers, shares))
    return rows


def part_works(training: Training, batch: Plan) -> dict[str, Callable[[], object]]:
    """The parts of a step, each with its own backward."""
    digits, model = training.splits.training, training.model
    distortion, precision, device = training.config.distort, training.precision, training.device
    transformer, classifier = model.transformer, model.classifier
    pixels = digits.images[batch.order]
    images, labels = distort(pixels, distortion, batch.parameters), digits.labels[batch.order]

    def classify(seen: Tensor) -> None:
        with autocast(precision, device):
            logits = classifier(seen)
        F.cross_entropy(logits.float(), labels).backward()

    def distortion_alone() -> None:
        distort(digits.images[batch.order], distortion, batch.parameters)

    works: dict[str, Callable[[], object]] = {"distortion": distortion_alone}
    if transformer is None:
        return {**works, "classifier": lambda: classify(images)}

    def transform() -> None:
        with autocast(precision, device):
            warped = model.shrink(transformer(images))
        warped.backward(torch.ones_like(warped))

    seen = model.shrink(transformer(images)).detach().requires_grad_()
    return {**works, "transformer": transform, "classifier": lambda: classify(seen)}


def flops(training: Training, batch: Plan) -> int:
    """Floating-point operations of convolutions and matrix products in a step, as torch counts."""
    with FlopCounterMode(display=False) as counter:
        training.update_weights(*batch)
    return int(counter.get_total_flops())


def matmul_rate(dtype: torch.dtype, watch: Stopwatch) -> float:
    """Floating-point operations per second of a large matrix product."""
    side = 2048
    a, b = torch.randn(2, side, side, device=watch.device, dtype=dtype).unbind(0)
    return 2 * side**3 / watch.medians(product=lambda: a @ b)["product"]


FIRST_STEP = """
import os
from stn_train import cli_train, progress, trainer
class Ends(trainer.Observer):
    def stepped(self, step):
        os._exit(0)
progress.progress = lambda quiet: Ends()
cli_train.run_train()
"""


def process_rows(data_dir: Path | None, device: torch.device) -> list[Row]:
    """Start-up times and the peak memory of the commands, as a user meets them."""
    where = ["--device", device.type, *(["--data-dir", str(data_dir)] if data_dir else [])]
    command = "from stn_train.cli_train import run_train; run_train()"
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
from pathlib import Path
import torch
from benchmark import BATCH, model_config, training_of
from stn_train.data import load_splits
from stn_train.device import keep_freed_memory
backbone, threads, device, data_dir, seconds = sys.argv[1:]
torch.set_num_threads(int(threads))
keep_freed_memory()
config = model_config(backbone, "Aff", "auto")
splits = load_splits(config.data, Path(data_dir) if data_dir else None)
training = training_of(config, splits, torch.device(device))
batches = training.draw_pass(0).batches(BATCH)[:-1]
for batch in batches[:8]:
    training.take_step(batch)
steps, started = 0, time.perf_counter()
while time.perf_counter() < started + float(seconds):
    float(training.take_step(batches[steps % len(batches)]))  # waits for a GPU
    steps += 1
print(steps * BATCH / (time.perf_counter() - started))
"""


def together_rows(data_dir: Path | None, watch: Stopwatch) -> list[Row]:
    """Several runs at once, each in a process with its share of the cores, beside one run."""
    own, on_cpu = cores(), watch.device.type == "cpu"
    rows = []
    for backbone in ("FCN", "CNN"):
        rates = {}
        for runs in (1, own if on_cpu else 4):
            what = [backbone, str(max(1, own // runs)), watch.device.type]
            arguments = [*what, str(data_dir or ""), str(4 * watch.seconds)]
            line = [sys.executable, "-c", STEPS_FOR_A_WHILE, *arguments]
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
    for digits in GROWTH:
        part = Splits(splits.training[:digits], splits.validation[:0], splits.test[:1], "")
        training = training_of(config, part, device)
        seconds = []
        for passed in range(4):
            started = time.perf_counter()
            for batch in training.draw_pass(passed).batches(BATCH):
                training.take_step(batch)
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
        rate = digits / median(seconds[1:])
        rows.append(Row(f"ST-FCN Aff, a pass over {digits:,} digits", "images/s", rate))
    return rows


def table(rows: list[Row]) -> str:
    """The rows as text."""
    lines = []
    for row in rows:
        peers = [f"{row.ours / rate:.1f} x {peer}" for peer, rate in row.peers.items()]
        shares = [f"{100 * share:.0f} % {what}" for what, share in row.shares.items()]
        lines.append(f"{row.what:44} {row.ours:10,.4g} {row.unit:9} {', '.join(peers + shares)}")
    return "\n".join(lines)


def main() -> None:
    """Measure, then print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--data-dir", type=Path, help="as for stn-train")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each contender")
    options = parser.parse_args()
    keep_freed_memory()
    device = torch.device(options.device)
    watch = Stopwatch(device, options.seconds)
    # First: a process that starts another lends it its own memory in the kernel's books.
    rows = process_rows(options.data_dir and options.data_dir.absolute(), device)
    rows += together_rows(options.data_dir and options.data_dir.absolute(), watch)
    splits = load_splits(Config().data, options.data_dir)
    rows += distortion_rows(splits.training, watch)
    rows += step_rows(splits, watch)
    rows += growth_rows(splits, device)
    if options.json:
        environment = describe_environment(device)
        del environment["command"]  # where somebody's digits lie is nobody's business
        print(json.dumps({"environment": environment, "rows": list(map(asdict, rows))}, indent=1))
    else:
        print(table(rows))


if __name__ == "__main__":
    main()
