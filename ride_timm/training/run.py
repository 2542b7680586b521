"""A training from its options to its results, made of timm's own training parts."""

import copy
import logging
import shlex
import time
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from timm import utils
from timm.data.loader import PrefetchLoader
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from timm.utils import unwrap_model
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ride_timm.data import start_epoch
from ride_timm.errors import RideError
from ride_timm.evaluation.by_group import said_by_group
from ride_timm.evaluation.metrics import ClassResult, LongTailEvaluator
from ride_timm.evaluation.one_pass import Measured, measure
from ride_timm.evaluation.sweep import THRESHOLDS, choose_threshold, format_sweep, write_sweep
from ride_timm.evaluation.thresholds import set_threshold
from ride_timm.evaluation.writing import format_metrics, write_per_class, write_results
from ride_timm.inference.load import TrainedNet
from ride_timm.logs import clock, interactive
from ride_timm.models import count_experts
from ride_timm.training import resolve, setup
from ride_timm.training.averaging import average_epoch, setup_average
from ride_timm.training.config import ResolvedConfig, TrainConfig
from ride_timm.training.divergence import check_scale, check_weights
from ride_timm.training.fast.features import compute_once
from ride_timm.training.fast.graphed import GraphedStep, check_cuda_graph
from ride_timm.training.interrupt import (
    Interrupted,
    StopRequest,
    reraise_explained,
    reraise_interrupted,
    shield_workers,
)
from ride_timm.training.loop import Trainer, agree, train_epoch
from ride_timm.training.pace import Pace, measure_paces
from ride_timm.training.resume import Resumed, check_resumed, find_checkpoint, report_changes, restore
from ride_timm.training.router import check_router
from ride_timm.training.run_data import RunData
from ride_timm.training.run_folder import in_primary, locked, run_folder
from ride_timm.training.saver import RunSaver
from ride_timm.training.saving import LESS_IS_BETTER, create_saver, record
from ride_timm.training.stages import STAGES, Stage
from ride_timm.training.stages.router import router_pos_weight
from ride_timm.training.summary import prefixed, write_row
from ride_timm.training.trackers import Tracker

__all__ = ['train']

_logger = logging.getLogger(__name__)


@dataclass
class Run:
    """A run in progress."""

    config: ResolvedConfig
    stage: Stage
    settings: dict[str, Any]  # what checkpoints and results keep of the options
    folder: Path
    data: RunData
    trainer: Trainer
    val_loader: Any
    saver: RunSaver | None
    start: int
    epochs: int
    tracker: Tracker = field(default_factory=Tracker)
    found: dict[str, Any] = field(default_factory=dict)  # what results.json holds next to the last epoch's results
    table: list[ClassResult] = field(default_factory=list)  # what per_class.csv holds


class Parts(NamedTuple):
    """What a run is built of, once its options are settled."""

    stage: Stage
    init: TrainedNet | None
    data: RunData
    model: Any
    folder: Path
    resumed: Resumed | None


def train(config: TrainConfig, command: str | None = None) -> OrderedDict[str, float]:
    """Train all epochs, as `ride-timm train` does.

    From the start, `last.pth.tar` in the run's folder holds a state to resume from: that before the first epoch, then
    that after the last complete one. `resume='auto'` repeats an interrupted epoch with the same batches.

    Args:
        config: The options; what it leaves open is picked.
        command: The command line, for the record.

    Returns:
        Results of the last evaluation, in percent.

    Raises:
        RideError: An option, the data or the network is wrong; the message says what to do.
        Interrupted: SIGTERM or SIGINT came; the step was finished.

    Example:
        >>> import ride_timm as rt
        >>> rt.train(rt.TrainConfig(data_dir='my_images', epochs=20))  # doctest: +SKIP
    """
    resolved, device = resolve.join_processes(resolve.start(config, command))
    try:
        with ExitStack() as kept:
            run = _prepare(resolved, device, kept)
            for loader in (run.trainer.loader, run.val_loader):
                shield_workers(loader)
            return _guarded(run)
    finally:
        if resolved.distributed:
            torch.distributed.destroy_process_group()


def _guarded(run: Run) -> OrderedDict[str, float]:
    """All epochs; signals and errors end them as the user is told."""
    with StopRequest() as stop, logging_redirect_tqdm():
        run.trainer.stop = stop
        try:
            if run.saver is not None and not run.saver.last.exists():
                run.saver.save_start(run.start - 1)  # from here on a signal leaves a state to go on from
            if run.start < run.epochs:
                compute_once(run.config, run.data, run.trainer, run.folder)
            return _run_epochs(run)
        except Interrupted:
            raise
        except Exception as error:
            reraise_interrupted(error, stop)
            if run.saver is not None:
                run.saver.discard_start()
            reraise_explained(error)
            raise


def _run_epochs(run: Run) -> OrderedDict[str, float]:
    """All epochs that are left."""
    metrics: OrderedDict[str, float] = OrderedDict()
    began = time.perf_counter()
    bar = tqdm(
        range(run.start, run.epochs),
        desc=run.config.experiment,
        unit='epoch',
        initial=run.start,
        total=run.epochs,
        disable=not (run.trainer.primary and interactive()),
    )
    for epoch in bar:
        metrics = _run_epoch(run, epoch) or metrics
        if run.trainer.primary:
            done = epoch + 1 - run.start
            left = (time.perf_counter() - began) / done * (run.epochs - epoch - 1)
            _logger.info(f'{done + run.start}/{run.epochs} epochs, {clock(left)} to go')
    return metrics if run.start < run.epochs else _finish(run)


def _prepare(config: ResolvedConfig, device: torch.device, kept: ExitStack) -> Run:
    """All of a run; its folder is locked until `kept` is closed."""
    stage = STAGES[config.stage]
    if config.cuda_graph:
        check_cuda_graph(config, device)
    init = stage.read_init(config)
    config = resolve.for_evaluation(resolve.from_init(config, init))
    data = stage.open_data(config, init)
    config, init = resolve.from_data(config, data, init)
    config = stage.model_options(config, init, data)
    utils.random_seed(config.seed, config.rank)
    model = stage.build_network(config, init, data, device)
    config = resolve.from_model(config, model)
    folder = run_folder(config)
    in_primary(config, device, lambda: kept.enter_context(locked(folder)))
    resumed = find_checkpoint(config, folder, data)
    checkpoint = None if resumed is None else resumed.checkpoint
    before = None if checkpoint is None else checkpoint.get('args')
    config = resolve.from_checkpoint(config, data, before)
    parts = Parts(stage, init, data, model, folder, resumed)
    config = resolve.from_pace(config, data, before, partial(_measure_paces, parts, config, device))
    return _build(config, device, kept, parts)


def _measure_paces(
    parts: Parts, config: ResolvedConfig, device: torch.device, ways: Sequence[ResolvedConfig]
) -> list[Pace]:
    """Train a few steps each way, on copies of the network."""
    loaders = setup.build_loaders(config.but(workers=0), parts.data, device)

    def create(way: ResolvedConfig) -> Trainer:
        memory_format = torch.channels_last if way.channels_last else torch.contiguous_format
        model = copy.deepcopy(parts.model).to(memory_format=memory_format)
        return _trainer(way.but(cuda_graph=False), device, parts._replace(model=model), loaders[0])

    return measure_paces(config, ways, loaders, create)


def _trainer(config: ResolvedConfig, device: torch.device, parts: Parts, loader: PrefetchLoader) -> Trainer:
    """What trains an epoch, without a schedule."""
    stage, data, model = parts.stage, parts.data, parts.model
    criterion = None if stage.routed else setup.build_criterion(config, model, data.train.class_counts)
    task = stage.build_task(config, model, data, criterion, device)
    optimizer = stage.build_optimizer(config, model)
    scaler = utils.NativeScaler(device=device.type) if config.amp and config.amp_dtype == 'float16' else None
    autocast = (
        partial(torch.autocast, device.type, getattr(torch, str(config.amp_dtype))) if config.amp else nullcontext
    )
    return Trainer(
        task, loader, optimizer, device, autocast, scaler,
        mixup=setup.build_mixup(config), num_classes=data.train.num_classes, smoothing=config.smoothing,
        channels_last=config.channels_last, accum_steps=config.grad_accum_steps, clip_grad=config.clip_grad,
        clip_mode=config.clip_mode, log_interval=config.log_interval, world_size=config.world_size,
        primary=utils.is_primary(config),
        graphed=GraphedStep(task, autocast, not config.torchcompile) if config.cuda_graph else None,
    )  # fmt: skip


def _build(config: ResolvedConfig, device: torch.device, kept: ExitStack, parts: Parts) -> Run:
    """What trains, from options that are settled."""
    stage, init, data, model, folder, resumed = parts
    checkpoint = None if resumed is None else resumed.checkpoint
    if config.channels_last:
        model.to(memory_format=torch.channels_last)
    train_loader, val_loader = setup.build_loaders(config, data, device)
    trainer = _trainer(config, device, parts, train_loader)
    task, optimizer = trainer.task, trainer.optimizer
    entry = record(stage, data, init, task)
    if checkpoint is not None:
        check_resumed(config, data, checkpoint)
        report_changes(config, checkpoint, data, entry)
        restore(checkpoint, task, optimizer, trainer.scaler)
    setup_average(config, task, checkpoint)
    if config.torchcompile:
        task.compile()
    if config.distributed:
        task.prepare_distributed(device_ids=[device])

    trainer.scheduler, epochs = create_scheduler_v2(
        optimizer,
        **scheduler_kwargs(config, decreasing_metric=config.eval_metric in LESS_IS_BETTER),
        updates_per_epoch=trainer.updates_per_epoch,
    )
    trainer.epochs = epochs
    start = int(checkpoint['epoch']) + 1 if checkpoint is not None else 0
    if trainer.scheduler is not None and start:
        trainer.scheduler.step_update(start * trainer.updates_per_epoch)
        trainer.scheduler.step(start)
    run = Run(config, stage, config.settings(), folder, data, trainer, val_loader, None, start, epochs)
    _check_eval_metric(run)
    tracker = in_primary(config, device, lambda: Tracker(config.log, folder, run.settings))
    if tracker is not None:
        run.tracker = tracker
        kept.callback(tracker.close)
    # last of all: a run that is refused leaves the files of an earlier one as they are
    run.saver = in_primary(config, device, lambda: create_saver(config, folder, data, trainer, entry, resumed))
    run.found = {'source': data.val.source, 'own_epochs': 'epochs' in config.explicit}
    return run


def _run_epoch(run: Run, epoch: int) -> OrderedDict[str, float] | None:
    config, trainer = run.config, run.trainer
    start_epoch(trainer.loader, seed=config.seed, epoch=epoch, rank=config.rank)
    if trainer.mixup is not None and config.mixup_off_epoch and epoch >= config.mixup_off_epoch:
        trainer.mixup.mixup_enabled = False
    lr = trainer.lr
    train_metrics = train_epoch(trainer, epoch)
    trainer.task.end_epoch()
    last = epoch + 1 == run.epochs
    measured = last or (epoch + 1) % config.val_interval == 0
    average_epoch(config, trainer, epoch, measured)
    _share_statistics(run)
    check_weights(trainer.task, epoch)
    check_scale(trainer.scaler, epoch)
    if last and run.stage.routed and trainer.primary:
        check_router(train_metrics, router_pos_weight(config))
    metrics = _evaluate(run, last) if measured else None
    metric = metrics[str(config.eval_metric)] if metrics else None
    error = _save(run, epoch, lr, train_metrics, metrics) if run.saver is not None else None
    failed, signum = agree(trainer, int(error is not None), trainer.stop.signum)
    if failed:
        raise error or RideError('The saving process failed; its message says why.')
    if trainer.scheduler is not None:
        trainer.scheduler.step(epoch + 1, metric)
    if signum and not last:
        raise Interrupted(signum, f'after epoch {epoch}; to continue, add --resume auto to the same command')
    return metrics


def _share_statistics(run: Run) -> None:
    """Give all processes the same statistics of BatchNorm, those of the moving average too.

    Without --dist-bn they take the first process's, which DistributedDataParallel hands out before the next step
    anyway: what is evaluated is what is saved.
    """
    config, task = run.config, run.trainer.task
    if config.distributed:
        for module in (task.get_trainable_module(), task.get_trainable_module(ema=True)):
            if module is not None:
                utils.distribute_bn(module, config.world_size, config.dist_bn == 'reduce')


def _save(run: Run, epoch: int, lr: float, train_metrics: Any, metrics: Any) -> RideError | None:
    """Write what an epoch leaves behind; an error is returned, for all processes to hear of it.

    The row of `summary.csv` comes first: a row without a checkpoint is replaced when the epoch is repeated, a
    checkpoint without a row would never get one.
    """
    assert run.saver is not None
    text = f'epoch {epoch}: loss {train_metrics["loss"]:.4f}, {train_metrics["images_per_second"]:.0f} images/s'
    _logger.info(text + (f'; {format_metrics(metrics, run.data.val.class_counts)}' if metrics else ''))
    try:
        write_row(run.folder / 'summary.csv', epoch, train_metrics, metrics, lr)
        run.tracker.log(epoch, {**prefixed('train', train_metrics), **prefixed('eval', metrics or {}), 'lr': lr})
        run.saver.save_checkpoint(epoch, metrics[run.config.eval_metric] if metrics else None)
        if epoch + 1 == run.epochs:
            _write_results(run, metrics)
    except RideError as error:
        return error
    except OSError as error:
        return RideError(
            f'{run.folder} cannot be written ({error.strerror}) and the last checkpoint is intact; free disk space, '
            'then continue with --resume auto.'
        )
    return None


def _write_results(run: Run, metrics: OrderedDict[str, float]) -> None:
    assert run.saver is not None
    best = run.saver.best_metric, run.saver.best_epoch
    write_per_class(run.folder / 'per_class.csv', run.table)
    if 'sweep' in run.found:
        write_sweep(run.folder / 'sweep.csv', run.found['sweep'])
    write_results(run.folder, run.settings, run.saver.extra, metrics, best, run.table, run.found)
    _logger.info(f'Last epoch: {format_metrics(metrics, run.data.val.class_counts)}. Written to {run.folder}')
    folder = shlex.quote(str(run.folder))
    _logger.info(f'Next: `ride-timm report {folder}` evaluates it, `ride-timm predict {folder} IMAGES` uses it')


def _finish(run: Run) -> OrderedDict[str, float]:
    """What is left to do when all epochs are done: nothing, or the results that a kill kept from being written."""
    missing = run.saver is not None and run.start == run.epochs and not (run.folder / 'results.json').exists()
    if agree(run.trainer, int(missing)) == [0]:
        _logger.info(f'All {run.epochs} epochs of {run.folder} are done.')
        return OrderedDict()
    metrics = _evaluate(run, last=True)
    if run.saver is not None:
        _write_results(run, metrics)
    return metrics


def _check_eval_metric(run: Run) -> None:
    """Refuse a --eval-metric that no evaluation will give, before an epoch is spent on it.

    Raises:
        RideError: The run has no such metric.
    """
    model: Any = unwrap_model(run.trainer.task.get_eval_model())
    routed = run.stage.routed
    tested = run.data.val.class_counts > 0
    train, groups = run.data.train, run.data.groups.groups
    names = LongTailEvaluator(
        train.class_counts, groups=groups, num_experts=0 if routed else count_experts(model)
    ).metric_names
    absent = {name for name, members in run.data.groups.groups.items() if not tested[list(members)].any()}
    known = [name for name in names if name not in absent and not name.startswith('num_')]
    if routed:
        known += ['mean_experts', 'gmacs', *(f'share_{k + 1}' for k in range(model.num_experts))]
    if run.config.eval_metric not in known:
        raise RideError(f'There is no --eval-metric {run.config.eval_metric}; choose one of {", ".join(known)}.')


def _evaluate(run: Run, last: bool) -> OrderedDict[str, float]:
    task = run.trainer.task
    model: Any = unwrap_model(task.get_eval_model(ema=task.has_ema()))
    routed = run.stage.routed
    if routed and last:
        run.found.update(_settle_router(run, model))
    found = _measure(run, model, last, routed=routed, cost=routed)  # without a router it is the same in every epoch
    if last:
        run.table = found.routed_per_class or found.per_class
        if not run.config.distributed:  # each process has the answers of its own images alone
            run.found['image_groups'] = said_by_group(found.answers, run.data.val.image_groups)
    return found.routed or found.metrics


def _measure(run: Run, model: Any, last: bool, **options: Any) -> Measured:
    # what is reported is what `validate` finds; on the way there the precision of the training is enough
    autocast = nullcontext if last else run.trainer.autocast
    return measure(
        model, run.val_loader, run.data.train.class_counts, groups=run.data.groups,
        class_names=run.data.train.class_names, autocast=autocast, channels_last=run.config.channels_last,
        distributed=run.config.distributed, **options,
    )  # fmt: skip


def _settle_router(run: Run, model: Any) -> dict[str, Any]:
    """Choose the threshold on held-out images, write it where the weights are saved, and report."""
    config, data, trainer = run.config, run.data, run.trainer
    found: dict[str, Any] = {}
    measured = _measure(run, model, True, routed=True, thresholds=THRESHOLDS)
    if data.holdout is not None:
        assert measured.sweep is not None
        chosen = choose_threshold(measured.sweep)
        set_threshold(model, chosen if config.router_threshold is None else config.router_threshold)
        found['sweep'] = measured.sweep
        if trainer.primary:
            _logger.info(f'Routed, on {data.val.source}:\n{format_sweep(measured.sweep, model.router_threshold)}')
            _logger.info(f'Router threshold {model.router_threshold:g}; the rule takes {chosen:g}')
    else:
        found['all_experts'] = measured.metrics
        if trainer.primary:
            _logger.info(f'All experts: {format_metrics(found["all_experts"], data.val.class_counts)}')
    run.settings['model_kwargs'] = {**config.model_kwargs, 'router_threshold': model.router_threshold}
    if run.saver is not None:
        run.saver.settings = run.settings
        run.saver.extra['router_threshold'] = model.router_threshold
    return found
