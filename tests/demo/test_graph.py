"""The graph of the page: its outputs are the network's, and it can lend its weights."""

import sys

import onnx
import pytest
import torch
from conftest import untrained

from stn_train.demo import graph
from stn_train.demo.graph import ObservedNetwork, graph_of, observed_graph, run_graph
from stn_train.errors import ConfigError, StnError
from stn_train.runs.directory import load_run
from stn_train.runs.shipped_models import GRAPH, shipped_models


@pytest.mark.parametrize(
    "choices",
    [
        {"distortion": "RTS", "backbone": "CNN"},
        {"transform": "none"},
        {"transformers": {"front": {"count": 2}}, "model": {"st_iterations": 2}},
    ],
    ids=["pooled", "baseline", "two"],
)
def test_outputs_are_those_of_the_trace(choices, tmp_path):
    run = untrained(tmp_path, **choices)
    model = ObservedNetwork(run.model)
    images = torch.rand(3, *run.config.task.shape(run.format))
    trace = run.model.trace(images)
    told = dict(zip(model.outputs, model(images), strict=True))
    assert torch.equal(told.pop("logits"), trace.outputs)
    for number, name in enumerate(run.model.front):
        warp = trace.warps[name]
        assert torch.equal(told.pop(f"grid_{number}"), warp.grid)
        assert torch.equal(told.pop(f"theta_{number}"), warp.theta)
        assert torch.equal(told.pop(f"seen_{number}"), run.model.shown(warp.output))
    assert told == {}


def test_graph_that_computes_something_else_is_refused(tmp_path, monkeypatch):
    run = untrained(tmp_path, transform="none")
    with torch.inference_mode():
        wrong = run.model(torch.rand(2, 1, 28, 28)) + 1
    monkeypatch.setattr(graph, "write_onnx", lambda *_: None)
    monkeypatch.setattr(graph, "run_graph", lambda *_: {"logits": wrong})
    with pytest.raises(StnError, match="the graph's logits is off by 1"):
        observed_graph(run)


def test_missing_package_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ConfigError, match="a run needs the package onnxscript: pip install onnx"):
        observed_graph(untrained(tmp_path))


@pytest.mark.parametrize("name", shipped_models())
def test_shipped_graph_computes_the_shipped_model(name, tmp_path):
    run = load_run(name)
    network = graph_of(run)
    (tmp_path / GRAPH).write_bytes(network.graph)
    (tmp_path / run.checkpoint.name).write_bytes(network.weights)
    images = torch.rand(3, *run.config.task.shape(run.format))
    model = ObservedNetwork(run.model)
    with torch.inference_mode():
        wanted = dict(zip(model.outputs, model(images), strict=True))
    given = run_graph(tmp_path / GRAPH, images)
    for output, values in wanted.items():
        torch.testing.assert_close(given[output], values, rtol=1e-3, atol=1e-4)


def test_shipped_graph_needs_no_package(monkeypatch):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        monkeypatch.setitem(sys.modules, package, None)
    assert len(graph_of(load_run("rts_affine")).graph) < 300_000


def test_weights_that_are_lent_are_not_in_the_graph(finished):
    run = load_run(finished.run.path)
    whole = observed_graph(run)
    lent = graph.with_weights_of(finished.run.model, whole)
    assert len(lent) < len(whole) - 20_000
    external = [
        weight
        for weight in onnx.load_from_string(lent).graph.initializer
        if weight.data_location == onnx.TensorProto.EXTERNAL
    ]
    assert len(external) >= 3
