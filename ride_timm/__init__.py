"""RIDE multi-expert networks for long-tailed image recognition, as timm models.

Importing the package registers the architectures: `timm.create_model('ride_resnet50_4e')`.
"""

from . import models as models
from .errors import RideError as RideError
from .version import __version__ as __version__

__all__ = ['RideError', '__version__', 'models']
