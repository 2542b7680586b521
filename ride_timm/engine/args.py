"""The training command's arguments: timm's flags and ours (which source of a value wins: `precedence.py`)."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from ride_timm._compat import options_of
from ride_timm.data import AUGMENTATIONS
from ride_timm.engine.data_options import add_form_options
from ride_timm.engine.precedence import STAGES, check_stage, merge, recipe_values
from ride_timm.engine.trackers import TRACKERS
from ride_timm.engine.values import KeyValues
from ride_timm.losses import list_losses
from ride_timm.parser import Parser
from ride_timm.recipes import load_recipe

__all__ = ['build_parser', 'parse_args']


def build_parser() -> argparse.ArgumentParser:
    """The parser of `ride-timm train`. A default of None is picked later, from the data or the hardware."""
    parser = Parser(
        prog='ride-timm train',
        description='Train a RIDE network, or any timm classifier beside it, on long-tailed images.',
    )
    parser.add_argument('--recipe', metavar='NAME', help='named settings (see `ride-timm recipes`), or a YAML file')
    _add_stage(parser.add_argument_group('stage'))
    _add_data(parser.add_argument_group('data'))
    _add_model(parser.add_argument_group('model'))
    _add_loss(parser.add_argument_group('loss and sampling'))
    _add_optimizer(parser.add_argument_group('optimizer'))
    _add_schedule(parser.add_argument_group('learning rate schedule'))
    _add_augmentation(parser.add_argument_group('augmentation'))
    _add_run(parser.add_argument_group('run'))
    return parser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line and merge the recipe and the stage's defaults.

    Args:
        argv: The arguments; None means those of the process.

    Returns:
        All values; `command` is the line as typed, `explicit` holds the names that it set and `from_recipe` those of
        the recipe.

    Raises:
        RideError: The recipe is unknown, has a key that is no argument or a value that the argument does not take; or
            an option belongs to another stage.
    """
    parser = build_parser()
    args = parser.parse_args(argv)
    recipe = recipe_values(load_recipe(args.recipe), parser, args.recipe) if args.recipe else {}
    merge(args, _explicit(argv), recipe)
    if args.decay_epochs is None:
        args.decay_epochs = 0.2 if args.sched in ('wsd', 'rsqrt') else 90
    args.command = shlex.join(['ride-timm', 'train', *(sys.argv[1:] if argv is None else argv)])
    check_stage(args)
    return args


def _explicit(argv: Sequence[str] | None) -> set[str]:
    """Names of the arguments that the command line sets."""
    parser = build_parser()
    for action in options_of(parser):
        action.default = argparse.SUPPRESS
    return set(vars(parser.parse_args(argv)))


def _add_stage(group: Any) -> None:
    group.add_argument(
        '--stage', default='experts', choices=STAGES,
        help='what trains: the whole network (default), or on --init the router alone, or the heads alone',
    )  # fmt: skip
    group.add_argument(
        '--init', metavar='WEIGHTS',
        help='weights to begin with: a last.pth.tar of a run, an exported folder, a published name of ours, '
        "hf-hub:ORG/NAME, or a timm ResNet's (resnet50.a1_in1k, or a file with --model), which seeds every expert",
    )  # fmt: skip
    group.add_argument(
        '--init-noise', type=float, default=0.01, metavar='S',
        help="relative noise that sets experts seeded from one ResNet's weights apart (default: 0.01)",
    )  # fmt: skip
    group.add_argument('--init-ema', action='store_true', help='take the moving average of --init')
    group.add_argument(
        '--train-only', nargs='+', metavar='PART',
        help='train these parts of --init alone, such as `experts` on a trunk that stays, or experts.2.fc; the rest '
        'is frozen, statistics of normalisation included',
    )  # fmt: skip
    group.add_argument(
        '--holdout', type=float, metavar='F',
        help='hold out this fraction of the training images, for choices such as the router threshold that must not be '
        'made on the evaluation images, and evaluate on them instead (the router stage holds out what the '
        'experts of --init did not see; data without evaluation images: see --val-fraction)',
    )  # fmt: skip
    group.add_argument(
        '--holdout-seed', type=int, metavar='N',
        help='which images --holdout takes (default: --seed); with one of its own, runs of several seeds share them',
    )  # fmt: skip
    group.add_argument(
        '--router-threshold', type=float, metavar='T',
        help='probability above which an image goes on to the next expert (default: chosen on --holdout images)',
    )  # fmt: skip
    group.add_argument(
        '--router-pos-weight', type=float, default=100.0, metavar='W',
        help='weight of images that need more experts: higher passes more of them on (default: 100)',
    )  # fmt: skip
    group.add_argument(
        '--expert-order', type=int, nargs='+', metavar='K',
        help='stage router: the experts of --init in the order in which images are to pass them, such as 1 0 2 '
        '(default: 0 1 2 ...)',
    )  # fmt: skip
    group.add_argument('--keep-heads', action='store_true', help='stage heads: train the heads of --init, not new ones')
    group.add_argument(
        '--teacher', metavar='FILE', help="distil this checkpoint or exported folder into the experts' mean"
    )
    group.add_argument('--distill-weight', type=float, default=1.0, metavar='W', help='of the distillation loss')
    group.add_argument('--distill-temperature', type=float, default=1.5, metavar='T', help='of its softmax')


def _add_data(group: Any) -> None:
    group.add_argument('--data-dir', metavar='DIR', help='image folder with train/ and val/, or root of the data set')
    add_form_options(group)
    group.add_argument('--train-split', default='train', metavar='NAME', help='training split (default: train)')
    group.add_argument('--val-split', default='val', metavar='NAME', help='evaluation split (default: val)')
    group.add_argument(
        '--val-fraction', type=float, metavar='F',
        help='for data without evaluation images: set this fraction of every class apart as those, and train on the '
        'rest (the same images in every run and stage, whatever --seed; --holdout takes further ones, for choices)',
    )  # fmt: skip
    group.add_argument('--val-seed', type=int, default=0, metavar='N', help='another draw of them (default: 0)')
    group.add_argument('--imb-factor', type=float, metavar='N', help='cut the training images to this imbalance factor')
    group.add_argument('-j', '--workers', type=int, metavar='N', help='data loading processes (default: by image size)')
    group.add_argument('--pin-mem', action='store_true', help='pin host memory for faster copies to a GPU')
    group.add_argument(
        '--data-on-device', action='store_true',
        help='hold the decoded training images on the device and augment them there (for small images)',
    )  # fmt: skip
    group.add_argument('--no-check-images', action='store_true', help='do not decode every image once before training')


def _add_model(group: Any) -> None:
    group.add_argument(
        '--model', metavar='NAME', help="an architecture of timm.list_models('ride_*'), or any of timm's"
    )
    group.add_argument('--pretrained', action='store_true', help='start from the published weights')
    group.add_argument('--num-classes', type=int, metavar='N', help='must agree with the data (default: from the data)')
    group.add_argument('--in-chans', type=int, metavar='N', help='channels of the images (default: those of the model)')
    group.add_argument('--img-size', type=int, metavar='N', help='side of the images (default: that of the model)')
    group.add_argument('--drop', type=float, default=0.0, metavar='P', help='dropout before the heads')
    group.add_argument('--drop-path', type=float, metavar='P', help='stochastic depth')
    group.add_argument('--model-kwargs', nargs='*', default={}, action=KeyValues, metavar='K=V')
    group.add_argument('--grad-checkpointing', action='store_true', help='recompute activations to save memory')
    group.add_argument('--model-ema', action='store_true', help='keep a moving average of the weights')
    group.add_argument('--model-ema-decay', type=float, default=0.9998, metavar='D')
    group.add_argument('--model-ema-warmup', action='store_true')
    group.add_argument(
        '--average-epochs', type=int, default=0, metavar='N',
        help='measure and keep the mean of the weights over the last N epochs too, with statistics of BatchNorm anew',
    )  # fmt: skip


def _add_loss(group: Any) -> None:
    group.add_argument(
        '--loss', choices=list_losses(),
        help='default: balpoe for several experts and balanced_softmax for one; next to a recipe ride and ce',
    )  # fmt: skip
    group.add_argument(
        '--loss-kwargs', nargs='*', default={}, action=KeyValues, metavar='K=V',
        help='options of the loss; of balpoe and logit_adjusted tau=[-0.5,1,2.5], or by name: tau=balpoe, mdcs or tcl',
    )  # fmt: skip
    group.add_argument(
        '--reweight-epoch', type=int, metavar='N',
        help='0-based epoch of deferred re-weighting (default: at 80 %% of the epochs); -1 for never',
    )  # fmt: skip
    group.add_argument(
        '--mutual', type=float, default=0.0, metavar='W', help='weight of mutual distillation among the experts'
    )
    group.add_argument(
        '--mutual-hard', type=float, default=0.0, metavar='W', help='the same over the 30 hardest classes of each image'
    )
    group.add_argument(
        '--mutual-temperature', type=float, default=1.0, metavar='T', help='of --mutual and --mutual-hard'
    )
    group.add_argument(
        '--mutual-gated', type=float, default=0.0, metavar='W',
        help='weight of mutual distillation from the experts that are right, most in classes not learnt yet (TCL: 1, '
        'beside a loss that is the sum over experts; 1 / K where it is their mean, as of balpoe)',
    )  # fmt: skip
    group.add_argument(
        '--soft-suppression', type=float, default=0.0, metavar='W',
        help='weight of a loss that lowers wrong classes which the experts rank above the true one (TCL: 0.02)',
    )  # fmt: skip
    group.add_argument('--smoothing', type=float, default=0.0, metavar='E', help='label smoothing')
    group.add_argument(
        '--sampler', default='instance', choices=('instance', 'balanced', 'sqrt', 'progressive'),
        help='which images an epoch draws (default: instance, each once)',
    )  # fmt: skip


def _add_optimizer(group: Any) -> None:
    group.add_argument('--opt', default='sgd', metavar='NAME')
    group.add_argument('--opt-eps', type=float, metavar='E')
    group.add_argument('--opt-betas', type=float, nargs='+', metavar='B')
    group.add_argument('--opt-kwargs', nargs='*', default={}, action=KeyValues, metavar='K=V')
    group.add_argument('--momentum', type=float, default=0.9, metavar='M')
    group.add_argument('--weight-decay', type=float, default=2e-5, metavar='W')
    group.add_argument(
        '--layer-decay', type=float, metavar='D',
        help='learning rate of each layer towards the input, as a factor of the next (fine-tuning: 0.7 to 0.9)',
    )  # fmt: skip
    group.add_argument('--clip-grad', type=float, metavar='NORM')
    group.add_argument('--clip-mode', default='norm', choices=('norm', 'value', 'agc'))
    group.add_argument('--grad-accum-steps', type=int, default=1, metavar='N')


def _add_schedule(group: Any) -> None:
    group.add_argument('--epochs', type=int, default=300, metavar='N')
    group.add_argument('--sched', default='cosine', metavar='NAME')
    group.add_argument('--sched-on-updates', action='store_true')
    group.add_argument('--lr', type=float, metavar='LR', help='overrides --lr-base')
    group.add_argument('--lr-base', type=float, default=0.1, metavar='LR', help='lr = lr-base * batch / lr-base-size')
    group.add_argument('--lr-base-size', type=int, default=256, metavar='N')
    group.add_argument('--lr-base-scale', default='', choices=('', 'linear', 'sqrt'))
    group.add_argument(
        '--global-batch-size', type=int, metavar='N',
        help='images a step (batch x processes x accumulation) that the learning rate is meant for; another is named',
    )  # fmt: skip
    group.add_argument(
        '--scale-lr', action='store_true', help='scale --lr and --warmup-lr by the batch over --global-batch-size'
    )
    group.add_argument('--warmup-lr', type=float, default=1e-5, metavar='LR')
    group.add_argument('--warmup-epochs', type=int, default=5, metavar='N')
    group.add_argument('--warmup-prefix', action='store_true')
    group.add_argument('--min-lr', type=float, default=0.0, metavar='LR')
    group.add_argument(
        '--decay-epochs', type=float, metavar='N',
        help='step: how often the rate falls (default: 90); wsd, rsqrt: how long it falls at the end, in epochs or as '
        'a fraction of the training (default: 0.2)',
    )  # fmt: skip
    group.add_argument('--decay-milestones', type=int, nargs='+', default=[90, 180, 270], metavar='N')
    group.add_argument('--decay-rate', '--dr', type=float, default=0.1, metavar='R')
    group.add_argument('--cooldown-epochs', type=int, default=0, metavar='N')
    group.add_argument('--patience-epochs', type=int, default=10, metavar='N')


def _add_augmentation(group: Any) -> None:
    group.add_argument('--augmentation', choices=AUGMENTATIONS, help='default: cifar up to 40 pixels, else timm')
    group.add_argument('--scale', type=float, nargs=2, metavar='S')
    group.add_argument('--ratio', type=float, nargs=2, metavar='R')
    group.add_argument('--hflip', type=float, default=0.5, metavar='P')
    group.add_argument('--vflip', type=float, default=0.0, metavar='P')
    group.add_argument('--color-jitter', type=float, nargs='+', default=[0.4], metavar='F')
    group.add_argument('--aa', metavar='NAME', help="timm's AutoAugment / RandAugment string")
    group.add_argument('--reprob', type=float, default=0.0, metavar='P', help='random erasing')
    group.add_argument('--mixup', type=float, default=0.0, metavar='A')
    group.add_argument('--cutmix', type=float, default=0.0, metavar='A')
    group.add_argument('--mixup-prob', type=float, default=1.0, metavar='P')
    group.add_argument('--mixup-switch-prob', type=float, default=0.5, metavar='P')
    group.add_argument('--mixup-mode', default='batch', choices=('batch', 'pair', 'elem'))
    group.add_argument('--mixup-off-epoch', type=int, default=0, metavar='N')
    group.add_argument('--interpolation', default='', metavar='NAME')
    group.add_argument('--crop-pct', type=float, metavar='P')
    group.add_argument('--mean', type=float, nargs='+', metavar='M')
    group.add_argument('--std', type=float, nargs='+', metavar='S')


def _add_run(group: Any) -> None:
    group.add_argument('-b', '--batch-size', type=int, default=128, metavar='N', help='images per process')
    group.add_argument('-vb', '--validation-batch-size', type=int, metavar='N')
    group.add_argument('--device', help='cpu, cuda, cuda:1, ... (default: cuda where there is one)')
    group.add_argument('--amp', action=argparse.BooleanOptionalAction, default=False, help='mixed precision')
    group.add_argument('--amp-dtype', choices=('float16', 'bfloat16'), help='default: bfloat16 on the CPU')
    group.add_argument('--channels-last', action=argparse.BooleanOptionalAction, default=False)
    group.add_argument('--torchcompile', action='store_true', help='compile the network')
    group.add_argument(
        '--cuda-graph', action='store_true',
        help='replay forward and backward pass as one CUDA graph (one GPU; faster where the network is small)',
    )  # fmt: skip
    group.add_argument('--sync-bn', action='store_true')
    group.add_argument('--dist-bn', default='reduce', choices=('', 'broadcast', 'reduce'))
    group.add_argument('--seed', type=int, default=42, metavar='N')
    group.add_argument('--output', default='./output', metavar='DIR')
    group.add_argument('--experiment', default='', metavar='NAME', help='name of the run (default: model and data)')
    group.add_argument(
        '--resume', default='', metavar='PATH', help="a checkpoint or a run's folder, or 'auto' for the run's last one"
    )
    group.add_argument('--checkpoint-hist', type=int, default=1, metavar='N', help='best checkpoints to keep')
    group.add_argument(
        '--eval-metric', metavar='NAME',
        help='which result chooses the best checkpoint (default: balanced, the mean over classes, where the evaluation '
        'images are not balanced, else top1)',
    )  # fmt: skip
    group.add_argument('--val-interval', type=int, default=1, metavar='N', help='evaluate every N epochs and the last')
    group.add_argument('--log', choices=list(TRACKERS), help='send the figures to this tracker too')
    group.add_argument('--quiet', action='store_true', help='warnings only; on a terminal the progress bar stays')
    group.add_argument('--log-interval', type=int, default=50, metavar='N', help='log line every N batches')
