"""How a command ends that is stopped from outside: no traceback, and nothing that Python adds at its end."""

import os
import sys

from ride_timm.cli import guarded, main


def test_a_reader_that_has_gone(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, 'w') as out:  # which writes what is left when it closes, as at the end of a process
        monkeypatch.setattr(sys, 'stdout', out)
        assert main(['recipes']) == 1


def test_ctrl_c():
    def stopped():
        raise KeyboardInterrupt

    assert guarded('predict', stopped) == 130
