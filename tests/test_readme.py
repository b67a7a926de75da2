"""What README says is what the program does: its code runs, its numbers are the measured ones."""

import re

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


def test_tables_and_config_heads_are_written_from_the_results():
    publish = load_script("publish")
    for name, table in publish.TABLES.items():
        begin, end = publish.BEGIN.format(name), publish.END.format(name)
        assert README.split(begin)[1].split(end)[0] == table()
    for cell in publish.TABLE_1:
        text = (ROOT / "configs" / f"{publish.cell_name(cell)}.yaml").read_text()
        assert text.startswith(publish.head(cell))


def test_published_results_are_whole():
    publish = load_script("publish")
    one_pass, default = publish.published("one_pass"), publish.published("default")
    assert [publish.cell_of(result) for result in one_pass] == list(publish.TABLE_1)
    assert len(default) >= 6
    for result in one_pass + default:
        assert result["draws_percent"][0] == result["test_error_percent"]
        assert result["test_digits"] == 10_000
        assert result["environment"]["commit"]
        wrong = 10_000 - sum(result["confusion"][digit][digit] for digit in range(10))
        assert wrong == round(100 * result["test_error_percent"])


def test_every_link_leads_to_a_file():
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert len(links) >= 4
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_module_is_in_the_map():
    modules = {path.stem for path in (ROOT / "stn_train").glob("*.py")}
    named = set(re.findall(r"`(\w+)`", README.split("## How it is done")[1]))
    assert modules - {"__init__", "_version"} <= named
