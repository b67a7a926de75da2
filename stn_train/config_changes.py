"""What differs between two configs."""

from pathlib import Path
from typing import Any, NamedTuple

from stn_train.config import Config
from stn_train.errors import ConfigError

NO_RESULT_DEPENDS_ON = ("log", "given")
"""Keys of a config in which two runs with the same result may differ."""


class Change(NamedTuple):
    """A setting that two configs have different values of."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        """The line in a message to somebody who resumes a run."""
        return f"{self.key} is {self.old} in the run, {self.new} was asked for"


def changed_settings(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[Change]:
    """The settings that differ between two configs, but for NO_RESULT_DEPENDS_ON."""
    changes = []
    for key in old | new:
        before, after = old.get(key), new.get(key)
        if before == after or (not prefix and key in NO_RESULT_DEPENDS_ON):
            continue
        if isinstance(before, dict) and isinstance(after, dict) and before.keys() & after.keys():
            changes += changed_settings(before, after, f"{prefix}{key}.")
        else:
            changes.append(Change(f"{prefix}{key}", *map(name_alone, (before, after))))
    return changes


def name_alone(value: Any) -> Any:
    """The name that a choice was made by, without its settings; any other value as it is."""
    is_choice = isinstance(value, dict) and len(value) == 1
    return next(iter(value)) if is_choice else value


def refuse_other_config(
    run: Path, old: dict[str, Any], new: Config, advice: str = "name another --out"
) -> None:
    """Raise ConfigError, naming each setting that differs, unless a run's config is the new one."""
    try:
        own = Config.from_run(old).as_dict()
    except ConfigError as error:
        told = f"{run} has a config that is not valid: {'; '.join(error.problems)}"
        raise ConfigError([told]) from None
    differences = changed_settings(own, new.as_dict())
    if differences:
        told = f"{run} was started with other settings ({advice}):"
        raise ConfigError([told, *map(str, differences)])
