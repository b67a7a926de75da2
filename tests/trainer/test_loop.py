"""Training: what a run writes, what it logs, and what stops it."""

import itertools
import json
import math
import re
from pathlib import Path

import pytest
import torch
from conftest import CPU
from torch import Tensor, nn

from stn_train.config import Config
from stn_train.config_errors import ConfigSource, check
from stn_train.data.images import ImageFormat, Images
from stn_train.data.mnist import CLASSES
from stn_train.data.sources import Splits, load_splits
from stn_train.diagnosis import judge
from stn_train.errors import DivergenceError, StnError
from stn_train.evaluator import evaluate
from stn_train.geometry.grids import AffineGrid
from stn_train.models.network import Network, parameter_count
from stn_train.models.spatial_transformer import (
    OutputLayer,
    ParallelTransformers,
    SpatialTransformer,
)
from stn_train.runs.checkpoint import load_checkpoint
from stn_train.runs.directory import RunDirectory, load_run
from stn_train.runs.result import Result
from stn_train.runs.signals import StopSignals
from stn_train.tasks import TASKS
from stn_train.tasks.base import Measure
from stn_train.tasks.classification import Classification
from stn_train.trainer.loop import take_steps, train, watch
from stn_train.trainer.observers import Observer
from stn_train.trainer.state import State

MNIST = ImageFormat((1, 28, 28), CLASSES)
PLAIN = {
    "optimizer": "sgd",
    "schedule": "constant",
    "momentum": 0.0,
    "learning_rate": 0.1,
    "weight_decay": 0.0,
    "label_smoothing": 0.0,
}
"""One step is one gradient times the learning rate."""


def records(run: RunDirectory, kind: str) -> list[dict]:
    return [record for record in run.read_metrics() if record["kind"] == kind]


def weights(config: Config, splits: Splits, run: RunDirectory) -> dict[str, Tensor]:
    return train(config, splits, run, CPU).model.state_dict()


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one | other)


def fresh_weights(config: Config) -> dict[str, Tensor]:
    torch.manual_seed(config.seed)
    return config.build_network(MNIST).state_dict()


# What a run leaves.


def test_loss_goes_down(finished):
    losses = [record["loss"] for record in records(finished.run, "train")]
    assert losses[0] > 2
    assert losses[-1] < losses[0] - 0.1


def test_result_is_what_the_checkpoint_and_stn_eval_give(finished, splits, command):
    result = json.loads(finished.run.result.read_text())
    run = load_run(finished.run.path)
    again = evaluate(run.model, run.config.task, splits.test, run.config.evaluate.draws)
    shown = json.loads(command("stn-eval", finished.run.path, "--json", "--device", "cpu").stdout)
    assert {key: result[key] for key in again.as_dict()} == json.loads(json.dumps(again.as_dict()))
    assert {key: shown[key] for key in again.as_dict()} == json.loads(json.dumps(again.as_dict()))
    assert result["test_error_percent"] == shown["test_error_percent"] == again.test_percent


def test_result_states_what_it_was_measured_on(finished, splits):
    result = json.loads(finished.run.result.read_text())
    assert result == finished.result.result.as_dict()
    assert Result.read(finished.run.result) == finished.result.result
    assert (result["training_digits"], result["test_digits"]) == (500, 200)
    assert result["training_sha256"] == splits.training.sha256()
    assert (result["steps"], result["passes"], result["seed"]) == (20, 2.0, 1)
    model = finished.result.model
    assert result["parameters"] == parameter_count(model)
    assert result["localisation_parameters"] == parameter_count(model.transformers["transformer"])
    assert 0 < result["train_seconds"] < result["total_seconds"]
    assert result["config"] == finished.config.as_dict()
    assert check(result["config"], ConfigSource("result")) == finished.config


def test_metrics_have_the_loss_at_each_logging_point_and_the_error_after_each_pass(finished):
    logged = records(finished.run, "train")
    assert [record["step"] for record in logged] == [5, 10, 15, 20]
    assert all(record["images_per_second"] > 0 for record in logged)
    validated = records(finished.run, "validation")
    assert [(record["step"], record["pass"]) for record in validated] == [(10, 1.0), (20, 2.0)]
    last = validated[-1]["validation_error_percent"]
    assert last == finished.result.result.validation_percent


def test_logged_learning_rate_falls_to_almost_nothing_at_the_end(finished):
    rates = [record["learning_rate"] for record in records(finished.run, "train")]
    assert max(rates) <= finished.config.train.learning_rate
    assert rates[-1] < rates[-2] / 10


def test_best_checkpoint_is_the_first_with_the_lowest_validation_error(trained, tiny):
    done = trained(tiny(train={"epochs": 4, "schedule": "constant", "learning_rate": 0.05}))
    validated = records(done.run, "validation")
    best = min(validated, key=lambda record: record["validation_error_percent"])
    assert load_checkpoint(done.run.best).step == best["step"]
    assert load_checkpoint(done.run.last).step == 40


# Seeds.


def test_same_seed_gives_the_same_bits(finished, trained):
    torch.manual_seed(12345)
    torch.rand(7)
    again = trained(finished.config)
    assert equal(again.result.model.state_dict(), finished.result.model.state_dict())
    assert again.result.evaluation == finished.result.evaluation


def test_same_seed_gives_the_same_bits_with_dropout(trained, tiny):
    config = tiny(backbone="tutorial", distortion="none", train={"epochs": 1})
    one = trained(config, "one").result.model.state_dict()
    torch.manual_seed(12345)
    assert equal(one, trained(config, "other").result.model.state_dict())


def test_another_seed_gives_other_weights_on_the_same_test_set(finished, trained, tiny):
    other = trained(tiny(seed=2)).result
    assert not equal(other.model.state_dict(), finished.result.model.state_dict())
    assert other.evaluation.draws_sha256 == finished.result.evaluation.draws_sha256


def test_another_model_has_the_same_test_set(finished, trained, tiny):
    other = trained(tiny(backbone={"CNN": {"filters": [2, 2]}}, transform="none")).result
    assert other.evaluation.draws_sha256 == finished.result.evaluation.draws_sha256
    assert other.result.localisation_parameters == 0


def test_seed_decides_the_first_weights(tiny, splits):
    first = [State(tiny(seed=seed), splits, CPU).model.state_dict() for seed in (1, 1, 2)]
    assert equal(first[0], first[1])
    assert not equal(first[0], first[2])


# Passes.


def test_a_pass_is_an_order_of_all_digits(tiny, splits):
    state = State(tiny(), splits, CPU)
    orders = [state.draw_pass(number).order for number in range(3)]
    for order in orders:
        assert torch.equal(order.sort().values, torch.arange(500))
    assert not torch.equal(orders[0], orders[1])


@pytest.mark.parametrize("fresh", [True, False])
def test_distortions_are_drawn_afresh_or_once(tiny, splits, fresh):
    state = State(tiny(train={"fresh_distortions": fresh}), splits, CPU)
    first, second = (state.draw_pass(number) for number in (0, 1))
    # In the order of the digits: each pass has an order of its own.
    of_digits = [each.draws[0][each.order.argsort()] for each in (first, second)]
    assert torch.equal(*of_digits) is not fresh


def test_a_pass_does_not_depend_on_those_before(tiny, splits):
    state = State(tiny(), splits, CPU)
    drawn = state.draw_pass(3)
    state.draw_pass(0)
    again = state.draw_pass(3)
    assert torch.equal(drawn.order, again.order)
    assert torch.equal(*(each.draws[0] for each in (drawn, again)))


# Durations.


def test_steps_may_end_within_a_pass(trained, tiny):
    done = trained(tiny(train={**PLAIN, "epochs": None, "steps": 3}))
    assert (done.result.result.steps, done.result.result.passes) == (3, 0.3)
    assert done.result.steps == 3
    assert load_checkpoint(done.run.last).step == 3
    assert [record["step"] for record in records(done.run, "train")] == [3]
    assert done.run.best.exists()


def test_steps_may_end_within_a_later_pass(trained, tiny):
    done = trained(tiny(train={**PLAIN, "epochs": None, "steps": 13}))
    assert load_checkpoint(done.run.last).step == 13
    assert [record["step"] for record in records(done.run, "validation")] == [10, 13]


def test_steps_of_whole_passes_equal_epochs(finished, trained, tiny):
    done = trained(tiny(train={"epochs": None, "steps": 20}))
    assert equal(done.result.model.state_dict(), finished.result.model.state_dict())


def test_last_smaller_batch_is_used(trained, tiny):
    done = trained(tiny(train={"epochs": 2, "batch_size": 150}))
    assert done.result.result.steps == 8


def test_validation_can_be_seldom_but_comes_at_the_end(trained, tiny):
    done = trained(tiny(train={"epochs": 5, "validate_every": 2}))
    assert [record["pass"] for record in records(done.run, "validation")] == [2, 4, 5]


def test_a_run_without_validation_works(trained, tiny):
    config = tiny(data={"validation": 0})
    done = trained(config, digits=load_splits(config.data))
    assert not done.run.best.exists()
    assert done.run.last.exists()
    assert records(done.run, "validation") == []
    assert json.loads(done.run.result.read_text())["validation_error_percent"] is None
    assert done.result.result.training_digits == 600


# Settings.


def test_average_of_the_weights_is_what_is_evaluated(trained, tiny, splits):
    done = trained(tiny(train={"ema_decay": 0.9}))
    checkpoint = load_checkpoint(done.run.last)
    assert not equal(checkpoint.weights, checkpoint.training["weights"])
    assert equal(checkpoint.weights, done.result.model.state_dict())
    run = load_run(done.run.path)
    again = evaluate(run.model, run.config.task, splits.test, run.config.evaluate.draws)
    assert again == done.result.evaluation


def test_average_is_a_decaying_mean_over_steps(tiny, splits, tmp_path):
    def after(steps: int, **settings: float) -> dict[str, Tensor]:
        config = tiny(train={**PLAIN, "epochs": None, "steps": steps, **settings})
        return weights(config, splits, RunDirectory.claim(tmp_path / f"{steps}-{len(settings)}"))

    first, second, averaged = after(1), after(2), after(2, ema_decay=0.75)
    low = after(2, ema_decay=0.05, label_smoothing=0.0)
    for name, value in averaged.items():
        # The decay is still rising: at the second step it is 1/10.
        torch.testing.assert_close(value, 0.1 * first[name] + 0.9 * second[name])
        torch.testing.assert_close(low[name], 0.05 * first[name] + 0.95 * second[name])


def test_without_average_the_last_weights_count(finished):
    checkpoint = load_checkpoint(finished.run.last)
    assert equal(checkpoint.weights, checkpoint.training["weights"])
    assert equal(checkpoint.weights, finished.result.model.state_dict())


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_localisation_network_can_be_frozen(trained, tiny, optimizer):
    config = tiny(
        train={"optimizer": optimizer, "weight_decay": 0.1, "localisation_learning_rate_scale": 0}
    )
    before, after = fresh_weights(config), trained(config).result.model.state_dict()
    for name, value in after.items():
        assert torch.equal(value, before[name]) is name.startswith("transformer.")


def test_localisation_network_learns_otherwise(finished):
    before, after = fresh_weights(finished.config), finished.result.model.state_dict()
    assert all(not torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize(("bound", "shortened"), [(1e-3, True), (1e6, False)])
def test_long_gradients_are_shortened(trained, tiny, bound, shortened):
    settings = {**PLAIN, "epochs": None, "steps": 1, "learning_rate": 1.0}
    config = tiny(train={**settings, "max_gradient_norm": bound})
    before, after = fresh_weights(config), trained(config).result.model.state_dict()
    moved = torch.cat([(after[name] - before[name]).flatten() for name in before]).norm()
    assert (float(moved) <= 1.001 * bound) is True
    assert (float(moved) == pytest.approx(bound, rel=1e-2)) is shortened


def test_smoothed_labels_raise_the_loss_that_is_logged(trained, tiny):
    settings = {**PLAIN, "epochs": None, "steps": 15}
    plain = trained(tiny(train=settings), "plain")
    smooth = trained(tiny(train={**settings, "label_smoothing": 0.5}), "smooth")
    losses = [records(done.run, "train")[-1]["loss"] for done in (plain, smooth)]
    assert losses[0] < losses[1]


# Divergence.

DIVERGING = {"optimizer": "sgd", "schedule": "constant", "learning_rate": 1e30}


def step_told(error: DivergenceError) -> tuple[int, int]:
    found = re.search(
        r"at step (\d+) of (\d+) \(learning rate 1e\+30; batch \d+ of pass \d, seed 1\)", str(error)
    )
    assert found is not None, str(error)
    return int(found[1]), int(found[2])


def test_divergence_names_step_and_learning_rate(tiny, splits, tmp_path):
    run = RunDirectory.claim(tmp_path / "run")
    with pytest.raises(DivergenceError, match=r"the loss is not finite.*train\.learn") as caught:
        train(tiny(train=DIVERGING), splits, run, CPU)
    step, steps = step_told(caught.value)
    assert 2 <= step <= 5
    assert steps == 20
    assert not run.result.exists()


@pytest.mark.parametrize(
    ("log_every", "validate_every", "noticed"),
    [
        (5, 1, 5),  # at a logging point
        (50, 1, 10),  # after the first pass, by its weights
        (50, 2, 20),  # at the end
        (15, 2, 15),
    ],
)
def test_divergence_noticed_late_is_told_with_a_step_that_was_taken(
    tiny, splits, tmp_path, log_every, validate_every, noticed
):
    late = {**DIVERGING, "log_every": log_every, "validate_every": validate_every}
    state = State(tiny(train=late), splits, CPU)
    state.device = torch.device("cuda")  # where the loss is asked for at logging points alone
    with pytest.raises(DivergenceError) as caught:
        take_steps(state, RunDirectory.claim(tmp_path / "run"), [], StopSignals())
    assert step_told(caught.value) == (noticed, 20)


def test_weights_that_the_last_step_broke_are_not_tested(tiny, splits, tmp_path, monkeypatch):
    take_step = State.take_step

    def last_one_breaks(state, batch):
        loss = take_step(state, batch)  # finite: it is from before the update
        if state.step == state.steps:
            torch.nn.init.constant_(state.model.classifier[1].weight, torch.inf)
        return loss

    monkeypatch.setattr(State, "take_step", last_one_breaks)
    run = RunDirectory.claim(tmp_path / "run")
    with pytest.raises(DivergenceError):
        train(tiny(), splits, run, CPU)
    assert not run.result.exists()


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_broken_weights_are_noticed_before_they_are_validated_or_saved(
    tiny, splits, tmp_path, monkeypatch, device, value, ema_decay
):
    take_step = State.take_step

    def breaks_at_the_end_of_the_second_pass(state, batch):
        loss = take_step(state, batch)  # finite: it is from before the update
        if state.step == 20:
            torch.nn.init.constant_(state.evaluated.classifier[1].weight, value)
        return loss

    monkeypatch.setattr(State, "take_step", breaks_at_the_end_of_the_second_pass)
    state = State(tiny(train={"epochs": 3, "ema_decay": ema_decay}), splits, CPU)
    state.device = torch.device(device)  # off the CPU, steps do not look at the loss
    run = RunDirectory.claim(tmp_path / "run")
    with pytest.raises(DivergenceError, match="at step 20 of 30"):
        take_steps(state, run, [], StopSignals())
    assert_left_as_after_the_first_pass(run)


def test_loss_that_no_step_looks_at_does_not_reach_the_checkpoint(
    tiny, splits, tmp_path, monkeypatch
):
    take_step = State.take_step

    def explodes_in_the_second_pass(state, batch):
        if state.step == 12:
            batch = batch._replace(draws=tuple(draw * torch.nan for draw in batch.draws))
        return take_step(state, batch)

    monkeypatch.setattr(State, "take_step", explodes_in_the_second_pass)
    state = State(tiny(train={"log_every": 50}), splits, CPU)
    state.steps = 30  # neither logged nor ended at step 20
    state.device = torch.device("cuda")
    run = RunDirectory.claim(tmp_path / "run")
    with pytest.raises(DivergenceError, match="at step 20 of 30"):
        take_steps(state, run, [], StopSignals())
    assert_left_as_after_the_first_pass(run)


def assert_left_as_after_the_first_pass(run: RunDirectory) -> None:
    assert [record["step"] for record in records(run, "validation")] == [10]
    for path in (run.last, run.best):
        checkpoint = load_checkpoint(path)
        assert checkpoint.step == 10
        assert all(weight.isfinite().all() for weight in checkpoint.weights.values())
        assert load_run(path).step == 10
    assert not run.result.exists()


# The observer.


class Recorder(Observer):
    def __init__(self) -> None:
        self.told: list[str] = []

    def started(self, start):
        self.told.append(f"started {start.steps}")

    def stepped(self, step):
        self.told.append(f"step {step}")

    def logged(self, record):
        self.told.append(f"{record['kind']} {record['step']}")

    def stopped(self):
        self.told.append("stopped")


def test_observer_is_told_everything_in_order(tiny, splits, tmp_path):
    recorder = Recorder()
    train(tiny(), splits, RunDirectory.claim(tmp_path / "run"), CPU, recorder)
    steps = itertools.chain.from_iterable(
        [f"step {step}"]
        + [f"train {step}"] * (step % 5 == 0)
        + [f"validation {step}", f"transformer {step}"] * (step % 10 == 0)
        for step in range(1, 21)
    )
    assert recorder.told == ["started 20", *steps, "stopped"]


def test_full_memory_of_a_device_is_told(tiny, splits, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(State, "take_step", full)
    with pytest.raises(StnError, match=r"memory of cpu is full.* train\.batch_size"):
        train(tiny(), splits, RunDirectory.claim(tmp_path / "run"), CPU)


# Several transformers, channels, measures; networks with buffers.


def side_by_side(side: int = 28, channels: int = 1) -> Network:
    """Two transformers in front of a small classifier."""
    transformers = [
        SpatialTransformer(nn.Flatten(), channels * side**2, AffineGrid()) for _ in range(2)
    ]
    network = Network()
    network.add_module("transformer", ParallelTransformers(*transformers))
    network.add_module(
        "classifier", nn.Sequential(nn.Flatten(), OutputLayer(2 * channels * side**2, 10))
    )
    return network


@pytest.fixture
def building(monkeypatch):
    """Have configs build another network."""

    def building(build) -> None:
        monkeypatch.setattr(Config, "build_network", lambda config, images: build())

    return building


class Warned(Observer):
    def __init__(self) -> None:
        self.messages: list[str] = []

    def warned(self, message):
        self.messages.append(message)


WATCHED = {
    *("outside_share", "theta_spread", "scale", "scale_spread", "angle_deg", "angle_spread_deg"),
    *("shift", "shift_spread"),
}
"""What is recorded of a spatial transformer."""


def test_each_of_two_transformers_is_watched(tiny, splits, building):
    building(side_by_side)
    state, told = State(tiny(), splits, CPU), Warned()
    first, second = state.model.transformers
    assert (first, second) == ("transformer.0", "transformer.1")
    with torch.no_grad():
        state.model.transformers[second].regression.bias[2] = 1.5  # 3/4 of it lies outside
    measured = watch(state, [told], Path("two"))
    assert measured[f"outside_share.{first}"] == 0
    assert measured[f"outside_share.{second}"] == pytest.approx(0.75, abs=0.02)
    assert measured["outside_share"] == pytest.approx(measured[f"outside_share.{second}"] / 2)
    assert measured["theta_spread"] == measured[f"theta_spread.{first}"] == 0
    (message,) = told.messages
    assert second in message
    assert first not in message
    assert "train.localisation_learning_rate_scale=0.1" in message
    assert "stn-visualize two --picture health" in message


def test_a_run_that_collapses_is_warned_about(tiny, splits, tmp_path):
    told, run = Warned(), RunDirectory.claim(tmp_path / "run")
    train(tiny(train={"localisation_learning_rate_scale": 100.0}), splits, run, CPU, told)
    last = records(run, "transformer")[-1]
    assert judge(last).collapsed
    (message,) = told.messages  # it stays as it is: told once
    assert message.startswith("step 10: the spatial transformer ")
    assert "train.localisation_learning_rate_scale=1," in message
    assert message.endswith(f"(stn-visualize {run.path} --picture health shows its history)")


def test_a_run_with_two_transformers_logs_both_and_is_resumed(
    tiny, splits, tmp_path, building, monkeypatch
):
    building(side_by_side)
    config, run = tiny(), RunDirectory.claim(tmp_path / "run")
    result = train(config, splits, run, CPU).result
    (first, _) = records(run, "transformer")
    each = {f"{name}.transformer.{number}" for name in WATCHED for number in range(2)}
    own = {"kind", "step", "pass", "seconds", "classifier_gradient_norm"}
    assert first.keys() == WATCHED | each | own
    transformers = nn.ModuleList(side_by_side().transformers.values())
    assert result.localisation_parameters == parameter_count(transformers)
    longer = tiny(train={"epochs": 3})
    assert train(longer, splits, run, CPU, accept_changes=True).result.resumed_at_steps == [20]


def test_one_transformer_has_no_name_in_the_metrics(finished):
    norms = {"localisation_gradient_norm", "classifier_gradient_norm"}
    own = {"kind", "step", "pass", "seconds", *norms}
    for record in records(finished.run, "transformer"):
        assert record.keys() == WATCHED | own
        assert all(math.isfinite(record[name]) for name in WATCHED | norms)


def test_images_in_colour_train(tiny, splits, tmp_path):
    config = tiny(backbone={"CNN": {"filters": [2, 2], "localisation_filters": 2}})
    coloured = [
        Images(part.pixels.expand(-1, 3, -1, -1).contiguous(), part.labels, part.classes)
        for part in splits[:3]
    ]
    run = RunDirectory.claim(tmp_path / "run")
    train(config, Splits(*coloured, "nowhere"), run, CPU)
    loaded = load_run(run.path)
    assert loaded.format == ImageFormat((3, 28, 28), CLASSES)
    assert loaded.model(torch.rand(2, 3, 28, 28)).shape == (2, 10)


class Right(Classification):
    """Measures what is right."""

    measure = Measure("accuracy_percent", "accuracy", "%", lower_is_better=False)

    def score(self, answers, targets):
        return answers == targets


def test_the_task_says_what_is_measured_and_what_is_best(
    tiny, splits, tmp_path, monkeypatch, finished
):
    monkeypatch.setitem(TASKS, "right", Right)
    run = RunDirectory.claim(tmp_path / "run")
    result = train(tiny(task="right"), splits, run, CPU).result
    validated = [record["validation_accuracy_percent"] for record in records(run, "validation")]
    errors = [record["validation_error_percent"] for record in records(finished.run, "validation")]
    assert validated == [100 - error for error in errors]
    best = load_checkpoint(run.best)
    assert best.training["best_validation_accuracy_percent"] == max(validated)
    content = json.loads(run.result.read_text())
    assert content["test_accuracy_percent"] == 100 - finished.result.result.test_percent
    assert content["validation_accuracy_percent"] == validated[-1]
    assert (content["task"], result.test_percent) == ("right", content["test_accuracy_percent"])
    assert "test_error_percent" not in content


def normed() -> Network:
    network = Network()
    layers = [nn.Flatten(), nn.BatchNorm1d(784), OutputLayer(784, 10)]
    network.add_module("classifier", nn.Sequential(*layers))
    return network


def test_statistics_are_saved_with_the_average_and_looked_at(tiny, splits, tmp_path, building):
    building(normed)
    config, run = tiny(train={"ema_decay": 0.9}), RunDirectory.claim(tmp_path / "run")
    model = train(config, splits, run, CPU).model
    saved = load_checkpoint(run.last)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        name = f"classifier.1.{name}"
        assert saved.weights[name].equal(saved.training["weights"][name])
        assert model.get_buffer(name).equal(saved.weights[name])
    assert int(saved.weights["classifier.1.num_batches_tracked"]) == 20
    state = State(config, splits, CPU)
    state.evaluated.get_buffer("classifier.1.running_var")[3] = torch.inf
    with pytest.raises(DivergenceError):
        state.refuse_diverged()


def test_watching_moves_no_statistics(tiny, splits, building):
    def build() -> Network:
        network = side_by_side()
        layers = [nn.BatchNorm2d(2), *network.classifier]
        network.classifier = nn.Sequential(*layers)
        return network

    building(build)
    state = State(tiny(), splits, CPU)
    watch(state, [], Path("run"))
    assert int(state.model.classifier[0].num_batches_tracked) == 0
