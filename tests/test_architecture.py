"""The architecture: who imports whom, and that the map in CONTRIBUTING.md shows it."""

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

import stn_train

PACKAGE = Path(stn_train.__file__).parent

LAYERS = [
    {"errors", "html", "settings", "shipped_configs"},
    {"geometry"},
    {"data"},
    {"tasks", "models", "recipes"},
    {"cell", "diagnosis", "evaluator"},
    {"config"},
    {"config_changes", "config_errors"},
    {"config_file"},
    {"runs"},
    {"trainer", "visualiser"},
    {"demo"},
    {"table"},
    {"cli"},
]
"""Packages, and modules beside them: each imports from the layers before and from itself."""

LAYER_OF = {part: layer for layer, parts in enumerate(LAYERS) for part in parts}
MODULES = sorted(set(PACKAGE.rglob("*.py")) - {PACKAGE / "__init__.py"})


def part_of(module: str) -> str:
    """`stn_train.data.images` belongs to `data`; the package itself to nothing."""
    _, _, rest = module.partition(".")
    return rest.partition(".")[0]


def imported(path: Path) -> Iterator[str]:
    """The modules of the package that a module imports, wherever it does."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Import(names=names):
                yield from (name.name for name in names)
            case ast.ImportFrom(module=str(module), level=0, names=names):
                is_package = module == "stn_train"
                yield from (f"{module}.{name.name}" for name in names) if is_package else [module]
            case ast.ImportFrom():
                yield "stn_train.relative"  # not on the map


def test_every_module_is_in_a_layer():
    found = {
        part_of(".".join(["stn_train", *path.relative_to(PACKAGE).with_suffix("").parts]))
        for path in MODULES
    }
    assert found == LAYER_OF.keys()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_come_from_layers_before(path):
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    for module in imported(path):
        if module.startswith("stn_train.") and part_of(module) != own:
            assert LAYER_OF.get(part_of(module), len(LAYERS)) < LAYER_OF[own], module


@pytest.mark.parametrize(
    "package",
    sorted(path.parent for path in PACKAGE.glob("*/__init__.py")),
    ids=lambda package: package.name,
)
def test_a_package_has_three_modules_at_least_and_says_what_it_is_for(package):
    assert len([path for path in package.glob("*.py") if path.name != "__init__.py"]) >= 3
    assert ast.get_docstring(ast.parse((package / "__init__.py").read_text(encoding="utf-8")))


def test_the_code_map_names_every_package_and_every_module_beside_them():
    readme = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = readme.partition("\n## Code map\n")[2].partition("\n## ")[0]
    first_columns = re.findall(r"^\| (`.*?) \|", section, re.M)
    named = [name for column in first_columns for name in re.findall(r"`(\w+)`", column)]
    assert sorted(named) == sorted(LAYER_OF)


# The public face.


@pytest.mark.parametrize("name", stn_train.__all__)
def test_every_public_name_is_the_one_of_its_home(name):
    home = importlib.import_module(f"stn_train.{stn_train.HOMES[name]}")
    assert getattr(stn_train, name) is getattr(home, name)


def test_public_names_have_a_home_and_no_others():
    assert stn_train.HOMES.keys() == set(stn_train.__all__)
    assert not hasattr(stn_train, "nothing")


def test_importing_the_package_alone_imports_no_torch():
    told = subprocess.run(
        [sys.executable, "-c", "import sys, stn_train; print('torch' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.strip() == "False"
