"""What scripts/publish.py writes: the documents' tables and the heads of the configs."""

import json
import re
import sys

import pytest
from conftest import ROOT, load_script

from stn_train.config_file import load_config
from stn_train.errors import ConfigError
from stn_train.settings import Choice


@pytest.fixture(scope="module")
def publish():
    return load_script("publish")


@pytest.fixture
def own_results(publish, monkeypatch, tmp_path):
    """Results are gathered in an empty folder instead of the repository's."""
    monkeypatch.setattr(sys.modules["document_tables"], "RESULTS", tmp_path / "results")
    monkeypatch.setattr(sys.modules["document_tables"], "SHIPPED", tmp_path / "results")


def test_tables_are_written_from_the_results(publish):
    for name, (document, part) in publish.TABLES.items():
        begin, end = publish.BEGIN.format(name), publish.END.format(name)
        text = (ROOT / document).read_text(encoding="utf-8")
        assert text.split(begin)[1].split(end)[0] == part(), f"{document}: publish.py write"


def test_heads_of_configs_are_written_from_the_results(publish):
    for cell in publish.MNIST.cells:
        text = (ROOT / "configs" / f"{cell.file_name}.yaml").read_text(encoding="utf-8")
        assert text.startswith(publish.head(cell)), f"{cell}: publish.py write"


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


def test_every_setting_of_every_plug_in_is_documented(publish):
    tables = sys.modules["document_tables"]
    text = tables.settings_table()
    found = dict(tables.choices_in(tables.Config))
    assert {"distortion", "backbone", "transform", "task", "data.source"} <= found.keys()
    for key, choice in found.items():
        assert isinstance(choice, Choice)
        for name, kind in choice.registry.items():
            for field in kind.model_fields:
                assert f"| `{key}.{name}.{field}` |" in text
    meanings = [line.split("|")[-2].strip() for line in text.splitlines() if "| `" in line]
    assert all(meanings)


def test_documented_keys_can_be_set(publish):
    text = sys.modules["document_tables"].settings_table()
    keys = re.findall(r"^\| `(distortion\.RTS\.[a-z_]+)` \| ([\d.]+) \|", text, re.M)
    assert keys
    for key, value in keys:
        assert load_config("rts_affine.yaml", [f"{key}={value}"]) is not None
