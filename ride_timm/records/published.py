"""Published weights: from a name over the index and a checked file to the tensors that timm loads.

`index.json` lists every checkpoint with the size and SHA-256 of each of its files and, once it is on the Hugging Face
Hub, the repository and the revision. A checkpoint is taken from the folder that the environment variable
`RIDE_TIMM_WEIGHTS` names, else from the installed package or the checkout, else from the Hub at the pinned revision; in
each case the hashes are compared before anything is read from the file. The environment variable is read once, at the
first use.

torch and timm are imported only where tensors are read and cfgs are made: `ride-timm weights` needs neither.
"""

import dataclasses
import functools
import hashlib
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch
    from timm.models import PretrainedCfg

from ride_timm.errors import RideError
from ride_timm.records.kinds import CONFIG_SCHEMA
from ride_timm.records.schema import OBJECT, check_record, nullable, read_object, text, whole

__all__ = [
    'CONFIG', 'INDEX', 'WEIGHTS', 'FileHash', 'HubCopy', 'PretrainedError', 'PublishedCheckpoint', 'check_bytes',
    'checkpoint_of', 'default_tag', 'is_sharded', 'package_root', 'published_weights', 'read_index',
    'register_published', 'results_alone',
]  # fmt: skip

INDEX = 'index.json'
CONFIG = 'config.json'
WEIGHTS = 'model.safetensors'
SHARD_INDEX = 'model.safetensors.index.json'
_SOURCES = ('url', 'file', 'state_dict', 'hf_hub_id', 'hf_hub_filename', 'source', 'architecture', 'tag', 'custom_load')

_ENTRY = {
    'files': OBJECT,
    'hub': nullable(OBJECT),
    'hub.repo_id': text(r'[\w.-]+/[\w.-]+', 'the name of a repository, org/name'),
    'hub.revision': text(r'[0-9a-f]{40}', 'a commit of 40 hexadecimal digits'),
    'hub.files': OBJECT,
}


class PretrainedError(RuntimeError):
    """Weights that cannot be had or that are not what was published, in one sentence."""


class FileHash(NamedTuple):
    """What a file must be: its length in bytes and its SHA-256 as 64 hexadecimal digits."""

    size: int
    sha256: str


class HubCopy(NamedTuple):
    """Where a checkpoint lies on the Hub: repository, commit (40 hexadecimal digits), and its files there."""

    repo_id: str
    revision: str
    files: Mapping[str, FileHash]


@dataclasses.dataclass(frozen=True)
class PublishedCheckpoint:
    """One published checkpoint.

    Attributes:
        name: `<architecture>.<recipe>_<dataset>`.
        folder: Its folder; not every file need be there.
        files: What each file of the folder must be.
        hub: Its copy on the Hub, or None.
        config: Content of its `config.json`, not yet compared with its hash.
    """

    name: str
    folder: Path
    files: Mapping[str, FileHash]
    hub: HubCopy | None
    config: Mapping[str, Any]

    @property
    def architecture(self) -> str:
        """The name's first part."""
        return self.name.partition('.')[0]

    @property
    def tag(self) -> str:
        """The name's second part."""
        return self.name.partition('.')[2]

    @property
    def model_args(self) -> dict[str, Any]:
        """Arguments of the architecture that the weights were made with."""
        return {key: value for key, value in self.config.get('model_args', {}).items() if key != 'num_classes'}

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return int(self.config['num_classes'])

    @property
    def tensor_files(self) -> tuple[str, ...]:
        """Names of the files with tensors: one, or several shards."""
        return tuple(name for name in self.files if name.endswith('.safetensors'))

    @property
    def has_tensors(self) -> bool:
        """Whether there are tensors at all; of a network that only others are compared with there are only results."""
        return bool(self.tensor_files)

    @property
    def is_local(self) -> bool:
        """Whether it has tensors and every file of them lies in the folder."""
        return self.has_tensors and all((self.folder / name).is_file() for name in self.tensor_files)

    @property
    def source(self) -> dict[str, str]:
        """What timm's cfg names as the source of the weights; empty if they are published nowhere."""
        if self.is_local:
            return {'file': str(self.folder / (WEIGHTS if WEIGHTS in self.files else SHARD_INDEX))}
        return {'hf_hub_id': f'{self.hub.repo_id}@{self.hub.revision}'} if self.hub is not None else {}

    def cfg(self) -> dict[str, Any]:
        """The fields of timm's cfg that this checkpoint sets: image size, normalisation, labels, source."""
        from timm.models import PretrainedCfg

        known = {field.name for field in dataclasses.fields(PretrainedCfg)}.difference(_SOURCES)
        stored = self.config.get('pretrained_cfg', {})
        cfg = {key: _tuple(value) for key, value in stored.items() if key in known}
        if self.config.get('label_names'):
            cfg['label_names'] = tuple(self.config['label_names'])
        if self.config.get('label_descriptions'):
            cfg['label_descriptions'] = dict(self.config['label_descriptions'])
        return cfg | {'num_classes': self.num_classes} | self.source

    def load(self, cache_dir: str | Path | None = None) -> 'dict[str, torch.Tensor]':
        """Read the tensors, after the hashes of all files were found right.

        Args:
            cache_dir: Folder of the Hub's cache, if the checkpoint comes from there.

        Returns:
            The state dict, on the CPU.

        Raises:
            PretrainedError: A file is missing, cannot be fetched, or is not the published one.
        """
        from safetensors.torch import load

        if self.is_local:
            folder, files = self.folder, self.files
        elif self.hub is not None:
            folder, files = self._download(self.hub, cache_dir), self.hub.files
        else:
            raise PretrainedError(_nowhere(self))
        needed = [name for name in files if name.endswith('.safetensors')] + [n for n in (CONFIG,) if n in files]
        contents = {name: check_bytes(folder / name, files[name]) for name in needed}
        state: dict[str, torch.Tensor] = {}
        for name, content in contents.items():
            if name != CONFIG:
                state |= load(content)
        return state

    def _download(self, hub: HubCopy, cache_dir: str | Path | None) -> Path:
        from huggingface_hub import hf_hub_download

        path = None
        for name in hub.files:
            if name.endswith('.safetensors') or name == CONFIG:
                try:
                    path = hf_hub_download(hub.repo_id, name, revision=hub.revision, cache_dir=cache_dir)
                except Exception as error:  # the client's errors have no common base but this
                    raise PretrainedError(
                        f'{self.name} is not in {self.folder} and {name} cannot be fetched from {hub.repo_id} at '
                        f'{hub.revision[:10]} on the Hugging Face Hub ({_first_line(error)}); check the connection, or '
                        'name a folder that has it in RIDE_TIMM_WEIGHTS.'
                    ) from error
        if path is None:
            raise PretrainedError(f'The index names no file of {self.name} on the Hub; install ride-timm again.')
        return Path(path).parent


def check_bytes(path: Path, expected: FileHash) -> bytes:
    """Read a file that must have this size and hash.

    Returns:
        Its content.

    Raises:
        PretrainedError: It cannot be read, or is another one.
    """
    again = 'get it again (`git checkout` it, install ride-timm again, or empty the cache of the Hub)'
    try:
        content = path.read_bytes()
    except OSError as error:
        raise PretrainedError(f'{path} cannot be read ({error.strerror}); {again}.') from error
    if len(content) != expected.size:
        raise PretrainedError(f'{path} has {len(content)} bytes and the index says {expected.size}; {again}.')
    found = hashlib.sha256(content).hexdigest()
    if found != expected.sha256:
        raise PretrainedError(
            f'{path} is damaged or a different file: its SHA-256 is {found[:12]}... and the index says '
            f'{expected.sha256[:12]}...; {again}.'
        )
    return content


def read_index(root: Path) -> dict[str, PublishedCheckpoint]:
    """Read `index.json` and the `config.json` of each checkpoint.

    Args:
        root: The folder that holds the index and one folder a checkpoint.

    Returns:
        The weights by name, in the index's order.

    Raises:
        PretrainedError: The index, an entry or a `config.json` cannot be understood.
    """
    try:
        entries = read_object(root / INDEX, {'weights': OBJECT}, needed=('weights',))['weights']
        return {name: _checkpoint(root, name, entry) for name, entry in entries.items()}
    except (RideError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PretrainedError(
            f'{root / INDEX} cannot be understood ({type(error).__name__}: {_first_line(error)}); restore it, or '
            'install ride-timm again.'
        ) from error


def _checkpoint(root: Path, name: str, entry: Mapping[str, Any]) -> PublishedCheckpoint:
    if not re.fullmatch(r'\w+\.\w+', name):
        raise ValueError(f'{name!r} is not ARCHITECTURE.TAG')
    check_record(entry, _ENTRY, f'The entry of {name}', needed=('files',))
    hub = entry.get('hub')
    copy = None
    if hub is not None:
        copy = HubCopy(hub['repo_id'], hub['revision'], _hashes(hub['files']))
    files = _hashes(entry['files'])
    config = read_object(root / name / CONFIG, CONFIG_SCHEMA, needed=('num_classes',))
    return PublishedCheckpoint(name, root / name, files, copy, config)


def _hashes(files: Mapping[str, Mapping[str, Any]]) -> dict[str, FileHash]:
    hashes = {}
    for name, about in files.items():
        check_record(about, {'size': whole(0, 2**50)}, f'The entry of the file {name}', needed=('size',))
        found = FileHash(about['size'], about['sha256'])
        if not re.fullmatch(r'[0-9a-f]{64}', found.sha256) or not re.fullmatch(r'\w[\w.-]*', name):
            raise ValueError(f'the entry of the file {name!r} has no proper name or SHA-256')
        hashes[name] = found
    return hashes


def is_sharded(folder: Path) -> bool:
    """Whether a folder holds its tensors in several files and an index alone."""
    return (folder / SHARD_INDEX).is_file() and not (folder / WEIGHTS).is_file()


def package_root() -> Path:
    """The folder of the weights that came with the package: in the wheel, or in the checkout around it."""
    package = Path(__file__).resolve().parents[1]
    checkout = package.parent
    is_checkout = (checkout / 'pyproject.toml').is_file() and not (package / '_weights').is_dir()
    return checkout / 'weights' if is_checkout else package / '_weights'


@functools.cache
def published_weights() -> dict[str, PublishedCheckpoint]:
    """All weights by name: those of `RIDE_TIMM_WEIGHTS`, then those that came with the package."""
    found: dict[str, PublishedCheckpoint] = {}
    chosen = os.environ.get('RIDE_TIMM_WEIGHTS')
    roots = [Path(chosen).expanduser().absolute()] if chosen else []  # read once: the working directory may change
    for root in (*roots, package_root()):
        if root not in roots and not (root / INDEX).is_file():
            continue  # a package without weights
        try:
            weights = read_index(root)
        except PretrainedError as error:
            hint = ' (the folder that RIDE_TIMM_WEIGHTS names)' if root in roots else ''
            warnings.warn(f'No weights are taken from {root}{hint}: {error}', stacklevel=2)
            continue
        for name, checkpoint in weights.items():
            if name not in found or not found[name].is_local:
                found[name] = checkpoint
    return found


def register_published(cfgs: Mapping[str, Any]) -> dict[str, Any]:
    """Put the published weights of architectures into timm's form, `architecture.tag`.

    Args:
        cfgs: The cfg of each architecture, as a dictionary.

    Returns:
        For `timm.models.generate_default_cfgs`: one cfg a checkpoint, and the given one where an architecture has none,
        or none of its classes and image size. timm takes the first checkpoint's cfg for the architecture's own, which
        would build `ride_resnet50_4e` for 200 classes at 64 pixels, and its siblings for 1,000 at 224; so the given one
        is marked as the default there (`*`), and `default_tag` finds what `pretrained=True` loads.
    """
    tagged: dict[str, Any] = {}
    for variant, base in cfgs.items():
        own = _checkpoints_of(variant)
        for checkpoint in own:
            tagged[checkpoint.name] = base | checkpoint.cfg()
        if not own:
            tagged[variant] = base
        elif not _same_task(own[0].cfg(), base):
            tagged[f'{variant}.*'] = base
    return tagged


def _same_task(cfg: Mapping[str, Any], base: Mapping[str, Any]) -> bool:
    """Whether a checkpoint has an architecture's own number of classes and size of images."""
    return all(cfg.get(key, base.get(key)) == base.get(key) for key in ('num_classes', 'input_size'))


def default_tag(variant: str) -> str | None:
    """The tag of an architecture's first published checkpoint, which `pretrained=True` means; None if it has none."""
    return next((checkpoint.tag for checkpoint in _checkpoints_of(variant)), None)


def _checkpoints_of(variant: str) -> list[PublishedCheckpoint]:
    """Those of an architecture that have tensors."""
    found = published_weights().values()
    return [checkpoint for checkpoint in found if checkpoint.architecture == variant and checkpoint.has_tensors]


def checkpoint_of(cfg: 'PretrainedCfg | Mapping[str, Any]', variant: str) -> PublishedCheckpoint | None:
    """The published checkpoint that a resolved cfg takes its tensors from, or None for any other source.

    Args:
        cfg: A cfg, resolved by timm.
        variant: The architecture.

    Returns:
        The checkpoint.

    Raises:
        PretrainedError: The cfg names no source at all.
    """
    fields = dict(cfg) if isinstance(cfg, Mapping) else dataclasses.asdict(cfg)
    checkpoint = published_weights().get(f'{variant}.{fields.get("tag")}')
    given = {key: fields[key] for key in ('file', 'hf_hub_id', 'url', 'state_dict', 'source') if fields.get(key)}
    if not given:
        raise PretrainedError(_nowhere(checkpoint) if checkpoint is not None else _unpublished(variant))
    return checkpoint if checkpoint is not None and given == checkpoint.source else None


def _unpublished(variant: str) -> str:
    names = ', '.join(name for name, checkpoint in published_weights().items() if checkpoint.has_tensors) or 'none yet'
    return (
        f'{variant} has no published weights (those there are: {names}); leave pretrained=True out, train them with '
        "`ride-timm train` (`ride-timm recipes` lists the recipes), or convert the authors' with `ride-timm convert`."
    )


def results_alone(checkpoint: PublishedCheckpoint) -> str:
    """What to say where the tensors of a network are asked for that others are only compared with.

    Args:
        checkpoint: Without tensors.
    """
    return (
        f'{checkpoint.name} has published results but no weights ({checkpoint.folder}); its card has the command that '
        'trains it.'
    )


def _nowhere(checkpoint: PublishedCheckpoint) -> str:
    missing = next((name for name in checkpoint.tensor_files if not (checkpoint.folder / name).is_file()), WEIGHTS)
    return (
        f'{missing} of {checkpoint.name} is not in {checkpoint.folder} and the index pins no copy on the Hugging Face '
        'Hub; take the folder weights/ of a checkout of the project and name it in RIDE_TIMM_WEIGHTS.'
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip('.')


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
