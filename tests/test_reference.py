"""What docs/reference.md and README promise to scripts: fields, files and exit codes."""

import json
import re
from dataclasses import replace

import pytest
import yaml
from conftest import ROOT
from PIL import Image

from stn_train.cli.options import EXIT_CODES
from stn_train.runs.directory import MEASURED
from stn_train.runs.result import Result
from stn_train.trainer import rehearsal

REFERENCE = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def promised(name: str) -> set[str]:
    """The fields in a section of the reference."""
    (section,) = re.findall(rf"<!-- fields: {name} -->(.*?)<!-- fields: end -->", REFERENCE, re.S)
    rows = re.findall(r"^\| (`.*?) \|", section, re.M)
    fields = [field for row in rows for field in re.findall(r"`(\w+)`", row)]
    assert len(fields) == len(set(fields))
    return set(fields)


@pytest.fixture
def config(nowhere, tiny) -> str:
    """The tiny config as a file in an empty working directory."""
    (nowhere / "tiny.yaml").write_text(yaml.safe_dump(tiny().as_dict()))
    return "tiny.yaml"


def test_fields_of_a_result(finished):
    assert set(json.loads(finished.run.result.read_text())) == promised("result.json")


def test_fields_of_a_result_are_the_same_without_validation(finished):
    result = replace(Result.read(finished.run.result), validation_percent=None)
    assert result.as_dict()["validation_error_percent"] is None
    assert set(result.as_dict()) == promised("result.json")


def test_train_prints_the_result_and_nothing_else(command, config, nowhere):
    arguments = ["--config", config, "--out", "run", "--json", "--quiet"]
    result = command("stn-train", *arguments)
    assert json.loads(result.stdout) == json.loads((nowhere / "run" / "result.json").read_text())
    assert result.stderr == ""
    again = command("stn-train", "--resume", "run", "--json")
    assert json.loads(again.stdout) == json.loads(result.stdout)


def test_fields_of_an_evaluation(finished, command):
    report = json.loads(command("stn-eval", finished.run.path, "--json").stdout)
    assert set(report) == promised("stn-eval --json")


def test_fields_of_ones_own_pictures(finished, command, splits, tmp_path):
    Image.fromarray(splits.test.pixels[0, 0].numpy()).save(tmp_path / "digit.png")
    arguments = [finished.run.path, "--images", tmp_path, "--json"]
    report = json.loads(command("stn-eval", *arguments).stdout)
    (one,) = report["predictions"]
    assert set(report) | set(one) == promised("stn-eval --images --json")


def test_fields_of_the_table(command):
    rows = json.loads(command("stn-table", "show", "--json").stdout)
    assert {frozenset(row) for row in rows} == {frozenset(promised("stn-table show --json"))}


def test_fields_of_a_comparison(finished, command):
    arguments = [finished.run.path, finished.run.path, "--json"]
    (row,) = json.loads(command("stn-table", "compare", *arguments).stdout)
    assert set(row) == promised("stn-table compare --json")


def test_fields_of_a_rehearsal(command, config, monkeypatch):
    monkeypatch.setattr(rehearsal, "TIMED_SECONDS", 0.0)
    report = command("stn-train", "--config", config, "--dry-run", "--json").stdout
    assert set(json.loads(report)) == promised("stn-train --dry-run --json")


def test_fields_of_an_export(finished, command, tmp_path):
    arguments = [finished.run.path, "--format", "pt2", "--out", tmp_path / "model.pt2", "--json"]
    report = json.loads(command("stn-export", *arguments).stdout)
    assert set(report) == promised("stn-export --json")


def test_files_of_a_run_are_all_named(finished, command, config, nowhere):
    section = REFERENCE.split("## Files of a run")[1].split("## Fields")[0]
    named = set(re.findall(r"`([\w.]+)/?`", section))
    settings = ["--set", "log.snapshots=2", "--set", "log.tensorboard=true"]
    assert command("stn-train", "--config", config, "--out", "run", *settings).exit_code == 0
    for folder in (finished.run.path, nowhere / "run"):
        assert {path.name for path in folder.iterdir()} <= named


def test_kinds_of_metrics_are_all_named(finished):
    records = finished.run.read_metrics()
    assert {record["kind"] for record in records} == set(MEASURED)
    for record in records:
        for word in (record["kind"], *record):
            assert f"`{word}`" in REFERENCE


@pytest.mark.parametrize("text", [README, EXIT_CODES], ids=["README", "--help"])
def test_exit_codes_are_these(text):
    codes = " ".join(text.split("Exit codes: ")[1].split())
    assert codes.startswith(
        "0 done; 1 something outside the program failed (disk, permission); 2 config or command "
        "line; 3 data missing or damaged; 4 checkpoint cannot be read; 5 training diverged; 6 the "
        "run directory is taken; 130 interrupted (Ctrl-C), 143 terminated, 129 terminal closed"
    )
