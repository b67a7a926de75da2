"""The captured step, and that what is captured never waits for the device: without a GPU."""

import contextlib

import pytest
import torch
from conftest import CPU
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stn_train.config import Config
from stn_train.data import distortions
from stn_train.data.images import ImageFormat, Images
from stn_train.data.mnist import CLASSES
from stn_train.data.sources import Splits
from stn_train.geometry import plane
from stn_train.tasks.examples import Pass
from stn_train.trainer.cuda_graph import WARM_UP, RecordedStep
from stn_train.trainer.optimisers import AveragedWeights
from stn_train.trainer.state import State

CUDA = torch.device("cuda", 0)


class Sums:
    """The sum of all inputs, and how often it was computed, recorded and replayed."""

    def __init__(self) -> None:
        self.computed = self.recorded = self.replayed = 0
        self.recording = False

    def __call__(self, *inputs: Tensor) -> Tensor:
        if self.recording:  # computes nothing
            self.recorded += 1
            self.output, self.inputs = torch.zeros(()), inputs
            return self.output
        self.computed += 1
        return torch.stack([each.sum() for each in inputs]).sum()

    def replay(self) -> None:
        self.replayed += 1
        self.output.copy_(sum(each.sum() for each in self.inputs))


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


@pytest.mark.parametrize("count", range(4))
def test_any_number_of_draws_is_recorded(sums, count):
    recorded = RecordedStep(sums, length=3)
    for call in range(WARM_UP + 3):
        draws = [torch.full((3, 2), float(call + number)) for number in range(count)]
        assert recorded(torch.arange(3), *draws) == 3 + 6 * sum(call + n for n in range(count))
    assert (sums.computed, sums.recorded, sums.replayed) == (WARM_UP, 1, 3)


def test_is_recorded_once_after_the_warm_up_and_then_replayed(sums):
    recorded = RecordedStep(sums, length=3)
    assert recorded(torch.ones(2), torch.tensor(1.0)) == 3  # resumed at the last batch of a pass
    sums.computed, kept = 0, []
    for call in range(8):
        a, b = torch.full((3,), float(call)), torch.tensor(1.0)
        kept.append((recorded(a, b), 3 * call + 1))
    for output, expected in kept:  # an output outlives the next replay
        assert output == expected
    assert (sums.computed, sums.recorded, sums.replayed) == (WARM_UP, 1, 8 - WARM_UP)
    assert recorded(torch.ones(2), torch.tensor(1.0)) == 3  # the last batch of a pass
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
def cuda_state(monkeypatch):
    """A state on a GPU that is not there: tensors without values, a backward without effect."""

    build_network = Config.build_network

    def built(config: Config, images: ImageFormat) -> torch.nn.Module:
        with CUDA:
            model = build_network(config, images)
        model.to = lambda device: model
        return model

    def backward(loss: Tensor) -> None:
        for weight in state.model.parameters():
            weight.grad = torch.zeros_like(weight)

    def cuda_state(config: Config) -> tuple[State, Pass]:
        nonlocal state
        pixels = torch.zeros(300, 1, 28, 28, dtype=torch.uint8, device=CUDA)
        digits = Images(pixels, torch.zeros(300, dtype=torch.int64, device=CUDA), CLASSES)
        state = State(config, Splits(digits, digits[:0], digits[:0], "nowhere"), CUDA)
        draws = config.task.draw(digits[:1], torch.Generator())
        order = torch.zeros(256, dtype=torch.int64, device=CUDA)
        return state, Pass(order, tuple(each.to(CUDA).expand(256, -1) for each in draws))

    state: State
    monkeypatch.setattr(Config, "build_network", built)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(Tensor, "backward", backward)
    for optimizer in (torch.optim.AdamW, torch.optim.SGD):  # no fakes for rates that are tensors
        monkeypatch.setattr(optimizer, "step", lambda self: None)
    caches = plane.unit_square, distortions.elastic_system
    for cache in caches:
        cache.cache_clear()
    with FakeTensorMode():
        yield cuda_state
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
def test_a_step_on_a_gpu_never_waits_for_it(cuda_state, choice, schedule):
    train = {"schedule": schedule, "label_smoothing": 0.1, **choice.get("train", {})}
    state, batch = cuda_state(Config.model_validate({**choice, "train": train}))
    state.update_weights(
        batch.order, *batch.draws
    )  # what is the same every step is brought to the device
    with Watch() as watch:
        loss = state.update_weights(batch.order, *batch.draws)
        state.schedule.step()
    assert loss.device == CUDA
    assert watch.seen == []
    assert isinstance(state.update, RecordedStep)
    for group in state.optimizer.param_groups:  # the recording reads what is written there
        assert group["lr"].device == CUDA


@pytest.mark.filterwarnings("ignore:CUDA is not available")
def test_without_capture_a_gpu_takes_plain_steps(cuda_state):
    state, batch = cuda_state(Config.model_validate({"train": {"cuda_graph": False}}))
    assert state.update == state.update_weights
    assert state.update(batch.order, *batch.draws).device == CUDA
    assert all(isinstance(group["lr"], float) for group in state.optimizer.param_groups)
    assert not state.optimizer.defaults["capturable"]


def test_averaging_never_asks_for_a_value(tiny, splits):
    state = State(tiny(train={"ema_decay": 0.9}), splits, CPU)
    with Watch() as watch:
        state.average.update(state.model)
    assert watch.seen == []


def test_averaging_never_asks_for_a_value_of_statistics():
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    average = AveragedWeights(network, 0.9)
    with Watch() as watch:
        average.update(network)
    assert watch.seen == []


def test_the_watch_sees_what_it_is_for():
    with Watch() as watch:
        torch.ones(3).sum().item()
    assert watch.seen == ["aten._local_scalar_dense.default"]
    with FakeTensorMode(), Watch() as watch:
        torch.zeros(2, 2).to(CUDA)
    assert watch.seen == ["aten._to_copy.default"]
