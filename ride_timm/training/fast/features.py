"""What the frozen part of a network makes of the training images, computed once.

It is kept in a file without a name in the run's folder, so that the memory of the machine bounds nothing and a run that
is killed leaves nothing behind.
"""

import logging
import math
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from timm.data.loader import PrefetchLoader
from timm.utils import unwrap_model
from torch import Tensor
from tqdm import tqdm

from ride_timm._compat import get_batches
from ride_timm.data import create_eval_loader
from ride_timm.logs import interactive
from ride_timm.tasks import PartModule, PartTask
from ride_timm.training.augmentation import train_transform
from ride_timm.training.config import ResolvedConfig
from ride_timm.training.interrupt import Interrupted, shield_workers
from ride_timm.training.loop import Trainer
from ride_timm.training.run_data import RunData

__all__ = ['compute_batch', 'compute_once']

_logger = logging.getLogger(__name__)

_SHARE = 0.5  # of the free space on the disk that the file may take


class _Features:
    """Tensors of every form of every image, on the disk.

    Args:
        kept: What `PartModule.before` gives: tensors (places, ...) on the disk, or one for all images.
        per_image: Which are which.
        trainer: Where batches go, and in which memory format.
    """

    def __init__(self, kept: Sequence[Tensor], per_image: Sequence[bool], trainer: Trainer) -> None:
        self.kept, self.per_image = kept, per_image
        self.trainer = trainer

    def __call__(self, places: Tensor) -> list[Tensor]:
        """The tensors of a batch, at `places` (B,)."""
        places = places.cpu()
        return [
            self.trainer.laid_out(value[places].to(self.trainer.device)) if own else value
            for value, own in zip(self.kept, self.per_image, strict=True)
        ]


class _Places:
    """Batches of places and class indices in the order of the images' loader, which they replace.

    Args:
        loader: Of `create_train_loader`.
        targets: Class index of every image, (N,).
        hflip: Probability of the second form of an image, which is mirrored; 0 where there is one form.
    """

    def __init__(self, loader: PrefetchLoader, targets: Any, hflip: float) -> None:
        self.loader = get_batches(loader)
        self.sampler = self.loader.sampler
        self.targets, self.hflip = torch.as_tensor(targets, dtype=torch.int64), hflip

    def __len__(self) -> int:
        """Batches of an epoch."""
        return len(self.loader.batch_sampler)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of an epoch, (B,) each; mirrored are the images that one loading process would mirror."""
        torch.empty((), dtype=torch.int64).random_()  # DataLoader draws its processes' seed before the order of images
        for batch in self.loader.batch_sampler:
            index = torch.tensor(batch)
            places = index if not self.hflip else 2 * index + (torch.rand(len(batch)) < self.hflip)
            yield places, self.targets[index]


def compute_once(config: ResolvedConfig, data: RunData, trainer: Trainer, folder: Path) -> None:
    """Compute the frozen part of the network once for every image, and train on that from then on.

    Nothing is done where everything trains. Where images change from epoch to epoch, or several processes share them,
    the log says why the frozen part is computed in every epoch.

    Args:
        config: The run's options.
        data: The images.
        trainer: Its task and loader are told.
        folder: Of the run.

    Raises:
        Interrupted: A signal came.
    """
    task, module, forms = trainer.task, _cut(trainer), _number_of_forms(config)
    if module is None:
        return
    assert isinstance(task, PartTask)
    assert module.per_image is not None
    transform = data.train.dataset.transform
    found: list[Tensor] | str
    try:
        found = _obstacle(config, forms, trainer.epochs) or _compute(config, data, trainer, module, forms, folder)
    except OSError as error:
        found = f'{folder} cannot be written ({error.strerror})'
    finally:
        data.train.dataset.transform = transform
    if not isinstance(found, str):
        task.features = _Features(found, module.per_image, trainer)
        trainer.loader = _Places(trainer.loader, data.train.targets, config.hflip)
    elif trainer.primary:
        _logger.info(f'The frozen part is computed in every epoch, since {found}')


def compute_batch(
    config: ResolvedConfig, trainer: Trainer, images: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor] | None:
    """Compute the frozen part of the network for one batch, as `compute_once` does for all, to time the steps on it.

    Args:
        config: The run's options; the epochs are taken to be many.
        trainer: Its task is told.
        images: Shape (B, channels, H, W).
        targets: Class indices, (B,).

    Returns:
        What the batch is then, places and class indices, (B,) each; None where every step computes the frozen part.
    """
    module, forms = _cut(trainer), _number_of_forms(config)
    if module is None or _obstacle(config, forms, math.inf):
        return None
    assert isinstance(trainer.task, PartTask)
    assert module.per_image is not None
    module.eval()
    found = _forms(trainer, module, images.to(trainer.device), forms)
    kept = [
        value.flatten(0, 1) if own else value[0].to(trainer.device)
        for value, own in zip(found, module.per_image, strict=True)
    ]
    trainer.task.features = _Features(kept, module.per_image, trainer)
    return forms * torch.arange(len(images)), targets


def _cut(trainer: Trainer) -> PartModule | None:
    """What trains, with a frozen part before it; None where there is none."""
    module = unwrap_model(trainer.task.get_trainable_module())
    return module if isinstance(module, PartModule) and module.per_image is not None else None


def _number_of_forms(config: ResolvedConfig) -> int:
    """Of an image: itself, and mirrored."""
    return 2 if config.hflip else 1


def _obstacle(config: ResolvedConfig, forms: int, epochs: float) -> str | None:
    """Why the images of an epoch are not those of the others, or None."""
    if config.augmentation != 'flip':
        return f'--augmentation {config.augmentation} shows other images each time; `flip` would not'
    others = ('reprob', 'mixup', 'cutmix', 'cuda_graph')
    given = [name for name in others if getattr(config, name)]
    if given:
        return f'--{given[0].replace("_", "-")} was given'
    if config.distributed:
        return 'several processes share the images'
    return None if epochs > forms else 'there are few epochs'


def _compute(
    config: ResolvedConfig, data: RunData, trainer: Trainer, module: PartModule, forms: int, folder: Path
) -> list[Tensor] | str:
    """The tensors of every form of every image, or why the disk is too small."""
    assert config.data_config is not None
    assert module.per_image is not None
    images, per_image, count = config.data_config, module.per_image, len(data.train.targets)
    loader = create_eval_loader(
        data.train,
        batch_size=config.validation_batch_size or config.batch_size,
        transform=train_transform(config.but(hflip=0.0), images['input_size'], images['interpolation']),
        input_size=images['input_size'], mean=images['mean'], std=images['std'], workers=config.workers or 0,
        device=trainer.device, pin_memory=config.pin_mem,
    )  # fmt: skip
    shield_workers(loader)
    first: list[Tensor] = []  # what there is of the first image
    module.eval()
    with ExitStack() as opened:
        files: list[IO[bytes]] = []
        for batch, _ in tqdm(loader, desc='frozen part', leave=False, disable=not (trainer.primary and interactive())):
            found = _forms(trainer, module, batch, forms)
            if not first:
                first = [value[0].clone() for value in found]
                size = count * sum(each.nbytes for each, own in zip(first, per_image, strict=True) if own)
                free = shutil.disk_usage(folder).free
                if size > _SHARE * free:
                    return f'it would take {_sized(size)} of the {_sized(free)} that are free in {folder}'
                what = f'{count} images' + (' and their mirror images' if forms > 1 else '')
                _logger.info(f'The frozen part is computed once, for {what}: {_sized(size)} in {folder} meanwhile')
                files = [opened.enter_context(tempfile.TemporaryFile(dir=folder)) for own in per_image if own]
            values = (value for value, own in zip(found, per_image, strict=True) if own)
            for file, value in zip(files, values, strict=True):
                file.write(value.contiguous().view(torch.uint8).numpy().data)
            if trainer.stop.signum:
                again = 'before a step was taken; to continue, add --resume auto to the same command'
                raise Interrupted(trainer.stop.signum, again)
        rest = iter(files)
        return [
            _mapped(next(rest), count, each) if own else each.to(trainer.device)
            for each, own in zip(first, per_image, strict=True)
        ]


@torch.no_grad()
def _forms(trainer: Trainer, module: PartModule, images: Tensor, forms: int) -> list[Tensor]:
    """What is kept of a batch, on the CPU: (B, forms, ...) of what has one entry an image, (1, ...) of the rest."""
    with trainer.autocast():
        each = [module.before(trainer.laid_out(form)) for form in (images, images.flip(-1))[:forms]]
    assert module.per_image is not None
    return [
        (torch.stack(values, dim=1) if own else values[0][None]).cpu()
        for values, own in zip(zip(*each, strict=True), module.per_image, strict=True)
    ]


def _mapped(file: IO[bytes], count: int, form: Tensor) -> Tensor:
    """The tensors in a file, one after the other, (count * forms, ...), without reading them."""
    file.flush()
    values = np.memmap(file, np.uint8, 'c', shape=(count * form.nbytes,))  # torch wants to be able to write
    return torch.from_numpy(values).view(form.dtype).view(count * len(form), *form.shape[1:])


def _sized(size: int) -> str:
    return f'{size / 2**30:.1f} GiB' if size >= 2**30 else f'{size / 2**20:.1f} MiB'
