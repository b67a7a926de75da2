"""Checkpoints: what was saved comes back, and every damage is told as what it is."""

import os
import pickle
import shutil
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from stn_train.config import Config
from stn_train.data.images import ImageFormat
from stn_train.data.mnist import CLASSES
from stn_train.errors import CheckpointError
from stn_train.geometry.transforms import TRANSFORMS
from stn_train.models.backbones import BACKBONES
from stn_train.runs.checkpoint import (
    MNIST_IMAGES,
    Checkpoint,
    WithoutMemory,
    images_entry,
    load_checkpoint,
    restore_model,
    save_checkpoint,
)
from stn_train.runs.directory import load_run


@pytest.fixture
def checkpoint(finished) -> Checkpoint:
    return load_checkpoint(finished.run.last)


def test_what_was_saved_is_loaded(checkpoint, finished, tmp_path):
    save_checkpoint(tmp_path / "copy.pt", checkpoint)
    loaded = load_checkpoint(tmp_path / "copy.pt")
    assert (loaded.config, loaded.step, loaded.format) == (finished.config.as_dict(), 20, 2)
    assert loaded.images == MNIST_IMAGES
    assert loaded.image_format == ImageFormat((1, 28, 28), CLASSES)
    assert loaded.weights.keys() == checkpoint.weights.keys()
    for name, tensor in loaded.weights.items():
        assert torch.equal(tensor, checkpoint.weights[name])
    state = {"weights", "optimizer", "schedule", "averaged", "losses", "seconds"}
    state |= {"validation_error_percent", "best_validation_error_percent"}
    state |= {"resumed_at_steps", "changes"}
    assert loaded.training.keys() == state


@pytest.mark.parametrize("name", ["best", "last"])
def test_best_validation_error_so_far_is_saved(finished, name):
    errors = [
        record["validation_error_percent"]
        for record in finished.run.read_metrics()
        if record["kind"] == "validation"
    ]
    saved = load_checkpoint(getattr(finished.run, name))
    so_far = errors[: saved.step // 10]  # 10 steps a pass
    assert saved.training["best_validation_error_percent"] == min(so_far)


def test_model_of_a_checkpoint_is_the_model_that_was_saved(finished):
    run = load_run(finished.run.last)
    assert run.config == finished.config
    assert not run.model.training
    images = torch.rand(5, 1, 28, 28)
    finished.result.model.eval()
    with torch.inference_mode():
        assert torch.equal(run.model(images), finished.result.model(images))


def test_failed_write_leaves_the_old_checkpoint_and_nothing_else(checkpoint, tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    save_checkpoint(path, checkpoint)
    before = path.read_bytes()

    def disk_full(content, stream):
        stream.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", disk_full)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(path, checkpoint)
    assert path.read_bytes() == before
    assert [*tmp_path.iterdir()] == [path]


# Formats.


def as_format_1(good: Path, path: Path) -> None:
    """The file that a version before there were other images than MNIST's would have written."""
    content = torch.load(good, weights_only=True)
    del content["images"]
    content["format"] = 1
    config = Config.from_run(content["config"])
    content["config"] = {
        "distortion": config.cell.distortion,
        "backbone": config.cell.backbone,
        "transform": config.cell.transform,
        "seed": config.seed,
        "recipe": config.recipe,
        "data": config.data.model_dump(mode="json") | {"source": "mnist"},
        "distort": config.distortion.model_dump(mode="json"),
        "model": config.model.model_dump(mode="json") | config.backbone.model_dump(mode="json"),
        "train": config.train.model_dump(mode="json"),
        "evaluate": config.evaluate.model_dump(mode="json"),
        "log": config.log.model_dump(mode="json"),
    }
    torch.save(content, path)


def test_format_1_is_read_as_of_mnist(finished, tmp_path):
    path = tmp_path / "old.pt"
    as_format_1(finished.run.last, path)
    old, new = load_run(path), load_run(finished.run.last)
    assert old.format == new.format
    assert {**old.config.as_dict(), "given": {}} == {**new.config.as_dict(), "given": {}}
    for name, value in old.model.state_dict().items():
        assert torch.equal(value, new.model.state_dict()[name])


def test_what_was_read_in_format_1_is_saved_in_the_present_one(finished, tmp_path):
    as_format_1(finished.run.last, tmp_path / "old.pt")
    save_checkpoint(tmp_path / "new.pt", load_checkpoint(tmp_path / "old.pt"))
    content = torch.load(tmp_path / "new.pt", weights_only=True)
    assert (content["format"], content["images"]) == (2, MNIST_IMAGES)


def test_digits_that_are_gone_are_told(finished, tmp_path):
    as_format_1(finished.run.last, tmp_path / "old.pt")
    content = torch.load(tmp_path / "old.pt", weights_only=True)
    content["config"]["data"]["source"] = "embedded"
    torch.save(content, tmp_path / "old.pt")
    with pytest.raises(CheckpointError, match=r"data\.source.*embedded"):
        load_run(tmp_path / "old.pt")


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_network_for_other_images_comes_back(backbone, channels, tmp_path):
    source = {"folder": {"path": "pictures", "size": 32, "colour": channels == 3}}
    config = Config.model_validate({"backbone": backbone, "data": {"source": source}})
    images = ImageFormat((channels, 32, 32), ("cat", "dog", "cow"))
    weights = config.build_network(images).state_dict()
    saved = Checkpoint(config.as_dict(), 0, weights, {}, images_entry(images))
    save_checkpoint(tmp_path / "last.pt", saved)
    run = load_run(tmp_path / "last.pt")
    assert run.format == images
    assert all(torch.equal(value, weights[name]) for name, value in run.model.state_dict().items())
    inputs = torch.rand(2, *config.task.shape(images))
    assert run.model(inputs).shape == (2, 3)


# Damage: each makes a bad file at a path from a good one.


def cut(length: int):
    return lambda good, path: path.write_bytes(good.read_bytes()[:length])


def flipped_weight(good: Path, path: Path) -> None:
    content = bytearray(good.read_bytes())
    weight = load_checkpoint(good).weights["classifier.1.weight"]
    content[content.index(weight.numpy().tobytes()) + 1000] ^= 4
    path.write_bytes(content)


def wrong_compression(good: Path, path: Path) -> None:
    content = bytearray(good.read_bytes())
    content[content.index(b"PK\1\2") + 10] = zipfile.ZIP_DEFLATED
    path.write_bytes(content)


def replaced_pickle(pickled: bytes):
    """Another pickle in the archive, with the right checksum."""

    def replace(good: Path, path: Path) -> None:
        with zipfile.ZipFile(good) as old, zipfile.ZipFile(path, "w") as new:
            for name in old.namelist():
                new.writestr(name, pickled if name.endswith("data.pkl") else old.read(name))

    return replace


def changed(**changes: object):
    """Some entries of the content replaced; None removes one."""

    def change(good: Path, path: Path) -> None:
        content = torch.load(good, weights_only=True) | changes
        torch.save({key: value for key, value in content.items() if value is not None}, path)

    return change


def changed_weight(name: object, value: object):
    def change(good: Path, path: Path) -> None:
        content = torch.load(good, weights_only=True)
        content["weights"][name] = value
        torch.save(content, path)

    return change


def changed_config(**changes: object):
    def change(good: Path, path: Path) -> None:
        content = torch.load(good, weights_only=True)
        content["config"] |= changes
        torch.save(content, path)

    return change


def changed_images(**changes: object):
    def change(good: Path, path: Path) -> None:
        images = {key: value for key, value in (MNIST_IMAGES | changes).items() if value != "gone"}
        changed(images=images)(good, path)

    return change


def format_1(**changes: object):
    def change(good: Path, path: Path) -> None:
        as_format_1(good, path)
        changed(**changes)(path, path)

    return change


def rezipped(compression: int, *more: tuple[str, bytes]):
    """The same members, compressed in another way, and some more."""

    def change(good: Path, path: Path) -> None:
        with zipfile.ZipFile(good) as old, zipfile.ZipFile(path, "w", compression) as new:
            for member in old.namelist():
                new.writestr(member, old.read(member))
            for name, content in more:
                new.writestr(name, content)

    return change


def same_name_twice(good: Path, path: Path) -> None:
    shutil.copy(good, path)
    with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr(archive.namelist()[0], b"another")


WEIGHT = "classifier.1.weight"  # (32, 784)

DAMAGES = {
    "empty": cut(0),
    "one byte": cut(1),
    "100 bytes": cut(100),
    "half": cut(60_000),
    "last byte missing": cut(-1),
    "end missing": cut(-100),
    "flipped bit in a weight": flipped_weight,
    "wrong compression method": wrong_compression,
    "text": lambda good, path: path.write_text("not a checkpoint\n" * 100),
    "picture": lambda good, path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(1000)),
    "folder in its place": lambda good, path: (path / "last.pt").mkdir(parents=True),
    "other zip": lambda good, path: zipfile.ZipFile(path, "w").close(),
    "plain pickle": lambda good, path: path.write_bytes(pickle.dumps({"format": 1})),
    "pickle: empty": replaced_pickle(b""),
    "pickle: cut in a number": replaced_pickle(b"\x80\x02J\x01"),
    "pickle: empty stack": replaced_pickle(b"\x80\x02s."),
    "pickle: unhashable key": replaced_pickle(b"\x80\x02}]K\x01s."),
    "pickle: storage is a number": replaced_pickle(b"\x80\x02K\x01Q."),
    "pickle: unknown opcode": replaced_pickle(b"\x80\x02\xff."),
    "a tensor": lambda good, path: torch.save(torch.zeros(3), path),
    "a state_dict": lambda good, path: torch.save({WEIGHT: torch.zeros(32, 784)}, path),
    "future format": changed(format=3),
    "format is true": changed(format=True),
    "format is a list": changed(format=[2]),
    "no images": changed(images=None),
    "format 1 with images": changed(format=1),
    "format 1 without weights": format_1(weights=None),
    "format 1 of another step": format_1(step="many"),
    "format 1 of an unknown backbone": format_1(config={"backbone": "RNN"}),
    "format 1 of nothing": format_1(config={}),
    "images are text": changed(images="digits"),
    "images have no shape": changed_images(shape="gone"),
    "images have no classes": changed_images(classes="gone"),
    "images have something else": changed_images(surprise=1),
    "images are flat": changed_images(shape=[28, 28]),
    "images are of no size": changed_images(shape=[1, 28, 0]),
    "images are huge": changed_images(shape=[1 << 60, 28, 28]),
    "images are of true channels": changed_images(shape=[True, 28, 28]),
    "images are of text": changed_images(shape=["1", "28", "28"]),
    "images are of another size": changed_images(shape=[1, 32, 32]),
    "images are in colour": changed_images(shape=[3, 28, 28]),
    "images are of fewer classes": changed_images(classes=["0", "1"]),
    "images are of numbered classes": changed_images(classes=[*range(10)]),
    "images are of a word of classes": changed_images(classes="0123456789"),
    "images are of too many classes": changed_images(classes=["0"] * 70_000),
    "no format": changed(format=None),
    "no weights": changed(weights=None),
    "unknown entry": changed(surprise=1),
    "step is text": changed(step="many"),
    "weights are text": changed(weights="heavy"),
    "weights are a list": changed(weights=[torch.zeros(3)]),
    "config is text": changed(config="R"),
    "config is a list": changed(config=[1]),
    "config has a numbered key": changed(config={1: 2}),
    "config is not valid": changed_config(backbone="RNN"),
    "config has an unknown section": changed_config(surprise={"a": 1}),
    "config is another model's": changed_config(backbone="CNN"),
    "config is another size's": changed_config(distortion="RTS"),
    "config has a list for a name": changed_config(distortion=[1]),
    "config has a list for a name and the former layout": format_1(
        config={"distortion": [1], "backbone": [2], "distort": {}, "model": {"hidden": 1}}
    ),
    "config is of a network of 17 GB": changed_config(
        distortion={"R": {"canvas_px": 1024}}, backbone={"FCN": {"hidden": 4096}}
    ),
    "compressed": rezipped(zipfile.ZIP_DEFLATED),
    "bomb": rezipped(zipfile.ZIP_DEFLATED, ("archive/bomb", bytes(100_000_000))),
    "same name twice": same_name_twice,
    "zeros behind it": lambda good, path: os.truncate(shutil.copy(good, path), 1 << 29),
    "weight has one number for all": changed_weight(WEIGHT, torch.zeros(1).expand(32, 784)),
    "weight is transposed": changed_weight(WEIGHT, torch.zeros(784, 32).T),
    "weight is sparse": changed_weight(WEIGHT, torch.zeros(32, 784).to_sparse()),
    "weight is complex": changed_weight(WEIGHT, torch.zeros(32, 784, dtype=torch.complex64)),
    "weight is whole numbers": changed_weight(WEIGHT, torch.zeros(32, 784, dtype=torch.int64)),
    "a set in the state": changed(training={"weights": {1, 2}}),
    "weight is not finite": changed_weight(WEIGHT, torch.full((32, 784), torch.nan)),
    "weight has another shape": changed_weight(WEIGHT, torch.zeros(32, 785)),
    "weight is text": changed_weight(WEIGHT, "heavy"),
    "weight is unknown": changed_weight("classifier.9.weight", torch.zeros(3)),
    "weight has a number for a name": changed_weight(5, torch.zeros(3)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_told_in_one_line(damage, finished, tmp_path, command):
    path = tmp_path / "bad.pt"
    DAMAGES[damage](finished.run.last, path)
    with pytest.raises(CheckpointError) as caught:
        load_run(path)
    told = str(caught.value)
    assert str(path) in told
    assert "\n" not in told
    result = command("stn-eval", path)
    assert result.exit_code == 4
    assert result.stderr.splitlines() == [f"error: {told}"]
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ("flipped bit in a weight", "is damaged: wrong checksum in"),
        ("text", "is not a checkpoint of stn_train"),
        ("future format", "not a checkpoint of stn_train, format 1 or 2"),
        ("format 1 with images", "not a checkpoint of stn_train, format 1 or 2"),
        ("images are flat", r"images.shape is \[28, 28\]"),
        ("images are of another size", r"32.* px, .* 28 px"),
        ("images are in colour", r"the weights do not fit the model: .*instead of"),
        ("config is of a network of 17 GB", "262144"),
        ("config is not valid", "config that is not valid: its config: backbone is 'RNN'"),
        ("config has a numbered key", "config that is not valid: .*[Kk]eys? "),
        ("weight is not finite", "a weight of classifier.1.weight is not a finite number"),
        (
            "weight has another shape",
            "the weights do not fit the model: .*32, 785.* instead of .*32, 784",
        ),
        ("bomb", "it is compressed"),
        ("same name twice", "two members have the same name"),
        ("zeros behind it", "is not a checkpoint of stn_train"),
        ("weight has one number for all", "weights.classifier.1.weight is not a dense tensor"),
        ("weight is sparse", "weights.classifier.1.weight is not a dense tensor"),
        ("a set in the state", "training.weights is a set"),
        ("weight is unknown", "there is no classifier.9.weight in it"),
    ],
)
def test_damage_is_told_as_what_it_is(damage, told, finished, tmp_path):
    path = tmp_path / "bad.pt"
    DAMAGES[damage](finished.run.last, path)
    with pytest.raises(CheckpointError, match=told):
        load_run(path)


@pytest.mark.parametrize("name", ["nothing.pt", "nothing", "no/such/folder/last.pt"])
def test_checkpoint_that_is_not_there_is_told(name, tmp_path, command):
    result = command("stn-eval", tmp_path / name)
    assert result.exit_code == 4
    assert len(result.stderr.splitlines()) == 1


def test_run_directory_without_a_checkpoint_is_told(tmp_path):
    with pytest.raises(CheckpointError, match=r"is no run: neither last\.pt nor model\.s"):
        load_run(tmp_path)


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("where", ["in an entry", "legacy file", "plain pickle"])
def test_checkpoint_runs_no_code(where, finished, tmp_path):
    path, made = tmp_path / "evil.pt", tmp_path / "made"
    content = torch.load(finished.run.last, weights_only=True) | {"step": Evil(made)}
    if where == "plain pickle":
        path.write_bytes(pickle.dumps(content["step"]))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=where == "in an entry")
    with pytest.raises(CheckpointError, match="is not a checkpoint of stn_train"):
        load_run(path)
    assert not made.exists()


def test_evil_would_have_worked(tmp_path):
    pickle.loads(pickle.dumps(Evil(tmp_path / "made")))
    assert (tmp_path / "made").is_dir()


def test_damage_anywhere_is_noticed_or_harmless(finished, tmp_path):
    good = finished.run.last.read_bytes()
    expected = load_run(finished.run.last).model.state_dict()
    path = tmp_path / "bad.pt"
    chosen = torch.randint(len(good), (150,), generator=torch.Generator().manual_seed(0))
    for position in chosen.tolist():
        path.write_bytes(good[:position] + bytes([good[position] ^ 16]) + good[position + 1 :])
        try:
            loaded = load_run(path).model.state_dict()
        except CheckpointError:
            continue
        assert all(torch.equal(loaded[name], value) for name, value in expected.items())


def test_warnings_of_strange_files_are_not_shown(tmp_path):
    torch.save({"format": 1}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        with pytest.raises(CheckpointError):
            load_checkpoint(tmp_path / "old.pt")
    assert shown == []


def test_every_length_is_noticed(finished, tmp_path):
    good, path = finished.run.last.read_bytes(), tmp_path / "cut.pt"
    chosen = torch.randint(len(good), (80,), generator=torch.Generator().manual_seed(1))
    for length in [*range(30), *chosen.tolist(), len(good) - 1]:
        path.write_bytes(good[:length])
        with pytest.raises(CheckpointError):
            load_run(path)


def test_a_flipped_bit_is_noticed_in_every_member(finished, tmp_path):
    good, path = finished.run.last.read_bytes(), tmp_path / "flipped.pt"
    with zipfile.ZipFile(finished.run.last) as archive:
        members = [member for member in archive.infolist() if member.file_size]
    assert len(members) > 20
    for member in members:
        names = len(member.filename.encode())
        extra = int.from_bytes(
            good[member.header_offset + 28 : member.header_offset + 30], "little"
        )
        position = member.header_offset + 30 + names + extra + member.file_size // 2
        path.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
        with pytest.raises(CheckpointError, match="wrong checksum"):
            load_run(path)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("transform", [*TRANSFORMS, "none"])
def test_a_network_without_memory_has_the_shapes_of_one_with(backbone, transform):
    config = Config.model_validate({"backbone": backbone, "transform": transform})
    images = ImageFormat((1, 28, 28), CLASSES)
    before = torch.get_rng_state()
    with WithoutMemory():
        empty = config.build_network(images)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(weight.is_meta for weight in empty.parameters())
    whole = config.build_network(images)
    assert not any(tensor.is_meta for tensor in [*whole.parameters(), *whole.buffers()])
    shapes = [
        {name: (value.shape, value.dtype) for name, value in network.state_dict().items()}
        for network in (empty, whole)
    ]
    assert shapes[0] == shapes[1]


class Backbone(BACKBONES["FCN"]):  # type: ignore[misc]
    """One with BatchNorm, whose statistics are part of a checkpoint."""

    def classifier(self, shape, outputs):
        return nn.Sequential(nn.BatchNorm2d(shape[0]), super().classifier(shape, outputs))


def test_buffers_are_saved_and_checked(tmp_path, monkeypatch):
    monkeypatch.setitem(BACKBONES, "normed", Backbone)
    config = Config.model_validate({"backbone": "normed", "transform": "none"})
    images = ImageFormat((1, 28, 28), CLASSES)
    network = config.build_network(images)
    network(torch.rand(50, *config.task.shape(images)))  # moves the statistics
    saved = Checkpoint(config.as_dict(), 1, network.state_dict(), {}, images_entry(images))
    save_checkpoint(tmp_path / "last.pt", saved)
    loaded = load_run(tmp_path / "last.pt").model
    mean = "classifier.0.running_mean"
    assert loaded.get_buffer(mean).equal(network.get_buffer(mean))
    assert float(loaded.get_buffer(mean)) != 0
    del saved.weights[mean]
    with pytest.raises(CheckpointError, match=f"{mean} is missing"):
        restore_model(tmp_path / "last.pt", saved, config)
