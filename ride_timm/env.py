"""Print versions and hardware, and say what is wrong with the installation: `ride-timm env`.

The likeliest fault of a new installation is a torchvision built for another torch: then `import timm` fails. This
command itself imports none of them: a process of its own does, whose failure, crash included, is what it reports.
"""

import argparse
import functools
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .errors import InstallationError
from .parser import Parser
from .version import __version__

__all__ = [
    'Problem',
    'build_parser',
    'builds_match',
    'check_imports',
    'collect',
    'explain',
    'find_problems',
    'installed_version',
    'main',
]

PACKAGES = ('torch', 'torchvision', 'timm', 'huggingface_hub', 'safetensors', 'numpy')
OPTIONAL = ('scikit-learn', 'matplotlib', 'pandas', 'transformers', 'onnx', 'onnxscript', 'onnxruntime')
IMPORTED = ('torch', 'torchvision', 'timm', 'ride_timm.models')
REPAIR_PAIR = 'pip install --upgrade --force-reinstall torch torchvision'


class Problem(NamedTuple):
    """Something wrong with the installation."""

    text: str
    """What is wrong, without a full stop."""
    repair: str
    """The command, or the step, that puts it right."""


def find_problems() -> list[Problem]:
    """What the installed files say is wrong; nothing is imported for it."""
    problems = _outside_requirements()
    torch, torchvision = installed_version('torch'), installed_version('torchvision')
    if torch is None or torchvision is None:
        return problems
    needed = next((need for need in _requirements('torchvision') if need.name == 'torch'), None)
    if needed is not None and not needed.specifier.contains(torch, prereleases=True):
        problems.append(
            Problem(f'torchvision {torchvision} is built for torch{needed.specifier}, not for {torch}', REPAIR_PAIR)
        )
    if not builds_match(torch, torchvision):
        problems.append(Problem(f'torch {torch} and torchvision {torchvision} are of different builds', REPAIR_PAIR))
    return problems


def _outside_requirements() -> list[Problem]:
    problems = []
    for need in _requirements('ride-timm'):
        version = installed_version(need.name)
        if version is None:
            problems.append(Problem(f'{need.name} is not installed', f'pip install "{need}"'))
        elif not need.specifier.contains(version, prereleases=True):
            problems.append(_out_of_range(need, version))
    return problems


def _out_of_range(need: Any, version: str) -> Problem:
    folder = _folder(need.name)
    if folder is not None and version.partition('+')[0] != _recorded_version(need.name):
        # not the one that pip installed: a checkout in the current folder, say
        return Problem(
            f'{need.name} {version} is imported from {folder}, and ride-timm needs {need}',
            f'work from another folder than {folder.parent}, or take it off PYTHONPATH',
        )
    repair = REPAIR_PAIR if need.name in ('torch', 'torchvision') else f'pip install --upgrade "{need}"'
    return Problem(f'{need.name} {version} is installed, and ride-timm needs {need}', repair)


def builds_match(torch: str, torchvision: str) -> bool:
    """Whether a torchvision can load beside a torch, as far as the tags of their versions tell (`+cpu`, `+cu132`).

    Args:
        torch: Version of torch.
        torchvision: Version of torchvision; one built for the CPU loads beside every torch.
    """
    tags = [version.partition('+')[2] for version in (torch, torchvision)]
    kinds = [re.match(r'cu\d\d|[a-z]*', tag) for tag in tags]  # CUDA by its major version: cu126 -> cu12
    ours, theirs = (kind[0] if kind else '' for kind in kinds)
    return not ours or theirs in ('', 'cpu', ours)


def installed_version(name: str) -> str | None:
    """The version of the package that an import would find, with its build tag; None where there is none.

    Args:
        name: Name of the distribution.
    """
    folder = _folder(name)
    if folder is not None and (folder / 'version.py').is_file():
        # the tag of the build stands there alone, and so does the version of a package that pip knows nothing of
        found = re.search(r"""^__version__ = ['"](.+)['"]$""", (folder / 'version.py').read_text(), re.MULTILINE)
        if found:
            return found[1]
    return _recorded_version(name)


def _recorded_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _folder(name: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(name.replace('-', '_'))
    except ValueError:  # half imported
        return None
    return Path(spec.origin).parent if spec is not None and spec.origin else None


@functools.cache
def _requirements(name: str) -> list[Any]:
    """What a distribution requires, extras left out."""
    try:
        from packaging.requirements import Requirement
    except ImportError:  # comes with huggingface_hub, whose own absence is seen by importing
        return []
    try:
        needs = [Requirement(text) for text in importlib.metadata.requires(name) or []]
    except importlib.metadata.PackageNotFoundError:
        return []
    return [need for need in needs if need.marker is None or need.marker.evaluate({'extra': ''})]


def explain(error: Exception) -> str | None:
    """Why an import of timm, or of a module of ours, failed, if the installation is to blame.

    Args:
        error: What the import raised.

    Returns:
        One sentence with the command that repairs it; None where the installation looks sound.
    """
    problem = next(iter(find_problems()), None)
    if problem is None:
        # the first that is not imported, or in the middle of it, is the one that failed
        failed = next((name for name in IMPORTED if not _is_imported(name)), None)
        if failed is None or failed not in _raising_packages(error):
            return None
        problem = _import_problem(failed, f'{type(error).__name__}: {error}')
    return f'{problem.text}; to repair it: {problem.repair} (`ride-timm env` tells more).'


def _is_imported(name: str) -> bool:
    module = sys.modules.get(name)
    return module is not None and not getattr(module.__spec__, '_initializing', False)


def _raising_packages(error: Exception) -> set[str]:
    """The packages that an error came through, and the one that it says is missing."""
    names = {
        frame.f_globals.get('__name__', '').partition('.')[0] for frame, _ in traceback.walk_tb(error.__traceback__)
    }
    return names | ({error.name or ''} if isinstance(error, ImportError) else set())


def _import_problem(name: str, message: str) -> Problem:
    repair = REPAIR_PAIR
    if name in ('timm', 'ride_timm'):
        repair = f'pip install --upgrade --force-reinstall {name.replace("_", "-")}'
    version = __version__ if name == 'ride_timm' else installed_version(name)
    return Problem(f'{name} {version} cannot be imported ({" ".join(message.split())})', repair)


def check_imports() -> None:
    """Import what a command needs, one package after the other; the name of each, and the hardware, are printed."""
    for name in IMPORTED:
        print(name, flush=True)
        try:
            importlib.import_module(name)
        except Exception as error:
            cause = error.__cause__ if isinstance(error, InstallationError) else error
            sys.exit(f'{type(cause).__name__}: {cause}')
        if name == 'torch':
            print(json.dumps(_hardware()), flush=True)


def _try_imports() -> tuple[dict[str, Any], Problem | None]:
    """The hardware as PyTorch sees it, and the first package that cannot be imported, found in a process of its own."""
    path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    done = subprocess.run(
        [sys.executable, '-c', 'from ride_timm.env import check_imports; check_imports()'],
        env={**os.environ, 'PYTHONPATH': path, 'PYTHONSAFEPATH': '1'},
        capture_output=True,
        text=True,
    )
    lines = done.stdout.splitlines()
    hardware = next((json.loads(line) for line in lines if line.startswith('{')), {'cuda': None, 'bf16_on_cpu': None})
    if not done.returncode:
        return hardware, None
    failed = next((line for line in reversed(lines) if line in IMPORTED), IMPORTED[0])
    last = done.stderr.strip().rpartition('\n')[2]
    return hardware, _import_problem(failed.partition('.')[0], last or f'exit status {done.returncode}')


def collect() -> dict[str, Any]:
    """Versions, hardware and problems, ready for JSON."""
    problems = find_problems()
    hardware, failing = _try_imports()
    return {
        'ride_timm': __version__,
        'python': platform.python_version(),
        'executable': sys.executable,
        'platform': platform.platform(),
        'cores': len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count(),
        'packages': {name: installed_version(name) for name in PACKAGES},
        'optional': {name: _recorded_version(name) for name in OPTIONAL},
        **hardware,
        'problems': [problem._asdict() for problem in (*problems, *([failing] if failing else []))],
    }


def _hardware() -> dict[str, Any]:
    import torch

    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, 'get_capabilities') else None
    return {
        'cuda': {
            'version': torch.version.cuda,
            'available': torch.cuda.is_available(),
            'devices': [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
        'bf16_on_cpu': capabilities and [name for name, value in capabilities.items() if 'bf16' in name and value],
    }


def build_parser() -> argparse.ArgumentParser:
    """The options of `ride-timm env`."""
    parser = Parser(
        prog='ride-timm env',
        description='Print versions and hardware, and check the installation; the exit status is 1 if it is faulty.',
    )
    parser.add_argument('--json', action='store_true', help='print one JSON object')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Report on the installation.

    Args:
        argv: The arguments; None means those of the process.

    Returns:
        The exit status: 0, or 1 where a problem was found.
    """
    args = build_parser().parse_args(argv)
    report = collect()
    print(json.dumps(report, indent=2) if args.json else _table(report))
    return 1 if report['problems'] else 0


def _table(report: dict[str, Any]) -> str:
    optional = report['optional'].items()
    absent = ', '.join(name for name, version in optional if version is None)
    cuda, bf16 = report['cuda'] or {'version': None, 'devices': []}, report['bf16_on_cpu']
    rows = {
        'ride_timm': report['ride_timm'],
        'python': f'{report["python"]}, {report["executable"]}',
        **{name: version or 'not installed' for name, version in report['packages'].items()},
        'optional': ', '.join(f'{name} {version}' for name, version in optional if version) or 'none',
        'without': absent or 'none',
        'platform': f'{report["platform"]}, {report["cores"]} cores',
        'CUDA': ', '.join(cuda['devices']) or f'no device (torch is built for {cuda["version"] or "no CUDA"})',
        'bf16 on CPU': 'unknown' if bf16 is None else ', '.join(bf16) or 'not in hardware',
    }
    lines = [f'{name:<16} {value}' for name, value in rows.items()]
    for problem in report['problems']:
        lines.append(f'\nproblem: {problem["text"]}\n repair: {problem["repair"]}')
    return '\n'.join(lines if report['problems'] else [*lines, '\nNo problem found.'])


if __name__ == '__main__':
    sys.exit(main())
