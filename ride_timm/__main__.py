"""`python -m ride_timm COMMAND ...` is `ride-timm COMMAND ...`, also under torchrun."""

import sys

from ride_timm.cli import main

if __name__ == '__main__':
    sys.exit(main())
