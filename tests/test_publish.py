"""What scripts/publish.py writes: the documents' tables and the heads of the configs."""

import dataclasses
import json
import re
import sys

import matplotlib.pyplot as plt
import pytest
from conftest import ROOT, load_script

from stn_train.config import Config
from stn_train.config_file import load_config
from stn_train.errors import ConfigError
from stn_train.runs.result import Result
from stn_train.settings import Choice


@pytest.fixture(scope="module")
def publish():
    return load_script("publish")


@pytest.fixture
def own_results(publish, monkeypatch, tmp_path):
    """Results are gathered in an empty folder instead of the repository's."""
    results = sys.modules["document_tables.results"]
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(results, "SHIPPED", tmp_path / "results")


def test_tables_are_written_from_the_results(publish):
    for name, (document, part) in publish.TABLES.items():
        begin, end = publish.BEGIN.format(name), publish.END.format(name)
        text = (ROOT / document).read_text(encoding="utf-8")
        assert text.split(begin)[1].split(end)[0] == part(), f"{document}: publish.py write"


@pytest.mark.parametrize("chart", ["docs/time_to_result.png", "docs/clutter.png"])
def test_charts_are_drawn(publish, chart):
    figure = publish.CHARTS[chart]()
    assert all(axis.has_data() for axis in figure.axes if axis.axison)
    assert plt.imread(ROOT / chart).shape[:2] == pytest.approx(figure.bbox.size[::-1])


def test_heads_of_configs_are_written_from_the_results(publish):
    for table in publish.WRITTEN:
        for cell in table.cells:
            name = f"{table.config_name(cell)}.yaml"
            text = (ROOT / "configs" / name).read_text(encoding="utf-8")
            written = f"{publish.head(table, cell)}\n{publish.body(table, cell)}"
            assert text == written, f"{cell}: publish.py write"


def test_head_of_a_config_names_the_machine_of_its_fastest_run(publish, monkeypatch):
    table = publish.PAPER_TABLES["mnist"]
    first, second, *_ = publish.results_of(table.results)
    runs = [
        dataclasses.replace(
            first, environment=first.environment | {"hardware": "slow one"}, train_seconds=120.0
        ),
        dataclasses.replace(
            second, environment=second.environment | {"hardware": "fast one"}, train_seconds=60.0
        ),
    ]
    assert first.cell == second.cell
    monkeypatch.setattr(publish, "results_of", lambda _: runs)
    assert "(1.0 min on an fast one" in publish.head(table, first.cell)


@pytest.mark.parametrize("kind", ["default", "calibration"])
def test_published_results_are_whole(publish, kind):
    results = publish.results_of(kind)
    assert results
    for result in results:
        assert result.draws_percent[0] == result.test_percent
        assert result.test_digits == 10_000
        assert re.fullmatch(r"[0-9a-f]{40}", result.environment["commit"])
        wrong = 10_000 - sum(result.confusion[digit][digit] for digit in range(10))
        assert wrong == round(100 * result.test_percent)
        if kind == "default":
            assert publish.of_its_kind(kind, result.as_dict()), "of a former recipe: collect again"
            assert sum(result.mistaken_on_draws) == round(100 * sum(result.draws_percent))


def test_published_results_of_a_column_are_of_one_test_set(publish):
    hashes = {}
    for result in publish.results_of("default"):
        hashes.setdefault(result.cell.distortion, set()).add(tuple(result.draws_sha256))
    assert all(len(found) == 1 for found in hashes.values())


@pytest.mark.usefixtures("own_results")
def test_runs_of_another_recipe_or_uncommitted_code_are_not_published(publish, finished, tmp_path):
    with pytest.raises(ConfigError, match="not a run of the shipped config"):
        publish.collect("default", [finished.run.path])
    result = json.loads(finished.run.result.read_text())
    result["environment"]["commit"] = "0" * 40 + "-dirty"
    (tmp_path / "result.json").write_text(json.dumps(result))
    with pytest.raises(ConfigError, match="not committed"):
        publish.collect("calibration", [tmp_path])


@pytest.mark.usefixtures("own_results")
def test_a_run_is_gathered_once(publish, finished, tmp_path):
    result = json.loads(finished.run.result.read_text())
    result["environment"]["commit"] = "0" * 40
    for name, seed, errors in (("a", 1, [1.0]), ("b", 1, [2.0]), ("c", 2, [3.0])):
        (tmp_path / name).mkdir()
        config = result["config"] | {"seed": seed}
        text = json.dumps(result | {"seed": seed, "config": config, "draws_percent": errors})
        (tmp_path / name / "result.json").write_text(text)
    for name in "acb":
        publish.collect("calibration", [tmp_path / name])
    collected = publish.collected("calibration")
    assert [each["draws_percent"] for each in collected] == [[2.0], [3.0]]
    assert all("command" not in each["environment"] for each in collected)


@pytest.fixture
def run_of(finished, tmp_path):
    """Write the result of a run of a shipped config with overrides, as if it had been trained."""

    def write(name, *overrides):
        config = load_config(f"{name}.yaml", overrides)
        result = json.loads(finished.run.result.read_text())
        result["environment"]["commit"] = "0" * 40
        result |= {**config.cell.as_dict(), "seed": config.seed, "config": config.as_dict()}
        path = tmp_path / f"run{len([*tmp_path.iterdir()])}"
        path.mkdir()
        (path / "result.json").write_text(json.dumps(result))
        return path

    return write


@pytest.mark.usefixtures("own_results")
def test_families_of_transforms_are_gathered_and_tabled(publish, run_of, finished):
    table = publish.TABLES["families"][1]
    assert "Not measured yet: none on R, RTS, E; Translation on R, RTS, E;" in table()
    rigid, spline = "transform=Rigid", "transform=TPS"
    runs = [run_of("r_affine_fcn", rigid), run_of("e_affine_fcn", spline)]
    publish.collect("families", runs)
    error = f"{Result.read(finished.run.result).test_percent:.2f}"
    lines = table().splitlines()
    assert f"| Rigid | 3 | {error} |  |  |" in lines
    assert f"| TPS | 32 |  |  | {error} |" in lines
    assert "Rigid on RTS, E;" in table()
    publish.collect("families", runs)
    assert len(publish.collected("families")) == 2


@pytest.mark.usefixtures("own_results")
@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("r_affine_fcn", ["transform=Rigid", "seed=2"]),
        ("r_affine_fcn", ["transform=Rigid", "train.epochs=3"]),
        ("r_affine_fcn", ["transform={Attention: {scale: 0.5}}"]),
        ("r_affine_fcn", ["transform=Rigid", "recipe=paper"]),
        ("r_affine_fcn", ["transform=Rigid", "backbone=CNN"]),
        ("p_affine_fcn", ["transform=Rigid"]),
    ],
    ids=str,
)
def test_runs_of_families_differ_in_the_transform_alone(publish, run_of, name, overrides):
    with pytest.raises(ConfigError, match="not a run of the shipped config"):
        publish.collect("families", [run_of(name, *overrides)])


@pytest.mark.usefixtures("own_results")
@pytest.mark.parametrize(
    ("table", "name", "network"),
    [("layers", "r_deep", "ST-CNN Aff@1"), ("deformable", "r_dcn", "DCN")],
)
def test_experiments_without_a_published_number_stand_beside_the_cnn(
    publish, run_of, table, name, network
):
    part = publish.TABLES[table][1]
    assert part() == "Not yet run.\n"
    publish.collect("default", [run_of("r_cnn"), run_of("r_affine"), run_of("rts_cnn")])
    publish.collect("other", [run_of(name), run_of("volumes")])
    networks = [line.split(" | ")[0] for line in part().splitlines() if line.endswith(" |")]
    assert networks == ["| network", "| CNN", "| ST-CNN Aff", f"| {network}"]


def test_every_setting_of_every_plug_in_is_documented(publish):
    reference = sys.modules["document_tables.reference"]
    text = reference.settings_table()
    found = dict(reference.choices_in(Config))
    assert {"distortion", "backbone", "transform", "task", "data.source"} <= found.keys()
    for key, choice in found.items():
        assert isinstance(choice, Choice)
        for name, kind in choice.registry.items():
            for field in kind.model_fields:
                assert f"| `{key}.{name}.{field}` |" in text
    meanings = [line.split("|")[-2].strip() for line in text.splitlines() if "| `" in line]
    assert all(meanings)


def test_documented_keys_can_be_set(publish):
    text = publish.TABLES["settings"][1]()
    keys = re.findall(r"^\| `(distortion\.RTS\.[a-z_]+)` \| ([\d.]+) \|", text, re.M)
    assert keys
    for key, value in keys:
        assert load_config("rts_affine.yaml", [f"{key}={value}"]) is not None


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("**/results/*.json*")), ids=lambda path: path.name
)
def test_results_name_no_folder_of_a_machine(path):
    assert not re.search(r'"path": "[/~\\\\]', path.read_text(encoding="utf-8"))
