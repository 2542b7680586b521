"""The folder that `ride-timm publish` uploads, made from a published checkpoint's folder or from a finished run.

Only safetensors, JSON, Markdown and pictures get into it, and what is in it loads with timm and with transformers.
"""

import re
import shutil
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import timm
import torch
from huggingface_hub import get_token
from safetensors import SafetensorError

from ride_timm.errors import RideError, reason_of
from ride_timm.evaluation.cost import describe_network
from ride_timm.evaluation.writing import write_json
from ride_timm.inference.load import load
from ride_timm.pages.card import FIGURES, render_card, write_card
from ride_timm.pages.markdown import escape
from ride_timm.publishing.folder import save_folder
from ride_timm.records.checkpoint import read_checkpoint
from ride_timm.records.kinds import CONFIG_SCHEMA, check_sizes
from ride_timm.records.provenance import base_model, hub_datasets
from ride_timm.records.published import CONFIG, INDEX, SHARD_INDEX, WEIGHTS, PretrainedError, check_bytes, read_index
from ride_timm.records.results import Network, Results, read_results
from ride_timm.records.runs import join_stages
from ride_timm.records.schema import OBJECT, read_object
from ride_timm.records.shards import merge_shards
from ride_timm.records.tensors import read_shapes

__all__ = ['Staged', 'stage']

_RESULTS, _CARD = 'results.json', 'README.md'
_TOKEN = re.compile(r'\bhf_[A-Za-z0-9]{30,}')


class Staged(NamedTuple):
    """A folder to upload: the checkpoint's name, the folder, and the text of its card."""

    name: str
    folder: Path
    card: str


def stage(source: Path, repo_id: str, target: Path, data_name: str | None = None) -> Staged:
    """Make the folder to upload.

    Args:
        source: Folder of a checkpoint (`config.json`, `results.json`, tensors) or of a finished run.
        repo_id: `org/name`, for the card's snippets.
        target: Folder to write, which exists and is empty.
        data_name: What the card calls the data of a run; by default the data set's name or the folder's.

    Returns:
        The folder, with its name and card.

    Raises:
        RideError: The source is neither, or is not whole, or the target cannot be written.
    """
    if not source.exists():
        raise RideError(f'There is no folder {source}; name that of a checkpoint or of a finished run.')
    is_run = (source / 'last.pth.tar').is_file()
    try:
        if is_run:
            _export_run(source, target, repo_id, data_name)
        elif (source / CONFIG).is_file():
            _copy_checkpoint(source, target)
        else:
            raise RideError(
                f'{source} is neither the folder of a checkpoint (config.json, results.json, tensors) nor that of a '
                'finished run (last.pth.tar, results.json); name one of them.'
            )
        _check_loads(target)
        results = read_results(target)
        figures = list(takewhile(lambda name: (target / name).is_file(), FIGURES))
        config = read_object(target / CONFIG, CONFIG_SCHEMA)
        card = render_card(results, config, repo_id=repo_id, others=_others(source), figures=figures)
        if is_run:
            card = _tell_measured(card, results)
        (target / _CARD).write_text(card, encoding='utf-8')
    except (OSError, SafetensorError) as error:
        reason = getattr(error, 'strerror', None) or str(error)
        where = getattr(error, 'filename2', None) or getattr(error, 'filename', None) or target
        raise RideError(
            f'{where} cannot be read or written ({reason}), so nothing was published; free disk space or change its '
            'permissions.'
        ) from error
    _check_secrets(target)
    return Staged(results.name or target.name, target, card)


def _copy_checkpoint(source: Path, target: Path) -> None:
    _check_hashes(source)
    for path in sorted(source.iterdir()):
        if path.name in (CONFIG, _RESULTS) or (path.suffix == '.png' and not path.name.startswith('.')):
            shutil.copyfile(path, target / path.name)
    if (source / WEIGHTS).is_file():
        shutil.copyfile(source / WEIGHTS, target / WEIGHTS)
    elif (source / SHARD_INDEX).is_file():
        merge_shards(source, target / WEIGHTS)
    else:
        raise RideError(
            f'{source} holds no {WEIGHTS} and no shards of it; fetch the large files of the checkout first.'
        )


def _check_hashes(source: Path) -> None:
    """Compare the files with the index next to the folder, if the network is in it."""
    root = source.resolve().parent
    try:
        checkpoint = read_index(root).get(source.resolve().name) if (root / INDEX).is_file() else None
        for name, expected in checkpoint.files.items() if checkpoint is not None else ():
            if name == CONFIG or name.endswith('.safetensors'):
                check_bytes(source / name, expected)
    except PretrainedError as error:
        raise RideError(str(error)) from None


def _export_run(run: Path, target: Path, repo_id: str, data_name: str | None) -> None:
    """Tensors, configuration, results and pictures of a run."""
    results, checkpoint = join_stages(run), run / 'last.pth.tar'
    args = results.args or {}
    if read_checkpoint(checkpoint).get('epoch') != results.last_epoch:
        raise RideError(
            f'{checkpoint} is of another epoch than the results in {run / _RESULTS}; finish the run with --resume auto.'
        )
    trained = load(run)
    if trained.class_names is None or trained.class_counts is None:
        raise RideError(f'{run} does not name its classes and their counts; publish a run of ride-timm train.')
    save_folder(trained.model, target, trained.class_names, trained.class_counts, trained.record.for_export.to_json())
    data = data_name or results.data.name
    method = trained.record.loss
    described = describe_network(trained.model, trained.model.pretrained_cfg['input_size'])
    network = replace(Network(**described), bytes=(target / WEIGHTS).stat().st_size)
    test = results.test
    if 'gmacs' not in test.all_experts:
        test = replace(test, all_experts={**test.all_experts, 'gmacs': network.gmacs})
    results = replace(
        results,
        name=_weight_name(results.architecture, repo_id, f'{method or "ce"}_{data}'),
        method=method,
        data=replace(results.data, name=data, datasets=tuple(hub_datasets(args) or ()) or None),
        network=network,
        test=test,
        base_model=base_model(args),
        last_epoch=None, last=None, best_on_evaluation_images=None, args=None,
    )  # fmt: skip
    write_json(target / _RESULTS, results.to_json())
    write_card(target)  # for its pictures


def _weight_name(architecture: str, repo_id: str, tag: str) -> str:
    """The repository's own name, where it is `<architecture>.<tag>`."""
    own = repo_id.partition('/')[2]
    if re.fullmatch(rf'{re.escape(architecture)}\.\w+', own):
        return own
    return f'{architecture}.{re.sub(r"[^a-z0-9_]+", "", tag.lower())}'


def _check_loads(folder: Path) -> None:
    """Create the network as transformers does, from `config.json` alone, and compare its tensors with the file's."""
    config = read_object(folder / CONFIG, CONFIG_SCHEMA)
    try:
        architecture, number = config['architecture'], config['num_classes']
        options = config.get('model_args') or {}
        stored = read_shapes(folder / WEIGHTS)
        check_sizes(stored, {**options, 'num_classes': number}, str(folder / CONFIG))
        with torch.device('meta'):
            net = timm.create_model(architecture, pretrained=False, num_classes=number, **options)
        needed = {key: tuple(tensor.shape) for key, tensor in net.state_dict().items()}
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise RideError(
            f'No network can be made from the {CONFIG} and {WEIGHTS} to be published ({reason_of(error)}); '
            'write the folder again with `ride-timm package`.'
        ) from None
    wrong = next((key for key in sorted({*stored, *needed}) if stored.get(key) != needed.get(key)), None)
    if wrong is not None:
        raise RideError(
            f'{WEIGHTS} does not match the {CONFIG} next to it at {wrong} ({stored.get(wrong)} in the file, '
            f'{needed.get(wrong)} in {architecture}); write the folder again with `ride-timm package`.'
        )


def _tell_measured(card: str, results: Results) -> str:
    """Say under the title of a run's card which images its results are of."""
    where = escape(results.data.source or 'images that it does not name')
    text = f'The results are those that the training run measured at its end, on {where}.'
    if results.data.evaluated_on != 'test':
        text += ' **These are not test images**: they were held out of the training images.'
    return re.sub(r'^# .*$', lambda title: f'{title[0]}\n\n> {text}', card, count=1, flags=re.MULTILINE)


def _others(source: Path) -> list[Results]:
    """Results of the other networks next to this one, which its card compares it with."""
    root = source.resolve().parent
    if not (source / CONFIG).is_file() or not (root / INDEX).is_file():
        return []
    weights = read_object(root / INDEX, {'weights': OBJECT}).get('weights', {})
    # a name that is a path would lead out of the folder of the index
    names = [name for name in weights if re.fullmatch(r'\w+\.\w+', name) and name != source.resolve().name]
    return [read_results(root / name) for name in names if (root / name / _RESULTS).is_file()]


def _check_secrets(folder: Path) -> None:
    """Refuse a text with an access token in it, such as one typed on a command line that a card repeats."""
    own = get_token()
    for path in sorted(folder.iterdir()):
        if path.suffix in ('.json', '.md'):
            text = path.read_text(encoding='utf-8')
            if (own and own in text) or _TOKEN.search(text):
                raise RideError(
                    f'{path.name} would show an access token; remove it, and revoke the token if it has leaked.'
                )
