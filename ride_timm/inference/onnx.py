"""Run a network that `ride-timm export --format onnx` wrote, on onnxruntime, NumPy and Pillow alone.

This file imports nothing else of ride-timm and no torch: copied to a machine without either it works there too, as
`python onnx.py MODEL.onnx IMAGES...` or from Python. Images are prepared as `ride-timm predict` prepares them.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

__all__ = ['OnnxNet', 'Prediction', 'Vote', 'main', 'prepare']

_METADATA = 'ride_timm'  # a JSON object: labels, preparation of images, experts and threshold

Floats = NDArray[np.float32]
_NO_PICTURES = ('BUFR', 'EPS', 'GRIB', 'HDF5', 'MPEG', 'WMF')  # Pillow would run an EPS file as a program


class Vote(NamedTuple):
    """A class that the network names; `confidence` is its softmax probability, 0..1."""

    label: str
    class_index: int
    confidence: float


class Prediction(NamedTuple):
    """What the network says of an image: the likeliest classes, and how many experts the image passed."""

    path: str
    top: tuple[Vote, ...]
    num_experts: int


class OnnxNet:
    """A network in an ONNX file.

    Args:
        path: The file.
        providers: What computes, in order of preference, as onnxruntime names it.
        options: onnxruntime's `SessionOptions`, for example with the number of threads.

    Attributes:
        labels: Names of the C classes.
        num_experts: Number K of experts; 0 for a plain network.
        threshold: What it routes with; None: every image passes all experts.
        config: All of the metadata; how images are prepared, for `prepare`.

    Raises:
        ValueError: The file was not written by `ride-timm export`.

    Example:
        >>> net = OnnxNet('MODEL.onnx')                                                     # doctest: +SKIP
        >>> net.predict(['cat.jpg'])[0].top[0].label                                        # doctest: +SKIP
        'cat'
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        providers: Sequence[str] = ('CPUExecutionProvider',),
        options: Any = None,
    ) -> None:
        self.session = onnxruntime.InferenceSession(os.fspath(path), options, providers=list(providers))
        text = self.session.get_modelmeta().custom_metadata_map.get(_METADATA)
        if text is None:
            raise ValueError(f'{path} does not name its classes; write it with `ride-timm export`.')
        known = json.loads(text)
        self.labels: list[str] = known['labels']
        self.num_experts: int = known['num_experts']
        self.threshold: float | None = known['threshold']
        # of a network that is not calibrated, 1
        self.temperatures = np.array(known['temperatures'] or [1.0] * max(self.num_experts, 1), np.float32)
        self.config: dict[str, Any] = known

    def __call__(self, images: Floats) -> tuple[Floats, NDArray[np.int64]]:
        """Run the network.

        Args:
            images: Of `prepare`, shape (B, channels, H, W).

        Returns:
            Mean logits (B, C) of the experts that each image passed, and their number (B,).
        """
        logits, *routed = self.session.run(None, {self.session.get_inputs()[0].name: images})
        return logits, routed[0] if routed else np.full(len(images), self.num_experts)

    def prepare(self, image: str | os.PathLike[str] | Image.Image) -> Floats:
        """Prepare an image as the network was evaluated, shape (channels, H, W); see `prepare`."""
        return prepare(image, self.config)

    def predict(
        self, images: Sequence[str | os.PathLike[str] | Image.Image], top_k: int = 3, batch_size: int = 64
    ) -> list[Prediction]:
        """Classify images, with the confidences of a calibrated network where it is one.

        Args:
            images: Files or Pillow images.
            top_k: How many classes to name, at most all.
            batch_size: Images a batch.

        Raises:
            ValueError: An image cannot be read.
        """
        found = []
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            logits, passed = self(np.stack([self.prepare(image) for image in batch]))
            logits = logits / self.temperatures[np.maximum(passed, 1) - 1, None]
            order = np.argsort(-logits, axis=1, kind='stable')[:, :top_k]
            shares = np.exp(logits - logits.max(axis=1, keepdims=True))
            shares /= shares.sum(axis=1, keepdims=True)
            for image, classes, row, experts in zip(batch, order, shares, passed, strict=True):
                votes = tuple(Vote(self.labels[c], int(c), float(row[c])) for c in classes)
                found.append(Prediction(str(image), votes, int(experts)))
        return found


def prepare(image: str | os.PathLike[str] | Image.Image, config: Mapping[str, Any]) -> Floats:
    """Read an image upright and on white, resize, crop and normalise it.

    Args:
        image: A file that Pillow reads, or a Pillow image.
        config: Of the file's metadata: `input_size` (channels, height, width), `mean`, `std`, `interpolation`,
            `crop_pct`, `crop_mode`, and `pixel_range`, the 16-bit values of black and white.

    Returns:
        Shape (channels, H, W).

    Raises:
        ValueError: It cannot be read, or the network takes other images than grey or coloured ones.
    """
    channels, height, width = config['input_size']
    if channels not in (1, 3):
        raise ValueError(f'The network takes images of {channels} channels; prepare arrays and call it with them.')
    try:
        if isinstance(image, Image.Image):
            picture = _decode(image, channels, config['pixel_range'])
        else:
            Image.init()
            with Image.open(image, formats=[name for name in Image.ID if name not in _NO_PICTURES]) as opened:
                picture = _decode(opened, channels, config['pixel_range'])
    except Exception as error:  # Pillow's decoders raise many types for a broken file
        raise ValueError(f'The image {image} cannot be read ({getattr(error, "strerror", None) or error}).') from error
    share = config['crop_pct']
    size = _resized(picture.size, (math.floor(width / share), math.floor(height / share)), config['crop_mode'])
    if picture.size != size:
        picture = picture.resize(size, getattr(Image.Resampling, config['interpolation'].upper()))
    fill = tuple(round(255 * mean) for mean in config['mean']) if config['crop_mode'] == 'border' else (0,) * channels
    canvas = Image.new(picture.mode, (width, height), fill if channels > 1 else fill[0])
    canvas.paste(picture, (_offset(size[0], width), _offset(size[1], height)))
    pixels = np.asarray(canvas, np.float32).reshape(height, width, channels).transpose(2, 0, 1)
    mean, std = (np.float32(config[key]).reshape(-1, 1, 1) * np.float32(255) for key in ('mean', 'std'))
    return np.ascontiguousarray((pixels - mean) / std)


def _decode(image: Image.Image, channels: int, pixel_range: Sequence[int] | None) -> Image.Image:
    """An image as a viewer shows it, with 8 bits a channel."""
    image.load()  # PNG files may have their EXIF data at the end
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    except Exception:  # viewers show a picture whose EXIF data are damaged, too
        turned = False
    if turned:
        image = ImageOps.exif_transpose(image)
    if image.mode == 'F':
        raise ValueError('its pixels are floating-point numbers; save it with 8 or 16 bits a channel')
    if image.mode.startswith('I'):
        image = Image.fromarray(_eight_bits(image, pixel_range))
    elif image.has_transparency_data:
        image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image.convert('RGBA'))
    return image.convert('L' if channels == 1 else 'RGB')


def _eight_bits(image: Image.Image, pixel_range: Sequence[int] | None) -> NDArray[np.uint8]:
    pixels = np.asarray(image)
    if image.mode == 'I' and (image.format not in ('PNG', 'PPM') or pixels.min() < 0 or pixels.max() > 65535):
        raise ValueError('its pixels are 32-bit integers; save it with 8 or 16 bits a channel')
    if pixel_range is None:
        return (pixels >> 8).astype(np.uint8)
    low, high = pixel_range
    return ((pixels.astype(np.float32) - low) * (255 / (high - low))).round().clip(0, 255).astype(np.uint8)


def _resized(size: tuple[int, int], scaled: tuple[int, int], crop_mode: str) -> tuple[int, int]:
    """Width and height before the crop, of an image of this size, as timm's evaluation has them."""
    if crop_mode == 'squash':
        return scaled
    if crop_mode != 'border' and scaled[0] == scaled[1]:  # the shorter side fits, the longer is cut to whole pixels
        short, side = min(size), scaled[0]
        width, height = (side if length == short else int(side * length / short) for length in size)
        return width, height
    ratios = [length / wanted for length, wanted in zip(size, scaled, strict=True)]
    ratio = max(ratios) if crop_mode == 'border' else min(ratios)
    return round(size[0] / ratio), round(size[1] / ratio)


def _offset(length: int, wanted: int) -> int:
    return (wanted - length) // 2 if wanted > length else -round((length - wanted) / 2)


def _files(names: Sequence[str]) -> Iterator[str]:
    """The files named, and in folders all that Pillow may read; hidden ones left out."""
    types = Image.registered_extensions()
    for name in names:
        found = [path for path in Path(name).rglob('*') if path.suffix.lower() in types and path.is_file()]
        shown = [path for path in found if not any(part.startswith('.') for part in path.relative_to(name).parts)]
        yield from map(str, sorted(shown)) if Path(name).is_dir() else [name]


def _printable(text: str) -> str:
    return ''.join(letter if letter.isprintable() else '?' for letter in text)


def main(argv: Sequence[str] | None = None) -> int:
    """Predict from a command line.

    Returns:
        The exit status: 0, or 1 if an image could not be read; argparse's 2 if the model could not.
    """
    parser = argparse.ArgumentParser(description='Classify images, without torch.')
    parser.add_argument('model', metavar='MODEL.onnx', help='file that `ride-timm export --format onnx` wrote')
    parser.add_argument('images', nargs='+', metavar='IMAGES', help='files and folders')
    parser.add_argument('--json', action='store_true', help='one list, an object for each image')
    args = parser.parse_args(argv)
    try:
        net = OnnxNet(args.model)
    except Exception as error:  # onnxruntime raises many types for a broken file
        parser.error(_printable(str(error)))
    failed, rows = 0, []
    for path in _files(args.images):
        try:
            (found,) = net.predict([path])
        except ValueError as error:
            print(_printable(str(error)), file=sys.stderr)
            failed = 1
            continue
        rows.append({'path': path, 'num_experts': found.num_experts, 'top': [vote._asdict() for vote in found.top]})
        if not args.json:
            classes = ', '.join(f'{vote.label} {100 * vote.confidence:.1f} %' for vote in found.top)
            experts = '1 expert' if found.num_experts == 1 else f'{found.num_experts} experts'
            print(_printable(f'{path}: {classes}' + (f' ({experts})' if found.num_experts else '')))
    if args.json:
        print(json.dumps(rows, indent=2))
    return failed


if __name__ == '__main__':
    sys.exit(main())
