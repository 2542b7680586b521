"""The forms that data comes in, and which of them is meant."""

from pathlib import Path

from ride_timm.data.sources.base import Source
from ride_timm.data.sources.folders import NoImagesError, find_split_folder, read_folder
from ride_timm.data.sources.hugging_face import read_hugging_face
from ride_timm.data.sources.lists import Crop, read_class_names, read_list
from ride_timm.data.sources.rows import GUESS, Columns
from ride_timm.data.sources.shards import read_shards
from ride_timm.data.sources.torch_sets import read_torchvision
from ride_timm.errors import RideError

__all__ = ['guess_dataset', 'open_source']


class OtherFormError(RideError):
    """A folder holds images in another form than it was opened as.

    Args:
        data_dir: The folder.
        dataset: What `--dataset` opens it.
    """

    def __init__(self, data_dir: str | Path, dataset: str) -> None:
        files = 'Parquet or Arrow' if dataset == 'hfds' else 'tar'
        super().__init__(f'{data_dir} holds no class folders of images but {files} files; add --dataset {dataset}.')
        self.dataset = dataset


def open_source(
    data_dir: str | Path | None,
    dataset: str = '',
    split: str = 'train',
    *,
    list_file: str | Path | None = None,
    columns: Columns = GUESS,
    divided: bool = False,
    crop: Crop | None = None,
    names_file: str | Path | None = None,
    input_key: str | None = None,
    target_key: str | None = None,
    download: bool = False,
    training: bool = False,
) -> Source:
    """Open a split in whatever form it is stored.

    Args:
        data_dir: Image folder, torchvision's root, folder that a list's paths are relative to, folder of shards, cache
            of Hugging Face datasets.
        dataset: Empty or `folder` for an image folder; `torch/<name>` (`torch/cifar100`) for a torchvision data set;
            `hfds/<name or path>` for a Hugging Face data set, `hfds` alone for one in `data_dir`; `wds` for webdataset
            shards in `data_dir`.
        split: Name of the split.
        list_file: A file that names the images and their labels instead (see `read_rows`).
        columns: Columns of `list_file`, where it is a table; those that are None are guessed.
        divided: `list_file` has the images of several splits and says of which each is; else all of it is the split.
        crop: Take parts of the images of `list_file`.
        names_file: What numeric labels of lists, shards and tables stand for, one class name a line.
        input_key: Column (hfds) or suffixes (wds) of images.
        target_key: Column (hfds) or field of the json (wds) with labels.
        download: Let torchvision download what is missing.
        training: Log what is peculiar about the class names.

    Returns:
        The images with the source's own class names, some of which may have no image in an image folder.

    Raises:
        RideError: If the data is missing, misplaced, ambiguous, or of an unknown form.
    """
    form = dataset.partition('/')[0].lower()
    names = read_class_names(names_file) if names_file is not None else None
    if list_file is not None:
        if form not in ('', 'folder'):
            raise RideError(
                f'The list {list_file} and --dataset {dataset} both say what the images are; leave one out.'
            )
        part = split if divided else None
        return read_list(list_file, data_dir, names, tell=training, columns=columns, split=part, crop=crop)
    if form in ('hfds', 'wds'):
        read = read_hugging_face if form == 'hfds' else read_shards
        return read(data_dir, dataset, split, names, input_key=input_key, target_key=target_key, tell=training)
    _refuse_unused(dataset, {'--class-names': names_file, '--input-key': input_key, '--target-key': target_key})
    if data_dir is None:
        raise RideError('No data folder was given; name one with --data-dir.')
    if dataset in ('', 'folder'):
        return _open_folder(data_dir, split)
    if form == 'torch' and '/' in dataset:
        return read_torchvision(data_dir, dataset, split, download)
    raise RideError(
        f'The data set "{dataset}" is not supported; use an image folder (no --dataset), torch/<name> (for example '
        'torch/cifar100), hfds/<name> (Hugging Face) or wds (webdataset).'
    )


def guess_dataset(data_dir: str | Path) -> str:
    """What `dataset` is to be for a local folder, by the files in it.

    Args:
        data_dir: The folder.

    Returns:
        `hfds` for Parquet or Arrow files, `wds` for tar files, empty for everything else.
    """
    root = Path(data_dir)
    for form, patterns in (
        ('hfds', ('*.parquet', '*/*.parquet', '*.arrow', '*/*.arrow')),
        ('wds', ('*.tar', '*/*.tar')),
    ):
        if any(next(root.glob(pattern), None) is not None for pattern in patterns):
            return form
    return ''


def _open_folder(data_dir: str | Path, split: str) -> Source:
    folder = find_split_folder(data_dir, split)
    try:
        return read_folder(folder)
    except NoImagesError as error:
        form = guess_dataset(data_dir)
        if form:
            raise OtherFormError(data_dir, form) from error
        raise


def _refuse_unused(dataset: str, given: dict[str, object]) -> None:
    option = next((option for option, value in given.items() if value is not None), None)
    if option is not None:
        what = 'lists, hfds and wds' if option == '--class-names' else 'hfds and wds'
        have = dataset or 'image folders'
        raise RideError(f'{option} is for {what}, and {have} name their classes themselves; leave it out.')
