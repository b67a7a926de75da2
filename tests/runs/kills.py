"""Kills a training process again and again and checks what it leaves; run by test_kills.

python kills.py FOLDER KILLS prints a JSON object: how many kills there were and where they hit.
Children are forked, so that a kill costs milliseconds and not the import of torch, nor that of
torch._dynamo, which the first step of an optimiser imports.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
from conftest import CPU

from stn_train.config import Config
from stn_train.data.images import Images
from stn_train.data.mnist import CLASSES
from stn_train.data.sources import Splits
from stn_train.runs import checkpoint, files
from stn_train.runs.directory import RunDirectory
from stn_train.trainer.loop import train

CONFIG = Config.model_validate(
    {
        "distortion": "R",
        "backbone": {"FCN": {"hidden": 16, "localisation_hidden": 16, "dropout": 0.2}},
        "data": {"validation": 100},
        "train": {"epochs": 6, "batch_size": 64, "log_every": 2, "ema_decay": 0.9},
        "evaluate": {"draws": 1},
    }
)


def random_splits() -> Splits:
    """Noise for digits: whether they are learnt is not asked here."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (800, 1, 28, 28), dtype=torch.uint8, generator=generator)
    digits = Images(pixels, torch.randint(10, (800,), generator=generator), CLASSES)
    return Splits(digits[:600], digits[600:700], digits[700:], "noise")


def in_child(work: Callable[[], None]) -> int:
    """Start a child for some work; returns its process id."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def train_in(folder: Path, splits: Splits) -> None:
    """What a child does: go on with the run, or start it."""
    with RunDirectory.claim_or_reopen(folder) as run:
        train(CONFIG, splits, run, CPU)


class Points:
    """Numbers the moments of saving as they come; kills the process at one of them."""

    def __init__(self, fatal: int, told: Path) -> None:
        self.fatal, self.told, self.count = fatal, told, 0
        save, check = torch.save, checkpoint.check_archive

        def write_in_two_parts(content: Any, stream: Any) -> None:
            class Halves:
                def write(self, part: bytes) -> int:
                    half = len(part) // 2
                    stream.write(part[:half])
                    stream.flush()
                    if len(part) > 10_000:
                        points.passed("write")
                    stream.write(part[half:])
                    return len(part)

                def flush(self) -> None:
                    stream.flush()

            save(content, Halves())

        points = self
        torch.save = write_in_two_parts
        renames = ((os, "fsync"), (os, "replace"), (os, "unlink"), (Path, "replace"))
        for owner, name in renames:
            setattr(owner, name, self.around(getattr(owner, name), name))
        checkpoint.check_archive = self.around(check, "verify")
        files.fsync_directory = self.around(files.fsync_directory, "fsync of the directory")

    def around(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        """The function with a point before and one after it."""

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.passed(f"before {name}")
            result = function(*args, **kwargs)
            self.passed(f"after {name}")
            return result

        return wrapped

    def passed(self, name: str) -> None:
        """A moment of saving."""
        self.count += 1
        if self.count == self.fatal:
            self.told.write_text(name)
            os.kill(os.getpid(), signal.SIGKILL)


def state_of(folder: Path) -> dict[str, Any]:
    """Everything that must be the same in the end, however often a run was killed."""
    run = RunDirectory(folder)
    result = json.loads(run.result.read_text())
    metrics = [
        {key: value for key, value in record.items() if key not in ("images_per_second", "seconds")}
        for record in run.read_metrics()
    ]
    weights = {}
    for path in (run.last, run.previous, run.best):
        saved = checkpoint.load_checkpoint(path)
        for kind, tensors in (("w", saved.weights), ("raw", saved.training["weights"])):
            weights.update({f"{path.name} {kind} {k}": v.tolist() for k, v in tensors.items()})
    measured = ("test_error_percent", "draws_percent", "confusion", "validation_error_percent")
    return {"metrics": metrics, "weights": weights, "result": [result[key] for key in measured]}


def main(folder: Path, kills: int) -> None:
    """Kill until that many kills are done and the last run has been finished."""
    torch.set_num_threads(1)
    splits, chance = random_splits(), random.Random(0)
    whole, told = folder / "whole", folder / "told"
    started = time.monotonic()
    assert os.waitpid(in_child(lambda: train_in(whole, splits)), 0)[1] == 0
    seconds, expected = time.monotonic() - started, state_of(whole)
    hits: Counter[str] = Counter()
    finished = number = without = 0
    run = RunDirectory(folder / "run")
    while sum(hits.values()) < kills or run.path.exists():
        told.unlink(missing_ok=True)
        number += 1
        left = kills - sum(hits.values())
        fatal = chance.randint(1, 150) if number % 4 else 0

        def work(fatal: int = fatal if left > 0 else 0) -> None:
            if fatal:
                Points(fatal, told)
            train_in(run.path, splits)

        had = run.has_checkpoint()
        pid = in_child(work)
        if not fatal and left > 0:
            time.sleep(chance.uniform(0, seconds))
            os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        if os.WIFSIGNALED(status):
            hits[told.read_text() if told.exists() else "anywhere"] += 1
            if run.has_checkpoint():
                run.newest_checkpoint(lambda _: None)  # raises if neither can be read
            else:
                assert not had, "a checkpoint was there before the kill and is gone"
                without += 1
            continue
        assert status == 0, "the run failed"
        assert state_of(run.path) == expected, "the run is not the undisturbed one"
        shutil.rmtree(run.path)
        finished += 1
    report = {"kills": sum(hits.values()), "hits": hits, "finished": finished, "without": without}
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
