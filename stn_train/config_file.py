"""From YAML files and ``--set`` to configs. Every mistake is reported, by file and line."""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import ComposerError

from stn_train.config import (
    FORMER_KEYS,
    REGISTRIES,
    Config,
    chosen_in,
    former_backbone_keys,
    present_layout,
    recorded,
)
from stn_train.config_errors import DEFAULTS, ConfigSource, Key, check, is_number, nearest
from stn_train.errors import ConfigError
from stn_train.models.backbones import BACKBONES
from stn_train.recipes import DURATIONS
from stn_train.settings import name_and_settings, name_of
from stn_train.shipped_configs import config_directories, shipped_configs

MAX_CONFIG_BYTES = 100_000
"""A config is a page of text; a larger file is something else."""

MAX_DEPTH = 12
"""Collections within collections; the YAML reader takes minutes over thousands of brackets."""


def load_config(name: str, overrides: Sequence[str] = ()) -> Config:
    """The config in a file, with ``section.key=value`` overrides.

    name: a path, or the bare name of a config in the working directory or in the package.
    Raises ConfigError with every problem found.
    """
    path = find_config(name)
    source = ConfigSource(path.name if Path(name).name == name else str(path))
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ConfigError([f"{path}: larger than {MAX_CONFIG_BYTES:,} bytes: not a config"])
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: cannot be read: {error}"]) from None
    data, problems = parse_yaml(text, source)
    return overridden(data, overrides, source, problems)


def changed_config(config: Config, overrides: Sequence[str]) -> Config:
    """The config of a run, with ``section.key=value`` overrides; raises ConfigError likewise."""
    return overridden(config.as_dict(), overrides, ConfigSource("the run's config"), [])


def overridden(
    data: dict[str, Any], overrides: Sequence[str], source: ConfigSource, problems: list[str]
) -> Config:
    """The config that data and overrides describe; raises ConfigError, earlier problems included.

    Of data that a run recorded, all settings stay as they were resolved then; but where an
    override changes what they were resolved from, they are resolved anew from what was given.
    """
    if "given" not in data and not data.keys() >= FORMER_KEYS:
        data = present_layout(data)
        problems = [*problems, *apply_overrides(data, overrides, source)]
        return check(data, source, problems)
    data = recorded(data)
    given, resolved = data["given"], {key: data[key] for key in data if key != "given"}
    if not isinstance(given, dict):
        raise ConfigError([f"{source.of(('given',))}: given must be a section"])
    if any(resolves_anew(override, resolved) for override in overrides):
        return check(given, source, [*problems, *apply_overrides(given, overrides, source)])
    if any(override.strip().startswith("data.source") for override in overrides):
        forget_canvas(resolved, given)
    problems = [*problems, *apply_overrides(resolved, overrides, source)]
    apply_overrides(given, overrides, ConfigSource("given"))
    return check(resolved | {"given": given}, source, problems)


def resolves_anew(override: str, data: dict[str, Any]) -> bool:
    """Whether an override changes the recipe, or the backbone, which it depends on."""
    dotted, _, text = override.partition("=")
    key = dotted.strip()
    if key not in ("recipe", "backbone"):
        return False
    try:
        return not is_same_choice(value_of(text), data.get(key))
    except ValueError:
        return False


def forget_canvas(resolved: dict[str, Any], given: dict[str, Any]) -> None:
    """Drop a canvas that nobody gave, in place: its size follows from the source's images."""
    if "canvas_px" not in chosen_in(given, "distortion")[1]:
        chosen_in(resolved, "distortion")[1].pop("canvas_px", None)


def is_same_choice(value: Any, present: Any) -> bool:
    """Whether a value names the present choice."""
    try:
        return bool(value == name_and_settings(present)[0])
    except ValueError:
        return False


def find_config(name: str) -> Path:
    """The file that ``name`` stands for; raises ConfigError with the nearest names."""
    if not name:
        raise ConfigError(["--config is empty: give a file name; --list-configs shows them"])
    names = [name] if name.endswith((".yaml", ".yml")) else [name, f"{name}.yaml"]
    directories = config_directories() if Path(name).name == name else [Path()]
    try:
        for directory in directories:
            for candidate in names:
                if (directory / candidate).is_file():
                    return directory / candidate
    except (OSError, ValueError) as error:  # a name too long for the system, or with a NUL in it
        raise ConfigError([f"--config {name!r}: {error}"]) from None
    hint = nearest(names[-1], [path.name for path in shipped_configs()])
    looked = " or ".join(str(directory.resolve()) for directory in directories)
    raise ConfigError([f"no config {name} in {looked}{hint}; --list-configs shows them all"])


class ConfigLoader(yaml.SafeLoader):
    """A YAML loader that refuses aliases and deep nesting while it reads."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """A node of the document; raises ComposerError for what a config does not have."""
        if self.check_event(yaml.AliasEvent):
            raise self.refusal("aliases (*name) are not allowed in a config")
        if self.depth == MAX_DEPTH:
            raise self.refusal("nested too deeply for a config")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def refusal(self, problem: str) -> ComposerError:
        """The error for something at this place in the document."""
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        return ComposerError(None, None, problem, event.start_mark)


def parse_yaml(text: str, source: ConfigSource) -> tuple[dict[str, Any], list[str]]:
    """Data and problems of a YAML text; notes in ``source`` where each key stands."""
    try:
        loader = ConfigLoader(text)
        root = loader.get_single_node()
        # Before the data are made: that replaces merge keys (<<) by what they merge.
        problems = [*note_places(root, (), source)] if isinstance(root, yaml.MappingNode) else []
        data: Any = None if root is None else loader.construct_document(root)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        own = isinstance(error, ComposerError) and "config" in str(error.problem)
        kind = "" if own else "not valid YAML: "
        return {}, [f"{source.name}{line}: {kind}{error.problem or error.context}"]
    # KeyError and AttributeError: an explicit tag that the value does not suit, `!!bool maybe`
    except (yaml.YAMLError, ValueError, KeyError, AttributeError) as error:
        return {}, [f"{source.name}: not valid YAML: {' '.join(str(error).split())}"]
    if root is None:
        return {}, []
    if not isinstance(root, yaml.MappingNode):
        return {}, [f"{source.name}:1: a config is a list of `key: value` lines"]
    return data, problems


def note_places(node: yaml.MappingNode, section: Key, source: ConfigSource) -> Iterator[str]:
    """Note where each key of a mapping stands; yields problems of the keys themselves."""
    seen: dict[str, int] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        name = str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else ""
        if key_node.tag != "tag:yaml.org,2002:str":
            yield f"{source.name}:{line}: a key must be a plain word, got {name or 'a collection'}"
            continue
        key = (*section, name)
        if name in seen:
            yield (
                f"{source.name}:{line}: {'.'.join(key)} is given twice, first in line {seen[name]}"
            )
        seen[name] = line
        source.note(key, f"{source.name}:{line}", ".".join(key))
        if isinstance(value_node, yaml.MappingNode):
            yield from note_places(value_node, key, source)


def apply_overrides(
    data: dict[str, Any], overrides: Sequence[str], source: ConfigSource
) -> list[str]:
    """Put overrides into the data, in place; returns problems."""
    # Those without a section first: they decide what the sections mean.
    ordered = sorted(overrides, key=lambda text: "." in text.partition("=")[0])
    return [problem for each in ordered for problem in apply_override(data, each, source)]


def apply_override(data: dict[str, Any], override: str, source: ConfigSource) -> list[str]:
    """Put ``section.key=value`` into the data, in place; returns problems."""
    dotted, equals, text = override.partition("=")
    written = tuple(dotted.strip().split("."))
    if not equals or not all(written):
        return [f"--set {override}: write it as section.key=value, for example train.epochs=5"]
    try:
        value = value_of(text)
    except ValueError:
        return [f"--set {override}: {text!r} is not a value YAML can read"]
    key = present_key(written, data)
    if key is None:
        return []  # of a backbone that is not the chosen one
    section, place = data, f"--set {override}"
    if key[0] == "given":
        return [f"{place}: given is written by the program; set the key itself"]
    for depth, name in enumerate(key[:-1], start=1):
        if not isinstance(section.get(name), dict):
            if key[:depth] in REGISTRIES:
                chosen = section.get(name, default_choice(key[:depth])) or "none"
                if not isinstance(chosen, str):
                    return []  # not a choice, as the check will say
                section[name] = {chosen: {}}  # a name alone: make room for settings
            else:
                section[name] = {}
                source.note(key[:depth], place, ".".join(key[:depth]))
        section = section[name]
        if key[:depth] in REGISTRIES and key[depth] not in section:
            other = ", ".join(section)
            what = ".".join(key[:depth])
            told = f"{what} is {other}, so {'.'.join(written)} has no meaning"
            if key[depth] in REGISTRIES[key[:depth]]:
                return [f"{place}: {told}; it goes with {what}={key[depth]}"]
            known = other if other in REGISTRIES[key[:depth]] else "NAME"  # there may be none
            meant = ".".join([what, known, *(key[depth + 1 :] or key[depth:])])
            return [f"{place}: {told}; write {meant}"]
    if key in REGISTRIES and is_same_choice(value, section.get(key[-1])):
        return []
    if key in (("train", "epochs"), ("train", "steps")) and value is not None:
        (other,) = set(DURATIONS) - {key[1]}
        if not source.of(("train", other)).startswith("--set"):
            section.pop(other, None)  # one duration takes the place of the other
    section[key[-1]] = value
    source.note(key, place, dotted.strip())
    return []


def value_of(text: str) -> Any:
    """The value of a YAML text on a command line, where 1e-4 means the number.

    Raises ValueError if there is none.
    """
    try:
        value = yaml.load(text, ConfigLoader)
    except (yaml.YAMLError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(str(error)) from None
    return float(value) if isinstance(value, str) and is_number(value) else value


def default_choice(key: Key) -> str:
    """The name that is chosen where a config lacks the key of a choice."""
    return name_of(REGISTRIES[key], functools.reduce(getattr, key, DEFAULTS))


def present_key(key: Key, data: dict[str, Any]) -> Key | None:
    """A key of an override in the present layout; None for one that changes nothing.

    `distort.KEY` stands for a setting of the chosen distortion, and `model.KEY` for one of the
    chosen backbone where the key is a backbone's: the former layout, still the shorter one.
    """
    if len(key) != 2:
        return key
    if key[0] == "distort":
        return ("distortion", str(chosen_in(data, "distortion")[0]), key[1])
    if key[0] == "model" and former_backbone_keys({key[1]: None}):
        name = str(chosen_in(data, "backbone")[0])
        known = BACKBONES[name].model_fields if name in BACKBONES else {}
        return ("backbone", name, key[1]) if key[1] in known else None
    return key
