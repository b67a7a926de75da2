"""`stn-table`: the command line of the table."""

import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import typer.main
from conftest import TINY_OVERRIDES

from stn_train.cli.table import run_table, seeds_named
from stn_train.errors import CheckpointError, ConfigError, DivergenceError
from stn_train.runs.checkpoint import load_checkpoint
from stn_train.runs.result import reference_results
from stn_train.table import paper
from stn_train.table.paper import TABLES

MNIST = TABLES["mnist"]


@pytest.fixture
def table(command):
    """Run stn-table in this process."""
    return lambda *arguments: command("stn-table", *arguments)


@pytest.fixture
def written(tmp_path):
    """Write results as those of finished runs; returns the folder."""

    def written(*results, folder="runs"):
        for number, result in enumerate(results):
            run = tmp_path / folder / f"run-{number}"
            run.mkdir(parents=True)
            (run / "result.json").write_text(json.dumps(result.as_dict()))
        return tmp_path / folder

    return written


def set_options(*changes):
    return [part for change in [*TINY_OVERRIDES, *changes] for part in ("--set", change)]


def of_cell(title, **changes):
    found = next(each for each in reference_results() if str(each.cell) == title)
    return replace(found, **changes)


# run.


def test_what_is_missing_is_trained_and_shown(table, tmp_path):
    chosen = ["--cells", "R:FCN:*", "--seeds", 1, "--out", tmp_path, "--jobs", 1]
    result = table("run", *chosen, *set_options())
    assert result.exit_code == 0
    assert "4 runs, 0 of them finished already; 1 at a time" in result.stderr
    ended = r"4 of 4: r_\w*fcn-seed1 [\d.]+ % \(paper [12].\d\), validation [\d.]+ % in"
    assert re.search(ended, result.stderr)
    assert re.search(r"\| ST-FCN TPS \| [\d.]+ \(1.1, \+[\d.]+\) \|", result.stdout)
    again = table("run", *chosen, *set_options())
    assert "4 runs, 4 of them finished already" in again.stderr
    (tmp_path / "r_fcn-seed1" / "result.json").unlink()
    one_more = table("run", *chosen, *set_options())
    assert "4 runs, 3 of them finished already" in one_more.stderr
    other = table("run", *chosen, *set_options("train.epochs=3"))
    assert other.exit_code == ConfigError.exit_code
    assert re.search("train.epochs is 2 .* 3", other.stderr)
    rows = json.loads(table("show", tmp_path, "--json").stdout)
    assert [row["transform"] for row in rows] == ["none", "Aff", "Proj", "TPS"]
    compared = table("compare", tmp_path / "r_fcn-seed1", tmp_path / "r_affine_fcn-seed1")
    assert re.search(r"FCN on R against ST-FCN Aff on R +A +[\d.]+ +B +[\d.]+", compared.stdout)
    same = json.loads(table("compare", tmp_path, tmp_path, "--json").stdout)
    assert [(each["difference"], each["interval_95"]) for each in same] == [(0, [0, 0])] * 4
    assert table("show", tmp_path, "--csv").stdout.startswith("distortion,backbone,transform,")


def test_a_run_that_fails_does_not_stop_the_others(table, tmp_path):
    diverging = set_options("train.learning_rate=1e30", "train.optimizer=sgd")
    chosen = ["--cells", "R:FCN:none", "--seeds", 2, "--out", tmp_path, "--jobs", 1]
    result = table("run", *chosen, *diverging)
    assert result.exit_code == DivergenceError.exit_code
    told = re.findall(r"(\d) of 2: (r_fcn-seed\d) failed: .*not finite", result.stderr)
    assert [number for number, _ in told] == ["1", "2"]  # whichever ends first
    assert {name for _, name in told} == {"r_fcn-seed1", "r_fcn-seed2"}
    assert "2 runs failed: r_fcn-seed1, r_fcn-seed2" in result.stderr


@pytest.mark.parametrize(("sent", "code"), [("SIGINT", 130), ("SIGUSR2", 140), ("SIGKILL", -9)])
def test_killed_and_run_again_it_goes_on(table, tmp_path, sent, code):
    program = "from stn_train.cli.table import run_table; run_table()"
    chosen = ["--cells", "R:FCN:Aff", "--seeds", "1", "--out", str(tmp_path), "--jobs", "1"]
    options = [*chosen, *set_options("train.epochs=20")]
    process = subprocess.Popen(
        [sys.executable, "-c", program, "run", *options],
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        # A suite that runs in the background of a shell is deaf to it, and so would this be.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    last = tmp_path / "r_affine_fcn-seed1" / "last.pt"
    while not last.exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(getattr(signal, sent))
    assert process.wait(timeout=60) == code
    assert not (last.parent / "result.json").exists()
    time.sleep(0.5)
    reached = load_checkpoint(last).step
    time.sleep(0.5)
    assert load_checkpoint(last).step == reached  # the worker has ended too
    result = table("run", *options)
    assert result.exit_code == 0
    done = json.loads((last.parent / "result.json").read_text())
    assert done["resumed_at_steps"] == [reached]
    assert done["steps"] == 200


def test_runs_that_are_there_but_in_no_cell_are_named(table, tmp_path, written):
    folder = written(
        of_cell("R:FCN:none"), of_cell("R:FCN:none", data="kmnist", seed=5), folder="table"
    )
    (folder / "run-0").rename(folder / "r_fcn-seed1")
    chosen = ["--cells", "R:FCN:none", "--seeds", 1, "--out", folder, "--quiet"]
    result = table("run", *chosen)
    assert result.exit_code == 0
    assert result.stdout.endswith("not in this table: FCN on R, kmnist (seed 5)\n")
    assert result.stderr == ""
    as_json = table("run", *chosen, "--json")
    assert len(json.loads(as_json.stdout)) == 1
    assert as_json.stderr == "not in this table: FCN on R, kmnist (seed 5)\n"


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("1", [1]), ("3", [1, 2, 3]), ("4-6", [4, 5, 6]), ("7-7", [7]), ("0-1", [0, 1])],
)
def test_seeds_are_a_number_or_a_range(text, seeds):
    assert list(seeds_named(text)) == seeds


@pytest.mark.parametrize("text", ["0", "", "-1", "2-1", "1,2", "x", "1-200", "1-2-3"])
def test_other_seeds_are_refused(text):
    with pytest.raises(ConfigError, match=r"--seeds .* 3.* 4-6"):
        seeds_named(text)


# show.


def test_shows_the_reference_without_runs(table):
    result = table("show")
    assert result.exit_code == 0
    assert re.search(r"model +on +error in % +paper +minus paper +all draws", result.stdout)
    assert len(re.findall(r"^(?:ST-)?(?:FCN|CNN) ", result.stdout, re.M)) == len(
        {result.cell for result in reference_results()}
    )
    assert table("show", "--markdown").stdout.startswith("| model | R | RTS | P | E | TC |")


def test_shows_runs_outside_the_table_by_name(table, written):
    folder = written(of_cell("E:CNN:Aff"), of_cell("E:CNN:Aff", data="fashion_mnist"))
    named = "not in this table: ST-CNN Aff on E, fashion_mnist (seed 1)\n"
    for flags in ([], ["--markdown"]):
        assert table("show", folder, *flags).stdout.endswith(f".\n{named}")
    as_json, as_csv = table("show", folder, "--json"), table("show", folder, "--csv")
    assert len(json.loads(as_json.stdout)) == 1
    assert len(as_csv.stdout.splitlines()) == 2
    assert as_json.stderr == as_csv.stderr == named


def test_runs_on_other_data_alone_are_named_and_not_compared_with_the_paper(table, written):
    result = table("show", written(of_cell("E:CNN:Aff", data="fashion_mnist")))
    assert result.exit_code == 0
    assert "1.2" not in result.stdout
    assert "fashion_mnist" in result.stdout
    assert "Seeds" not in result.stdout


def test_another_table_is_shown_by_its_name(table, written, monkeypatch):
    clothes = replace(MNIST, name="clothes", data="fashion_mnist", columns=("R", "none"))
    clothes = replace(clothes, rows={("FCN", "none"): (7.5, 6.0)})
    monkeypatch.setitem(paper.TABLES, "clothes", clothes)
    runs = written(
        of_cell("R:FCN:none"), of_cell("R:FCN:none", data="fashion_mnist", test_percent=8.0)
    )
    result = table("show", runs, "--table", "clothes", "--markdown")
    lines = result.stdout.splitlines()
    assert lines[0] == "| model | R | none |"
    assert lines[2] == "| FCN | 8.00 (7.5, +0.50) |  |"
    assert lines[-1] == "not in this table: FCN on R (seed 1)"
    wrong = table("show", runs, "--table", "clohtes")
    assert wrong.exit_code == ConfigError.exit_code
    assert "clothes" in wrong.stderr
    assert "mnist" in wrong.stderr


def test_table_is_drawn(table, tmp_path):
    assert str(tmp_path / "t.png") in table("show", "--png", tmp_path / "t.png").stdout
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")
    wrong = table("show", "--png", tmp_path / "t.txt")
    assert wrong.exit_code == ConfigError.exit_code
    assert "--png" in wrong.stderr
    assert table("show", "--png", tmp_path / "t.png", "--json").exit_code == ConfigError.exit_code


def test_folder_without_runs_is_told(table, tmp_path):
    result = table("show", tmp_path)
    assert result.exit_code == CheckpointError.exit_code
    assert "no finished run" in result.stderr


# compare.


def test_comparison_names_what_it_cannot_pair(table, written):
    both, a, b = of_cell("E:CNN:Aff"), of_cell("E:CNN:TPS"), of_cell("R:CNN:TPS")
    clothes = replace(both, data="fashion_mnist")
    folder_a = written(both, a, clothes, folder="a")
    folder_b = written(both, b, clothes, folder="b")
    result = table("compare", folder_a, folder_b)
    assert [re.sub(" +A +.*", "", line) for line in result.stdout.splitlines()[2:]] == [
        "ST-CNN Aff on E",
        "ST-CNN Aff on E, fashion_mnist",
        "only in A: ST-CNN TPS on E",
        "only in B: ST-CNN TPS on R",
        "not in this table: ST-CNN Aff on E, fashion_mnist (seed 1)",
    ]
    as_json = table("compare", folder_a, folder_b, "--json")
    assert len(json.loads(as_json.stdout)) == 2
    assert as_json.stderr.splitlines() == result.stdout.splitlines()[-3:]


def test_reference_stands_for_the_shipped_results(table, written):
    result = table("compare", written(of_cell("E:CNN:Aff")), "reference", "--json")
    (compared,) = json.loads(result.stdout)
    assert compared["cell_a"] == compared["cell_b"] == ["E", "CNN", "Aff"]
    shipped = dict.fromkeys(result.cell for result in reference_results())
    others = [cell.title for cell in shipped if str(cell) != "E:CNN:Aff"]
    assert result.stderr == f"only in B: {'; '.join(others)}\n"


# All commands.


def test_flags_are_these():
    commands = typer.main.get_command(run_table).commands
    flags = {
        name: {flag for option in command.params for flag in option.opts}
        for name, command in commands.items()
    }
    run = (
        "--cells --seeds --recipe --jobs --address --set --out --table --device --data-dir "
        "--json --quiet"
    )
    show = "runs --table --json --markdown --csv --png"
    assert flags == {
        "run": set(run.split()),
        "show": set(show.split()),
        "compare": {"runs_a", "runs_b", "--table", "--json"},
        "report": {"runs", "--out", "--table", "--data-dir"},
    }


def test_help_needs_no_torch():
    code = "import sys, stn_train.cli.table; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
