"""The report: its content, and what a real browser makes of it."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest
from chromium import Chromium, find_browser
from conftest import CPU

from stn_train.config import Config
from stn_train.config_file import load_config
from stn_train.errors import CheckpointError, DataError
from stn_train.runs.directory import RunDirectory
from stn_train.runs.result import Result
from stn_train.table import report as table_report
from stn_train.table.paper import TABLES
from stn_train.table.report import command_of, live_page, material, report
from stn_train.trainer.loop import train
from stn_train.visualiser import animation

MNIST = TABLES["mnist"]

LIVE = "a table #1-live.html"
"""The name of the live page: one that an address has to quote."""


@pytest.fixture(scope="module")
def runs(tiny, splits, tmp_path_factory):
    """A small table: a baseline, a transformer with two seeds, and a run of no cell."""
    folder = tmp_path_factory.mktemp("table")
    for name, changes in {
        "r_fcn-seed1": {"transform": "none"},
        "r_affine_fcn-seed1": {"log": {"snapshots": 3}},
        "r_affine_fcn-seed2": {"seed": 2, "log": {"snapshots": 3}},
        "undistorted": {"distortion": "none", "train": {"steps": 1, "epochs": None}},
    }.items():
        with RunDirectory.claim(folder / name) as run:
            train(tiny(**changes), splits, run, CPU)
    return folder


@pytest.fixture(scope="module")
def live(runs):
    """The live page of the small table."""
    return live_page(material(runs, MNIST).runs, MNIST, LIVE)


@pytest.fixture(scope="module")
def page(runs, live):
    """The report of the small table, with short animations."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(animation, "SWEEP_FRAMES", 3)
        return report(material(runs, MNIST), MNIST, live)


class Tags(HTMLParser):
    """The tags of a page with their attributes, and its text; fails on a tag left open."""

    def __init__(self) -> None:
        super().__init__()
        self.tags, self.open, self.text = [], [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def tags(page):
    return parsed(page)


def parsed(page):
    parser = Tags()
    parser.feed(page)
    assert parser.open == []
    return parser


def results_in_table(runs):
    return [Result.read(path) for path in sorted(runs.glob("r_*/result.json"))]


def test_page_has_table_curves_pictures_environment_and_commands(runs, tags, live):
    results = results_in_table(runs)
    seeds = [result.test_percent for result in results if result.cell.transform == "Aff"]
    assert f"{sum(seeds) / 2:.2f} ±" in tags.text
    assert "paper 1.2" in tags.text
    assert "Table 1" in tags.text
    assert "ST-CNN" not in tags.text  # no empty rows, and no empty columns
    assert "section 4.1" not in tags.text
    assert tags.text.count("RTS") == live.about.count("RTS")
    assert results[0].environment["torch"] in tags.text
    assert results[0].test_sha256 in tags.text
    pictures = [attributes["src"][:20] for tag, attributes in tags.tags if tag == "img"]
    forms = [re.match(r"data:image/([\w+]+)", start)[1] for start in pictures]
    assert sorted(set(forms)) == ["gif", "png", "svg+xml"]
    assert forms.count("gif") == 2
    assert all(attributes.get("alt") for tag, attributes in tags.tags if tag == "img")


def test_page_names_the_runs_that_are_in_no_cell(tags):
    assert "not in this table: ST-FCN Aff on undistorted images (seed 1)" in tags.text


def test_folder_without_a_run_of_the_table_is_told(runs):
    with pytest.raises(CheckpointError, match="ST-FCN Aff on undistorted images"):
        material(runs / "undistorted", MNIST)


def test_page_asks_for_nothing_from_elsewhere(page, tags):
    assert not any(tag in ("script", "link", "iframe") for tag, _ in tags.tags)
    for _, attributes in tags.tags:
        assert attributes.get("src", "data:").startswith("data:")
    links = [attributes["href"] for _, attributes in tags.tags if "href" in attributes]
    assert [unquote(link) for link in links] == [LIVE]
    assert "@import" not in page
    assert "url(" not in page
    assert "default-src 'none'" in page


def test_commands_make_the_same_configs_again(runs, tags, command):
    for result in results_in_table(runs):
        line = command_of(result, MNIST)
        assert line in tags.text
        _, _, name, *rest = shlex.split(line)
        overrides = [rest[number + 1] for number, flag in enumerate(rest) if flag == "--set"]
        seed = rest[rest.index("--seed") + 1]
        made = load_config(name, [*overrides, f"seed={seed}"])
        recorded = Config.from_run(result.config)
        assert made.as_dict() | {"given": {}} == recorded.as_dict() | {"given": {}}
    shown = command("stn-train", "--help").output
    assert all(flag in shown for flag in ("--config", "--set", "--seed"))


def test_command_of_the_papers_recipe(runs):
    result = results_in_table(runs)[0]
    config = load_config("r_affine_fcn.yaml", ["recipe=paper", "seed=4"])
    paper = Result.from_dict(
        result.as_dict() | {"recipe": "paper", "seed": 4, "config": config.as_dict()}
    )
    assert command_of(paper, MNIST) == (
        "stn-train --config r_affine_fcn.yaml --set recipe=paper --seed 4"
    )


def test_command_writes_the_page(runs, command, tmp_path, monkeypatch):
    monkeypatch.setattr(animation, "SWEEP_FRAMES", 2)
    result = command("stn-table", "report", runs, "--out", tmp_path / "made" / "report.html")
    assert result.exit_code == 0
    assert f"report      {tmp_path / 'made' / 'report.html'}, " in result.stdout
    assert f"live page   {tmp_path / 'made' / 'report-live.html'}, " in result.stdout
    assert 'href="report-live.html"' in (tmp_path / "made" / "report.html").read_text()
    assert (tmp_path / "made" / "report-live.html").stat().st_size > 1_000_000
    assert "not in this table: ST-FCN Aff on undistorted images (seed 1)" in result.stdout
    assert command("stn-table", "report", tmp_path, "--out", tmp_path / "r.html").exit_code == 4


def test_text_of_a_strangers_result_is_text(finished, tmp_path, monkeypatch):
    shutil.copytree(finished.run.path, tmp_path / "run")
    result = json.loads(finished.run.result.read_text())
    result["environment"]["hardware"] = result["test_sha256"] = "<meta http-equiv=refresh>"
    (tmp_path / "run" / "result.json").write_text(json.dumps(result))
    monkeypatch.setattr(animation, "SWEEP_FRAMES", 2)
    page = report(material(tmp_path, MNIST), MNIST)
    assert "<meta http-equiv=refresh>" not in page
    assert page.count("&lt;meta http-equiv=refresh&gt;") >= 2


def test_page_without_images_has_the_rest(runs, monkeypatch):
    def missing(*_):
        raise DataError("the images are gone\nmore")

    monkeypatch.setattr("stn_train.data.sources.load_splits", missing)
    page = report(material(runs, MNIST), MNIST)
    assert "No pictures: the images are gone</p>" in page
    assert "data:image/svg" in page
    assert "data:image/png" not in page


# The live page.


def test_live_page_is_that_of_the_best_run(runs, live, page):
    best = min(
        (result for result in results_in_table(runs) if result.cell.transform == "Aff"),
        key=lambda result: result.test_percent,
    )
    error = f"{best.test_percent:.2f} % test error"
    assert live.about == f"ST-FCN Aff on R, seed {best.seed}: {error}"
    assert f"ST-FCN Aff on R, seed {best.seed}, {error}" in live.html
    assert live.told == ""
    assert live.about in page


def test_without_the_packages_the_live_page_is_of_a_model_that_ships(runs, monkeypatch):
    monkeypatch.setattr(animation, "SWEEP_FRAMES", 2)
    monkeypatch.setitem(sys.modules, "onnx", None)
    found = material(runs, MNIST)
    live = live_page(found.runs, MNIST, LIVE)
    assert live.about.endswith(" % test error, a model that ships with the program")
    assert "the live page of a run needs the package onnx: pip install onnx" in live.told
    page = report(found, MNIST, live)
    assert f"The live page is not of one of these runs, since {live.told}</p>" in page
    assert live.about in page


def test_table_of_another_task_has_no_live_page(runs, page, monkeypatch):
    monkeypatch.setattr(animation, "SWEEP_FRAMES", 2)
    addition = TABLES["addition"]
    live = live_page([], addition, LIVE)
    assert (live.html, live.shortcoming) == ("", "")
    assert "Try one live" in page
    assert "Try one live" not in report(material(runs, MNIST), MNIST, live)


def test_no_live_page_at_all_is_told(runs, monkeypatch):
    monkeypatch.setattr(animation, "SWEEP_FRAMES", 2)
    monkeypatch.setattr(table_report, "shipped_runs", lambda _: [])
    monkeypatch.setitem(sys.modules, "onnx", None)
    found = material(runs, MNIST)
    live = live_page(found.runs, MNIST, LIVE)
    assert live.html == ""
    page = report(found, MNIST, live)
    assert "There is no live page, since the live page of a run needs the package onnx" in page
    # Not of the page's letters: those four may stand in a picture's base64.
    assert not any("href" in attributes for _, attributes in parsed(page).tags)


def test_report_of_the_results_that_ship(command, tmp_path, monkeypatch):
    monkeypatch.setattr(animation, "SWEEP_FRAMES", 2)
    monkeypatch.setitem(sys.modules, "onnx", None)  # it needs none
    out = tmp_path / "report.html"
    result = command("stn-table", "report", "--out", out)
    assert (result.exit_code, result.stderr) == (0, "")
    page, found = out.read_text(), material(None, MNIST)
    assert {run.cell for run in found.results} >= {run.result.cell for run in found.runs}
    assert page.count("stn-train --config") == len(found.results) >= 96
    for run in found.runs:
        assert run.caption in page  # its picture
    assert "ST-CNN Aff on RTS, seed 1" in (tmp_path / "report-live.html").read_text()


def test_results_that_nobody_measured_are_told(command, tmp_path):
    result = command("stn-table", "report", "--table", "birds", "--out", tmp_path / "report.html")
    assert result.exit_code == 4
    assert "stn-table run --table birds trains some" in result.stderr


# In a browser.

MEASURE = """<script>
const pictures = [...document.images];
document.title = JSON.stringify({
  page: document.documentElement.scrollWidth,
  window: window.innerWidth,
  pictures: pictures.length,
  drawn: pictures.filter(each => each.complete && each.naturalWidth > 0).length,
  outside: pictures.filter(each => !each.closest(".wide")).length,
  colour: getComputedStyle(document.body).backgroundColor,
});
</script></body>"""


@pytest.fixture(scope="module")
def browse(page, tmp_path_factory):
    """Open the page, with a script that measures it, in a real browser."""
    browser = find_browser()
    if browser is None:
        pytest.skip("no browser that can be driven is on the PATH")
    folder = tmp_path_factory.mktemp("browser")
    measured = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    (folder / "page.html").write_text(measured.replace("</body>", MEASURE))
    (folder / "report.html").write_text(page)

    def browse(*flags, name="page.html"):
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--user-data-dir={folder / 'profile'}", *flags, f"file://{folder / name}"]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=120, check=True, cwd=folder
        )
        title = re.search("<title>(.*?)</title>", done.stdout)
        return (json.loads(title[1]) if title and title[1].startswith("{") else None), done

    return browse


@pytest.mark.parametrize("width", [360, 1200])
def test_browser_draws_every_picture_and_the_page_fits(browse, width):
    measured, _ = browse("--dump-dom", f"--window-size={width},900")
    assert measured["window"] == width
    assert measured["page"] == width  # what is wider scrolls by itself
    assert measured["pictures"] == measured["drawn"] >= 5


def test_browser_in_the_dark_gets_a_dark_page(browse):
    dark, _ = browse("--dump-dom", "--blink-settings=preferredColorScheme=0")
    light, _ = browse("--dump-dom", "--blink-settings=preferredColorScheme=1")
    assert (dark["colour"], light["colour"]) == ("rgb(13, 17, 23)", "rgb(255, 255, 255)")


def test_browser_finds_nothing_to_complain_of_and_prints(browse, tmp_path):
    pdf = tmp_path / "report.pdf"
    _, done = browse("--enable-logging=stderr", f"--print-to-pdf={pdf}", name="report.html")
    assert "CONSOLE" not in done.stderr
    assert pdf.read_bytes().startswith(b"%PDF")
    assert pdf.stat().st_size > 20_000


def test_link_leads_to_a_live_page_that_computes(page, live, tmp_path):
    program = find_browser()
    if program is None:
        pytest.skip("no browser that can be driven is on the PATH")
    (tmp_path / "report.html").write_text(page)
    (tmp_path / LIVE).write_text(live.html)
    browser = Chromium(program, tmp_path / "profile")
    try:
        browser.call("Page.navigate", url=(tmp_path / "report.html").as_uri())
        browser.wait("document.querySelector('p.live a')")
        address = browser.evaluate("document.querySelector('p.live a').href")
        assert address == (tmp_path / LIVE).as_uri()
        browser.open(tmp_path / LIVE)
        assert browser.complaints() == []
    finally:
        browser.close()
