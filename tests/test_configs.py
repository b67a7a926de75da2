"""The shipped YAML files."""

import re

import pytest
import yaml

from stn_train.config_file import load_config, shipped_configs
from stn_train.models import build_model
from stn_train.published import TABLE_1
from stn_train.run_directory import RunDirectory

DISTORTIONS = {"r": "R", "rts": "RTS", "p": "P", "e": "E"}
MODELS = {
    "fcn": ("FCN", "none"),
    "cnn": ("CNN", "none"),
    "affine_fcn": ("FCN", "Aff"),
    "projective_fcn": ("FCN", "Proj"),
    "tps_fcn": ("FCN", "TPS"),
    "affine": ("CNN", "Aff"),
    "projective": ("CNN", "Proj"),
    "tps": ("CNN", "TPS"),
}
CELLS = {
    f"{short}_{model}.yaml": (distortion, *what)
    for short, distortion in DISTORTIONS.items()
    for model, what in MODELS.items()
}
NAMES = [path.name for path in shipped_configs()]


def lines(name: str) -> list[str]:
    path = next(path for path in shipped_configs() if path.name == name)
    return path.read_text(encoding="utf-8").splitlines()


def test_the_32_cells_and_nothing_unknown_are_shipped():
    assert len(CELLS) == 32
    assert set(NAMES) - set(CELLS) == {"paper.yaml", "quickstart.yaml", "tutorial.yaml"}
    assert set(CELLS) <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_config_loads_and_its_model_builds(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert build_model(load_config(name)).classifier is not None


@pytest.mark.parametrize("name", NAMES)
def test_head_states_the_cell_and_the_command(name):
    head = [line for line in lines(name) if line.startswith("#")]
    assert re.match(r"# .+[:.]", head[0])
    assert f"# Command: stn-train --config {name}" in head
    assert any(line.startswith(("# Paper", "# Expect")) for line in head)


@pytest.mark.parametrize("name", CELLS)
def test_cell_is_what_its_name_says_and_says_only_what_differs(name):
    distortion, backbone, transform = CELLS[name]
    wanted = {"distortion": distortion, "backbone": backbone, "transform": transform}
    assert yaml.safe_load("\n".join(lines(name))) == wanted
    config = load_config(name)
    assert (config.distortion, config.backbone, config.transform) == CELLS[name]
    assert (config.data.source, config.recipe) == ("mnist", "default")


@pytest.mark.parametrize("name", CELLS)
def test_title_of_a_cell_is_its_name_in_a_log(name):
    assert lines(name)[0].startswith(f"# {load_config(name).cell}: ")


# Table 1 of the paper, test error in %.
PAPER = {
    "FCN": "2.1 5.2 3.1 3.2",
    "CNN": "1.2 0.8 1.5 1.4",
    "ST-FCN Aff": "1.2 0.8 1.5 2.7",
    "ST-FCN Proj": "1.3 0.9 1.4 2.6",
    "ST-FCN TPS": "1.1 0.8 1.4 2.4",
    "ST-CNN Aff": "0.7 0.5 0.8 1.2",
    "ST-CNN Proj": "0.8 0.6 0.8 1.3",
    "ST-CNN TPS": "0.7 0.5 0.8 1.1",
}


@pytest.mark.parametrize("name", CELLS)
def test_published_error_in_the_head_is_the_papers(name):
    distortion, backbone, transform = CELLS[name]
    model = backbone if transform == "none" else f"ST-{backbone} {transform}"
    published = dict(zip(DISTORTIONS.values(), PAPER[model].split(), strict=True))
    told = f"# Paper (Table 1): {published[distortion]} % test error"
    assert lines(name)[1].startswith((f"{told}.", f"{told};"))
    assert TABLE_1[distortion, backbone, transform] == float(published[distortion])


def test_paper_config_is_the_papers_schedule():
    train = load_config("paper.yaml").train
    assert (train.optimizer, train.steps, train.schedule) == ("sgd", 150_000, "step")


def test_quickstart_needs_no_download():
    assert load_config("quickstart.yaml").data.source == "embedded"


def test_tutorial_is_undistorted():
    config = load_config("tutorial.yaml")
    assert (config.backbone, config.distortion) == ("tutorial", "none")


@pytest.mark.parametrize("name", ["paper.yaml", "quickstart.yaml", "rts_affine.yaml"])
def test_config_of_a_run_is_the_config_it_was_started_with(name, tmp_path):
    config = load_config(name)
    run = RunDirectory.claim(tmp_path / "run")
    run.begin(config, {}, 0)
    assert load_config(str(run.config)) == config
