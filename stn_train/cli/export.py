"""`stn-export`, `stn-demo`: hand a trained model on, to programs and to people."""

import webbrowser
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stn_train.cli.model import beside, test_images
from stn_train.cli.options import DataDirOption, JsonOption, RunArgument, checked_path, command

if TYPE_CHECKING:
    from stn_train.runs.directory import Run

SHOWN = Path("rts_affine")
"""The shipped model whose page `stn-demo` opens."""


class Form(StrEnum):
    """What a model is exported as."""

    onnx = "onnx"
    pt2 = "pt2"
    html = "html"
    hub = "hub"


@command("Example: stn-export runs/rts_affine-seed1 --format onnx")
def run_export(
    path: RunArgument,
    form: Annotated[
        Form,
        typer.Option(
            "--format",
            help="onnx: for other programs; pt2: for PyTorch; html: a live page to draw on; hub: a "
            "folder with weights, config and model card. onnx, and html of a model that does not "
            "ship, need: pip install onnx onnxscript onnxruntime.",
        ),
    ] = Form.onnx,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The file, of hub the folder. Default: beside the checkpoint, model.onnx, "
            "model.pt2, demo.html or hub."
        ),
    ] = None,
    as_json: JsonOption = False,
    data_dir: DataDirOption = None,
) -> None:
    """Write a trained model for other programs or as a live page; what can be run is compared."""
    from stn_train.runs.directory import load_run
    from stn_train.runs.files import pretty_json

    trained = load_run(path)
    target, told = write_form(trained, form, out, data_dir)
    if as_json:
        shape = trained.config.task.shape(trained.format)
        report = {"file": str(target), "format": form, "input": [None, *shape]}
        typer.echo(pretty_json(report | told))
        return
    typer.echo(f"exported    {target}, {size_of(target) / 1e6:.1f} MB")
    if "largest_difference" in told:
        from stn_train.runs.exporter import BATCHES

        batches, difference = " and ".join(map(str, BATCHES)), told["largest_difference"]
        typer.echo(f"checked     batches of {batches}: logits differ by {difference:.1g} at most")


def write_form(
    trained: "Run", form: Form, out: Path | None, data_dir: Path | None
) -> tuple[Path, dict[str, Any]]:
    """Write a model in a form; returns the path, and what was found when it was checked."""
    if form == Form.hub:
        from stn_train.runs.hub import write_hub

        folder = out or beside(trained, "hub")
        write_hub(trained, folder)
        return folder, {}
    name = "demo.html" if form == Form.html else f"model.{form}"
    file = checked_path(out or beside(trained, name), "--out", (f".{form}",))
    if form == Form.html:
        from stn_train.demo.page import save_page

        return save_page(trained, test_images(trained, data_dir), file), {}
    from stn_train.runs.exporter import export

    return file, {"largest_difference": export(trained, form, file)}


def size_of(path: Path) -> int:
    """Bytes of a file, or of the files in a folder."""
    files = path.iterdir() if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


@command("Example: stn-demo rts_affine --out demo.html")
def run_demo(
    path: RunArgument = SHOWN,
    out: Annotated[
        Path | None, typer.Option(help="The page. Default: in the user's cache.")
    ] = None,
    no_open: Annotated[
        bool, typer.Option("--no-open", help="Write the page, and open no browser.")
    ] = False,
    data_dir: DataDirOption = None,
) -> None:
    """Open the live page of a trained model: draw, distort, and see what the network does."""
    from stn_train.data.source import cache_directory
    from stn_train.demo.page import save_page
    from stn_train.runs.directory import load_run

    trained = load_run(path)
    if out is None:
        out = cache_directory() / "pages" / f"{trained.directory.path.absolute().name}.html"
    file = checked_path(out, "--out", (".html",))
    page = save_page(trained, test_images(trained, data_dir), file).absolute()
    typer.echo(f"page        {page}, {page.stat().st_size / 1e6:.1f} MB")
    if not no_open and not webbrowser.open(page.as_uri()):
        typer.echo("no browser was found: open that file in one")
