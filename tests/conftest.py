"""One thread a process: the sums of two threads differ in the last bit, and two test processes share two cores.

Its place makes `tests` importable from: `import tiny_runs`, `from reference import ride_loss`.
"""

import os

os.environ['OMP_NUM_THREADS'] = '1'  # also for the processes that tests start

import torch

torch.set_num_threads(1)
