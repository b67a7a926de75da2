"""Two hundred passes: what a process holds does not grow."""

import os
import sys
import threading
from pathlib import Path

import kills
import matplotlib.pyplot as plt
import pytest
from conftest import CPU

from stn_train.runs.directory import RunDirectory
from stn_train.trainer.loop import train
from stn_train.trainer.observers import Observer


class Holdings(Observer):
    """What the process holds after every tenth pass."""

    def __init__(self) -> None:
        self.megabytes: list[float] = []
        self.files: list[int] = []
        self.threads: list[int] = []

    def stepped(self, step: int) -> None:
        if step % 100 == 0:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.megabytes.append(pages * os.sysconf("SC_PAGE_SIZE") / 1e6)
            self.files.append(len(list(Path("/proc/self/fd").iterdir())))
            self.threads.append(threading.active_count())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_two_hundred_passes_hold_no_more_than_twenty(tmp_path):
    settings = kills.CONFIG.train.model_copy(update={"epochs": 200})
    config, held = kills.CONFIG.model_copy(update={"train": settings}), Holdings()
    with RunDirectory.claim(tmp_path / "run") as run:
        train(config, kills.random_splits(), run, CPU, held)
    assert len(held.megabytes) == 20
    assert held.megabytes[-1] < held.megabytes[1] + 15
    assert held.files[-1] == held.files[1]
    assert held.threads[-1] == held.threads[1]
    assert plt.get_fignums() == []
