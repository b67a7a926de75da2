"""What a result tells about where it came from."""

import hashlib
import json
import re
import shutil
import subprocess

import matplotlib
import numpy as np
import pytest
import torch
import torchvision

from stn_train.runs import environment
from stn_train.runs.environment import PACKAGE, commit, describe_environment, source_sha256


def test_environment_is_plain_data_with_what_a_result_must_state():
    described = describe_environment(torch.device("cpu"))
    assert json.loads(json.dumps(described)) == described
    stated = {"stn_train", "commit", "source_sha256", "python", "torch", "torchvision"}
    stated |= {"numpy", "matplotlib"}
    assert stated | {"device", "hardware", "threads", "command"} <= described.keys()
    versions = {"torch": torch, "torchvision": torchvision, "numpy": np, "matplotlib": matplotlib}
    for name, library in versions.items():
        # Up to the build, "+cu132", which not every library's metadata have.
        assert described[name].partition("+")[0] == library.__version__.partition("+")[0]
    assert described["device"] == "cpu"
    assert described["hardware"]
    assert described["threads"] == torch.get_num_threads()


def test_source_hash_tells_a_changed_module(monkeypatch, tmp_path):
    (tmp_path / "module.py").write_text("a = 1\n")
    monkeypatch.setattr(environment, "PACKAGE", tmp_path)
    before = source_sha256()
    for name in ("notes.txt", "data.xz", "module.pyc"):
        (tmp_path / name).write_text("")
    assert source_sha256() == before
    (tmp_path / "module.py").write_text("a = 2\n")
    changed = source_sha256()
    assert changed != before
    (tmp_path / "_version.py").write_text("version = 2\n")  # every module counts
    assert source_sha256() not in (before, changed)
    (tmp_path / "_version.py").unlink()
    (tmp_path / "module.py").rename(tmp_path / "renamed.py")
    assert source_sha256() not in (before, changed)


@pytest.mark.parametrize("name", ["report.html", "wing/module.py", "wing/deeper/page.html"])
def test_source_hash_tells_of_templates_and_of_every_folder(name, monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "PACKAGE", tmp_path)
    (tmp_path / "module.py").write_text("a = 1\n")
    before = source_sha256()
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("one")
    first = source_sha256()
    path.write_text("two")
    assert len({before, first, source_sha256()}) == 3
    moved = tmp_path / "elsewhere" / path.name
    moved.parent.mkdir()
    second = source_sha256()
    path.rename(moved)
    assert source_sha256() != second


def test_source_hash_is_of_all_of_this_package():
    digest = hashlib.sha256()
    files = [path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".html")]
    assert {"errors.py", "runs/environment.py"} < {
        path.relative_to(PACKAGE).as_posix() for path in files
    }
    for path in sorted(files, key=lambda path: path.relative_to(PACKAGE).as_posix()):
        digest.update(path.relative_to(PACKAGE).as_posix().encode() + b"\0" + path.read_bytes())
    assert source_sha256() == digest.hexdigest()


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_commit_of_a_checkout_says_whether_it_was_changed(monkeypatch, tmp_path):
    def git(*arguments: str) -> str:
        who = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
        done = subprocess.run(
            ["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    package = tmp_path / "stn_train"
    package.mkdir()
    (package / "module.py").write_text("a = 1\n")
    monkeypatch.setattr(environment, "PACKAGE", package)
    git("init")
    assert commit("0.1") is None  # no commit yet
    git("add", ".")
    git("commit", "-m", "first")
    git("tag", "v1")
    assert commit("0.1") == git("rev-parse", "HEAD")
    (package / "module.py").write_text("a = 2\n")
    assert commit("0.1") == git("rev-parse", "HEAD") + "-dirty"


@pytest.mark.parametrize(
    ("version", "named"),
    [
        ("0.1.dev7+g1a2b3c4", "1a2b3c4"),
        ("0.1.dev7+g1a2b3c4.d20260101", "1a2b3c4-dirty"),
        ("1.0", None),
        ("1.0+d20260101", None),  # a changed checkout of a tag: the date is not a commit
        ("not installed", None),
    ],
)
def test_commit_of_an_installation_is_the_versions(version, named, monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "PACKAGE", tmp_path / "stn_train")
    assert commit(version) == named


def test_commit_here_is_hexadecimal_or_unknown():
    named = describe_environment(torch.device("cpu"))["commit"]
    assert named is None or re.fullmatch(r"[0-9a-f]{7,40}(-dirty)?", named)
