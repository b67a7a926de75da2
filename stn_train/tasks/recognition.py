"""Recognition of photographs: the paper's birds (section 4.3)."""

from torch import Tensor
from typing_extensions import override

from stn_train.tasks.base import Measure, Task
from stn_train.tasks.classification import Classification


class Recognition(Classification):
    """recognition: as classification, measured by how many answers are right, as is usual there."""

    measure = Measure("accuracy_percent", "accuracy", "%", lower_is_better=False)

    @override
    def score(self, answers: Tensor, targets: Tensor) -> Tensor:
        return answers == targets

    @override
    def identity(self) -> list[str]:
        return Task.identity(self)  # a classification's own leaves the task out
