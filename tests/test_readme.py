"""The code in README and docs runs, its configs are valid, and its links lead to files."""

import re
import shlex

import pytest
import torch
import typer.main
import yaml
from conftest import COMMANDS, ROOT

from stn_train.config_errors import ConfigSource, check
from stn_train.config_file import load_config
from stn_train.geometry import transforms

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(text: str, language: str) -> list[str]:
    """The code blocks of a language in a Markdown text."""
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def test_python_example_runs_and_gives_what_it_says():
    (example,) = blocks(README, "python")
    names = {}
    exec(example, names)
    assert names["logits"].shape == (5, 10)
    assert names["warped"].shape == (5, 3, 32, 32)
    assert names["theta"].shape == (5, 6)
    torch.testing.assert_close(names["theta"][0], torch.tensor([1.0, 0, 0, 0, 1, 0]))


def test_example_of_the_module_runs_and_gives_what_it_says():
    (example,) = blocks((ROOT / "docs" / "module.md").read_text(encoding="utf-8"), "python")
    names = {}
    exec(example, names)
    assert names["images"].shape == names["warped"].shape == (6, 1, 28, 28)
    assert names["theta"].shape == (6, 32)
    torch.testing.assert_close(names["warped"], names["images"])  # a new one is the identity


def test_example_of_volumes_runs_and_gives_what_it_says():
    page = (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")
    example = next(each for each in blocks(page, "python") if "dimensions=3" in each)
    names = {}
    exec(example, names)
    assert names["warped"].shape == (5, 2, 16, 24, 24)


def test_a_transform_is_added_as_the_page_says(monkeypatch):
    monkeypatch.setattr(transforms, "TRANSFORMS", dict(transforms.TRANSFORMS))
    (example,) = blocks((ROOT / "docs" / "extend.md").read_text(encoding="utf-8"), "python")
    exec(example, {})
    grid = transforms.TRANSFORMS["Scaling"]().build()
    twice, thrice = torch.full((1, 2), 2.0), torch.tensor([[3.0, 1.0]])
    torch.testing.assert_close(grid.compose(twice, thrice), torch.tensor([[6.0, 2.0]]))
    torch.testing.assert_close(grid(twice, (2, 2)), 2 * grid(grid.identity[None], (2, 2)))


def test_the_config_is_valid():
    (example,) = blocks(README, "yaml")
    config = check(yaml.safe_load(example), ConfigSource("README"))
    assert config.transform.side == 5


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_flag_of_a_command_exists(page):
    for block in blocks(page.read_text(encoding="utf-8"), "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            for part in line.split("&&"):
                name, *arguments = shlex.split(part, comments=True) or [""]
                if name in COMMANDS:
                    command = typer.main.get_command(COMMANDS[name])
                    if name == "stn-table":
                        command = command.commands[arguments[0]]
                    known = {flag for parameter in command.params for flag in parameter.opts}
                    assert {each for each in arguments if each.startswith("--")} <= known, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_override_is_one_of_a_setting(page):
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for quoted, bare in re.findall(r"--set (?:'([^']+)'|([\w.]+=[^\s`]+))", text):
        override = quoted or bare
        choice, name, *_ = [*override.partition("=")[0].split("."), ""]
        chosen = choice in ("distortion", "backbone", "task") and name
        of_sources = {
            "data.source.folder.": "folder",
            "data.source.cub_format.": "birds_made",
            "task.colocalisation": "colocalisation_t",
        }
        starts = (name for key, name in of_sources.items() if override.startswith(key))
        config = next(starts, "r_affine")
        load_config(config, [*([f"{choice}={name}"] if chosen else []), override])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []
