"""Going on with a run from a checkpoint."""

import logging
import shlex
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from timm.models import clean_state_dict
from timm.utils import is_primary

from ride_timm.data.form import data_name
from ride_timm.errors import RideError
from ride_timm.records.checkpoint import NoCheckpointError, misfit, read_checkpoint
from ride_timm.records.runs import plain
from ride_timm.tasks import ExpertTask
from ride_timm.training.config import ResolvedConfig
from ride_timm.training.run_data import RunData
from ride_timm.training.run_folder import DAMAGED, LAST, checkpoints_in, experiment_name, run_folder
from ride_timm.training.saver import check_history

__all__ = ['Resumed', 'check_resumed', 'find_checkpoint', 'report_changes', 'restore', 'settings_before']

_logger = logging.getLogger(__name__)

HARMLESS = {
    # where the run is, and how it is shown
    'command', 'experiment', 'explicit', 'from_recipe', 'log', 'log_interval', 'output', 'quiet', 'recipe', 'resume',
    'checkpoint_hist',  # what is kept of the past
    'data_dir', 'dataset_download', 'no_check_images',  # data may move; classes and file names are compared
    'init',  # the weights are the checkpoint's; what else comes from --init is compared
    'local_rank', 'pin_mem', 'rank', 'time_budget',
    'model_kwargs.router_threshold',  # chosen at the end of the training
}  # fmt: skip
"""Options that may differ on resuming without a word: nothing of what the run computes depends on them."""

_LIKE_PARAMETERS = ('momentum_buffer', 'exp_avg', 'exp_avg_sq')
_HYPERPARAMETERS = ('lr', 'weight_decay', 'momentum', 'dampening', 'nesterov', 'betas', 'eps')


class Resumed(NamedTuple):
    """What a run goes on from.

    Attributes:
        checkpoint: Its content.
        path: Its file.
        inside: Whether that lies in the run's own folder.
        damaged: Whether the folder's `last` could not be read.
    """

    checkpoint: dict[str, Any]
    path: Path
    inside: bool
    damaged: bool


def find_checkpoint(config: ResolvedConfig, folder: Path, data: RunData) -> Resumed | None:
    """Read the checkpoint that `--resume` names; `auto` means the newest whole one in the run's folder.

    Returns:
        The checkpoint, or None for a run from the start.

    Raises:
        RideError: It cannot be read, or is of another model, optimizer or other classes; or another run is in the way.
    """
    present = checkpoints_in(folder)
    if not config.resume and present:
        raise RideError(
            f'{folder} holds a run already; add --resume auto to continue it, or choose another --experiment NAME.'
        )
    if not config.resume or (config.resume == 'auto' and not present):
        return None
    path, checkpoint = (
        _newest_whole(config, folder, present) if config.resume == 'auto' else _named(Path(config.resume))
    )
    inside = path.parent.resolve() == folder.resolve()
    if present and not inside:
        raise RideError(
            f'{folder} holds a run of its own and --resume names {path}; add --resume auto to continue the run in '
            'the folder, or choose another --experiment NAME.'
        )
    _check_kind(config, checkpoint, path)
    _check_classes(checkpoint, path, data)
    if inside and 'saver' in checkpoint:
        check_history(checkpoint['saver'], path)
    if is_primary(config):
        done = int(checkpoint['epoch']) + 1
        _logger.info(f'Resuming from {path}: {done} {"epoch is" if done == 1 else "epochs are"} done')
    damaged = config.resume == 'auto' and path.name != LAST and present[0].name == LAST
    return Resumed(checkpoint, path, inside, damaged)


def settings_before(config: ResolvedConfig) -> Mapping[str, Any] | None:
    """Settings of the run to go on with, while its model is still to be picked; None for a run from the start.

    Of runs without a name `auto` means the newest in `--output` that the options may have made.
    """
    if not config.resume:
        return None
    if config.resume != 'auto':
        source = Path(config.resume)
        return _settings_of(source if source.is_dir() else source.parent)
    if config.experiment:
        return _settings_of(run_folder(config))
    named = Path(config.output).glob(f'*-{data_name(config)}*/{LAST}')
    for path in sorted(named, key=lambda path: path.stat().st_mtime, reverse=True):
        found = _settings_of(path.parent) or {}
        kept = {name: found[name] for name in ('model', 'loss', 'from_scratch') if name in found}
        if any(kept[name] != getattr(config, name) for name in kept.keys() & config.said):
            continue
        if experiment_name(config.but(**kept)) == path.parent.name:
            return found
    return None


def _settings_of(folder: Path) -> Mapping[str, Any] | None:
    """Of the newest whole checkpoint in a folder; `find_checkpoint` says what is wrong with the others."""
    for path in checkpoints_in(folder):
        with suppress(RideError):
            return dict(read_checkpoint(path).get('args') or {})
    return None


def check_resumed(config: ResolvedConfig, data: RunData, checkpoint: Mapping[str, Any]) -> None:
    """Refuse to go on with a run of another stage, or on other images than it held out.

    Raises:
        RideError: They differ.
    """
    entry = checkpoint.get('ride') or {}
    stage = entry.get('stage', config.stage)
    if stage != config.stage:
        raise RideError(
            f'The checkpoint to resume from is of the stage {stage} and --stage is {config.stage}; give its file as '
            '--init, and another --experiment.'
        )
    held = None if data.holdout is None else data.holdout.to_json()
    if 'holdout' in entry and entry['holdout'] != held:
        raise RideError(
            'The checkpoint to resume from held out other images; keep --holdout, --holdout-seed, --seed, the groups '
            'and the data.'
        )
    part = None if data.val_part is None else data.val_part.to_json()
    if 'val_part' in entry and entry['val_part'] != part:
        raise RideError(
            'The checkpoint to resume from evaluated on other images; keep --val-fraction, --val-seed, the groups and '
            'the data.'
        )


def report_changes(
    config: ResolvedConfig, checkpoint: Mapping[str, Any], data: RunData, now_entry: Mapping[str, Any]
) -> None:
    """Warn of all that differs from what the checkpoint was trained with; the command line's holds.

    Args:
        config: The run's options, complete.
        checkpoint: Of `find_checkpoint`.
        data: The images.
        now_entry: What the `ride` entry of this run's checkpoints will say of the stage.
    """
    entry = checkpoint.get('ride') or {}
    before, now = _compared(checkpoint.get('args') or {}), _compared(config.settings())
    if 'teacher' in entry and entry['teacher'] == now_entry['teacher']:
        now.pop('teacher', None)  # the same weights, wherever they lie
    elif 'teacher' in entry and before.get('teacher') == now.get('teacher'):
        before['teacher'] = f'{before["teacher"]} with other weights'
    if config.stage == 'router':
        before.setdefault('router_target', 'accuracy')  # of runs from before there was a choice
    changes = list(_differences(before, now))
    counts = entry.get('class_counts')
    if config.stage != 'router' and counts is not None and list(counts) != data.train.class_counts.tolist():
        changes.append(f'training images {sum(counts)} -> {len(data.train.targets)}')
    elif entry.get('train_digest', now_entry['train_digest']) != now_entry['train_digest']:
        changes.append(f'training images (other files now, {data.train.source})')
    if not is_primary(config):
        return
    if changes:
        _logger.warning(f'Different from the checkpoint, and so not the same run: {", ".join(changes)}.')
    if config.sched == 'plateau':
        _logger.warning("timm's checkpoints do not hold the state of the plateau schedule; it starts anew.")


def restore(
    checkpoint: Mapping[str, Any], task: ExpertTask, optimizer: torch.optim.Optimizer, scaler: Any = None
) -> None:
    """Load weights, optimizer and scaler of a checkpoint.

    The optimizer keeps the learning rate, weight decay and momentum it was created with, so that the command line's
    hold; for the same command line they are the checkpoint's.

    Args:
        checkpoint: Of `find_checkpoint`.
        task: Its network is loaded.
        optimizer: Freshly created, without a scheduler yet.
        scaler: The scaler of float16 training, if there is one.

    Raises:
        RideError: The checkpoint does not fit.
    """
    wanted = [{key: group[key] for key in _HYPERPARAMETERS if key in group} for group in optimizer.param_groups]
    try:
        task.load_checkpoint_state(clean_state_dict(checkpoint['state_dict']), checkpoint.get('task_state'))
        optimizer.load_state_dict(checkpoint['optimizer'])
        _check_state(optimizer)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RideError(
            f'The checkpoint does not fit the network or the optimizer ({misfit(error)}); keep the options.'
        ) from None
    for group, values in zip(optimizer.param_groups, wanted, strict=True):
        group.pop('initial_lr', None)  # schedulers would go on from it
        group.update(values)
    if scaler is not None and scaler.state_dict_key in checkpoint:
        scaler.load_state_dict(checkpoint[scaler.state_dict_key])


def _check_state(optimizer: torch.optim.Optimizer) -> None:
    """Refuse a state of parameters in another order, which PyTorch matches by their number alone."""
    for parameter, state in optimizer.state.items():
        for name in _LIKE_PARAMETERS:
            if name in state and state[name] is not None and state[name].shape != parameter.shape:
                raise ValueError(f'{name} is {list(state[name].shape)} for a parameter of {list(parameter.shape)}')


def _newest_whole(config: ResolvedConfig, folder: Path, present: list[Path]) -> tuple[Path, dict[str, Any]]:
    """The newest checkpoint of the run that can be read; a warning says that it is not `last`."""
    for path in present:
        try:
            checkpoint = read_checkpoint(path)
        except NoCheckpointError:
            continue
        if path.name != LAST and is_primary(config):
            state = f'is damaged (and kept as {DAMAGED})' if present[0].name == LAST else 'is missing'
            _logger.warning(
                f'{folder / LAST} {state}; resuming from {path}, the newest intact checkpoint there; the epochs '
                'after it are trained again.'
            )
        return path, checkpoint
    names = ', '.join(path.name for path in present)
    raise RideError(
        f'{folder} holds no intact checkpoint ({names}: damaged); put a copy of one there, or choose another '
        '--experiment NAME.'
    )


def _named(source: Path) -> tuple[Path, dict[str, Any]]:
    """The checkpoint of a path, which may be the folder of a run."""
    path = source / LAST if source.is_dir() else source
    try:
        return path, read_checkpoint(path)
    except NoCheckpointError as error:
        whole = next(filter(_is_whole, checkpoints_in(path.parent)), None)
        if whole is None:
            raise
        raise RideError(
            f'{path} is {"damaged" if path.exists() else "missing"}, and {whole} is intact; resume from that with '
            f'--resume {shlex.quote(str(whole))}.'
        ) from error


def _is_whole(path: Path) -> bool:
    try:
        read_checkpoint(path)
    except RideError:
        return False
    return True


def _check_kind(config: ResolvedConfig, checkpoint: Mapping[str, Any], path: Path) -> None:
    if not {'epoch', 'optimizer'} <= checkpoint.keys():
        raise RideError(f'{path} holds weights without a training state; resume from a last.pth.tar.')
    if checkpoint.get('arch') != config.model:
        raise RideError(
            f'{path} is of {checkpoint.get("arch")} and --model is {config.model}; resume with the same model.'
        )
    opt = (checkpoint.get('args') or {}).get('opt', config.opt)
    if opt != config.opt:
        raise RideError(
            f'{path} was trained with --opt {opt} and --opt is {config.opt}; resume with the same optimizer.'
        )


def _check_classes(checkpoint: Mapping[str, Any], path: Path, data: RunData) -> None:
    names = (checkpoint.get('ride') or {}).get('class_names')
    if names is None or list(names) == list(data.train.class_names):
        return
    pairs = enumerate(zip(names, data.train.class_names, strict=False))
    differ = next((f'; class {i} is {a} there and {b} here' for i, (a, b) in pairs if a != b), '')
    raise RideError(
        f'{path} was trained on other classes ({len(names)}) than {data.train.source} has '
        f'({data.train.num_classes}{differ}); resume on the same data.'
    )


def _compared(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The options that must be the same for the same run, lists and tuples alike."""
    compared = {key: plain(value) for key, value in settings.items() if key not in HARMLESS}
    if 'device' in compared:
        compared['device'] = str(compared['device']).partition(':')[0]  # whichever GPU it is
    if compared.get('data_on_device'):
        compared.pop('workers', None)  # they load evaluation images alone
    return compared


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Each option that both have and that differs; of --model-kwargs and its like each entry."""
    for key in sorted(before.keys() & now.keys()):
        old, new = before[key], now[key]
        if isinstance(old, dict) and isinstance(new, dict):
            names = [name for name in old | new if f'{key}.{name}' not in HARMLESS]
            yield from (
                f'{key}.{name} {old.get(name)} -> {new.get(name)}' for name in names if old.get(name) != new.get(name)
            )
        elif old != new:
            yield f'{key} {old} -> {new}'
