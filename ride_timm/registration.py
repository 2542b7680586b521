"""Our architectures in timm's registry as soon as there is a timm, without importing it.

timm has no plugin mechanism: it knows an architecture once the architecture's module was imported. That takes timm and
torch, seconds that `ride-timm --help` has no use for. So where timm is there already, `import ride_timm` imports the
networks at once; else it leaves a finder that waits for timm, imports the networks right after it, and goes.
"""

import contextlib
import importlib
import sys
from collections.abc import Iterator, Sequence
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from .errors import InstallationError

__all__ = ['explained', 'register']


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Say what is wrong with the installation where it is to blame for an error.

    Raises:
        InstallationError: It is.
    """
    try:
        yield
    except InstallationError:
        raise
    except Exception as error:  # a torchvision built for another torch fails with a RuntimeError
        from .installation import find_problem

        sentence = find_problem()
        if sentence is None:
            raise
        raise InstallationError(sentence) from error


def register() -> None:
    """Register the architectures now, or else when timm is imported.

    Raises:
        InstallationError: The networks cannot be imported, and the installation is to blame.
    """
    if sys.modules.get('timm') is not None:
        _register_now()
    elif _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)


def _register_now() -> None:
    with explained():
        importlib.import_module('ride_timm.models')


class _Finder:
    """Finds timm as the other finders do."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != 'timm':
            return None
        for finder in sys.meta_path:
            spec = finder.find_spec(name, path, target) if finder is not self else None
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader)
                return spec
        return None


class _Loader(Loader):
    """Loads timm as its own loader does, and then registers our architectures."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = module.__loader__ = self._loader  # nothing of this package stays
        with explained():
            self._loader.exec_module(module)
        with contextlib.suppress(ValueError):  # another thread was quicker
            sys.meta_path.remove(_FINDER)
        _register_now()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


_FINDER = _Finder()
