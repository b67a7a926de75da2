"""A trained model as a file for other programs: ONNX, or an exported program of PyTorch.

Legend: B batch, C channels, H height, W width, K outputs.

Both take images (B, C, H, W), float32 in [0, 1], in batches of any size, to outputs (B, K), the
logits of a classifier.
"""

import contextlib
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor, nn

from stn_train.errors import ConfigError, StnError
from stn_train.runs.directory import Run

BATCHES = (1, 5)
"""The sizes of the batches that an exported file is checked with."""

TOLERANCE = 1e-3
"""Relative tolerance on the outputs; other kernels sum in another order."""


def export(run: Run, form: str, path: Path) -> float:
    """Write a model in a form of `FORMS`, run the file, and compare: the largest difference.

    The file is renamed into place only after its outputs match the model's. Raises ConfigError
    if a package is missing, StnError if the file's outputs are not the model's.
    """
    write, load = FORMS[form]
    shape = run.config.task.shape(run.format)
    model = run.model.eval()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".exporting-") as folder:
        made = Path(folder) / path.name
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporters, about themselves
            try:
                write(model, torch.rand(2, *shape), made)
                exported = load(made)
            except ImportError as error:
                raise ConfigError([missing_package(f"--format {form}", error)]) from None
            generator = torch.Generator().manual_seed(0)
            batches = [torch.rand(count, *shape, generator=generator) for count in BATCHES]
            with torch.inference_mode():
                wanted = torch.cat([model(images) for images in batches])
                given = torch.cat([exported(images) for images in batches])
        difference = float((given - wanted).abs().max())
        if not difference < TOLERANCE * max(1.0, float(wanted.abs().max())):  # so NaN fails too
            raise StnError(f"the exported model's logits are off by {difference:.2g}: not written")
        made.replace(path)
    return difference


def missing_package(made: str, error: ImportError) -> str:
    """What to do about a package that something needs."""
    return f"{made} needs the package {error.name}: pip install onnx onnxscript onnxruntime"


def write_onnx(
    model: nn.Module, images: Tensor, path: Path, outputs: Sequence[str] = ("logits",)
) -> None:
    """Write ONNX, the weights inside the one file. outputs: the names of what the model returns."""
    for package in ("onnx", "onnxscript"):
        import_module(package)  # a clear error if it is missing
    batch = {0: torch.export.Dim("batch")}
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        program = torch.onnx.export(
            model,
            (images,),
            dynamo=True,
            dynamic_shapes=(batch,),
            input_names=["images"],
            output_names=[*outputs],
            verbose=False,
        )
    assert program is not None  # only the former exporter returns None
    program.save(path, external_data=False)


def load_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    """The function that an ONNX file computes, by onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def write_pt2(model: nn.Module, images: Tensor, path: Path) -> None:
    """Write an exported program of PyTorch."""
    batch = {0: torch.export.Dim("batch")}
    torch.export.save(torch.export.export(model, (images,), dynamic_shapes=(batch,)), path)


def load_pt2(path: Path) -> Callable[[Tensor], Tensor]:
    """The function that an exported program computes."""
    return torch.export.load(path).module()


FORMS = {"onnx": (write_onnx, load_onnx), "pt2": (write_pt2, load_pt2)}
"""The forms of file: how each is written, and loaded."""
