"""What exported networks cost on onnxruntime and in PyTorch, all experts and routed, on one CPU core.

    python benchmarks/export.py [--rounds 10] [--data-dir data/cifar100_lt] [--output FILE.json]

Each number is milliseconds of CPU time of one forward pass. The ways take turns, and the fastest of the rounds counts,
since other work on the machine only adds. Images are noise. The thresholds are such that all of them, those above the
median of the first router, and none go on to the second expert; the results name how many experts an image passed.
`int8` is onnxruntime in 8-bit integers. `--data-dir` adds the accuracy of a published network in float32 and in 8-bit
integers, calibrated on 256 training images.
"""

import argparse
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ['OMP_NUM_THREADS'] = '1'

import numpy as np
import onnxruntime
import timm
import torch

import ride_timm
from ride_timm.commands.export import main as export
from ride_timm.evaluation.writing import environment, write_json
from ride_timm.inference.load import TrainedNet
from ride_timm.inference.onnx import OnnxNet
from ride_timm.publishing.formats import write_onnx

NETS = {
    'ride_resnet32_3e': lambda: ride_timm.load('ride_resnet32_3e.ride_cifar100lt'),
    'ride_convnext_nano_3e': lambda: _untrained('ride_convnext_nano_3e', 96),
}
PUBLISHED = 'ride_resnet32_3e.balpoe_cifar100lt'
BATCHES = (1, 16)


def _untrained(name: str, size: int) -> TrainedNet:
    net: Any = timm.create_model(name, router=True, num_classes=100).eval()
    net.pretrained_cfg['input_size'] = (3, size, size)
    return TrainedNet(net, name)


@torch.no_grad()
def milliseconds(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """CPU time of each way, the fastest of its rounds of at least five calls."""
    best = dict.fromkeys(ways, float('inf'))
    for _ in range(rounds):
        for name, run in ways.items():
            for _ in range(5):
                start = time.thread_time()
                run()
                best[name] = min(best[name], 1000 * (time.thread_time() - start))
    return best


def measure(name: str, rounds: int, folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of a network."""
    trained = NETS[name]()
    net = trained.model
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    x = torch.randn(max(BATCHES), *net.pretrained_cfg['input_size'])
    with torch.no_grad():
        median = net.forward_router(x).router_logits[:, 0].median().sigmoid().item()

    def exported(threshold: float | None, bits: int = 32) -> OnnxNet:
        write_onnx(trained, folder / 'net.onnx', threshold, [x.numpy()] if bits == 8 else None)
        return OnnxNet(folder / 'net.onnx', options=options)

    full, small = exported(None), exported(None, 8)
    for threshold in (0.0, median, 1.0):
        routed, small_routed = exported(threshold), exported(threshold, 8)
        for batch in BATCHES:
            images = x[-batch:].contiguous()
            array = images.numpy()
            ways = {
                'pytorch': lambda images=images: net(images),
                'pytorch_routed': lambda images=images, threshold=threshold: net.forward_routed(images, threshold),
                'onnxruntime': lambda array=array: full(array),
                'onnxruntime_routed': lambda array=array, routed=routed: routed(array),
                'int8': lambda array=array: small(array),
                'int8_routed': lambda array=array, small_routed=small_routed: small_routed(array),
            }
            passed = float(routed(array)[1].mean())
            found = milliseconds(ways, rounds)
            yield {'network': name, 'batch': batch, 'mean_experts': passed, 'milliseconds': found}


def accuracies(data: Path, folder: Path) -> Iterator[dict[str, Any]]:
    """Test accuracy in percent, all experts and routed, of float32 and of 8-bit integers."""
    trained = ride_timm.load(PUBLISHED)
    options = [PUBLISHED, '--format', 'onnx', '--output', str(folder / 'net.onnx')]
    for threshold in (None, 0.9):
        for calibration in ([], ['--int8', str(data / 'train')]):
            export([*options, *calibration, *([] if threshold is None else ['--threshold', str(threshold)])])
            net = OnnxNet(folder / 'net.onnx')
            right, passed = [], []
            for label in trained.labels:
                images = np.stack([net.prepare(path) for path in sorted((data / 'val' / label).iterdir())])
                logits, num_experts = net(images)
                right += (logits.argmax(1) == trained.labels.index(label)).tolist()
                passed += num_experts.tolist()
            yield {
                'network': PUBLISHED, 'threshold': threshold, 'bits': 8 if calibration else 32,
                'top1': 100 * statistics.fmean(right), 'mean_experts': statistics.fmean(passed),
            }  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=10, metavar='N')
    parser.add_argument('--data-dir', type=Path, metavar='DIR', help='CIFAR-100-LT, for accuracies')
    parser.add_argument('--output', type=Path, metavar='FILE', help='JSON file')
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    found: dict[str, Any] = {'args': {'rounds': args.rounds}, 'rows': [], 'accuracy': []}
    found['environment'] = environment() | {'onnxruntime': onnxruntime.__version__}
    with tempfile.TemporaryDirectory() as folder:
        for row in itertools.chain.from_iterable(measure(name, args.rounds, Path(folder)) for name in NETS):
            times = ', '.join(f'{way} {value:.2f}' for way, value in row['milliseconds'].items())
            print(f'{row["network"]}, batch {row["batch"]}, {row["mean_experts"]:.2f} experts: {times} ms', flush=True)
            found['rows'].append(row)
        for row in accuracies(args.data_dir, Path(folder)) if args.data_dir else ():
            print(', '.join(f'{name} {value}' for name, value in row.items()), flush=True)
            found['accuracy'].append(row)
    if args.output:
        write_json(args.output, found)


if __name__ == '__main__':
    main()
