"""What a network is asked to do: its inputs, targets, loss and score."""

from stn_train.tasks.addition import Addition
from stn_train.tasks.base import Task
from stn_train.tasks.classification import Classification
from stn_train.tasks.colocalisation import Colocalisation
from stn_train.tasks.extrusion import Extruded
from stn_train.tasks.recognition import Recognition

TASKS: dict[str, type[Task]] = {
    "classification": Classification,
    "addition": Addition,
    "extruded": Extruded,
    "recognition": Recognition,
    "colocalisation": Colocalisation,
}
"""What `task` in a config can be."""
