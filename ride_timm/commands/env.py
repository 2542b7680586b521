"""Print versions and hardware, and say what is wrong with the installation: `ride-timm env`.

The likeliest fault of a new installation is a torchvision built for another torch: then `import timm` fails.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from typing import Any

from ride_timm.commands.parser import Parser
from ride_timm.installation import find_problem, version_of
from ride_timm.version import __version__

__all__ = ['build_parser', 'collect', 'main']

PACKAGES = (
    'torch', 'torchvision', 'timm', 'huggingface_hub', 'safetensors', 'numpy', 'scikit-learn', 'matplotlib', 'pandas',
    'transformers', 'onnx', 'onnxscript', 'onnxruntime',
)  # fmt: skip


def collect() -> dict[str, Any]:
    """Versions, hardware and the problem if there is one, ready for JSON."""
    report: dict[str, Any] = {
        'ride_timm': __version__,
        'python': f'{platform.python_version()}, {sys.executable}',
        'platform': f'{platform.platform()}, {os.cpu_count()} cores',
        **{name: version_of(name) for name in PACKAGES},
        'problem': find_problem(),
    }
    if report['problem'] is None:
        import torch

        from ride_timm._compat import bfloat16_on_cpu

        devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        report |= {'cuda': torch.version.cuda, 'cuda_devices': devices, 'bfloat16_on_cpu': bfloat16_on_cpu()}
    return report


def build_parser() -> argparse.ArgumentParser:
    """The options of `ride-timm env`."""
    parser = Parser(
        prog='ride-timm env',
        description='Print versions and hardware, and check the installation; the exit status is 1 on a problem.',
    )
    parser.add_argument('--json', action='store_true', help='print one JSON object')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Report on the installation; exit status 1 where a problem was found."""
    args = build_parser().parse_args(argv)
    report = collect()
    if args.json:
        print(json.dumps(report, indent=2))
    else:
        for name, value in report.items():
            print(f'{name:<16} {", ".join(value) or "none" if isinstance(value, list) else value or "none"}')
    return 0 if report['problem'] is None else 1
