"""What is wrong with an installation."""

import importlib
import importlib.metadata
import importlib.util
import sys

from ride_timm.errors import RideError

__all__ = ['find_problem', 'require', 'version_of']


def find_problem() -> str | None:
    """What is wrong with the installation, and the command that repairs it, in one sentence; None for nothing.

    It is a requirement that is not met, or else the first of torch, torchvision and timm that cannot be imported.
    """
    from packaging.requirements import Requirement

    try:
        needs = [Requirement(text) for text in importlib.metadata.requires('ride-timm') or []]
    except importlib.metadata.PackageNotFoundError:  # a checkout on PYTHONPATH
        needs = []
    for need in needs:
        if need.marker is not None and not need.marker.evaluate({'extra': ''}):
            continue
        version = version_of(need.name)
        if version is None or not need.specifier.contains(version, prereleases=True):
            found = f'{need.name} {version} is installed' if version else f'{need.name} is not installed'
            return f'{found} and ride-timm needs {need}; run: pip install --upgrade "{need}"'
    for name in ('torch', 'torchvision', 'timm'):
        try:
            importlib.import_module(name)
        except Exception as error:  # a torchvision built for another torch fails with a RuntimeError
            reason = ' '.join(f'{type(error).__name__}: {error}'.split())
            repair = 'pip install --upgrade --force-reinstall torch torchvision timm'
            return f'{name} {version_of(name)} cannot be imported ({reason}); run: {repair}'
    return None


def require(what: str, install: str, *modules: str) -> None:
    """Refuse what needs a package that is not installed.

    Args:
        what: What needs it, for the message.
        install: The package or extra that pip installs.
        modules: What it is imported as.

    Raises:
        RideError: With the command that installs it.
    """
    missing = [name for name in modules if sys.modules.get(name) is None and importlib.util.find_spec(name) is None]
    if missing:
        lack = f'{" and ".join(missing)}, which {"are" if missing[1:] else "is"} not installed'
        raise RideError(f'{what} needs {lack}; run: pip install "{install}".')


def version_of(name: str) -> str | None:
    """Version of an installed package, None where there is none."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
