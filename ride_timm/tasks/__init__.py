"""Training tasks on top of `timm.task`: one a stage."""

from ._base import ExpertTask as ExpertTask
from ._base import PartModule as PartModule
from ._base import PartTask as PartTask
from .distillation import RideDistillationTask as RideDistillationTask
from .distillation import Teacher as Teacher
from .heads import HeadModule as HeadModule
from .heads import HeadTask as HeadTask
from .ride import RideTask as RideTask
from .ride import WeightedLoss as WeightedLoss
from .router import RouterModule as RouterModule
from .router import RouterTask as RouterTask

__all__ = [
    'ExpertTask',
    'HeadModule',
    'HeadTask',
    'PartModule',
    'PartTask',
    'RideDistillationTask',
    'RideTask',
    'RouterModule',
    'RouterTask',
    'Teacher',
    'WeightedLoss',
]
