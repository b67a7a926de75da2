"""Where configs lie: those that ship with the program, and the user's own. Needs no torch."""

from pathlib import Path


def shipped_directory() -> Path:
    """The folder of the shipped configs."""
    package = Path(__file__).parent
    shipped = package / "configs"
    # In a checkout the configs lie beside the package; in an installation inside it.
    return shipped if shipped.is_dir() else package.parent / "configs"


def config_directories() -> list[Path]:
    """Where bare names are looked up: the working directory, then the shipped configs."""
    return [Path.cwd(), shipped_directory()]


def shipped_configs() -> list[Path]:
    """The configs that ship with the program, sorted by name."""
    return sorted(shipped_directory().glob("*.yaml"))


def complete_config(beginning: str) -> list[str]:
    """The shipped configs whose names begin like this, for the shell's completion."""
    return [path.name for path in shipped_configs() if path.name.startswith(beginning)]
