"""A network as an ONNX graph that also tells what its spatial transformers do.

Legend: B batch, C channels, H height, W width, P parameters.

Outputs: ``logits``; then of each transformer in front, by its number from 0, ``grid_0``
(B, H', W', 2), normalised (x, y) in the input; ``seen_0`` (B, C, H', W'), what the classifier sees
of it; ``theta_0`` (B, P). Where a transformer looks several times these are of the whole map.
"""

import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import override

from stn_train.errors import ConfigError, StnError
from stn_train.models.network import Network
from stn_train.models.spatial_transformer import SpatialTransformer
from stn_train.runs.directory import Run
from stn_train.runs.exporter import TOLERANCE, missing_package, write_onnx
from stn_train.runs.shipped_models import GRAPH, is_shipped, read_shipped

SMALL_BYTES = 1024
"""Smaller weights stay in a graph."""

PARTS = ("grid", "seen", "theta")
"""The outputs for each transformer, in order."""


class ObservedNetwork(nn.Module):
    """A network whose outputs include what its transformers in front did."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    @property
    def outputs(self) -> list[str]:
        """The names of what it returns."""
        numbers = range(len(self.network.front))
        return ["logits", *(f"{part}_{number}" for number in numbers for part in PARTS)]

    @override
    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images (B, C, H, W) -> the outputs, in the order of their names."""
        front = [self.network.get_submodule(name) for name in self.network.front]
        if not front:
            return (self.network(images),)
        told: list[Tensor] = []
        outputs = []
        for transformer in front:
            assert isinstance(transformer, SpatialTransformer)
            warp = transformer.warp(images)
            outputs.append(warp.output)
            told += [warp.grid, self.network.shown(warp.output), warp.theta]
        maps = torch.cat(outputs, dim=1)
        _, *stages = self.network.children()
        for stage in stages:
            maps = stage(maps)
        return maps, *told


def observed_graph(run: Run) -> bytes:
    """The graph of a run's network, for batches of any size, once it has been run and compared.

    Raises ConfigError if a package is missing, StnError if its outputs are not the network's.
    """
    model = ObservedNetwork(run.model).eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, *run.config.task.shape(run.format), generator=generator)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        try:
            write_onnx(model, images, path, model.outputs)
            given = run_graph(path, images)
        except ImportError as error:
            raise ConfigError([missing_package("the live page of a run", error)]) from None
        with torch.inference_mode():
            wanted = dict(zip(model.outputs, model(images), strict=True))
        for name, output in wanted.items():
            difference = float((given[name] - output).abs().max())
            if not difference < TOLERANCE * max(1.0, float(output.abs().max())):  # so NaN fails too
                raise StnError(f"the graph's {name} is off by {difference:.2g}: no page was made")
        return without_traces(path)


def without_traces(path: Path) -> bytes:
    """A graph without the exporter's notes on each node: they name the folders of this machine."""
    import onnx

    model = onnx.load(path)
    parts = (model, model.graph, *model.graph.node, *model.graph.value_info, *model.functions)
    for part in parts:
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    return bytes(model.SerializeToString())


class Graph(NamedTuple):
    """A network for the page."""

    graph: bytes
    """ONNX."""
    weights: bytes = b""
    """The model.safetensors that the graph reads its weights from; empty if they are in it."""


def graph_of(run: Run) -> Graph:
    """The graph of a run's network: of a model that ships the one beside it, else a new one.

    Raises as `observed_graph` does, and CheckpointError if the one beside it is damaged.
    """
    folder = run.directory.path
    if run.checkpoint == run.directory.model and is_shipped(folder):
        return Graph(read_shipped(folder, GRAPH), read_shipped(folder, run.checkpoint.name))
    return Graph(observed_graph(run))


def with_weights_of(path: Path, graph: bytes) -> bytes:
    """A graph that reads from a model.safetensors what of its weights is in there.

    Without them a graph takes a fiftieth of the room. The weights that the exporter changed stay
    in it. Needs the package onnx.
    """
    import onnx

    content = path.read_bytes()
    model = onnx.load_from_string(graph)
    for weight in model.graph.initializer:
        values = onnx.numpy_helper.to_array(weight).tobytes()
        offset = content.find(values)
        if len(values) < SMALL_BYTES or offset < 0:
            continue
        weight.ClearField("raw_data")
        weight.data_location = onnx.TensorProto.EXTERNAL
        entries = {"location": path.name, "offset": offset, "length": len(values)}
        for key, value in entries.items():
            weight.external_data.add(key=key, value=str(value))
    return bytes(model.SerializeToString())


def run_graph(path: Path, images: Tensor) -> dict[str, Tensor]:
    """The outputs of a graph by name, by onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    outputs = session.run(names, {"images": images.numpy()})
    return {name: torch.from_numpy(output) for name, output in zip(names, outputs, strict=True)}
