"""What README says is what the program does: its code runs, its numbers are the measured ones."""

import json
import re
import sys

import pytest
import torch
from conftest import ROOT, load_script

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_python_example_runs_and_gives_what_it_says():
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names = {}
    exec(example, names)
    assert names["logits"].shape == (5, 10)
    assert names["warped"].shape == (5, 3, 32, 32)
    assert names["theta"].shape == (5, 6)
    torch.testing.assert_close(names["theta"][0], torch.tensor([1.0, 0, 0, 0, 1, 0]))


def test_example_of_the_module_runs_and_gives_what_it_says():
    text = (ROOT / "docs" / "module.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    names = {}
    exec(example, names)
    assert names["images"].shape == names["warped"].shape == (6, 1, 28, 28)
    assert names["theta"].shape == (6, 32)
    torch.testing.assert_close(names["warped"], names["images"])  # a new one is the identity


def test_tables_and_config_heads_are_written_from_the_results():
    publish = load_script("publish")
    for name, (document, part) in publish.TABLES.items():
        begin, end = publish.BEGIN.format(name), publish.END.format(name)
        text = (ROOT / document).read_text(encoding="utf-8")
        assert text.split(begin)[1].split(end)[0] == part(), f"{document}: publish.py write"
    for cell in publish.TABLE_1:
        text = (ROOT / "configs" / f"{publish.cell_name(cell)}.yaml").read_text()
        assert text.startswith(publish.head(cell))


@pytest.mark.parametrize("kind", ["default", "calibration"])
def test_published_results_are_whole(kind):
    publish = load_script("publish")
    results = publish.collected(kind)
    assert results
    for result in results:
        assert result["draws_percent"][0] == result["test_error_percent"]
        assert result["test_digits"] == 10_000
        assert re.fullmatch(r"[0-9a-f]{40}", result["environment"]["commit"])
        wrong = 10_000 - sum(result["confusion"][digit][digit] for digit in range(10))
        assert wrong == round(100 * result["test_error_percent"])
        if kind == "default":
            assert publish.of_its_kind(kind, result), "of a former recipe: publish.py collect"
            assert sum(result["mistaken_on_draws"]) == round(100 * sum(result["draws_percent"]))


def test_published_results_of_a_cell_are_of_one_test_set():
    hashes = {}
    for result in load_script("publish").collected("default"):
        hashes.setdefault(result["distortion"], set()).add(tuple(result["draws_sha256"]))
    assert all(len(found) == 1 for found in hashes.values())


def test_runs_of_another_recipe_or_uncommitted_code_are_not_published(
    finished, monkeypatch, tmp_path
):
    publish = load_script("publish")
    monkeypatch.setattr(sys.modules["document_tables"], "RESULTS", tmp_path / "results")
    with pytest.raises(SystemExit, match="not a run of the shipped config"):
        publish.collect("default", [finished.run.path])
    result = json.loads(finished.run.result.read_text())
    result["environment"]["commit"] = "0" * 40 + "-dirty"
    (tmp_path / "result.json").write_text(json.dumps(result))
    with pytest.raises(SystemExit, match="the code was not committed"):
        publish.collect("calibration", [tmp_path])


def test_a_run_is_gathered_once(finished, monkeypatch, tmp_path):
    publish = load_script("publish")
    monkeypatch.setattr(sys.modules["document_tables"], "RESULTS", tmp_path / "results")
    result = json.loads(finished.run.result.read_text())
    result["environment"]["commit"] = "0" * 40
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / name).mkdir()
        config = result["config"] | {"seed": seed}
        text = json.dumps(result | {"seed": seed, "config": config, "draws_percent": [name]})
        (tmp_path / name / "result.json").write_text(text)
    publish.collect("calibration", [tmp_path / "a"])
    publish.collect("calibration", [tmp_path / "c"])
    publish.collect("calibration", [tmp_path / "b"])
    assert [each["draws_percent"] for each in publish.collected("calibration")] == [["b"], ["c"]]


def test_every_link_leads_to_a_file():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        links = re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text(encoding="utf-8"))
        assert [link for link in links if not (page.parent / link).exists()] == [], page


def test_every_module_is_in_the_map():
    modules = {path.stem for path in (ROOT / "stn_train").glob("*.py")}
    named = set(re.findall(r"`(\w+)`", README.split("## Code map")[1]))
    assert modules - {"__init__", "_version"} <= named
