"""What can go wrong in a way the user can mend, and the exit code each kind ends with."""


class StnError(Exception):
    """A problem that is reported in plain words, without a traceback."""

    exit_code = 1


class ConfigError(StnError):
    """The config or the command line asks for something that does not exist.

    Holds every problem found, so that all can be mended at once.
    """

    exit_code = 2

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class DataError(StnError):
    """Images, or other files that ship or are downloaded, are missing or damaged."""

    exit_code = 3


class CheckpointError(StnError):
    """A checkpoint or run directory cannot be read."""

    exit_code = 4


class DivergenceError(StnError):
    """The loss is no longer a number."""

    exit_code = 5


class RunDirectoryError(StnError):
    """The run directory is already taken."""

    exit_code = 6


class InUseError(RunDirectoryError):
    """Another process is training in the run directory."""
