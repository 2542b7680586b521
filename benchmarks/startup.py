"""How soon the command line answers, in CPU seconds and as a ratio to `python -c pass`.

    python benchmarks/startup.py [--rounds 10] [--output benchmarks/results/startup_cpu.json]

Every line is a process of its own, its children included, measured by the system; the fastest of the rounds counts,
since other work on the machine only adds. `ride-timm env` imports torch, torchvision and timm in a process of its own,
to see whether they can be. The last two rows are what `import ride_timm` adds to `import timm`.
"""

import argparse
import resource
import subprocess
import sys
from pathlib import Path

from ride_timm.evaluation.writing import environment, write_json

PROGRAM = ('-m', 'ride_timm.cli')
LINES = {
    'python -c pass': ('-c', 'pass'),
    'ride-timm --help': (*PROGRAM, '--help'),
    'ride-timm trian': (*PROGRAM, 'trian'),
    'ride-timm --version': (*PROGRAM, '--version'),
    'ride-timm weights': (*PROGRAM, 'weights'),
    'ride-timm recipes': (*PROGRAM, 'recipes'),
    'import ride_timm': ('-c', 'import ride_timm'),
    'ride-timm env': (*PROGRAM, 'env'),
    'ride-timm train --help': (*PROGRAM, 'train', '--help'),
    'import timm': ('-c', 'import timm'),
    'import timm, ride_timm': ('-c', 'import timm, ride_timm'),
}


def cpu_seconds(arguments: tuple[str, ...]) -> float:
    """User and system time of one process and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=10, metavar='N')
    parser.add_argument('--output', type=Path, metavar='FILE', help='JSON file')
    args = parser.parse_args()
    found: dict[str, list[float]] = {name: [] for name in LINES}
    for _ in range(args.rounds):
        for name, arguments in LINES.items():
            found[name].append(cpu_seconds(arguments))
    fastest = {name: min(seconds) for name, seconds in found.items()}
    base = fastest['python -c pass']
    print(f'{"":<24}{"CPU s":>8}{"ratio":>8}')
    for name, seconds in fastest.items():
        print(f'{name:<24}{seconds:>8.3f}{seconds / base:>8.1f}')
    where = environment()
    print(f'{where["hardware"]}, Python {where["python"]}, torch {where["torch"]}, the fastest of {args.rounds}')
    if args.output:
        given = {'rounds': args.rounds}
        ratios = {name: seconds / base for name, seconds in fastest.items()}
        write_json(args.output, {'args': given, 'cpu_seconds': found, 'ratios': ratios, 'environment': where})


if __name__ == '__main__':
    main()
