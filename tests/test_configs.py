"""The shipped YAML files."""

import itertools
import re

import pytest
import yaml

from stn_train.cell import Cell
from stn_train.config import Config
from stn_train.config_file import load_config
from stn_train.data.distortions import DISTORTIONS
from stn_train.data.images import ImageFormat
from stn_train.geometry.transforms import TRANSFORMS
from stn_train.models.assembly import resolve_placements
from stn_train.models.network import parameter_count
from stn_train.runs.directory import RunDirectory
from stn_train.shipped_configs import complete_config, shipped_configs, shipped_directory
from stn_train.table.paper import TABLES

MNIST = ImageFormat((1, 28, 28), tuple("0123456789"))
NAMES = [path.name for path in shipped_configs()]
TABLE = {cell: TABLES["mnist"].published(cell) for cell in TABLES["mnist"].cells}
CELLS = {f"{cell.file_name}.yaml": cell for cell in TABLE}
ADDITION = {f"{TABLES['addition'].file_name(c)}.yaml": c for c in TABLES["addition"].cells}
BIRDS = {f"{TABLES['birds'].file_name(cell)}.yaml": cell for cell in TABLES["birds"].cells}
COLOCALISATION = {"colocalisation_t.yaml", "colocalisation_tc.yaml"}
DEEP = {"r_deep.yaml", "r_every_layer.yaml"}
IMAGES = {"fashion_mnist.yaml", "kmnist.yaml", "emnist.yaml", "qmnist.yaml", "folder.yaml"}
RELATIVES = {"r_dcn.yaml", "rts_dcn.yaml"}
OTHERS = {
    *("paper.yaml", "quickstart.yaml", "tutorial.yaml", "volumes.yaml", "birds_made.yaml"),
    *(COLOCALISATION | DEEP | IMAGES | RELATIVES),
}


def lines(name: str) -> list[str]:
    return (shipped_directory() / name).read_text(encoding="utf-8").splitlines()


def test_a_config_ships_for_every_cell_of_the_paper_and_a_few_more():
    assert len(CELLS) == len(TABLE) == 36
    assert len(ADDITION) == 8
    assert set(NAMES) == CELLS.keys() | ADDITION.keys() | BIRDS.keys() | OTHERS


def test_cells_of_the_paper_are_all_of_its_distortions_and_models():
    distortions, backbones = ("R", "RTS", "P", "E"), ("FCN", "CNN")
    models = itertools.product(distortions, backbones, ("none", "Aff", "Proj", "TPS"))
    cluttered = itertools.product(("TC",), backbones, ("none", "Aff"))
    assert {Cell(*names) for names in (*models, *cluttered)} == set(TABLE)
    for cell in TABLE:
        assert cell.distortion in DISTORTIONS
        assert cell.transform in {"none", *TRANSFORMS}


def test_names_are_completed_for_the_shell():
    assert complete_config("rts_aff") == ["rts_affine.yaml", "rts_affine_fcn.yaml"]
    assert complete_config("") == NAMES
    assert complete_config("nothing") == []


@pytest.mark.parametrize("name", NAMES)
def test_config_loads_and_its_network_builds(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_config(name)
    network = config.build_network(MNIST)
    assert parameter_count(network) > 0
    assert config.task.locates or parameter_count(network.classifier) > 0


@pytest.mark.parametrize("name", NAMES)
def test_config_survives_what_a_run_records_of_it(name):
    config = load_config(name)
    assert Config.model_validate(config.as_dict()) == config
    assert Config.from_run(config.as_dict()) == config
    assert yaml.safe_load(yaml.safe_dump(config.as_dict())) == config.as_dict()
    assert config.given == yaml.safe_load("\n".join(lines(name)))
    assert Config.model_validate(config.given) == config


@pytest.mark.parametrize("name", NAMES)
def test_head_states_the_cell_and_the_command(name):
    head = [line for line in lines(name) if line.startswith("#")]
    assert re.match(r"# .+[:.]", head[0])
    assert f"# Command: stn-train --config {name}" in head
    assert any(line.startswith(("# Paper", "# Expect")) for line in head)


@pytest.mark.parametrize("name", CELLS)
def test_cell_is_what_its_name_says_and_says_only_what_differs(name):
    wanted = CELLS[name].as_dict()
    assert yaml.safe_load("\n".join(lines(name))) == wanted
    config = load_config(name)
    assert config.cell == CELLS[name]
    assert (config.source_name, config.recipe) == ("mnist", "default")


@pytest.mark.parametrize("name", ADDITION)
def test_addition_is_of_two_channels_with_at_most_400_000_weights(name):
    config = load_config(name)
    assert (config.task_name, config.cell) == ("addition", ADDITION[name])
    assert (config.source_name, config.recipe) == ("mnist", "default")
    assert config.task.shape(MNIST) == (2, 42, 42)
    assert config.task.outputs(MNIST) == 19
    assert parameter_count(config.build_network(MNIST)) <= 400_000


PAPER_BIRDS = {  # section 4.3, % right
    "birds_crop224_inception.yaml": 82.3,
    "birds_crop224_2xattention_inception.yaml": 83.1,
    "birds_crop448_2xattention_inception.yaml": 83.9,
    "birds_crop448_4xattention_inception.yaml": 84.1,
}


def test_birds_are_the_four_rows_of_the_paper():
    published = {name: TABLES["birds"].published(cell) for name, cell in BIRDS.items()}
    assert published == PAPER_BIRDS


@pytest.mark.parametrize("name", BIRDS)
def test_birds_are_as_in_the_paper(name):
    config = load_config(name)
    assert (config.task_name, config.source_name, config.cell) == (
        "recognition",
        "cub",
        BIRDS[name],
    )
    assert lines(name)[1] == f"# Paper (section 4.3): {PAPER_BIRDS[name]} % right."
    side, crops = config.distortion.canvas_px, BIRDS[name].transform[0]
    colour = ImageFormat((3, side * 8 // 7, side * 8 // 7), tuple(map(str, range(200))))
    assert config.task.shape(colour) == (3, side, side)
    assert config.data.source.size == side * 8 // 7
    network = resolve_placements(
        config.backbone, config.transform, config.model, (3, side, side), 256, config.transformers
    )
    if crops != "n":
        front = network["front"]
        assert (front.parallel, front.output_size, front.localisation_shape[1:]) == (
            int(crops), (224, 224), (224, 224)
        )  # fmt: skip
        assert (front.shared_localisation, front.tiled) == (True, True)
    train = config.train
    rates = train.learning_rate, train.localisation_learning_rate_scale, train.weight_decay
    assert rates == (0.1, 1e-4, 1e-5)
    assert [round(at * train.steps) for at in train.step_at] == [10_000, 20_000, 25_000]
    assert config.backbone.pretrained
    assert config.backbone.dropout == 0.7


@pytest.mark.parametrize("name", CELLS)
def test_title_of_a_cell_is_its_name_in_a_log(name):
    assert lines(name)[0].startswith(f"# {load_config(name).title}: ")


# Table 1 of the paper, test error in %; the last number is in the text of section 4.1.
PAPER = {
    "FCN": "2.1 5.2 3.1 3.2 13.2",
    "CNN": "1.2 0.8 1.5 1.4 3.5",
    "ST-FCN Aff": "1.2 0.8 1.5 2.7 2.0",
    "ST-FCN Proj": "1.3 0.9 1.4 2.6 -",
    "ST-FCN TPS": "1.1 0.8 1.4 2.4 -",
    "ST-CNN Aff": "0.7 0.5 0.8 1.2 1.7",
    "ST-CNN Proj": "0.8 0.6 0.8 1.3 -",
    "ST-CNN TPS": "0.7 0.5 0.8 1.1 -",
}
DISTORTIONS_OF_THE_PAPER = ("R", "RTS", "P", "E", "TC")


@pytest.mark.parametrize("name", CELLS)
def test_published_error_in_the_head_is_the_papers(name):
    cell = CELLS[name]
    published = dict(zip(DISTORTIONS_OF_THE_PAPER, PAPER[cell.model].split(), strict=True))
    place = "text of section 4.1" if cell.distortion == "TC" else "Table 1"
    told = f"# Paper ({place}): {published[cell.distortion]} % test error"
    assert lines(name)[1].startswith((f"{told}.", f"{told};"))
    assert TABLE[cell] == float(published[cell.distortion])


def test_paper_config_is_the_papers_schedule():
    train = load_config("paper.yaml").train
    assert (train.optimizer, train.steps, train.schedule) == ("sgd", 150_000, "step")


def test_quickstart_is_short_and_needs_no_download():
    config = load_config("quickstart.yaml")
    assert config.source_name == "mnist"
    assert config.train.epochs < load_config(f"{config.cell.file_name}.yaml").train.epochs


def test_tutorial_is_undistorted():
    assert load_config("tutorial.yaml").cell == Cell("none", "tutorial", "Aff")


@pytest.mark.parametrize("name", sorted(OTHERS | {"rts_affine.yaml"}))
def test_config_of_a_run_is_the_config_it_was_started_with(name, tmp_path):
    config = load_config(name)
    run = RunDirectory.claim(tmp_path / "run")
    run.begin(config, {}, 0)
    assert load_config(str(run.config)) == config
