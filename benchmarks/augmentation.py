"""Speed of the CIFAR augmentations, in images per second: of Pillow images one by one, and of batches on the device.

    python benchmarks/augmentation.py [--device cuda] [--seconds 3]

One thread, random images of 32 pixels, batches as the trainer makes them; Pillow's images are not decoded first.
Seconds on the CPU are those of the processor, so that a busy machine does not change them much.
"""

import argparse
import time
from collections.abc import Callable

import torch
from PIL import Image

from ride_timm.data import CifarAAAugmentation, CifarAugmentation, cifar_aa_train_transform, cifar_train_transform


def speed(work: Callable[[], int], seconds: float, device: str) -> float:
    """Images per second of a function that augments some and returns how many."""
    work()
    now = time.process_time if device == 'cpu' else time.perf_counter
    count, start = 0, now()
    while now() - start < seconds:
        count += work()
        if device != 'cpu':
            torch.cuda.synchronize()
    return count / (now() - start)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--batch-size', type=int, help='default: 128 on the CPU, 1365 elsewhere')
    parser.add_argument('--seconds', type=float, default=3.0, help='of each measurement')
    args = parser.parse_args()
    torch.set_num_threads(1)
    batch = args.batch_size or (128 if args.device == 'cpu' else 1365)
    images = torch.randint(256, (batch, 3, 32, 32), dtype=torch.uint8)
    pillow = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    held = images.to(args.device)
    ways = {
        'cifar': (cifar_train_transform(), CifarAugmentation()),
        'cifar_aa': (cifar_aa_train_transform(), CifarAAAugmentation()),
    }
    for name, (transform, augmentation) in ways.items():

        def one_by_one(transform: Callable[..., object] = transform) -> int:
            return len([transform(image) for image in pillow])

        def at_once(augmentation: CifarAugmentation | CifarAAAugmentation = augmentation) -> int:
            prepared = augmentation.prepare(augmentation.draw(batch))
            augmentation.apply(held, *(part.to(args.device) for part in prepared))
            return batch

        print(f'{name:10} Pillow {speed(one_by_one, args.seconds, "cpu"):8.0f} images/s', end='   ')
        print(f'{args.device} {speed(at_once, args.seconds, args.device):8.0f} images/s')


if __name__ == '__main__':
    main()
