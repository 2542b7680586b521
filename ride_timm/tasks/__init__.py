"""Training tasks on top of `timm.task`."""

from .ride import RideTask as RideTask
from .router import RouterModule as RouterModule
from .router import RouterTask as RouterTask

__all__ = ['RideTask', 'RouterModule', 'RouterTask']
