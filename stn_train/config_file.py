"""From YAML files and ``--set`` to configs. Every mistake is reported, by file and line."""

import difflib
import functools
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
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
from stn_train.errors import ConfigError
from stn_train.models.backbones import BACKBONES
from stn_train.recipes import DURATIONS
from stn_train.settings import name_and_settings, name_of
from stn_train.shipped_configs import config_directories, shipped_configs

MAX_CONFIG_BYTES = 100_000
"""A config is a page of text; a larger file is something else."""

MAX_DEPTH = 12
"""Collections within collections; the YAML reader takes minutes over thousands of brackets."""

DEFAULTS = Config()

Key = tuple[str, ...]


class Source:
    """Where each key of the config data was written, and how, for messages."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.places: dict[Key, str] = {}
        self.written: dict[Key, str] = {}

    def note(self, key: Key, place: str, written: str) -> None:
        """Note where a key stands, and how it was written."""
        self.places[key], self.written[key] = place, written

    def of(self, key: Key) -> str:
        """The file and line of a key, or of the section it would stand in."""
        while key and key not in self.places:
            key = key[:-1]
        return self.places.get(key, self.name)

    def as_written(self, key: Key) -> Key:
        """A key of the present layout as the user wrote it, perhaps in the former one."""
        former = {"distortion": "distort", "backbone": "model"}.get(key[0] if key else "")
        if former and len(key) > 1 and key not in self.places:
            written = (former, *key[2:])
            return written if written in self.places else key
        return key


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
    return overridden(data, overrides, source, problems)


def changed_config(config: Config, overrides: Sequence[str]) -> Config:
    """The config of a run, with ``section.key=value`` overrides; raises ConfigError likewise."""
    return overridden(config.as_dict(), overrides, Source("the run's config"), [])


def overridden(
    data: dict[str, Any], overrides: Sequence[str], source: Source, problems: list[str]
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
    apply_overrides(given, overrides, Source("given"))
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


def parse_yaml(text: str, source: Source) -> tuple[dict[str, Any], list[str]]:
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


def note_places(node: yaml.MappingNode, section: Key, source: Source) -> Iterator[str]:
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


def apply_overrides(data: dict[str, Any], overrides: Sequence[str], source: Source) -> list[str]:
    """Put overrides into the data, in place; returns problems."""
    # Those without a section first: they decide what the sections mean.
    ordered = sorted(overrides, key=lambda text: "." in text.partition("=")[0])
    return [problem for each in ordered for problem in apply_override(data, each, source)]


def apply_override(data: dict[str, Any], override: str, source: Source) -> list[str]:
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
            return [f"{place}: {what} is {other}, so {'.'.join(written)} has no meaning"]
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


def line_number(problem: str) -> float:
    """The line that a problem names; those of the command line come last."""
    match = re.match(r"(?!--set ).*?:(\d+): ", problem)
    return int(match[1]) if match else math.inf


def describe(details: ErrorDetails, source: Source, data: dict[str, Any]) -> str:
    """One validation error as a message: the place, the key, the value, and what is allowed."""
    location = tuple(str(part) for part in details["loc"] if not isinstance(part, int))
    location = source.as_written(location)
    place, key = source.of(location), source.written.get(location, ".".join(location))
    got, context = details["input"], details.get("ctx", {})
    match details["type"]:
        case "extra_forbidden":
            known = known_keys(location[:-1], data)
            sectioned = {field: f"{section}.{field}" for section, field in fields_of_sections()}
            elsewhere = sectioned.get(key)
            hint = f" (did you mean {elsewhere}?)" if elsewhere else nearest(location[-1], known)
            hint = hint or f"; known here: {', '.join(known) or 'nothing'}"
            return f"{place}: unknown key {key}{hint}"
        case "literal_error":
            expected = context["expected"]
            choices = expected if isinstance(expected, str) else ", ".join(expected)
            if isinstance(got, dict) and len(got) == 1:
                (got,) = got
            hint = nearest(str(got), choices.replace("'", "").replace(" or ", ", ").split(", "))
            return f"{place}: {key} is {got!r}; it can be {choices}{hint}"
        case kind if kind in BOUNDS:
            bound = next(iter(context.values()))
            shown = bound if isinstance(bound, int) else f"{bound:g}"
            return f"{place}: {key} is {got!r}; it must be {BOUNDS[kind]} {shown}"
        case "missing" if isinstance(details["loc"][-1], str):
            return f"{place}: {key} is missing; it has no default"
        case "missing" | "too_long":  # the only list of a fixed length
            return f"{place}: {key} must be a list of 2, such as [64, 64]"
        case "canvas_px":
            name, _ = chosen_in(present_layout(data), "distortion")
            location = source.as_written(("distortion", name, "canvas_px"))
            key = source.written.get(location, ".".join(location))
            return f"{source.of(location)}: {key}{details['msg'].removeprefix('canvas_px')}"
        case "sizes":
            named = tuple(details["msg"].split()[0].split("."))
            return f"{source.of(named)}: {details['msg']}"
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
    "string_too_short": "a text that is not empty",
    "bool_type": "true or false",
    "model_type": "a section of `key: value` lines",
    "model_attributes_type": "a section of `key: value` lines",
    "tuple_type": "a list, such as [64, 64]",
}
"""What a value must be, by the type of pydantic's error."""


def fields_of_sections() -> list[Key]:
    """The keys of all sections: (section, key)."""
    sections = {name: getattr(DEFAULTS, name) for name in Config.model_fields}
    return [
        (name, field)
        for name, section in sections.items()
        if isinstance(section, BaseModel) and (name,) not in REGISTRIES
        for field in type(section).model_fields
    ]


def known_keys(section: Key, data: dict[str, Any]) -> list[str]:
    """The known keys of a section of the config; those of a choice depend on its name."""
    if section[:1] in (("distort",), ("model",)) and len(section) == 1:
        chosen = "distortion" if section == ("distort",) else "backbone"
        name, _ = chosen_in(present_layout(data), chosen)
        kind = REGISTRIES[chosen,].get(name) if isinstance(name, str) else None
        own = list(kind.model_fields) if kind else []
        return own if section == ("distort",) else [*type(DEFAULTS.model).model_fields, *own]
    registry = REGISTRIES.get(section[:-1])
    if registry is not None:
        return list(registry[section[-1]].model_fields)
    settings: BaseModel = DEFAULTS
    for name in section:
        settings = getattr(settings, name)
    return [name for name in type(settings).model_fields if name != "given"]


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
