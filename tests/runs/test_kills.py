"""SIGKILL at any moment: a good checkpoint is left, and the finished run is the undisturbed one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

PLACES = {
    "write",
    "before fsync",
    "after fsync",
    "before verify",
    "after verify",
    "before replace",
    "after replace",
    "before fsync of the directory",
    "after fsync of the directory",
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")
@pytest.mark.parametrize("kills", [48, pytest.param(320, marks=pytest.mark.long)])
def test_killed_anywhere_nothing_is_lost(kills, tmp_path):
    done = subprocess.run(
        [sys.executable, Path(__file__).parent / "kills.py", tmp_path, str(kills)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests"), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout)
    assert report["kills"] >= kills
    assert report["finished"] >= 1
    inside = {name: count for name, count in report["hits"].items() if name in PLACES}
    assert sum(inside.values()) >= kills // 3, report
    assert len(inside) >= 6, report
