"""The page to paste into a report of a problem."""

import json

import torch

from stn_train.data import mnist


def test_doctor_tells_versions_devices_data_and_disk(command, nowhere):
    result = command("stn-train", "--doctor", "--device", "cpu")
    assert result.exit_code == 0
    lines = dict(line.split(maxsplit=1) for line in result.stdout.splitlines() if line[0] != " ")
    assert lines["torch"] == torch.__version__
    assert "whole" in str(lines["mnist"])
    assert f"looked for in {nowhere / 'cache' / 'stn_train'}" in result.stdout
    assert "tensorboard " in lines["extras"]
    assert " GB" in result.stdout
    found = json.loads(command("stn-train", "--doctor", "--json").stdout)
    assert found["threads"] == torch.get_num_threads()


def test_doctor_names_damaged_data(command, nowhere, monkeypatch):
    monkeypatch.setattr(mnist, "read_idx", mnist.read_idx.__wrapped__)  # as it is, not cached
    monkeypatch.setattr(mnist, "FOLDER", nowhere)
    file = mnist.TRAINING_IMAGES
    (nowhere / f"{file.name}.xz").write_bytes(b"damaged")
    result = command("stn-train", "--doctor")
    assert result.exit_code == 0
    assert f"{file.name}.xz" in result.stdout


def test_doctor_tells_of_a_device_and_a_home_that_are_not_there(command, nowhere, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/nonexistent/cache")
    result = command("stn-train", "--doctor", "--device", "cuda")
    assert result.exit_code == 0
    assert "--device cuda: not available here" in result.stdout
    assert "/nonexistent/cache/stn_train: " in result.stdout
