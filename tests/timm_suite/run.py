"""Run timm's own model tests, of the installed version and unmodified, on the architectures of this package.

    python tests/timm_suite/run.py [--all] [-n WORKERS] [pytest arguments]

The tests are part of timm's source distribution alone, which pip downloads once into `.timm-suite/`. Where that is not
possible the suite is skipped, with a line that says so.

Exit status: 0 passed or skipped; pytest's where a test failed; 5 where a test file contributed no test.
"""

import argparse
import collections
import importlib.metadata
import os
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
STORE = ROOT / '.timm-suite'
NO_TESTS = 5  # as pytest has it


def main() -> int:
    """Fetch the suite, run it, and check that it tested something."""
    parser = argparse.ArgumentParser(
        description="Run timm's own model tests on the architectures of ride-timm.",
        epilog='Further arguments are passed on to pytest.',
    )
    parser.add_argument('--all', action='store_true', help='every architecture instead of the small ones')
    parser.add_argument('-n', type=int, default=0, metavar='WORKERS', help='worker processes (default: %(default)s)')
    args, pytest_args = parser.parse_known_args()
    version = importlib.metadata.version('timm')
    try:
        source = fetch(version)
    except FetchError as error:
        print(f"timm's test-suite was skipped: the source of timm {version} could not be downloaded ({error}).")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / 'report.xml'
        status = run_pytest(source, report, args.n, [*(['--ride-all'] if args.all else []), *pytest_args])
        counts = count_tests(report)
    print(f'timm {version}: ' + ', '.join(f'{count} tests of {name}' for name, count in counts.items()))
    return status or (0 if all(counts.values()) else NO_TESTS)


class FetchError(Exception):
    """Why the source of timm is not to be had."""


def fetch(version: str) -> Path:
    """The folder that holds timm's `tests`, downloaded if it is not there yet.

    Only the tests are unpacked, so that they run against the installed timm.

    Raises:
        FetchError: pip cannot download it.
    """
    target = STORE / f'timm-{version}'
    if target.exists():
        return target
    STORE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=STORE) as folder:
        command = [sys.executable, '-m', 'pip', 'download', f'timm=={version}', '--no-deps', '--no-binary', 'timm']
        pip = subprocess.run([*command, '--dest', folder], capture_output=True, text=True)
        if pip.returncode:
            raise FetchError((pip.stderr.strip() or 'pip failed').splitlines()[-1])
        (archive,) = Path(folder).glob('timm-*.tar.gz')
        with tarfile.open(archive) as tar:
            tests = [member for member in tar.getmembers() if Path(member.name).parts[1:2] == ('tests',)]
            tar.extractall(folder, tests, filter='data')
        (Path(folder) / tests[0].name.partition('/')[0]).rename(target)
    return target


def run_pytest(source: Path, report: Path, workers: int, options: list[str]) -> int:
    """pytest's exit status on timm's test file and ours beside it."""
    files = [source / 'tests' / 'test_models.py', HERE / 'named_checks.py']
    settings = ['-c', HERE / 'pytest.ini', '--rootdir', ROOT, '-p', 'plugin', '-n', workers, f'--junitxml={report}']
    path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get('PYTHONPATH')])])
    environment = {'OMP_NUM_THREADS': '1', **os.environ, 'PYTHONPATH': path}
    command = [sys.executable, '-m', 'pytest', *settings, *files, *options]
    return subprocess.run(list(map(str, command)), cwd=source, env=environment).returncode


def count_tests(report: Path) -> dict[str, int]:
    """How many tests of each file were run, skipped ones not counted."""
    ran = collections.Counter({'test_models': 0, 'named_checks': 0})
    if report.exists():
        for case in ET.parse(report).iter('testcase'):
            if case.find('skipped') is None:
                ran[case.get('classname', '').rpartition('.')[2]] += 1
    return dict(ran)


if __name__ == '__main__':
    sys.exit(main())
