"""`ride-timm train`, also `python -m ride_timm.train` and under `torchrun`: made of timm's own training parts."""

import argparse
import logging
import sys
import time
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from timm import utils
from timm.models import clean_state_dict
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from timm.utils import unwrap_model
from timm.utils.summary import trim_summary

from ride_timm.data import start_epoch
from ride_timm.engine import setup
from ride_timm.engine.args import build_parser, parse_args
from ride_timm.engine.checkpoint import RunSaver, read_checkpoint
from ride_timm.engine.loop import Trainer, evaluate, train_epoch
from ride_timm.engine.results import format_metrics, write_per_class, write_results
from ride_timm.errors import RideError
from ride_timm.metrics import LongTailEvaluator
from ride_timm.tasks import RideTask

__all__ = ['build_parser', 'main', 'train']

_logger = logging.getLogger(__name__)


@dataclass
class Run:
    """A run in progress."""

    args: argparse.Namespace
    folder: Path
    data: setup.RunData
    trainer: Trainer
    val_loader: Any
    saver: RunSaver | None
    start: int
    epochs: int


def main(argv: Sequence[str] | None = None) -> int:
    """Train from a command line.

    Args:
        argv: The arguments; None means those of the process.

    Returns:
        The exit status, 0.

    Raises:
        RideError: Something the user can put right.
    """
    args = parse_args(argv)
    utils.setup_default_logging()
    device = setup.start_device(args)
    try:
        train(args, device)
    finally:
        if args.distributed:
            torch.distributed.destroy_process_group()
    return 0


def train(args: argparse.Namespace, device: torch.device) -> OrderedDict[str, float]:
    """Train all epochs.

    Args:
        args: Of `parse_args`, completed by `start_device`.
        device: The device of this process.

    Returns:
        Figures of the last evaluation.
    """
    run = _prepare(args, device)
    metrics: OrderedDict[str, float] = OrderedDict()
    began = time.perf_counter()
    for epoch in range(run.start, run.epochs):
        metrics = _run_epoch(run, epoch) or metrics
        if run.trainer.primary:
            done = epoch + 1 - run.start
            left = (time.perf_counter() - began) / done * (run.epochs - epoch - 1)
            _logger.info(f'{done + run.start}/{run.epochs} epochs, {_clock(left)} to go')
    if run.start >= run.epochs:
        _logger.info(f'All {run.epochs} epochs of {run.folder} are done.')
    return metrics


def _prepare(args: argparse.Namespace, device: torch.device) -> Run:
    primary = utils.is_primary(args)
    data = setup.build_data(args)
    utils.random_seed(args.seed, args.rank)
    model = setup.build_model(args, device)
    criterion = setup.build_criterion(args, model, data.train.class_counts)
    setup.resolve_lr(args)
    folder = setup.run_folder(args)
    train_loader, val_loader, _ = setup.build_loaders(args, model, data, device)

    task = RideTask(model, criterion, device=device)
    optimizer = create_optimizer_v2(model, **optimizer_kwargs(args), **args.opt_kwargs)
    scaler = utils.NativeScaler(device=device.type) if args.amp and args.amp_dtype == 'float16' else None
    autocast = partial(torch.autocast, device.type, getattr(torch, args.amp_dtype)) if args.amp else nullcontext
    checkpoint = _resume(args, folder, data)
    if checkpoint is not None:
        _restore(checkpoint, task, optimizer, scaler)
    if args.model_ema:
        task.setup_ema(decay=args.model_ema_decay, use_warmup=args.model_ema_warmup)
        if checkpoint is not None and 'state_dict_ema' in checkpoint:
            task.load_checkpoint_state(clean_state_dict(checkpoint['state_dict_ema']), ema=True)
    if args.torchcompile:
        task.compile()
    if args.distributed:
        task.prepare_distributed(device_ids=[device])

    trainer = Trainer(
        task, train_loader, optimizer, device, autocast, scaler,
        mixup=setup.build_mixup(args), num_classes=data.train.num_classes, smoothing=args.smoothing,
        channels_last=args.channels_last, accum_steps=args.grad_accum_steps, clip_grad=args.clip_grad,
        clip_mode=args.clip_mode, log_interval=args.log_interval, world_size=args.world_size, primary=primary,
    )  # fmt: skip
    trainer.scheduler, epochs = create_scheduler_v2(
        optimizer, **scheduler_kwargs(args), updates_per_epoch=trainer.updates_per_epoch
    )
    trainer.epochs = epochs
    start = int(checkpoint['epoch']) + 1 if checkpoint is not None else 0
    if trainer.scheduler is not None and start:
        trainer.scheduler.step_update(start * trainer.updates_per_epoch)
        trainer.scheduler.step(start)
    saver = _create_saver(args, folder, data, trainer, checkpoint, start) if primary else None
    return Run(args, folder, data, trainer, val_loader, saver, start, epochs)


def _create_saver(
    args: argparse.Namespace, folder: Path, data: setup.RunData, trainer: Trainer,
    checkpoint: dict[str, Any] | None, start: int,
) -> RunSaver:  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    settings = {k: v for k, v in vars(args).items() if k not in ('explicit', 'from_recipe')}
    (folder / 'args.yaml').write_text(yaml.safe_dump(settings), encoding='utf-8')
    saver = RunSaver(
        extra={
            'class_names': list(data.train.class_names),
            'class_counts': data.train.class_counts.tolist(),
            'loss': args.loss,
            'loss_kwargs': dict(args.loss_kwargs),
        },
        settings=settings,
        model=trainer.task.get_trainable_module(),
        optimizer=trainer.optimizer,
        amp_scaler=trainer.scaler,
        checkpoint_dir=str(folder),
        recovery_dir=str(folder),
        decreasing='loss' in args.eval_metric,
        max_history=args.checkpoint_hist,
        task=trainer.task,
    )
    trim_summary(folder / 'summary.csv', start)
    if checkpoint is not None and 'saver' in checkpoint and args.resume == 'auto':
        saver.load_state_dict(checkpoint['saver'])
    return saver


def _resume(args: argparse.Namespace, folder: Path, data: setup.RunData) -> dict[str, Any] | None:
    """The checkpoint to go on from, checked to be of this model and these classes."""
    path = folder / 'last.pth.tar' if args.resume == 'auto' else Path(args.resume)
    if not args.resume or (args.resume == 'auto' and not path.exists()):
        return None
    checkpoint = read_checkpoint(path)
    if checkpoint.get('arch') != args.model:
        raise RideError(
            f'{path} is of {checkpoint.get("arch")} and --model is {args.model}; resume with the same model.'
        )
    names = checkpoint.get('ride', {}).get('class_names')
    if names is not None and names != list(data.train.class_names):
        raise RideError(
            f'{path} was trained on other classes ({len(names)}, first {names[0]}) than {data.train.source} has '
            f'({data.train.num_classes}, first {data.train.class_names[0]}); resume on the same data.'
        )
    if not {'epoch', 'optimizer'} <= checkpoint.keys():
        raise RideError(f'{path} holds weights without a training state; resume from a last.pth.tar.')
    if utils.is_primary(args):
        _logger.info(f'Going on from {path}, epoch {checkpoint["epoch"]} done')
    return checkpoint


def _restore(checkpoint: dict[str, Any], task: RideTask, optimizer: torch.optim.Optimizer, scaler: Any) -> None:
    try:
        task.load_checkpoint_state(clean_state_dict(checkpoint['state_dict']))
        optimizer.load_state_dict(checkpoint['optimizer'])
    except (RuntimeError, ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[-1].strip()
        raise RideError(
            f'The checkpoint does not fit the network or the optimizer ({first}); keep the options.'
        ) from None
    if scaler is not None and scaler.state_dict_key in checkpoint:
        scaler.load_state_dict(checkpoint[scaler.state_dict_key])


def _run_epoch(run: Run, epoch: int) -> OrderedDict[str, float] | None:
    args, trainer = run.args, run.trainer
    start_epoch(trainer.loader, seed=args.seed, epoch=epoch, rank=args.rank)
    if trainer.mixup is not None and args.mixup_off_epoch and epoch >= args.mixup_off_epoch:
        trainer.mixup.mixup_enabled = False
    lr = trainer.optimizer.param_groups[0]['lr']
    train_metrics = train_epoch(trainer, epoch)
    if args.distributed and args.dist_bn:
        utils.distribute_bn(trainer.task.get_trainable_module(), args.world_size, args.dist_bn == 'reduce')
    last = epoch + 1 == run.epochs
    metrics = _evaluate(run, last) if last or (epoch + 1) % args.val_interval == 0 else None
    metric = metrics.get(args.eval_metric) if metrics else None
    if metrics and metric is None:
        raise RideError(f'There is no --eval-metric {args.eval_metric}; choose one of {", ".join(metrics)}.')
    if run.saver is not None:
        _report(run, epoch, lr, train_metrics, metrics)
        best, best_epoch = run.saver.save_checkpoint(epoch, metric)
        if last and metrics:
            write_results(run.folder / 'results.json', args, metrics, best, best_epoch)
            _logger.info(f'Last epoch: {format_metrics(metrics)}. Written to {run.folder}')
    if trainer.scheduler is not None:
        trainer.scheduler.step(epoch + 1, metric)
    return metrics


def _evaluate(run: Run, last: bool) -> OrderedDict[str, float]:
    args, trainer, data = run.args, run.trainer, run.data
    model = unwrap_model(trainer.task.get_eval_model(ema=args.model_ema))
    evaluator = LongTailEvaluator(
        data.train.class_counts,
        groups=data.groups.groups,
        class_names=data.train.class_names,
        num_experts=getattr(model, 'num_experts', 0),
        device=trainer.device,
    )
    metrics = evaluate(model, run.val_loader, evaluator, trainer.autocast, args.channels_last, args.distributed)
    if last:
        table = evaluator.per_class(distributed=args.distributed)
        if trainer.primary:
            write_per_class(run.folder / 'per_class.csv', table)
    return metrics


def _report(run: Run, epoch: int, lr: float, train_metrics: Any, metrics: Any) -> None:
    text = f'epoch {epoch}: loss {train_metrics["loss"]:.4f}, {train_metrics["images_per_second"]:.0f} images/s'
    _logger.info(text + (f'; {format_metrics(metrics)}' if metrics else ''))
    utils.update_summary(
        epoch, train_metrics, metrics, run.folder / 'summary.csv', lr=lr,
        write_header=None if metrics or epoch else True,
    )  # fmt: skip


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    return f'{minutes // 60}:{minutes % 60:02d}:{second:02d}'


if __name__ == '__main__':
    from ride_timm.cli import guarded

    sys.exit(guarded('train', main))
