"""What the commands share: options, and errors in plain words with their exit codes.

Nothing heavy is imported before a command runs, so that --help answers at once.
"""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec

import typer

from stn_train.errors import ConfigError, StnError
from stn_train.runs.shipped_models import shipped_models
from stn_train.runs.signals import Terminated, end_on_signals

if TYPE_CHECKING:
    from stn_train.tasks.base import Measure

P = ParamSpec("P")


def complete_model(beginning: str) -> list[str]:
    """The shipped models whose names begin like this, for the shell's completion."""
    return [name for name in shipped_models() if name.startswith(beginning)]


EXIT_CODES = (
    "Exit codes: 0 done; 1 something outside the program failed (disk, permission); 2 config or "
    "command line; 3 data missing or damaged; 4 checkpoint cannot be read; 5 training diverged; "
    "6 the run directory is taken; 130 interrupted (Ctrl-C), 143 terminated, 129 terminal closed, "
    "138 SIGUSR1, 140 SIGUSR2: a run has then been saved and can be resumed."
)


class Device(StrEnum):
    """Where to compute; auto takes a GPU if there is one."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


RunArgument = Annotated[
    Path,
    typer.Argument(
        metavar="RUN_OR_CHECKPOINT",
        help="A run directory, a checkpoint file, or the name of a model that ships.",
        autocompletion=complete_model,
    ),
]
DeviceOption = Annotated[Device, typer.Option(help="Where to compute.")]
DataDirOption = Annotated[
    Path | None,
    typer.Option(
        help="Where other data sets than MNIST are downloaded to (a torchvision root). "
        "Else $STN_DATA_DIR, else the user's cache."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="No progress, only warnings.")]


def command(epilog: str) -> Callable[[Callable[P, None]], Callable[[], None]]:
    """Make a function a console script that reports errors in plain words."""

    def decorate(function: Callable[P, None]) -> Callable[[], None]:
        app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None)
        app.command(epilog=f"{epilog}\n\n{EXIT_CODES}")(guarded(function))
        return app

    return decorate


def guarded(function: Callable[P, None]) -> Callable[P, None]:
    """The function, but errors end the program with a message and their exit code."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> None:
        end_on_signals()
        let_threads_sleep()
        try:
            function(*args, **kwargs)
        except StnError as error:
            fail(str(error), error.exit_code)
        except BrokenPipeError:
            raise  # the reader of our output has gone: click ends quietly
        except OSError as error:
            fail(str(error), StnError.exit_code)
        except KeyboardInterrupt:
            fail("interrupted", 130)
        except Terminated as error:
            fail("terminated", 128 + error.number)

    return call


def let_threads_sleep() -> None:
    """Have the threads of the CPU sleep while they wait for each other, instead of spinning.

    Where another program wants the same core, a spinning thread spends its time slice on
    waiting, and is not running when there is work. A training step beside one busy program then
    takes several times as long. OpenMP reads OMP_WAIT_POLICY once, when torch is imported; a
    value that the user has set is kept.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def fail(message: str, exit_code: int) -> None:
    """End the program with a message on standard error."""
    for line in message.splitlines():
        typer.echo(f"error: {line}" if not line.startswith(" ") else f"     {line}", err=True)
    raise typer.Exit(exit_code)


PICTURE_FORMS = (".png", ".pdf", ".svg", ".jpg")
"""Suffixes that a picture's file name can have."""


def checked_path(path: Path, flag: str, suffixes: Sequence[str] = PICTURE_FORMS) -> Path:
    """The path; raises ConfigError unless its suffix is one of ``suffixes``."""
    if path.suffix.lower() not in suffixes:
        *most, last = suffixes
        allowed = f"{', '.join(most)} or {last}" if most else last
        raise ConfigError([f"{flag} {path}: the name must end in {allowed}"])
    return path


def tell_score(report: Mapping[str, Any], measure: "Measure") -> None:
    """Print the test score of an evaluation with its confidence intervals.

    report: the fields of `Evaluation.as_dict`, which result.json has too.
    """
    unit, draws = measure.unit, report["draws_percent"]
    low, high = report["interval_95_percent"]
    name = f"test {measure.name}"
    typer.echo(f"{name:11} {draws[0]:.2f} {unit} (95 %: {low:.2f} to {high:.2f} {unit})")
    if len(draws) > 1:
        low, high = report["draws_mean_interval_95_percent"]
        typer.echo(
            f"            {report['draws_mean_percent']:.2f} {unit} in the mean of "
            f"{len(draws)} draws (95 %: {low:.2f} to {high:.2f} {unit})"
        )
