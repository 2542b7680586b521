"""RIDE multi-expert networks for long-tailed image recognition, as timm models.

Importing the package registers the architectures: `timm.create_model('ride_resnet50_4e')`.
"""

import re as _re
import sys as _sys

from .errors import RideError as RideError
from .version import __version__ as __version__

try:
    from . import models as models
except Exception as _error:  # a torchvision built for another torch fails with a RuntimeError
    # the command that explains a broken installation has to start on one
    if not _re.search(r'ride_timm\.env\b|ride[-_]timm(\.\w+)? env\b', ' '.join(_sys.orig_argv)):
        from .env import explain as _explain

        _sentence = _explain(_error)
        if _sentence is None:
            raise
        raise ImportError(_sentence) from _error

__all__ = ['RideError', '__version__', 'models']
