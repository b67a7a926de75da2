"""A run as a folder for a hub: what is in it, and that it is loaded again."""

import re
import shutil

import pytest
import torch
import yaml

from stn_train.config_file import load_config
from stn_train.runs.directory import load_run


@pytest.fixture(scope="module")
def folder(finished, tmp_path_factory):
    from stn_train.runs.hub import write_hub

    folder = tmp_path_factory.mktemp("hub") / "model"
    write_hub(load_run(finished.run.path), folder)
    return folder


def test_the_folder_has_weights_config_and_card(folder, finished):
    names = {"model.safetensors", "config.yaml", "README.md"}
    assert {path.name for path in folder.iterdir()} == names
    assert load_config(str(folder / "config.yaml")).as_dict() == finished.config.as_dict()


def test_the_card_tells_the_measured_error(folder, finished):
    _, head, text = (folder / "README.md").read_text().split("---\n", 2)
    card, result = yaml.safe_load(head), finished.result.result
    (measured,) = card["model-index"][0]["results"]
    assert measured["metrics"][0]["value"] == result.test_percent
    assert card["license"] == "mit"
    assert f"| test error | {result.test_percent:.2f} % (95 %: " in text
    assert result.test_sha256 in text
    assert "(batch, 1, 28, 28)" in text


def test_the_example_of_the_card_runs(folder, finished):
    (example,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
    names = {"images": torch.rand(2, 1, 28, 28)}
    exec(example.replace("FOLDER", str(folder)), names)
    with torch.inference_mode():
        assert torch.equal(names["logits"], load_run(finished.run.path).model(names["images"]))


def test_command_writes_the_folder_beside_the_run(finished, command, tmp_path):
    shutil.copytree(finished.run.path, tmp_path / "run")
    result = command("stn-export", tmp_path / "run", "--format", "hub")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"exported    {tmp_path / 'run' / 'hub'}, ")
    shown = command("stn-eval", tmp_path / "run" / "hub", "--json").stdout
    assert shown.count("test_error_percent") == 1


def test_a_run_without_a_result_is_told(finished, command, tmp_path):
    shutil.copytree(finished.run.path, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    result = command("stn-export", tmp_path / "run", "--format", "hub", "--out", tmp_path / "hub")
    assert result.exit_code == 4
    assert "has no result.json" in result.stderr
    assert not (tmp_path / "hub").exists()
