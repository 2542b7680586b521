"""`ride-timm calibrate MODEL --data-dir DIR`: confidences as high as answers are right, and what answers are worth.

It takes labelled images that the network has not seen, drawn as those to come: those that `train --holdout` held out
where there are any, else the split `val`. A quarter of them fits the temperatures, which change confidences and no
answer; the others measure the calibration error, and how many answers `predict --abstain RATE` would say.

Both are noted in the checkpoint or folder of the network, or with `--output` in a new folder: `predict`, `validate`,
`report` and `demo` use them, `package` and `publish` hand them on. Training the network further drops them. In Python:
`ride_timm.calibrate`.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from ride_timm.commands.options import add_device_option, add_model_argument, add_options, chosen
from ride_timm.commands.parser import Parser
from ride_timm.commands.validate import open_images
from ride_timm.data import check_images
from ride_timm.data.form import check_form
from ride_timm.escaping import printable
from ride_timm.files import check_folder, writing
from ride_timm.inference.abstention import curves_of, promises
from ride_timm.inference.calibration import calibrate
from ride_timm.inference.load import load
from ride_timm.inference.prediction import eval_loader
from ride_timm.logs import setup_logging
from ride_timm.options import DataForm, filled
from ride_timm.publishing.folder import save_folder
from ride_timm.records.amending import amend_record, record_file
from ride_timm.records.calibration import Calibration
from ride_timm.tables import counted, lay_out
from ride_timm.training.run_data import MAX_CHECKED
from ride_timm.training.run_folder import locked
from ride_timm.values import check_values, choose_device

__all__ = ['build_parser', 'main']


def build_parser() -> argparse.ArgumentParser:
    """The parser of `ride-timm calibrate`."""
    parser = Parser(
        prog='ride-timm calibrate',
        description='Fit the confidences of a network to held-out images, and measure what its answers are worth.',
    )
    add_model_argument(parser)
    add_options(parser, DataForm, leave_out=('val_split', 'val_fraction', 'val_seed'))
    images = parser.add_mutually_exclusive_group()
    images.add_argument('--split', metavar='NAME', help='which images (default: those held out, or else val)')
    images.add_argument('--holdout', type=float, metavar='P', help='those that `train --holdout P` held out')
    parser.add_argument('--output', metavar='DIR', help='write the calibrated network to this folder')
    parser.add_argument('-b', '--batch-size', type=int, default=256, metavar='N')
    parser.add_argument('-j', '--workers', type=int, default=0, metavar='N', help='loading processes (default: none)')
    add_device_option(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Calibrate from a command line.

    Args:
        argv: The arguments; None means those of the process.

    Returns:
        The exit status, 0.

    Raises:
        RideError: Something the user can fix.
    """
    args = build_parser().parse_args(argv)
    form = filled(chosen(args, DataForm))
    check_form(form)
    check_values(vars(args))
    setup_logging(logging.WARNING)  # not where timm finds each file
    file = None if args.output else record_file(args.model)
    if args.output:
        check_folder(args.output, '--output')
    trained = load(args.model)
    known = trained.record.holdout
    holdout = known.fraction if args.holdout is None and args.split is None and known is not None else args.holdout
    split, _ = open_images(form, trained, split=args.split or 'val', holdout=holdout)
    if len(split.targets) <= MAX_CHECKED:
        check_images(split)
    device = choose_device(args.device)
    trained.model.to(device)
    loader = eval_loader(trained.model, split, batch_size=args.batch_size, workers=args.workers, device=device)
    found = calibrate(trained, loader, progress=True)
    print(f'{counted(len(split.targets), "image")}: {printable(split.source)}\n')
    print('\n'.join(_lines(found)))
    if file is None:
        record = trained.record.for_export.to_json()
        save_folder(trained.model.cpu(), Path(args.output), trained.class_names, trained.class_counts, record)
    else:
        busy = locked(file.parent) if file.suffix == '.tar' else nullcontext()
        with busy, writing(file, 'MODEL'):
            amend_record(file, {'calibration': trained.record.to_json()['calibration']})
    print(f'\nNoted in {file or args.output}, for predict, validate, report and demo.')
    return 0


def _lines(found: Calibration) -> list[str]:
    several = len(found.temperatures) > 1
    names = [f' ({counted(n, "expert")})' if several else '' for n in range(1, len(found.temperatures) + 1)]
    curves = curves_of(found)
    rows = [
        ['temperature', ', '.join(f'{value:.3g}{name}' for value, name in zip(found.temperatures, names, strict=True))],
        *(
            [f'calibration error, {name}', f'{curve.ece_before:.2f} %, with temperature {curve.ece_after:.2f} %']
            for name, curve in curves.items()
        ),
    ]
    images = counted(found.full.measured.images, 'image')
    return [
        *lay_out(list(zip(*rows, strict=True))),
        '',
        f'Answers said with predict --abstain, at 95 % confidence (measured on {images}):',
        *lay_out(list(zip(*promises(found), strict=True)), gap=3),
    ]


if __name__ == '__main__':
    from ride_timm.cli import guarded

    sys.exit(guarded('calibrate', main))
