"""Where spatial transformers stand in a network, and what an arrangement of them is called.

A place is ``front``, before the classifier, or ``after_1``, ``after_2``, ...: behind that stage of
it (`stn_train.models.backbone.Stage`).
"""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, NamedTuple

from pydantic import Field

from stn_train.geometry.transforms import TRANSFORMS, Transform
from stn_train.settings import Settings, chosen, name_of

FRONT = "front"
"""The place before the classifier."""


def after(stage: int) -> str:
    """The place behind a stage; the first is 1."""
    return f"after_{stage}"


class Placement(Settings):
    """The spatial transformers at a place of the network.

    Where a setting is null, those in front follow `model`. The others then have its st_iterations,
    and keep the size of the map.
    """

    count: Annotated[int, Field(ge=1, le=8)] = 1
    """How many work in parallel, on all channels, each with weights of its own unless
    shared_localisation is true; their outputs are concatenated (section 3.4)."""
    transform: Annotated[Transform, *chosen(TRANSFORMS)] | None = None
    """What they can do; null for the config's transform. Where that is none, there are no spatial
    transformers anywhere."""
    st_iterations: Annotated[int, Field(ge=1, le=8)] | None = None
    """How often each localisation network runs; null for model.st_iterations."""
    st_output_px: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Side of the maps that they sample; null for model.st_output_px in front, behind a stage for
    st_pool times the size of its maps."""
    st_pool: Annotated[int, Field(ge=1, le=8)] | None = None
    """Average pooling of their outputs; null for model.st_pool in front, behind a stage for 1."""
    localisation_pool: Annotated[int, Field(ge=1, le=4)] | None = None
    """The localisation networks see the maps average-pooled by this; null for
    model.localisation_pool in front, behind a stage for 1."""
    shared_localisation: bool = False
    """All share one localisation network, up to its output layer, of which each has its own (A.6).
    """
    tiled: bool = False
    """Windows of a fixed scale start side by side, at the centres of tiles that cover the map
    (A.6), instead of all in the middle."""


Placements = Mapping[str, Placement]
"""The spatial transformers of a network, by place."""

ONE_IN_FRONT: dict[str, Placement] = {FRONT: Placement()}


class Group(NamedTuple):
    """Transformers at one place, as a name tells of them."""

    place: str
    parallel: int
    """How many."""
    transform: str
    """Name in TRANSFORMS."""

    def __str__(self) -> str:
        """Aff, 2xAff, Aff@1."""
        count = f"{self.parallel}x" if self.parallel > 1 else ""
        where = "" if self.place == FRONT else f"@{self.place.removeprefix('after_')}"
        return f"{count}{self.transform}{where}"


def arrangement(placements: Placements, transform: Transform | None) -> str:
    """The name of an arrangement: Aff, 2xAff, Aff@1, Aff+2xTPS@1; none without a transform.

    transform: of the placements that name none themselves.
    """
    if transform is None:
        return "none"
    groups = [
        Group(place, each.count, name_of(TRANSFORMS, each.transform or transform))
        for place, each in placements.items()
    ]
    return "+".join(map(str, sorted(groups, key=lambda group: stage_of(group.place))))


def groups_in(name: str) -> list[Group]:
    """The transformers that the name of an arrangement tells of; none for any other name."""
    found = [re.fullmatch(r"(?:(\d+)x)?(.+?)(?:@(\d+))?", part) for part in name.split("+")]
    return [
        Group(after(int(match[3])) if match[3] else FRONT, int(match[1] or 1), match[2])
        for match in found
        if match and match[2] != "none"
    ]


def stage_of(place: str) -> int:
    """The number of the stage that a place is behind; 0 for the front."""
    number = place.removeprefix("after_")
    return int(number) if number.isdecimal() else 0


def overrides_for(name: str) -> list[str]:
    """What to set for an arrangement, as ``key=value``, with the defaults of all else."""
    groups = groups_in(name)
    if not groups:
        return ["transform=none"]
    first, *_ = groups
    overrides = [f"transform={first.transform}"]
    if [(each.place, each.parallel) for each in groups] != [(FRONT, 1)]:
        told = ", ".join(told_in_yaml(each, first.transform) for each in groups)
        overrides.append(f"transformers={{{told}}}")
    return overrides


def told_in_yaml(group: Group, transform: str) -> str:
    """The entry of a group in a config whose transform is given."""
    own = [f"count: {group.parallel}"] if group.parallel > 1 else []
    own += [f"transform: {group.transform}"] if group.transform != transform else []
    return f"{group.place}: {{{', '.join(own)}}}"


def model_name(backbone: str, transform: str) -> str:
    """A model as the paper's tables name it: FCN, ST-CNN Aff, 2xST-FCN Aff.

    With transformers behind stages: ST-CNN Aff@1, ST-CNN Aff+Aff@1.
    """
    groups = groups_in(transform)
    if not groups:
        return backbone
    if len(groups) > 1:
        return f"ST-{backbone} {transform}"
    many = f"{groups[0].parallel}x" if groups[0].parallel > 1 else ""
    return f"{many}ST-{backbone} {transform.removeprefix(many)}"


def file_name(transform: str) -> str:
    """An arrangement in the name of a file: affine, 2xaffine, affine@1, affine+tps@1."""

    def written(group: Group) -> str:
        kind = TRANSFORMS.get(group.transform)
        return str(group._replace(transform=kind.file_name if kind else group.transform.lower()))

    return "+".join(map(written, groups_in(transform)))


def refuse_unknown(placements: Placements, known: Sequence[str]) -> None:
    """Raise ValueError, naming the key, for a place that a network does not have."""
    if not placements:
        raise ValueError(
            "transformers is empty; name a place, as in {front: {}}, or set transform to none"
        )
    for place in placements:
        if place not in known:
            raise ValueError(
                f"transformers.{place} is not a place in this network; with this backbone it can "
                f"be {', '.join(known)}"
            )
