"""Cells of the tables of results: their names, and the settings that put a config in one."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

from stn_train.data.distortions import DISTORTIONS
from stn_train.models.placements import file_name, model_name, overrides_for


class Cell(NamedTuple):
    """An experiment's place in a table of results: its names."""

    distortion: str
    backbone: str
    transform: str
    """The transform of the only spatial transformer; of several, their arrangement: 2xAff."""
    subject: str = ""
    """The number of the class that the experiment is about; empty where it is about all."""

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Self:
        """The cell that `as_dict` wrote among other data; names that are missing are None."""
        distortion, backbone, transform = map(data.get, ("distortion", "backbone", "transform"))
        names: Any = distortion, backbone, transform, data.get("subject", "")
        return cls(*names)

    def as_dict(self) -> dict[str, str]:
        """The names by their keys, the subject only where there is one."""
        return {key: name for key, name in self._asdict().items() if name}

    @property
    def model(self) -> str:
        """The model as tables name it: FCN, ST-CNN Aff, 2xST-FCN Aff; of a subject FCN (3)."""
        about = f" ({self.subject})" if self.subject else ""
        return f"{model_name(self.backbone, self.transform)}{about}"

    @property
    def title(self) -> str:
        """CNN on RTS, ST-CNN Aff on RTS; without a distortion CNN on undistorted images."""
        undistorted = self.distortion == "none"
        return f"{self.model} on {'undistorted images' if undistorted else self.distortion}"

    @property
    def file_name(self) -> str:
        """The name of its config and its runs: rts_affine, rts_affine_fcn, rts_cnn."""
        if self.transform == "none":
            return f"{self.distortion}_{self.backbone}".lower()
        suffix = "" if self.backbone == "CNN" else f"_{self.backbone.lower()}"
        return f"{self.distortion.lower()}_{file_name(self.transform)}{suffix}"

    @property
    def overrides(self) -> list[str]:
        """Overrides, as ``key=value``, that turn an experiment of another cell into one of this.

        They do not set the subject.
        """
        chosen_names = [distortion_override(self.distortion), f"backbone={self.backbone}"]
        return chosen_names + overrides_for(self.transform)

    def __str__(self) -> str:
        """RTS:CNN:Aff, as the command line takes it; with a subject RTS:CNN:Aff:3."""
        return ":".join(filter(None, self))


def distortion_override(label: str) -> str:
    """The override, as ``key=value``, for the distortion with this `Distortion.label`."""
    name = label.rstrip("0123456789")
    if label in DISTORTIONS or name not in DISTORTIONS:
        return f"distortion={label}"
    return f"distortion={{{name}: {{canvas_px: {label.removeprefix(name)}}}}}"


def experiment_title(cell: Cell, task: str, source: str) -> str:
    """The title of an experiment; it names the task and the source unless they are the paper's."""
    unusual = [] if task == "classification" else [task]
    unusual += [] if source == "mnist" else [source]
    return ", ".join([cell.title, *unusual])
