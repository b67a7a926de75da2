"""A finished run as a folder for a model hub: weights, config, and the model's card."""

from pathlib import Path
from typing import Any

import yaml

from stn_train.errors import CheckpointError
from stn_train.models.network import parameter_count
from stn_train.runs.checkpoint import Checkpoint, images_entry, save_model
from stn_train.runs.directory import Run, RunDirectory
from stn_train.runs.files import write_bytes
from stn_train.runs.result import Result


def write_hub(run: Run, folder: Path) -> None:
    """Write model.safetensors, config.yaml and README.md, the model card, into a folder.

    Raises CheckpointError if the run has not finished: then nothing is known of its error.
    """
    if not run.directory.result.exists():
        told = "has no result.json, so its error is not known; stn-train --resume finishes a run"
        raise CheckpointError(f"{run.directory.path} {told}")
    result = Result.read(run.directory.result)
    folder.mkdir(parents=True, exist_ok=True)
    target, config, weights = RunDirectory(folder), run.config, run.model.state_dict()
    checkpoint = Checkpoint(config.as_dict(), run.step, weights, {}, images_entry(run.format))
    save_model(target.model, checkpoint, result.measured())
    target.write_config(config)
    write_bytes(folder / "README.md", model_card(run, result).encode())


def model_card(run: Run, result: Result) -> str:
    """The card of a model in Markdown, with the head that a hub reads."""
    config, measure = run.config, result.measure
    channels, *sides = config.task.shape(run.format)
    shape = ", ".join(map(str, ["batch", channels, *sides]))
    low, high = result.interval_95_percent or (None, None)
    interval = "" if low is None else f" (95 %: {low:.2f} to {high:.2f})"
    environment = result.environment
    rows = {
        f"test {measure.name}": f"{result.test_percent:.2f} {measure.unit}{interval}",
        f"mean over {len(result.draws_percent)} draws": (
            f"{result.draws_mean_percent:.2f} {measure.unit}"
        ),
        "test images": f"{result.test_digits:,}, SHA-256 `{result.test_sha256}`",
        "training images": f"{result.training_digits:,} ({result.data})",
        "passes": f"{result.passes:g}",
        "seed, numerics": f"{result.seed}, {result.numerics}",
        "parameters": f"{parameter_count(run.model):,}",
        "hardware": f"{environment.get('hardware')}, torch {environment.get('torch')}",
        "commit": f"{environment.get('commit')}",
    }
    table = "".join(f"| {name} | {value} |\n" for name, value in rows.items())
    head = yaml.safe_dump(front_matter(run, result), sort_keys=False)
    return f"""---
{head}---

# {config.title}

{described(run)}

|  |  |
|---|---|
{table}
The error was measured once, on the first draw of the test distortion; the draws have fixed seeds.

## Use

```python
from stn_train import load_run

run = load_run("FOLDER")  # the folder of this file
logits = run.model(images)  # ({shape}) in [0, 1], the background 0
trace = run.model.trace(images)  # with theta and grid of each spatial transformer
```

`stn-eval FOLDER`, `stn-visualize FOLDER` and `stn-export FOLDER --format html` work too.
`config.yaml` trains the same model again. `safetensors.torch.load_file("model.safetensors")` gives
the weights alone; the file's metadata have the SHA-256 of their bytes under `sha256`.

It knows the images it was trained on ({result.data}) and no others.
"""


def described(run: Run) -> str:
    """What the model is, in two sentences."""
    config, transformers = run.config, run.model.transformers
    kind = type(config.distortion).__doc__ or ""
    images = kind.strip().splitlines()[0].rstrip(".").partition(" (section")[0]
    if not transformers:
        return f"A network without a spatial transformer. Trained on {images}."
    looks = {transformer.iterations for transformer in transformers.values()}
    many = f", looking up to {max(looks)} times" if max(looks) > 1 else ""
    return (
        "A network with a spatial transformer (Jaderberg et al. 2015): it predicts a transform of "
        f"its input{many}, and classifies the warped image. Trained on {images}."
    )


def front_matter(run: Run, result: Result) -> dict[str, Any]:
    """The head of a card: what a hub lists and searches."""
    measure, title = result.measure, run.config.title
    datasets = {"datasets": ["ylecun/mnist"]} if result.data == "mnist" else {}
    measured = {
        "task": {"type": "image-classification"},
        "dataset": {"name": f"{result.data}, {result.cell.distortion}", "type": result.data},
        "metrics": [
            {"type": measure.key, "name": f"test {measure.name}", "value": result.test_percent}
        ],
    }
    return {
        "license": "mit",
        "library_name": "stn_train",
        "pipeline_tag": "image-classification",
        **datasets,
        "tags": ["spatial-transformer", "pytorch", "safetensors"],
        "model-index": [{"name": title, "results": [measured]}],
    }
