"""YAML files and overrides: what they mean, and what is said about what is wrong."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import NEEDED

from stn_train.config import REGISTRIES, Config
from stn_train.config_errors import ConfigSource, check
from stn_train.config_file import (
    MAX_CONFIG_BYTES,
    changed_config,
    find_config,
    load_config,
)
from stn_train.data.distortion import Distortion
from stn_train.data.distortions import DISTORTIONS
from stn_train.errors import CheckpointError, ConfigError
from stn_train.geometry.transforms import TRANSFORMS
from stn_train.models.backbones import BACKBONES
from stn_train.recipes import RECIPES
from stn_train.runs.checkpoint import Checkpoint, config_of
from stn_train.settings import name_and_settings
from stn_train.shipped_configs import shipped_configs


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Load a config from text; the file is c.yaml in the working directory."""
    monkeypatch.chdir(tmp_path)

    def load(text: str | bytes, *overrides: str) -> Config:
        content = text.encode() if isinstance(text, str) else text
        (tmp_path / "c.yaml").write_bytes(content)
        return load_config("c.yaml", overrides)

    return load


@pytest.fixture
def problems(load):
    """The problems of a config that must have some."""

    def problems(text: str | bytes, *overrides: str) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            load(text, *overrides)
        return caught.value.problems

    return problems


def settled(config: Config) -> dict[str, Any]:
    """A config's settings, wherever they come from."""
    return {key: value for key, value in config.as_dict().items() if key != "given"}


CAN_BE = ", ".join([*TRANSFORMS, "none"])

MANY_MISTAKES = """\
distorton: R
transform: affine
seed: -1
recipe: 5
data: 5
train:
  learing_rate: 0.1
  learning_rate: 1e-4
  epochs: five
  epochs: 3
  momentum: 2
  batch_size: 2.5
  fresh_distortions: maybe
model:
  localisation_filters: 0
distort:
  max_angle: 10.0
"""


def test_all_mistakes_are_told_at_once_with_their_lines(problems):
    told = problems(MANY_MISTAKES, "evaluate.draws=0")
    assert told == [
        "c.yaml:1: unknown key distorton (did you mean distortion?)",
        f"c.yaml:2: transform is 'affine'; it can be {CAN_BE} (did you mean Aff?)",
        "c.yaml:3: seed is -1; it must be at least 0",
        "c.yaml:4: recipe is 5; it can be 'default' or 'paper'",
        "c.yaml:5: data is 5; it must be a section of `key: value` lines",
        "c.yaml:7: unknown key train.learing_rate (did you mean learning_rate?)",
        "c.yaml:8: train.learning_rate is '1e-4'; it must be a number "
        "(YAML reads 1e-4 as text: write 0.0001)",
        "c.yaml:10: train.epochs is given twice, first in line 9",
        "c.yaml:11: train.momentum is 2; it must be less than 1",
        "c.yaml:12: train.batch_size is 2.5; it must be a whole number",
        "c.yaml:13: train.fresh_distortions is 'maybe'; it must be true or false",
        "c.yaml:15: model.localisation_filters is 0; it must be at least 1",
        "c.yaml:17: unknown key distort.max_angle (did you mean max_angle_deg?)",
        "--set evaluate.draws=0: evaluate.draws is 0; it must be at least 1",
    ]


def test_an_error_is_one_line_a_problem(load):
    with pytest.raises(ConfigError) as caught:
        load(MANY_MISTAKES)
    assert str(caught.value).splitlines() == caught.value.problems


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("train:\n  nesterov: true\n", "c.yaml:2: unknown key train.nesterov; known here: epochs"),
        ("transform: no\n", f"c.yaml:1: transform is False; it can be {CAN_BE}"),
        ("seed: true\n", "c.yaml:1: seed is True; it must be a whole number"),
        ("seed: 2020-01-01\n", "c.yaml:1: seed is .*; it must be a whole number"),
        ("model: {filters: 64}\n", r"c.yaml:1: model.filters is 64; it must be a list, such as"),
        ("backbone: {CNN: {filters: 64}}\n", r"c.yaml:1: backbone.CNN.filters is 64; .* a list"),
        ("model: {filters: [a, 3]}\n", "c.yaml:1: model.filters is 'a'; it must be a whole number"),
        ("train: {step_at: [2]}\n", "c.yaml:1: train.step_at is 2; it must be less than 1"),
        ("train: {learning_rate: .inf}\n", "train.learning_rate is inf; it must be a finite"),
        ("train: {learning_rate: 0}\n", "train.learning_rate is 0; it must be more than 0"),
        ("train: {batch_size: 60001}\n", "train.batch_size is 60001; it must be at most 60000"),
        ("\n\ntrain: {epochs: 1, steps: 1}\n", "c.yaml:3: train: give either epochs or steps"),
        ("distort: {min_scale: 1.3}\n", "min_scale 1.3 is larger than max_scale 1.2"),
        ("distort: 5\n", "c.yaml:1: distort is 5; it must be a section"),
        ("\ndistort: {canvas_px: 27}\n", "c.yaml:2: distort.canvas_px is 27; .* 28 to"),
        ("distortion: {R: {canvas_px: 27}}\n", "c.yaml:1: distortion.R.canvas_px is 27; .* 28 to"),
        ("distortion: {R: 5}\n", "c.yaml:1: distortion.R is 5; it must be a section"),
        ("distortion: {R: 5}\ndistort: {max_angle_deg: 1.0}", "c.yaml:1: distortion.R is 5"),
        ("distortion: {R: {a: 1}}\n", "c.yaml:1: unknown key distortion.R.a; known here: canvas"),
        ("distortion: {RS: {a: 1}}\n", "c.yaml:1: distortion is 'RS'; it can be R"),
        ("backbone: {FCN: {hiden: 1}}\n", r"backbone.FCN.hiden \(did you mean hidden\?\)"),
        ("backbone: FCN\n\nmodel: {hidden: 0}\n", "c.yaml:3: model.hidden is 0; .* at least 1"),
        ("backbone: [FCN]\nmodel: {hiden: 1}\n", "c.yaml:2: unknown key model.hiden"),
        ("transform: {TPS: {side: 1}}\n", "c.yaml:1: transform.TPS.side is 1; .* at least 2"),
        ("transform: {Aff: {side: 1}}\n", "unknown key transform.Aff.side; known here: nothing"),
        ("transform: {none: {side: 1}}\n", "c.yaml:1: transform: none has no settings"),
        ("data: {source: embedded}\n", "c.yaml:1: data.source: embedded.* gone.* mnist"),
        ("data: {source: kmist}\n", r"data.source is 'kmist'; .*did you mean kmnist\?"),
        ("data: {source: folder}\n", "c.yaml:1: data.source.folder.path is missing"),
        (
            "data:\n  source:\n    folder: {path: x, size: 5}\n",
            "c.yaml:3: .*folder.size is 5; .* 8",
        ),
        ("task: {classification: {a: 1}}\n", "unknown key task.classification.a; known here: noth"),
        ("given: 3\n", "c.yaml:1: given must be a section"),
        ("model: {st_output_px: 5}\n", "c.yaml:1: model.st_output_px is 5; .* a multiple of 2"),
        ("model:\n  sampling: integer\n", "c.yaml:2: model.sampling: integer cannot be trained"),
        ("model: {sampling: cubic}\n", r"c.yaml:1: model.sampling is 'cubic'; .*mean bicubic\?"),
        ("distortion: R\ndistort: {max_shift_px: 1.0}\n", "c.yaml:2: unknown key distort.max_shif"),
        ("distortion: [R]\ndistort: {a: 1}\n", "c.yaml:1: distortion is ..R..; it can be R, RTS"),
        ("seed: 1\nseed: 1\n", "c.yaml:2: seed is given twice, first in line 1"),
        ("yes: 1\n", "c.yaml:1: a key must be a plain word, got yes"),
        ("train: {1: 2}\n", "c.yaml:1: a key must be a plain word, got 1"),
        ("<<: {seed: 3}\n", "c.yaml:1: a key must be a plain word, got <<"),
    ],
)
def test_a_mistake_is_told_with_what_would_be_right(problems, text, told):
    with pytest.raises(ConfigError, match=told):
        raise ConfigError(problems(text))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("train:\n  epochs: [1\nseed: 2\n", "c.yaml:3: not valid YAML: expected ',' or ']'"),
        ("seed: 1\n\tepochs: 1\n", "c.yaml:2: not valid YAML: found character"),
        ("seed: 1\n---\nseed: 2\n", "c.yaml:2: not valid YAML: but found another document"),
        ("seed: &a 1\nother: *a\n", "aliases"),
        ("? [a, b]\n: c\n", "c.yaml:1: not valid YAML: found unhashable key"),
        ("seed: 2020-99-01\n", "c.yaml: not valid YAML: month must be in 1..12"),
        ("seed: !!bool maybe\n", "not valid YAML"),
        ("seed: !!timestamp soon\n", "not valid YAML"),
        (b"seed: \x00", "c.yaml: not valid YAML: unacceptable character"),
        (b"\xff\xfe", "c.yaml: cannot be read: 'utf-8' codec"),
        ("[" * 900 + "]" * 900, "nested too deeply"),
        ("{a: " * 900 + "1" + "}" * 900, "nested too deeply"),
        ("- seed\n- 3\n", "c.yaml:1: a config is a list of `key: value` lines"),
        ("hello", "c.yaml:1: a config is a list of `key: value` lines"),
        ("#" * (MAX_CONFIG_BYTES + 1), "c.yaml: larger than 100,000 bytes: not a config"),
    ],
)
def test_what_is_not_a_config_is_told_with_its_line(problems, text, told):
    (problem,) = problems(text)
    assert told in problem


@pytest.mark.parametrize("tag", ["python/object/apply:os.mkdir ['made']", "python/name:os.mkdir"])
def test_yaml_runs_no_python(problems, tmp_path, tag):
    (problem,) = problems(f"seed: !!{tag}\n")
    assert problem.startswith("c.yaml:1: not valid YAML: could not determine a constructor")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("text", ["", "\n", "# nothing\n"])
def test_empty_file_is_the_default(load, text):
    assert settled(load(text)) == settled(load("recipe: default\n"))
    assert load(text).given == {}


def test_windows_file_is_read(load):
    assert load(b"\xef\xbb\xbfseed: 3\r\ntrain:\r\n  epochs: 2\r\n").seed == 3


# Names.


def test_suffix_is_optional_and_bare_names_are_found_in_the_package(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    shipped = next(path for path in shipped_configs() if path.name == "rts_cnn.yaml")
    assert find_config("rts_cnn") == find_config("rts_cnn.yaml") == shipped


def test_working_directory_comes_before_the_package(load, tmp_path):
    load("")
    (tmp_path / "rts_cnn.yaml").write_text("seed: 77\n")
    assert load_config("rts_cnn").seed == 77


def test_path_is_taken_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "own.yaml").write_text("seed: 78\n")
    assert load_config("mine/own").seed == load_config(f"{tmp_path}/mine/own.yaml").seed == 78
    with pytest.raises(ConfigError, match=r"no config mine/rts_cnn\.yaml"):
        load_config("mine/rts_cnn.yaml")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (
            "rts_afine",
            r"no config rts_afine in .* \(did you mean rts_affine\.yaml\?\); --list-conf",
        ),
        ("R_CNN.yaml", r"\(did you mean r_cnn\.yaml\?\)"),
        ("qqqqqqqq", r"no config qqqqqqqq in .*; --list-configs shows them all"),
        ("", "--config is empty"),
        (".", "no config ."),
        ("a" * 300, "File name too long|no config"),
        ("a\0b", "no config|null"),
    ],
)
def test_missing_config_is_told_with_the_nearest_name(name, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=told):
        load_config(name)


# Overrides.


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("train.epochs=5", "train", "epochs", 5),
        ("train.learning_rate=1e-4", "train", "learning_rate", 1e-4),
        ("train.learning_rate=.5", "train", "learning_rate", 0.5),
        (" train.epochs = 5", "train", "epochs", 5),
        ("train.fresh_distortions=false", "train", "fresh_distortions", False),
        ("train.max_gradient_norm=null", "train", "max_gradient_norm", None),
        ("model.filters=[8, 9]", "backbone", "filters", (8, 9)),
        ("backbone.CNN.filters=[8, 9]", "backbone", "filters", (8, 9)),
        ("data.validation=7", "data", "validation", 7),
        ("distort.max_angle_deg=1e1", "distortion", "max_angle_deg", 10.0),
        ("distortion.R.max_angle_deg=1e1", "distortion", "max_angle_deg", 10.0),
        ("distortion={R: {max_angle_deg: 1.0}}", "distortion", "max_angle_deg", 1.0),
    ],
)
def test_override_takes_the_place_of_a_setting(load, override, section, key, value):
    text = "distortion: R\ntrain: {learning_rate: 0.1}\n"
    assert getattr(getattr(load(text, override), section), key) == value


def test_last_override_wins_and_others_stay(load):
    config = load(
        "seed: 1\ntrain: {epochs: 3, log_every: 9}\n", "seed=2", "train.epochs=4", "seed=3"
    )
    assert (config.seed, config.train.epochs, config.train.log_every) == (3, 4, 9)


def test_override_of_the_distortion_changes_its_parameters(load):
    assert load("distortion: R\n", "distortion=RTS").distortion.canvas_px == 42


def test_a_choice_without_its_name_in_the_file_takes_settings_of_the_default(load):
    assert load("", "distort.canvas_px=50").distortion.canvas_px == 50
    assert load("", "model.filters=[8, 9]").backbone.filters == (8, 9)
    config = load("", "transform=TPS", "transform.TPS.side=5")
    assert config.transform.side == 5
    assert load("data: {source: {folder: {path: x}}}\n", "data.source.folder.size=40").data == (
        load("data: {source: {folder: {path: x, size: 40}}}\n").data
    )


# What an override makes meaningless in the file.

OWN = "distortion: R\ndistort: {max_angle_deg: 10.0}\n"


def test_other_distortion_drops_the_parameters_of_the_files(load):
    for name in DISTORTIONS.keys() - {"R"}:
        assert load(OWN, f"distortion={name}").distortion == DISTORTIONS[name]()


def test_same_distortion_keeps_the_parameters_of_the_file(load):
    assert load(OWN, "distortion=R").distortion == DISTORTIONS["R"](max_angle_deg=10.0)
    default = "distort: {max_shift_px: 1.0}\n"  # of RTS, the default
    assert load(default, "distortion=RTS").distortion == DISTORTIONS["RTS"](max_shift_px=1.0)


@pytest.mark.parametrize("turned", [False, True])
def test_parameters_on_the_command_line_are_the_new_distortions(load, problems, turned):
    overrides = ["distortion=RTS", "distort.max_shift_px=3.0"]
    config = load(OWN, *(reversed(overrides) if turned else overrides))
    assert config.distortion == DISTORTIONS["RTS"](max_shift_px=3.0)
    (problem,) = problems(OWN, "distort.control_side=3", "distortion=RTS")
    assert problem.startswith("--set distort.control_side=3: unknown key distort.control_side")


def whole(**changes) -> str:
    """The config.yaml of a run."""
    return yaml.safe_dump(Config.model_validate(changes).as_dict(), sort_keys=False)


def in_former_layout(config: Config, *missing: str) -> dict[str, Any]:
    """What earlier versions recorded of such a run, without settings that came later."""
    data = config.as_dict()
    del data["given"], data["task"]
    for key, section in (("distortion", "distort"), ("backbone", "model")):
        data[key], settings = name_and_settings(data[key])
        data[section] = data.get(section, {}) | settings
    for key in missing:
        section, _, name = key.partition(".")
        del data[section][name]
    return data


RUNS = {
    "present": lambda config: config.as_dict(),
    "former": in_former_layout,
    "former, older": lambda config: in_former_layout(
        config, "train.muon_iteration", "model.st_iterations"
    ),
    "present, older": lambda config: {
        name: {key: value[key] for key in value if key != "muon_iteration"}
        if name == "train"
        else value
        for name, value in config.as_dict().items()
    },
}
"""The ways in which a config.yaml of a run is written."""
EVERY_RUN = pytest.mark.parametrize("recorded", RUNS.values(), ids=RUNS)


def text_of(recorded, **changes: Any) -> str:
    return yaml.safe_dump(recorded(Config.model_validate(changes)), sort_keys=False)


@EVERY_RUN
def test_the_config_of_a_run_is_read_as_it_was(load, recorded):
    changes = {"recipe": "paper", "backbone": "FCN", "distortion": {"P": {"min_scale": 0.9}}}
    config = Config.model_validate(changes)
    read = load(text_of(recorded, **changes))
    assert settled(read) == settled(config)


@EVERY_RUN
@pytest.mark.parametrize("backbone", BACKBONES)
def test_another_recipe_trains_that_recipe(load, recorded, backbone):
    config = load(text_of(recorded, backbone=backbone, transform="none", seed=9), "recipe=paper")
    paper = Config(backbone=backbone, transform="none", seed=9, recipe="paper")
    assert settled(config) == settled(paper)
    steps = 30_000 if backbone == "Inception" else 150_000
    assert (config.train.optimizer, config.train.steps) == ("sgd", steps)


@EVERY_RUN
@pytest.mark.parametrize("backbone", sorted(BACKBONES.keys() - {"CNN"}))
def test_another_backbone_has_its_own_recipe(load, recorded, backbone):
    run = text_of(recorded, backbone="CNN", transform="none", distortion="R", seed=9)
    config = load(run, f"backbone={backbone}")
    expected = Config(backbone=backbone, transform="none", distortion="R", seed=9)
    assert settled(config) == settled(expected)


def test_another_recipe_keeps_what_was_given(load):
    run = whole(backbone={"CNN": {"dropout": 0.5}}, train={"epochs": 3, "momentum": 0.25})
    config = load(run, "recipe=paper")
    given = {"backbone": {"CNN": {"dropout": 0.5}}, "train": {"epochs": 3, "momentum": 0.25}}
    assert config == Config.model_validate({"recipe": "paper", **given})
    assert config.given == {"recipe": "paper", **given}


def test_what_overrides_gave_is_given_to_the_next_run(load):
    first = load(whole(), "train.learning_rate=0.5", "distort.canvas_px=50", "model.filters=[8, 9]")
    second = load(yaml.safe_dump(first.as_dict()), "recipe=paper")
    assert second.train.learning_rate == 0.5
    assert second.distortion.canvas_px == 50
    assert second.backbone.filters == (8, 9)
    assert second.train.optimizer == "sgd"


@EVERY_RUN
@pytest.mark.parametrize(
    "override",
    ["train.learning_rate=0.5", "seed=7", "recipe=default", "backbone=FCN", "distortion=P"],
)
def test_what_does_not_change_the_recipe_keeps_the_settings_of_a_run(
    load, monkeypatch, recorded, override
):
    run = text_of(recorded, backbone="FCN", seed=9)
    before = load(run, override)
    changed = copy.deepcopy(RECIPES["default"]["FCN"])
    changed["train"] |= {"weight_decay": 0.75, "epochs": 99}
    changed["model"] |= {"st_iterations": 7}
    monkeypatch.setitem(RECIPES["default"], "FCN", changed)
    assert load(run, override) == before
    assert load("backbone: FCN\n", override).train.weight_decay == 0.75
    anew = load(run, "recipe=paper", "recipe=default")  # the last one counts
    assert anew.train.weight_decay == 0.75


def test_an_override_of_a_run_in_python_is_as_one_of_its_file(load):
    config = Config.model_validate({"backbone": "FCN", "seed": 9})
    for override in ("recipe=paper", "train.epochs=5", "distortion=P", "model.hidden=7"):
        assert changed_config(config, [override]) == load(
            yaml.safe_dump(config.as_dict()), override
        )
    assert config.given == {"backbone": "FCN", "seed": 9}
    with pytest.raises(ConfigError, match="seed"):
        changed_config(config, ["seed=x"])


def test_another_source_has_a_canvas_of_its_own(load):
    run = text_of(RUNS["present"], backbone="FCN")
    source = "data.source={folder: {path: x, size: 64}}"
    assert load(run, source).distortion.canvas_px == 96
    folder = yaml.safe_dump(load(run, source).as_dict())
    assert load(folder, "data.source.folder.size=40").distortion.canvas_px == 60
    assert load(folder, "data.source=mnist").distortion.canvas_px == 42
    given = yaml.safe_dump(load(run, source, "distort.canvas_px=70").as_dict())
    assert load(given, "data.source.folder.size=40").distortion.canvas_px == 70
    assert load(folder, "data.source.folder.path=y").train == load(run).train


@pytest.mark.parametrize("turned", [False, True])
def test_train_settings_on_the_command_line_stay_whatever_their_order(load, turned):
    overrides = ["recipe=paper", "train.momentum=0.25"]
    config = load(whole(train={"epochs": 3}), *(reversed(overrides) if turned else overrides))
    expected = {"recipe": "paper", "train": {"epochs": 3, "momentum": 0.25}}
    assert config == Config.model_validate(expected)


@pytest.mark.parametrize("override", ["recipe=paper", "backbone=FCN"])
def test_other_recipe_or_backbone_keeps_what_the_file_says_of_training(load, override):
    key, _, value = override.partition("=")
    own = {"learning_rate": 0.5, "log_every": 7}
    config = load("train: {learning_rate: 0.5, log_every: 7}\n", override)
    assert config == Config.model_validate({key: value, "train": own})


@pytest.mark.parametrize(
    "value", ["!!bool maybe", "2020-99-01", "[1", "!!python/name:os.system", "[" * 2000]
)
@pytest.mark.parametrize("key", ["recipe", "backbone"])
def test_a_value_that_is_none_is_told_for_a_run_too(problems, key, value):
    (problem,) = problems(whole(), f"{key}={value}")
    assert "not a value YAML can read" in problem


# The former layout.


def test_sections_of_the_former_layout_are_those_of_the_present(load):
    former = "backbone: FCN\ndistort: {max_angle_deg: 10.0}\nmodel: {hidden: 7, st_pool: 2}\n"
    present = (
        "backbone: {FCN: {hidden: 7}}\n"
        "distortion: {RTS: {max_angle_deg: 10.0}}\n"
        "model: {st_pool: 2}\n"
    )
    assert load(former) == load(present)
    assert load(former).given == load(present).given
    overrides = ["backbone=FCN", "distort.max_angle_deg=10", "model.hidden=7", "model.st_pool=2"]
    assert load("", *overrides) == load(present)


def test_settings_in_both_layouts_are_those_of_the_present_one(load):
    text = "distortion: {R: {max_angle_deg: 10.0}}\ndistort: {max_angle_deg: 20.0, canvas_px: 30}\n"
    assert load(text).distortion == DISTORTIONS["R"](max_angle_deg=10.0, canvas_px=30)


def test_a_setting_of_another_backbone_is_left_out(load):
    assert load("backbone: FCN\nmodel: {filters: [1, 2]}\n") == load(
        "backbone: {FCN: {}}\nmodel: {}\n"
    )
    assert load("backbone: FCN\n", "model.filters=[1, 2]") == load("backbone: FCN\n")


def checkpoint_with(config: dict[str, Any]) -> Checkpoint:
    images = {"shape": [1, 28, 28], "classes": [*"0123456789"]}
    return Checkpoint(config, step=0, weights={}, training={}, images=images)


def test_a_checkpoint_may_hold_a_config_in_the_former_layout():
    config = Config.model_validate({"backbone": "FCN", "distortion": "P"})
    former = in_former_layout(config, "train.muon_iteration")
    read = config_of(Path("last.pt"), checkpoint_with(former))
    assert settled(read) == settled(config)


@pytest.mark.parametrize(
    ("section", "key"), [("distort", "canvas_px"), ("model", "hidden"), ("train", "epochs")]
)
def test_a_mistake_in_a_checkpoints_former_config_is_told_with_its_key(section, key):
    data = in_former_layout(Config(backbone="FCN"))
    data[section][key] = "many"
    with pytest.raises(CheckpointError, match=rf"last\.pt .*{key} is 'many'"):
        config_of(Path("last.pt"), checkpoint_with(data))


# Every registry.


@pytest.mark.parametrize("key", REGISTRIES, ids=".".join)
def test_every_choice_takes_a_name_or_a_name_with_settings_and_tells_what_it_can_be(
    load, problems, key
):
    *sections, last = key
    start = "".join(f"{'  ' * depth}{name}:\n" for depth, name in enumerate(sections))
    indent = "  " * len(sections)
    dotted = ".".join(key)
    for name, kind in REGISTRIES[key].items():
        if any(field.is_required() for field in kind.model_fields.values()):
            continue
        others = "" if key == ("backbone",) else "backbone: FCN\n"
        needed = {"transform": "none"} | NEEDED.get(name, {})
        others += "".join(f"{at}: {what}\n" for at, what in needed.items() if (at,) != key)
        plain = load(f"{others}{start}{indent}{last}: {name}\n")
        for other in (
            load(f"{others}{start}{indent}{last}: {{{name}: {{}}}}\n"),
            load(others, f"{dotted}={name}"),
            load(others, f"{dotted}={{{name}: {{}}}}"),
        ):
            assert settled(other) == settled(plain)
        (problem,) = problems(f"{others}{start}{indent}{last}: {{{name}: {{odd: 1}}}}\n")
        assert f"unknown key {dotted}.{name}.odd" in problem
    (problem,) = problems(f"{start}{indent}{last}: odd\n")
    assert f"{dotted} is 'odd'; it can be {', '.join(REGISTRIES[key])}" in problem


def test_a_new_distortion_is_known_to_files_and_command_line(load, monkeypatch):
    class Blur(Distortion):
        radius_px: float = 1.0

        def draws(self, images, generator):
            return ()

        def apply(self, images, index, draws):
            return images.pixels[index] / 255

    monkeypatch.setitem(DISTORTIONS, "blur", Blur)
    assert load("distortion: {blur: {radius_px: 2.0}}\n").distortion == Blur(radius_px=2.0)
    assert load("distortion: blur\ndistort: {radius_px: 2.0}\n").distortion.radius_px == 2
    assert load("", "distortion=blur", "distort.radius_px=2").distortion.radius_px == 2
    assert check({"distortion": "blur"}, ConfigSource("x")).title == "ST-CNN Aff on blur"


# Durations.


@pytest.mark.parametrize(
    ("text", "override", "duration"),
    [
        ("train: {epochs: 3}\n", "train.steps=5", (None, 5)),
        ("train: {steps: 3}\n", "train.epochs=5", (5, None)),
        ("train: {epochs: 3, log_every: 2}\n", "train.epochs=5", (5, None)),
        ("recipe: paper\n", "train.epochs=5", (5, None)),
        (whole(), "train.steps=5", (None, 5)),
        (whole(recipe="paper"), "train.epochs=5", (5, None)),
    ],
)
def test_duration_on_the_command_line_takes_the_place_of_the_files(load, text, override, duration):
    train = load(text, override).train
    assert (train.epochs, train.steps) == duration


def test_no_duration_on_the_command_line_leaves_the_files(load):
    assert load("train: {epochs: 3}\n", "train.steps=null").train.epochs == 3


@pytest.mark.parametrize("text", ["", "train: {epochs: 3}\n", "train: {steps: 3}\n"])
@pytest.mark.parametrize("turned", [False, True])
def test_two_durations_on_the_command_line_are_refused(problems, text, turned):
    overrides = ["train.epochs=5", "train.steps=7"]
    (problem,) = problems(text, *(reversed(overrides) if turned else overrides))
    assert problem.endswith("give either epochs or steps, not both or none")


def test_problems_stand_in_the_order_of_the_file_and_the_command_line_comes_last(problems):
    text = (
        "model:\n  dropout: -1\nseed: -1\ntrain:\n  momentum: 2\n  epochs: 1\n  epochs: 2\nx: 1\n"
    )
    told = problems(text, "evaluate.draws=0", "train.batch_size")
    places = [problem.split(": ")[0] for problem in told]
    assert places == [
        *(f"c.yaml:{line}" for line in (2, 3, 5, 7, 8)),
        "--set train.batch_size",
        "--set evaluate.draws=0",
    ]


def test_problems_of_a_file_with_a_space_in_its_name_stand_in_order(load, tmp_path):
    (tmp_path / "my c.yaml").write_text("seed: -1\ntrain:\n  epochs: 1\n  epochs: 2\n")
    with pytest.raises(ConfigError) as caught:
        load_config("my c.yaml", ["evaluate.draws"])
    places = [problem.split(": ")[0] for problem in caught.value.problems]
    assert places == ["my c.yaml:1", "my c.yaml:4", "--set evaluate.draws"]


def test_tenth_line_comes_after_the_second(problems):
    told = problems("\nseed: -1\n" + "\n" * 7 + "x: 1\n")
    assert [problem.split(": ")[0] for problem in told] == ["c.yaml:2", "c.yaml:10"]


def test_file_is_named_as_the_user_named_it(load, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.yaml").write_text("seed: -1\n")
    for name in ("sub/c.yaml", str(tmp_path / "sub" / "c.yaml")):
        with pytest.raises(ConfigError) as caught:
            load_config(name)
        assert caught.value.problems == [f"{name}:1: seed is -1; it must be at least 0"]


@pytest.mark.parametrize("override", ["seed", "=3", "train..epochs=3", ".seed=3", "train.=3", ""])
def test_malformed_override_is_told_with_the_right_form(problems, override):
    (problem,) = problems("", override)
    assert problem == (
        f"--set {override}: write it as section.key=value, for example train.epochs=5"
    )


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("train.epochs=[1", "'[1' is not a value YAML can read"),
        ("seed=!!python/name:os.system", "is not a value YAML can read"),
        ("seed=!!bool maybe", "is not a value YAML can read"),
        ("train.epoch=3", "unknown key train.epoch (did you mean epochs?)"),
        (
            "backbone=CNM",
            "backbone is 'CNM'; it can be FCN, CNN, tutorial, DCN, Inception, strided "
            "(did you mean CNN?)",
        ),
        ("train.learning_rate=fast", "train.learning_rate is 'fast'; it must be a number"),
        ("train.learning_rate=nan", "train.learning_rate is 'nan'; it must be a number"),
        (
            "distortion=RST",
            "distortion is 'RST'; it can be R, RTS, P, E, T, TC, crop, none (did you mean RTS?)",
        ),
        ("distort.max_shift=3.0", "unknown key distort.max_shift (did you mean max_shift_px?)"),
        ("distort=3", "distort is 3; it must be a section of `key: value` lines"),
        ("distort.canvas_px=27", "distort.canvas_px is 27; "),
        (
            "distortion.R.canvas_px=30",
            "distortion is RTS, so distortion.R.canvas_px has no meaning; "
            "it goes with distortion=R",
        ),
        ("transform.TPS.side=5", "transform is Aff, so transform.TPS.side has no meaning"),
        (
            "backbone.localisation_filters=48",
            "backbone is CNN, so backbone.localisation_filters has no meaning; "
            "write backbone.CNN.localisation_filters",
        ),
        (
            "backbone.CNM.dropout=0",
            "backbone.CNM.dropout has no meaning; write backbone.CNN.dropout",
        ),
        ("data.source.folder.path=x", "data.source is mnist, so data.source.folder.path has no"),
        ("data.source=embedded", "data.source: embedded"),
        ("data.source=folder", "data.source.folder.path is missing"),
        ("given.seed=3", "given is written by the program"),
        ("train=", "train is None; it must be a section of `key: value` lines"),
        ("seed.x=3", "seed is {'x': 3}; it must be a whole number"),
        ("foo.bar=3", "unknown key foo; known here: recipe, seed"),
        ("Train.epochs=3", "unknown key Train (did you mean train?)"),
    ],
)
def test_mistake_in_an_override_names_the_override(problems, override, told):
    (problem,) = problems("seed: 1\n", override)
    assert problem.startswith(f"--set {override}: ")
    assert told in problem


def test_self_referring_override_is_refused(problems):
    assert problems("", "model.filters=&a [*a, *a]")


# Advice that can be followed.


@pytest.mark.parametrize("filters", ["[64]", "[1, 2, 3]", "[]"])
def test_list_of_the_wrong_length_is_told_how_long_it_must_be(problems, filters):
    told = problems(f"model: {{filters: {filters}}}\n")
    assert len(told) == 1
    assert "a list of 2" in told[0]


@pytest.mark.parametrize(
    ("section", "key", "text", "advice"),
    [("train", "batch_size", "1e2", "100"), ("train", "learning_rate", "1e-3", "0.001")],
)
def test_number_that_yaml_reads_as_text_is_told_in_a_form_that_works(
    load, problems, section, key, text, advice
):
    (problem,) = problems(f"{section}: {{{key}: {text}}}\n")
    assert problem.endswith(f"(YAML reads {text} as text: write {advice})")
    assert getattr(getattr(load(f"{section}: {{{key}: {advice}}}\n"), section), key) == float(
        advice
    )


def test_bound_is_told_in_full(problems):
    (problem,) = problems(f"seed: {2**63}\n")
    assert str(2**63 - 1) in problem or problem.endswith(f"less than {2**63}")


def test_a_key_without_its_section_is_told_with_it(problems):
    (problem,) = problems("seed: 1\n", "epochs=3")
    assert problem.endswith("unknown key epochs (did you mean train.epochs?)")
