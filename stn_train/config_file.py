"""YAML files to configs: find the file, read it, say everything that is wrong with it, by line."""

import difflib
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from stn_train.config import SECTIONS, Config, ModelSettings, TrainSettings
from stn_train.distortions import DISTORTIONS
from stn_train.errors import ConfigError
from stn_train.settings import Settings
from stn_train.shipped import config_directories, shipped_configs

MAX_CONFIG_BYTES = 100_000
"""A config is a page of text; anything larger is another file."""

MAX_DEPTH = 10

DEFAULTS = Config()

Key = tuple[str, ...]


class Source:
    """Where each key of the config data was written, for messages."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.places: dict[Key, str] = {}

    def of(self, key: Key) -> str:
        """The file and line of a key, or of the section it would stand in."""
        while key and key not in self.places:
            key = key[:-1]
        return self.places.get(key, self.name)


def load_config(name: str, overrides: Sequence[str] = ()) -> Config:
    """The config in a file, with ``section.key=value`` overrides.

    name: a path, or the bare name of a config in the working directory or in the package.
    Raises ConfigError with every problem found.
    """
    path = find_config(name)
    source = Source(path.name if Path(name).name == name else str(path))
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ConfigError([f"{path}: larger than {MAX_CONFIG_BYTES:,} bytes: not a config"])
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: cannot be read: {error}"]) from None
    data, problems = parse_yaml(text, source)
    return check(data, source, [*problems, *apply_overrides(data, overrides, source)])


def changed_config(config: Config, overrides: Sequence[str]) -> Config:
    """The config of a run, with ``section.key=value`` overrides; raises ConfigError likewise."""
    data, source = config.as_dict(), Source("the run's config")
    return check(data, source, apply_overrides(data, overrides, source))


def check(data: dict[str, Any], source: Source, problems: Sequence[str] = ()) -> Config:
    """The config that plain data describes; raises ConfigError, earlier problems included."""
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        found = [
            " ".join(describe(details, source, data).splitlines())  # a key may have line breaks
            for details in error.errors(include_url=False)
            if details["type"] != "invalid_key" or not problems  # told while parsing, with its line
        ]
        # Each once, in the order of the file's lines, then those of the command line.
        raise ConfigError(sorted(dict.fromkeys([*problems, *found]), key=line_number)) from None
    if problems:
        raise ConfigError(sorted(problems, key=line_number))
    return config


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


def parse_yaml(text: str, source: Source) -> tuple[dict[str, Any], list[str]]:
    """Data and problems of a YAML text; notes in ``source`` where each key stands."""
    try:
        depth = 0
        for event in yaml.parse(text, yaml.SafeLoader):
            place = (
                f"{source.name}:{event.start_mark.line + 1}" if event.start_mark else source.name
            )
            if isinstance(event, yaml.AliasEvent):
                return {}, [f"{place}: aliases (*name) are not allowed in a config"]
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:  # the YAML reader takes minutes over thousands of brackets
                return {}, [f"{place}: nested too deeply for a config"]
        root = yaml.compose(text, yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        return {}, [f"{source.name}{line}: not valid YAML: {error.problem or error.context}"]
    # KeyError and AttributeError: an explicit tag that the value does not suit, `!!bool maybe`
    except (yaml.YAMLError, ValueError, KeyError, AttributeError) as error:
        return {}, [f"{source.name}: not valid YAML: {' '.join(str(error).split())}"]
    except RecursionError:
        return {}, [f"{source.name}: nested too deeply for a config"]
    if root is None:
        return {}, []
    if not isinstance(root, yaml.MappingNode):
        return {}, [f"{source.name}:1: a config is a list of `key: value` lines"]
    problems = list(note_places(root, (), source))
    return data, problems


def note_places(node: yaml.MappingNode, section: Key, source: Source) -> Iterator[str]:
    """Note where each key of a mapping stands; yields problems of the keys themselves."""
    seen: dict[str, int] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        key = str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else ""
        if key_node.tag != "tag:yaml.org,2002:str":
            yield f"{source.name}:{line}: a key must be a plain word, got {key or 'a collection'}"
            continue
        if key in seen:
            dotted = ".".join((*section, key))
            yield f"{source.name}:{line}: {dotted} is given twice, first in line {seen[key]}"
        seen[key] = line
        source.places[(*section, key)] = f"{source.name}:{line}"
        if isinstance(value_node, yaml.MappingNode):
            yield from note_places(value_node, (*section, key), source)


def apply_overrides(data: dict[str, Any], overrides: Sequence[str], source: Source) -> list[str]:
    """Put overrides into the data; returns problems."""
    # Those without a section first: they decide what the sections mean.
    ordered = sorted(overrides, key=lambda text: "." in text.partition("=")[0])
    return [problem for each in ordered for problem in apply_override(data, each, source)]


def apply_override(data: dict[str, Any], override: str, source: Source) -> list[str]:
    """Put ``section.key=value`` into the data; returns problems."""
    dotted, equals, text = override.partition("=")
    key = tuple(dotted.strip().split("."))
    if not equals or not all(key):
        return [f"--set {override}: write it as section.key=value, for example train.epochs=5"]
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, KeyError, AttributeError, RecursionError):
        return [f"--set {override}: {text!r} is not a value YAML can read"]
    if isinstance(value, str) and is_number(value):
        value = float(value)  # on a command line 1e-4 means the number
    drop_what_it_replaces(data, key, value, source)
    section = data
    for depth, name in enumerate(key[:-1], start=1):
        if not isinstance(section.get(name), dict):
            section[name] = {}
            source.places[key[:depth]] = f"--set {override}"
        section = section[name]
    section[key[-1]] = value
    source.places[key] = f"--set {override}"
    return []


RECIPE_SECTIONS = {"train": TrainSettings.model_fields, "model": ModelSettings.model_fields}
"""The sections that a recipe has settings for, and their fields."""


def drop_what_it_replaces(data: dict[str, Any], key: Key, value: Any, source: Source) -> None:
    """Remove what the file says and an override of ``key`` makes meaningless."""
    changed = len(key) == 1 and value != data.get(key[0], getattr(DEFAULTS, key[0], None))
    if changed and key == ("distortion",):
        data.pop("distort", None)  # the parameters of another distortion
    if changed and value is not None and key in (("recipe",), ("backbone",)):
        for name, fields in RECIPE_SECTIONS.items():
            section = data.get(name)
            if isinstance(section, dict) and fields.keys() <= section.keys():
                del data[name]  # a run's config.yaml: every key stands there, set by another recipe
    train = data.get("train")
    if key in (("train", "epochs"), ("train", "steps")) and value is not None:
        other = "steps" if key[1] == "epochs" else "epochs"
        if isinstance(train, dict) and not source.of(("train", other)).startswith("--set"):
            train.pop(other, None)  # one duration takes the place of the other


def line_number(problem: str) -> float:
    """The line that a problem names; those of the command line come last."""
    match = re.match(r"(?!--set ).*?:(\d+): ", problem)
    return int(match[1]) if match else math.inf


def describe(details: ErrorDetails, source: Source, data: dict[str, Any]) -> str:
    """One validation error in the user's words: where, which key, what is there, what may be."""
    location = tuple(str(part) for part in details["loc"] if not isinstance(part, int))
    place, key = source.of(location), ".".join(location)
    got, context = details["input"], details.get("ctx", {})
    match details["type"]:
        case "extra_forbidden":
            known = known_keys(location[:-1], data.get("distortion", DEFAULTS.distortion))
            fields = {f: f"{name}.{f}" for name in SECTIONS for f in SECTIONS[name].model_fields}
            sectioned = fields.get(key)
            hint = f" (did you mean {sectioned}?)" if sectioned else nearest(location[-1], known)
            hint = hint or f"; known here: {', '.join(known)}"
            return f"{place}: unknown key {key}{hint}"
        case "literal_error":
            expected = context["expected"]
            choices = expected if isinstance(expected, str) else ", ".join(expected)
            hint = nearest(str(got), choices.replace("'", "").replace(" or ", ", ").split(", "))
            return f"{place}: {key} is {got!r}; it can be {choices}{hint}"
        case kind if kind in BOUNDS:
            bound = next(iter(context.values()))
            shown = bound if isinstance(bound, int) else f"{bound:g}"
            return f"{place}: {key} is {got!r}; it must be {BOUNDS[kind]} {shown}"
        case "missing" | "too_long":  # the only list of a fixed length
            return f"{place}: {key} must be a list of 2, such as [64, 64]"
        case "st_output_px":
            return f"{source.of(('model', 'st_output_px'))}: {details['msg']}"
        case kind if kind in WANTED:
            hint = ""
            if isinstance(got, str) and is_number(got) and kind in ("int_type", "float_type"):
                value = int(float(got)) if float(got).is_integer() else float(got)
                number = yaml.safe_dump(value).split()[0]
                hint = f" (YAML reads {got} as text: write {number})"
            return f"{place}: {key} is {got!r:.80}; it must be {WANTED[kind]}{hint}"
        case _:
            return f"{place}: {key or 'the config'}: {details['msg']}"


BOUNDS = {
    "greater_than_equal": "at least",
    "greater_than": "more than",
    "less_than_equal": "at most",
    "less_than": "less than",
}
"""How a number is bounded, by the type of pydantic's error."""

WANTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "model_type": "a section of `key: value` lines",
    "model_attributes_type": "a section of `key: value` lines",
    "tuple_type": "a list, such as [64, 64]",
}
"""What a value must be, by the type of pydantic's error."""


def known_keys(section: Key, distortion: str) -> list[str]:
    """The keys of a section of the config; those of `distort` depend on the distortion."""
    if section == ("distort",):
        return list(DISTORTIONS[distortion].model_fields)
    settings: Settings = DEFAULTS
    for name in section:
        settings = getattr(settings, name)
    return list(type(settings).model_fields)


def nearest(name: str, known: Sequence[str]) -> str:
    """A hint at the known name that was probably meant, or nothing."""
    lowered = {candidate.lower(): candidate for candidate in known}
    match = difflib.get_close_matches(name.lower(), lowered, n=1)
    return f" (did you mean {lowered[match[0]]}?)" if match else ""


def is_number(text: str) -> bool:
    """Whether Python reads the text as a finite number."""
    try:
        return float(text) - float(text) == 0
    except ValueError:
        return False
