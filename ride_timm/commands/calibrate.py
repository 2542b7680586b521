"""`ride-timm calibrate MODEL --data-dir DIR`: calibrated confidences, and which answers can be trusted.

It takes labelled images that the network has not seen, drawn like the images to come: those that `train --holdout` held
out where there are any, else the split `val`. A quarter of them fits the temperatures, which change confidences and no
answer; the others measure the calibration error, and how many images `predict --abstain RATE` would answer.

Both are noted in the checkpoint or folder of the network, or with `--output` in a new folder: `predict`, `validate`,
`report` and `demo` use them, `package` and `publish` hand them on. Training the network further drops them. In Python:
`ride_timm.calibrate`.
"""

import argparse
import logging
from collections.abc import Sequence

from ride_timm.commands.keeping import find_target, keep
from ride_timm.commands.options import add_loading_options, add_model_argument, add_options, chosen
from ride_timm.commands.parser import Parser
from ride_timm.commands.run_images import TrainedRun, find_run, form_of, names_images
from ride_timm.commands.validate import open_images
from ride_timm.escaping import printable
from ride_timm.inference.abstention import curves_of, promises
from ride_timm.inference.calibration import calibrate
from ride_timm.inference.load import load
from ride_timm.inference.prediction import eval_loader
from ride_timm.logs import setup_logging
from ride_timm.options import DataForm
from ride_timm.records.calibration import Calibration
from ride_timm.records.fields import to_json
from ride_timm.tables import counted, lay_out
from ride_timm.values import check_values, choose_device

__all__ = ['build_parser', 'main']

_logger = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    """The parser of `ride-timm calibrate`."""
    parser = Parser(
        prog='ride-timm calibrate',
        description='Calibrate confidences on held-out images, and measure which answers can be trusted.',
    )
    add_model_argument(parser)
    add_options(parser, DataForm, leave_out=('val_split', 'val_fraction', 'val_seed'))
    images = parser.add_mutually_exclusive_group()
    images.add_argument(
        '--split', metavar='NAME', help='split to calibrate on (default: the images held out, or else val)'
    )
    images.add_argument(
        '--holdout', type=float, metavar='P', help='calibrate on the images that `train --holdout P` held out'
    )
    parser.add_argument('--output', metavar='DIR', help='write the calibrated network to this folder')
    add_loading_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Calibrate from a command line."""
    args = build_parser().parse_args(argv)
    check_values(vars(args))
    given = chosen(args, DataForm)
    run = TrainedRun() if names_images(given) else find_run(args.model)
    form = form_of(run, given)
    setup_logging(logging.WARNING)  # not where timm finds each file
    target = find_target(args.model, args.output)
    trained = load(args.model)
    known = trained.record.holdout
    holdout = known.fraction if args.holdout is None and args.split is None and known is not None else args.holdout
    split, _ = open_images(form, trained, split=args.split or run.val_split(trained), holdout=holdout)
    device = choose_device(args.device)
    trained.model.to(device)
    loader = eval_loader(trained.model, split, batch_size=args.batch_size, workers=args.workers, device=device)
    found = calibrate(trained, loader, progress=True)
    print(f'{counted(len(split.targets), "image")}: {printable(split.source)}\n')
    print('\n'.join(_lines(found)))
    if found.full.ece_after > found.full.ece_before:
        _logger.warning('With these temperatures the calibration error is larger; calibrate on more images')
    if split.image_groups is not None:
        _logger.warning(
            'The images are of %s; what --abstain promises takes each image as drawn on its own, so it may not hold '
            'for images of other groups', counted(len(set(split.image_groups)), 'group'),
        )  # fmt: skip
    keep(trained, target, {'calibration': to_json(found)})
    print(f'\nStored in {target}, for predict, validate, report and demo.')
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
        f'Images answered with predict --abstain, at 95 % confidence (measured on {images}):',
        *lay_out(list(zip(*promises(found), strict=True)), gap=3),
    ]
