"""What exported networks cost on onnxruntime and in PyTorch, all experts and routed, on one CPU core.

    python benchmarks/export.py [--rounds 10] [--output benchmarks/results/export_cpu.json]

Each number is milliseconds of CPU time of one forward pass. The ways take turns, and the fastest of the rounds counts,
since other work on the machine only adds. Images are noise. The thresholds are such that all of them, those above the
median of the first router, and none go on to the second expert; the results name how many experts an image passed.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ['OMP_NUM_THREADS'] = '1'

import onnxruntime
import timm
import torch

import ride_timm
from ride_timm.evaluation.writing import environment, write_json
from ride_timm.inference.load import TrainedNet
from ride_timm.inference.onnx import OnnxNet
from ride_timm.publishing.formats import write_onnx

NETS = {
    'ride_resnet32_3e': lambda: ride_timm.load('ride_resnet32_3e.ride_cifar100lt'),
    'ride_convnext_nano_3e': lambda: _untrained('ride_convnext_nano_3e', 96),
}
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

    def exported(threshold: float | None) -> OnnxNet:
        write_onnx(trained, folder / 'net.onnx', threshold)
        return OnnxNet(folder / 'net.onnx', options=options)

    full = exported(None)
    for threshold in (0.0, median, 1.0):
        routed = exported(threshold)
        for batch in BATCHES:
            images = x[-batch:].contiguous()
            array = images.numpy()
            ways = {
                'pytorch': lambda images=images: net(images),
                'pytorch_routed': lambda images=images, threshold=threshold: net.forward_routed(images, threshold),
                'onnxruntime': lambda array=array: full(array),
                'onnxruntime_routed': lambda array=array, routed=routed: routed(array),
            }
            passed = float(routed(array)[1].mean())
            found = milliseconds(ways, rounds)
            yield {'network': name, 'batch': batch, 'mean_experts': passed, 'milliseconds': found}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=10, metavar='N')
    parser.add_argument('--output', type=Path, metavar='FILE', help='JSON file')
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in NETS:
            for row in measure(name, args.rounds, Path(folder)):
                times = ', '.join(f'{way} {value:.2f}' for way, value in row['milliseconds'].items())
                print(f'{name}, batch {row["batch"]}, {row["mean_experts"]:.2f} experts: {times} ms', flush=True)
                rows.append(row)
                if args.output:  # what was measured stays if it is stopped
                    versions = environment() | {'onnxruntime': onnxruntime.__version__}
                    write_json(args.output, {'args': {'rounds': args.rounds}, 'rows': rows, 'environment': versions})


if __name__ == '__main__':
    main()
