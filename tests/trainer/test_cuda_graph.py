"""The captured step, and that what is captured never waits for the device: without a GPU."""

import contextlib

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stn_train import distortions
from stn_train.trainer.cuda_graph import WARM_UP, Captured
from stn_train.config import Config
from stn_train.data.sources import Plan, Splits
from stn_train.digits import Digits
from stn_train.models.network import build_model
from stn_train.trainer.state import Training

CUDA = torch.device("cuda", 0)


class Sums:
    """sum(a) + b, and how often it was computed, recorded and replayed."""

    def __init__(self) -> None:
        self.computed = self.recorded = self.replayed = 0
        self.recording = False

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        if self.recording:  # computes nothing
            self.recorded += 1
            self.output, self.inputs = torch.zeros(()), (a, b)
            return self.output
        self.computed += 1
        return a.sum() + b

    def replay(self) -> None:
        self.replayed += 1
        a, b = self.inputs
        self.output.copy_(a.sum() + b)


@pytest.fixture
def sums(monkeypatch) -> Sums:
    """A function, and streams and graphs that need no GPU to record and replay it."""

    class Stream:
        def wait_stream(self, other: "Stream") -> None:
            pass

    @contextlib.contextmanager
    def graph(recorded: Sums):
        recorded.recording = True
        yield
        recorded.recording = False

    sums = Sums()
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: sums)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    return sums


def test_is_recorded_once_after_the_warm_up_and_then_replayed(sums):
    captured = Captured(sums, length=3)
    assert captured(torch.ones(2), torch.tensor(1.0)) == 3  # resumed at the last batch of a pass
    sums.computed, kept = 0, []
    for call in range(8):
        a, b = torch.full((3,), float(call)), torch.tensor(1.0)
        kept.append((captured(a, b), 3 * call + 1))
    for output, expected in kept:  # an output outlives the next replay
        assert output == expected
    assert (sums.computed, sums.recorded, sums.replayed) == (WARM_UP, 1, 8 - WARM_UP)
    assert captured(torch.ones(2), torch.tensor(1.0)) == 3  # the last batch of a pass
    assert (sums.computed, sums.recorded, sums.replayed) == (WARM_UP + 1, 1, 8 - WARM_UP)


class Watch(TorchDispatchMode):
    """Notes operations that copy between devices or bring a value to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        output = operation(*args, **(kwargs or {}))
        tensors = [each for each in tree_leaves((args, kwargs, output)) if isinstance(each, Tensor)]
        copies = "copy" in str(operation)  # others may read a number that lies on the host
        devices = {each.device.type for each in tensors if each.ndim or copies}
        if len(devices) > 1 or "local_scalar" in str(operation) or "nonzero" in str(operation):
            self.seen.append(str(operation))
        return output


@pytest.fixture
def cuda_training(monkeypatch):
    """A training on a GPU that is not there: tensors without values, a backward without effect."""

    def built(config: Config) -> torch.nn.Module:
        with CUDA:
            model = build_model(config)
        model.to = lambda device: model
        return model

    def backward(loss: Tensor) -> None:
        for weight in training.model.parameters():
            weight.grad = torch.zeros_like(weight)

    def cuda_training(config: Config) -> tuple[Training, Plan]:
        nonlocal training
        images = torch.zeros(300, 28, 28, dtype=torch.uint8, device=CUDA)
        digits = Digits(images, torch.zeros(300, dtype=torch.int64, device=CUDA))
        training = Training(config, Splits(digits, digits[:0], digits[:0], "nowhere"), CUDA)
        width = config.distort.draw(1, torch.Generator()).shape[1]
        order = torch.zeros(256, dtype=torch.int64, device=CUDA)
        return training, Plan(order, torch.zeros(256, width, device=CUDA))

    training: Training
    monkeypatch.setattr("stn_train.training.build_model", built)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(Tensor, "backward", backward)
    for optimizer in (torch.optim.AdamW, torch.optim.SGD):  # no fakes for rates that are tensors
        monkeypatch.setattr(optimizer, "step", lambda self: None)
    caches = distortions.unit_square, distortions.elastic_system
    for cache in caches:
        cache.cache_clear()
    with FakeTensorMode():
        yield cuda_training
    for cache in caches:
        cache.cache_clear()


@pytest.mark.filterwarnings("ignore:CUDA is not available")
@pytest.mark.parametrize(
    "choice",
    [
        {"distortion": "R", "transform": "Aff"},
        {"distortion": "P", "transform": "Proj", "train": {"max_gradient_norm": 1.0}},
        {"distortion": "E", "transform": "TPS", "backbone": "FCN", "train": {"optimizer": "sgd"}},
        {"distortion": "RTS", "backbone": "tutorial", "train": {"precision": "float32"}},
        {"distortion": "RTS", "transform": "Aff", "train": {"optimizer": "muon"}},
    ],
)
@pytest.mark.parametrize("schedule", ["one_cycle", "cosine", "step"])
def test_a_step_on_a_gpu_never_waits_for_it(cuda_training, choice, schedule):
    train = {"schedule": schedule, "label_smoothing": 0.1, **choice.get("train", {})}
    training, batch = cuda_training(Config.model_validate({**choice, "train": train}))
    training.update_weights(*batch)  # what is the same every step is brought to the device
    with Watch() as watch:
        loss = training.update_weights(*batch)
        training.schedule.step()
    assert loss.device == CUDA
    assert watch.seen == []
    assert isinstance(training.update, Captured)
    for group in training.optimizer.param_groups:  # the recording reads what is written there
        assert group["lr"].device == CUDA


@pytest.mark.filterwarnings("ignore:CUDA is not available")
def test_without_capture_a_gpu_takes_plain_steps(cuda_training):
    training, batch = cuda_training(Config.model_validate({"train": {"cuda_graph": False}}))
    assert training.update == training.update_weights
    assert training.update(*batch).device == CUDA
    assert all(isinstance(group["lr"], float) for group in training.optimizer.param_groups)
    assert not training.optimizer.defaults["capturable"]


def test_averaging_never_asks_for_a_value(tiny, splits):
    training = Training(tiny(train={"ema_decay": 0.9}), splits, torch.device("cpu"))
    with Watch() as watch:
        training.average.update(training.model)
    assert watch.seen == []


def test_the_watch_sees_what_it_is_for():
    with Watch() as watch:
        torch.ones(3).sum().item()
    assert watch.seen == ["aten._local_scalar_dense.default"]
    with FakeTensorMode(), Watch() as watch:
        torch.zeros(2, 2).to(CUDA)
    assert watch.seen == ["aten._to_copy.default"]
