"""Weights as safetensors: what the package reads is what was written, and no bit may flip."""

import json

import pytest
import safetensors
import safetensors.torch
import torch

from stn_train.errors import CheckpointError
from stn_train.runs.directory import load_run
from stn_train.runs.safetensors import TYPES, read_tensors, write_tensors

TENSORS = {
    "weight": torch.tensor([[1.5, -2.0], [0.1, 3e-9]]),
    "count": torch.tensor(7),
    "flags": torch.tensor([True, False, True]),
    "half": torch.tensor([1.5, -0.25], dtype=torch.bfloat16),
    "none": torch.zeros(0, 3),
}


@pytest.fixture
def path(tmp_path):
    write_tensors(tmp_path / "a.safetensors", TENSORS, {"note": '"é"'})
    return tmp_path / "a.safetensors"


def same(given, wanted):
    assert given.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert given[name].dtype == tensor.dtype
        assert torch.equal(given[name], tensor)


def test_the_package_reads_what_we_write(path):
    same(safetensors.torch.load_file(path), TENSORS)
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata()["note"] == '"é"'


def test_we_read_what_we_write(path):
    tensors, metadata = read_tensors(path)
    same(tensors, TENSORS)
    assert metadata["note"] == '"é"'


@pytest.mark.parametrize("kind", TYPES.values(), ids=TYPES)
def test_every_type_goes_through_the_package_and_back(kind, tmp_path):
    values = {"values": torch.arange(6).reshape(2, 3).to(kind)}
    write_tensors(tmp_path / "a.safetensors", values, {})
    same(safetensors.torch.load_file(tmp_path / "a.safetensors"), values)
    same(read_tensors(tmp_path / "a.safetensors")[0], values)


def test_no_bit_may_be_another(path):
    content = path.read_bytes()
    damaged = path.with_name("b.safetensors")
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        damaged.write_bytes(flipped)
        with pytest.raises(CheckpointError, match=r"b\.safetensors"):
            read_tensors(damaged)


def test_no_byte_may_be_missing(path):
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            read_tensors(path)


def test_what_the_package_writes_has_no_digest_and_is_refused(tmp_path):
    safetensors.torch.save_file(TENSORS, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="__metadata__"):
        read_tensors(tmp_path / "a.safetensors")


# Of a run.


def test_a_finished_run_leaves_its_model_and_what_was_measured(finished):
    with safetensors.safe_open(finished.run.model, "pt") as file:
        metadata = file.metadata()
    result = json.loads(finished.run.result.read_text())
    assert json.loads(metadata["test_error_percent"]) == result["test_error_percent"]
    assert json.loads(metadata["config"]) == finished.config.as_dict()
    same(safetensors.torch.load_file(finished.run.model), finished.result.model.state_dict())


def test_the_model_is_that_of_the_checkpoint(finished):
    model, checkpoint = load_run(finished.run.model), load_run(finished.run.last)
    assert (model.config, model.step, model.format) == (
        checkpoint.config,
        checkpoint.step,
        checkpoint.format,
    )
    images = torch.rand(3, 1, 28, 28)
    with torch.inference_mode():
        assert torch.equal(model.model(images), checkpoint.model(images))


def test_a_folder_with_the_model_alone_is_loaded(finished, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(finished.run.model.read_bytes())
    assert load_run(tmp_path).checkpoint == tmp_path / "model.safetensors"


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("step", "many", "many"),
        ("config", "{", "Expecting"),
        ("config", "[]", "config is not a dict"),
        ("stn_train", "3", "format 1 or 2"),
        ("images", '{"shape": [1, 28], "classes": []}', "images.shape"),
    ],
)
def test_metadata_of_another_kind_are_told(finished, tmp_path, key, value, told):
    tensors, metadata = read_tensors(finished.run.model)
    write_tensors(tmp_path / "model.safetensors", tensors, {**metadata, key: value})
    with pytest.raises(CheckpointError, match=told):
        load_run(tmp_path)


def test_weights_that_do_not_fit_are_told(finished, tmp_path):
    tensors, metadata = read_tensors(finished.run.model)
    tensors.popitem()
    write_tensors(tmp_path / "model.safetensors", tensors, metadata)
    with pytest.raises(CheckpointError, match="do not fit the model"):
        load_run(tmp_path)
