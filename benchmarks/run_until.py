"""Commands that stop in time, for the scripts that train many networks."""

import signal
import subprocess
import time
from pathlib import Path


def run_until(end: float | None, command: list[str], log: Path) -> int:
    """Run a command to its end, or let it save and stop at a moment.

    Args:
        end: When to send SIGTERM, by `time.monotonic()`; None for never.
        command: The program and its arguments.
        log: File that its output is appended to.

    Returns:
        Its exit status.
    """
    with log.open('a') as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        while process.poll() is None:
            time.sleep(1)
            if end is not None and time.monotonic() > end:
                process.send_signal(signal.SIGTERM)
                process.wait(120)
        return process.wait()
