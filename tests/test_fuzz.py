"""Whatever stands in a config or on a command line: a config or an error in words, no traceback."""

import copy
from collections.abc import Callable
from typing import Any, get_args

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stn_train.config import REGISTRIES, Config, TrainSettings
from stn_train.config_errors import ConfigSource, check
from stn_train.config_file import changed_config, load_config
from stn_train.errors import ConfigError, DataError
from stn_train.geometry.transforms import TRANSFORMS
from stn_train.recipes import RECIPES
from stn_train.settings import name_and_settings
from stn_train.shipped_configs import shipped_configs
from stn_train.tasks import TASKS

NAMES = sorted({name for registry in REGISTRIES.values() for name in registry} | {"none"})
TERMS = ["sgd", "muon", "adamw", "cosine", "step", "one_cycle", "constant", "auto", "embedded"]
NUMBERS = st.one_of(st.integers(), st.integers(-3, 300), st.floats(), st.floats(0, 1))
WORDS = st.sampled_from([*NAMES, *RECIPES, *TERMS])
PLAIN = st.one_of(st.none(), st.booleans(), NUMBERS, WORDS, st.text(max_size=8))
VALUES = st.recursive(
    PLAIN,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text() | st.sampled_from(NAMES), inner, max_size=3)
    ),
)


def dict_of(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


DEFAULTS = Config().as_dict()
CHOSEN = [
    (*key, name, setting)
    for key, registry in REGISTRIES.items()
    for name, kind in registry.items()
    for setting in kind.model_fields
]
"""The settings of everything that can be chosen."""
KEYS = [
    *((key,) for key in [*DEFAULTS, "distort"]),
    *((section, key) for section in DEFAULTS for key in dict_of(DEFAULTS[section])),
    *CHOSEN,
    # The former layout.
    *(("distort", key[-1]) for key in CHOSEN if key[0] == "distortion"),
    *(("model", key[-1]) for key in CHOSEN if key[0] == "backbone"),
]

relaxed = settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    database=None,
    derandomize=True,
)


def outcome(make: Callable[[], Config]) -> tuple[Config | None, list[str]]:
    """A config, or the problems with it; any other exception is a finding."""
    config, problems = None, []
    try:
        config = make()
    except ConfigError as error:
        problems = error.problems
    assert (config is None) is bool(problems)
    return config, problems


def with_changes(changes: dict[tuple[str, ...], Any]) -> dict[str, Any]:
    """Some keys of an empty config."""
    data: dict[str, Any] = {}
    for (*sections, last), value in changes.items():
        section: Any = data
        for name in sections:
            section = section.setdefault(name, {}) if isinstance(section, dict) else None
        if isinstance(section, dict):
            section[last] = value
    return data


def settled(config: Config) -> dict[str, Any]:
    """A config's settings, wherever they come from."""
    return {key: value for key, value in config.as_dict().items() if key != "given"}


@relaxed
@given(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=5))
def test_any_values_make_a_config_or_an_error(changes):
    config, problems = outcome(lambda: check(with_changes(changes), ConfigSource("any")))
    assert all("\n" not in problem for problem in problems)
    if config is not None:
        again = check(yaml.safe_load(yaml.safe_dump(config.as_dict())), ConfigSource("again"))
        assert settled(again) == settled(config)


def placements() -> st.SearchStrategy[dict[str, Any]]:
    """Settings of the transformers in front that fit any backbone."""
    return st.fixed_dictionaries(
        {}, optional={"count": st.integers(1, 8), "transform": st.sampled_from([*TRANSFORMS])}
    )


@st.composite
def good_changes(draw: st.DrawFn) -> dict[tuple[str, ...], Any]:
    """Settings that are all allowed."""
    choices: dict[tuple[str, ...], st.SearchStrategy[Any]] = {
        **{key: st.sampled_from(choosable(key)) for key in REGISTRIES},
        ("recipe",): st.sampled_from([*RECIPES]),
        ("transformers",): st.fixed_dictionaries({"front": st.none() | placements()}),
        ("seed",): st.integers(0, 2**63 - 1),
        ("data", "validation"): st.integers(0, 60_000),
        ("data", "test_digits"): st.none() | st.integers(1, 10_000),
        ("model", "hidden"): st.integers(1, 4096),
        ("model", "filters"): st.lists(st.integers(1, 4096), min_size=2, max_size=2),
        ("model", "st_iterations"): st.integers(1, 8),
        ("model", "sampling"): st.sampled_from(["bilinear", "bicubic"]),
        ("train", "epochs"): st.integers(1, 10**6),
        ("train", "learning_rate"): st.floats(1e-30, 1e30),
        ("train", "weight_decay"): st.floats(0, 1e30),
        ("train", "label_smoothing"): st.floats(0, 1, exclude_max=True),
        ("train", "optimizer"): st.sampled_from(
            get_args(TrainSettings.model_fields["optimizer"].annotation)
        ),
        ("train", "step_at"): st.lists(st.floats(0, 0.99), max_size=4),
        ("evaluate", "draws"): st.integers(1, 100),
    }
    keys = draw(st.sets(st.sampled_from(sorted(choices))))
    changes = {key: draw(choices[key]) for key in sorted(keys)}
    if TASKS[chosen_name(changes.get(("task",), "classification"))].locates:
        del changes["task",]  # it needs more than one choice
    volumes = chosen_name(changes.get(("task",), "classification")) == "extruded"
    return {key: value for key, value in changes.items() if not volumes or sees_volumes(key, value)}


def chosen_name(value: Any) -> str:
    """The name in a choice, which may have settings."""
    return name_and_settings(value)[0]


def sees_volumes(key: tuple[str, ...], value: Any) -> bool:
    """Whether a choice goes with a task that makes volumes."""
    if key == ("model", "sampling"):
        return bool(value == "bilinear")
    if key == ("transformers",):
        return value["front"] is None or value["front"].get("transform") in (None, "Aff")
    if key not in {("backbone",), ("transform",)} or value == "none":
        return True
    kind: Any = REGISTRIES[key][chosen_name(value)]
    seen: bool = kind.warps_volumes if key == ("transform",) else kind.localises_volumes
    return seen


def choosable(key: tuple[str, ...]) -> list[Any]:
    """What a key can be: names and, for what has settings, names with none."""
    names = [
        name
        for name, kind in REGISTRIES[key].items()
        if not any(field.is_required() for field in kind.model_fields.values())
    ]
    more: list[Any] = [{name: {}} for name in names]
    return names + more + (["none"] if key == ("transform",) else [])


@relaxed
@given(good_changes())
def test_valid_configs_are_the_same_after_a_way_through_yaml(changes):
    config = check(with_changes(changes), ConfigSource("good"))
    assert check(yaml.safe_load(yaml.safe_dump(config.as_dict())), ConfigSource("again")) == config
    assert settled(check(copy.deepcopy(config.given), ConfigSource("given"))) == settled(config)


OVERRIDES = st.builds(
    "{}={}".format, st.sampled_from([".".join(key) for key in KEYS]) | st.text(max_size=9), PLAIN
)


@relaxed
@given(good_changes(), st.lists(OVERRIDES, max_size=4))
def test_any_overrides_of_a_run_make_a_config_or_an_error(changes, overrides):
    config = check(with_changes(changes), ConfigSource("good"))
    before = config.as_dict()
    changed, problems = outcome(lambda: changed_config(config, overrides))
    assert all(problem.startswith(("--set", "the run's config")) for problem in problems)
    assert config.as_dict() == before
    if changed is not None:
        again = Config.from_run(yaml.safe_load(yaml.safe_dump(changed.as_dict())))
        assert settled(again) == settled(changed)


@relaxed
@given(good_changes())
def test_overrides_of_the_defaults_are_as_a_file_that_says_the_same(changes):
    overrides = [f"{'.'.join(key)}={in_one_line(value)}" for key, value in changes.items()]
    config = changed_config(Config(), overrides)
    assert settled(config) == settled(check(with_changes(changes), ConfigSource("file")))


def in_one_line(value: Any) -> str:
    """A value as YAML for a command line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10**6)
    return text.splitlines()[0]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "any.yaml"


@relaxed
@given(content=st.binary(max_size=300))
def test_any_bytes_make_a_config_or_an_error(content, path):
    path.write_bytes(content)
    outcome(lambda: load_config(str(path)))


@relaxed
@given(
    shipped=st.sampled_from(shipped_configs()),
    position=st.integers(0, 400),
    length=st.integers(0, 12),
    content=st.binary(max_size=12)
    | st.sampled_from([b"&a ", b"*a", b"<<: ", b"!!x ", b"? ", b"{"]),
)
def test_mutated_configs_make_a_config_or_an_error(shipped, position, length, content, path):
    good = shipped.read_bytes()
    path.write_bytes(good[:position] + content + good[position + length :])
    outcome(lambda: load_config(str(path)))


ARGUMENTS = st.one_of(
    st.sampled_from(
        [
            "--config",
            "--set",
            "--seed",
            "--out",
            "--resume",
            "auto",
            "--device",
            "cpu",
            "--json",
            "--accept-changes",
            "--draws",
            "--picture",
            "--cells",
            "*:FCN:*",
            "--jobs",
            "show",
            "compare",
            "report",
            "--quiet",
            "--dry-run",
            "--doctor",
            "--version",
            "--list-configs",
            "--data-dir",
            "--tensorboard",
            "--distortion",
            "--misclassified",
            "--seeds",
            "--format",
            "onnx",
            "--animate",
            "rotation.gif",
            "r_affine",
            "train.epochs=1",
            "seed=-1",
            "=",
            "-",
            "--",
        ]
    ),
    st.sampled_from(["", "\0", "x" * 5000]),
    st.text(max_size=12),
    st.builds("{}={}".format, st.sampled_from([".".join(key) for key in KEYS]), PLAIN),
)


@settings(relaxed, max_examples=1500)
@given(
    name=st.sampled_from(["stn-train", "stn-eval", "stn-visualize", "stn-export", "stn-table"]),
    arguments=st.lists(ARGUMENTS, max_size=6),
)
def test_any_command_line_ends_with_a_documented_code(
    name, arguments, command, nowhere, monkeypatch
):
    def no_data(*_: Any) -> None:
        raise DataError("no digits here")  # what is allowed gets no further

    monkeypatch.setattr("stn_train.data.sources.load_splits", no_data)
    monkeypatch.setattr("stn_train.table.engines.engine_for", no_data)
    assert command(name, *arguments).exit_code in (0, 1, 2, 3, 4, 6)
