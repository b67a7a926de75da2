"""Eight processes at once: nothing is computed twice, nothing is torn."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")


def race(what: str, folder: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, Path(__file__).parent / "races.py", what, folder],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests"), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout))


def test_a_table_shared_by_eight_trains_each_run_once(tmp_path):
    found = race("table", tmp_path)
    assert found["codes"] == [0] * 8
    assert found["seeds"] == [1, 2, 3, 4]
    trained = [line for line in found["log"] if line.startswith("trained")]
    assert sorted(trained) == ["trained 1", "trained 2", "trained 3", "trained 4"]
    assert len(found["log"]) == 4 + 8 * 4


def test_a_folder_claimed_by_eight_has_one_owner(tmp_path):
    assert race("directory", tmp_path)["winners"] == [1] * 20
