"""A trained model as a file for other programs: ONNX, or an exported program of PyTorch.

Legend: B batch, C side of the input in pixels.

Both take images (B, 1, C, C), float32 in [0, 1], in batches of any size, to logits (B, 10).
"""

import contextlib
import os
import tempfile
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor, nn

from stn_train.errors import ConfigError, StnError
from stn_train.run_directory import Run

BATCHES = (1, 5)
"""The sizes that an exported file is tried out with."""

TOLERANCE = 1e-3
"""How far its logits may be off, as a share of the largest; other kernels add up otherwise."""


def export(run: Run, form: str, path: Path) -> float:
    """Write a model in a form of `FORMS`, run the file, and compare: the largest difference.

    The file is renamed into place only after its logits match the model's. Raises ConfigError
    where a package is missing, StnError where the file's logits are not the model's.
    """
    write, load = FORMS[form]
    side = run.config.distort.canvas_px
    model = run.model.eval()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".exporting-") as folder:
        made = Path(folder) / path.name
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporters, about themselves
            try:
                write(model, torch.rand(2, 1, side, side), made)
                exported = load(made)
            except ImportError as error:
                raise ConfigError(
                    [f"--format {form} needs {error.name}: pip install onnx onnxscript onnxruntime"]
                ) from None
            generator = torch.Generator().manual_seed(0)
            batches = [torch.rand(count, 1, side, side, generator=generator) for count in BATCHES]
            with torch.inference_mode():
                wanted = torch.cat([model(images) for images in batches])
                given = torch.cat([exported(images) for images in batches])
        difference = float((given - wanted).abs().max())
        if not difference < TOLERANCE * max(1.0, float(wanted.abs().max())):  # NaN is not either
            raise StnError(f"the exported model's logits are off by {difference:.2g}: not written")
        made.replace(path)
    return difference


def write_onnx(model: nn.Module, images: Tensor, path: Path) -> None:
    """Write ONNX, the weights within the one file."""
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
            output_names=["logits"],
            verbose=False,
        )
    assert program is not None  # it is None for the former exporter alone
    program.save(path, external_data=False)


def load_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    """What an ONNX file computes, by onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def write_pt2(model: nn.Module, images: Tensor, path: Path) -> None:
    """Write an exported program of PyTorch."""
    batch = {0: torch.export.Dim("batch")}
    torch.export.save(torch.export.export(model, (images,), dynamic_shapes=(batch,)), path)


def load_pt2(path: Path) -> Callable[[Tensor], Tensor]:
    """What an exported program computes."""
    return torch.export.load(path).module()


FORMS = {"onnx": (write_onnx, load_onnx), "pt2": (write_pt2, load_pt2)}
"""What can be written: how it is written, and loaded."""
