"""What a training is asked to do. The options of `ride-timm train`, the keys of recipes and Python share one class."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ride_timm.errors import RideError
from ride_timm.options import AUGMENTATIONS, DATA, DataForm, duration, flag, option, options_of, typed

__all__ = ['LOSSES', 'STAGES', 'ResolvedConfig', 'TrainConfig']

STAGES = ('experts', 'router', 'heads')
LOSSES = ('balanced_softmax', 'balpoe', 'ce', 'focal', 'ldam', 'logit_adjusted', 'ride', 'sade')
TAILS = ('auto', 'none', 'weights', 'sampler', 'loss')
TRACKERS = ('tensorboard', 'trackio', 'wandb')

RECIPE, STAGE, MODEL, LOSS, OPTIMIZER = 'recipe', 'stage', 'model', 'loss and sampling', 'optimizer'
SCHEDULE, AUGMENTATION, RUN = 'learning rate schedule', 'augmentation', 'run'


def _loss_name(text: str) -> str:
    """A loss by its name here, cross-entropy also by those of timm's classes (label smoothing is `--smoothing`)."""
    plain = text.lower().replace('_', '').removesuffix('loss')
    return 'ce' if plain in ('crossentropy', 'labelsmoothingcrossentropy', 'softtargetcrossentropy') else text


@dataclass(frozen=True, kw_only=True)
class TrainConfig(DataForm):
    """The options of a training, each None where nobody said anything: it is then picked.

    An explicit option wins over the recipe, that over the stage's settings, those over what is picked from the data and
    the hardware, and that over timm's defaults. `ride-timm train --help` says what each option does.

    Raises:
        RideError: A value is of another type than its option.

    Example:
        >>> import ride_timm as rt
        >>> rt.TrainConfig(data_dir='my_images', epochs=20).given == {'data_dir', 'epochs'}
        True
    """

    recipe: str | None = option(None, RECIPE, 'named settings (see `ride-timm recipes`), or a YAML file', 'NAME')

    stage: str = option(
        'experts', STAGE, 'what to train: the whole network, or on top of --init only the router or only the heads',
        choices=STAGES,
    )  # fmt: skip
    init: str | None = option(
        None, STAGE,
        'network to initialise from: the folder or a checkpoint of a run, a packaged folder, a published name, '
        'hf-hub:ORG/NAME, or a timm ResNet (resnet50.a1_in1k, or a file with --model), which seeds every expert',
        'CHECKPOINT',
    )  # fmt: skip
    from_scratch: bool = option(
        False, STAGE, 'start from random weights (default: from pretrained ones, picked if none are named)'
    )
    init_noise: float = option(
        0.01, STAGE, 'relative noise that makes experts initialised from the same ResNet differ', 'S'
    )
    init_ema: bool = option(False, STAGE, 'use the averaged weights in the checkpoint of --init')
    train_only: list[str] | None = option(
        None, STAGE,
        'train only these parts of a trained network, such as `experts` on a fixed trunk, or experts.2.fc; all else is '
        'frozen, including the statistics of normalisation', 'PART',
    )  # fmt: skip
    holdout: float | None = option(
        None, STAGE,
        'hold out this fraction of the training images for choices that must not be made on the evaluation images, '
        'such as the router threshold, and evaluate on them instead (the router stage holds out what the experts of '
        '--init have not seen; for data without evaluation images see --val-fraction)', 'F',
    )  # fmt: skip
    holdout_seed: int | None = option(
        None, STAGE, 'seed of the --holdout split, to share it among runs with different seeds (default: --seed)', 'N'
    )
    router_threshold: float | None = option(
        None, STAGE,
        'probability above which an image goes on to the next expert (default: chosen on the --holdout images)', 'T',
    )  # fmt: skip
    router_pos_weight: float = option(
        100.0, STAGE,
        'with --router-target accuracy: loss weight of images that need more experts; higher sends more images '
        'on', 'W',
    )  # fmt: skip
    router_target: str = option(
        'disagreement', STAGE,
        'which images the router learns to send on: those whose answer is not yet that of all experts (disagreement, '
        'which `ride-timm route` certifies), or whose wrong answer would become right (accuracy, as in the paper)',
        choices=('disagreement', 'accuracy'),
    )  # fmt: skip
    expert_order: list[int] | None = option(
        None, STAGE, 'stage router: order of the experts of --init, such as 1 0 2 (default: 0 1 2 ...)', 'K',
    )  # fmt: skip
    keep_heads: bool = option(False, STAGE, 'stage heads: train the heads of --init instead of new ones')
    teacher: str | None = option(
        None, STAGE, 'network to distil into the mean of the experts; anything that --init takes', 'CHECKPOINT'
    )
    distill_weight: float = option(1.0, STAGE, 'weight of the distillation loss', 'W')
    distill_temperature: float = option(1.5, STAGE, 'softmax temperature of the distillation loss', 'T')

    workers: int | None = option(None, DATA, 'data loading processes (default: by image size)', 'N', flags=('-j',))
    pin_mem: bool = option(False, DATA, 'pin host memory for faster copies to a GPU')
    data_on_device: bool = option(
        False, DATA, 'hold the decoded training images on the device and augment them there (for small images)'
    )
    no_check_images: bool = option(False, DATA, 'do not decode every image once before training')

    model: str | None = option(
        None, MODEL, "an architecture of timm.list_models('ride_*'), or any other of timm", 'NAME'
    )
    pretrained: bool = option(
        False, MODEL, 'initialise from the published checkpoint of --model, and fail if it is not available'
    )
    num_classes: int | None = option(
        None, MODEL, 'number of classes; must agree with the data (default: from the data)', 'N'
    )
    in_chans: int | None = option(None, MODEL, 'channels of the images (default: those of the model)', 'N')
    img_size: int | None = option(None, MODEL, 'side of the images in pixels (default: that of the model)', 'N')
    drop: float = option(0.0, MODEL, 'dropout rate before the heads', 'P')
    drop_path: float | None = option(None, MODEL, 'stochastic depth rate', 'P')
    model_kwargs: dict[str, Any] = option({}, MODEL, 'further arguments of the architecture')
    grad_checkpointing: bool = option(False, MODEL, 'recompute activations in the backward pass to save memory')
    model_ema: bool = option(False, MODEL, 'keep an exponential moving average of the weights, and evaluate it')
    model_ema_decay: float = option(0.9998, MODEL, 'decay of --model-ema per step', 'D')
    model_ema_warmup: bool = option(False, MODEL, 'let the decay of --model-ema grow in the first steps')
    average_epochs: int = option(
        0, MODEL,
        'evaluate and keep the mean of the weights over the last N epochs, with recomputed BatchNorm statistics', 'N',
    )  # fmt: skip

    loss: str | None = option(
        None, LOSS, 'loss (default: balpoe for several experts, balanced_softmax for one; with a recipe: ride, ce)',
        choices=LOSSES, read=_loss_name,
    )  # fmt: skip
    tail: str = option(
        'auto', LOSS,
        'what is done for rare classes, in one word: none, plain cross-entropy; weights, class-weighted cross-entropy; '
        'sampler, balanced batches; loss, the loss that fits the network; auto leaves it to the other options',
        choices=TAILS,
    )  # fmt: skip
    loss_kwargs: dict[str, Any] = option(
        {}, LOSS,
        'arguments of the loss; balpoe and logit_adjusted take tau=[-0.5,1,2.5], or a name: tau=balpoe, mdcs or tcl',
    )  # fmt: skip
    reweight_epoch: int | None = option(
        None, LOSS,
        '0-based epoch in which deferred re-weighting starts (default: at 80 %% of the epochs); -1 for never', 'N',
    )  # fmt: skip
    mutual: float = option(0.0, LOSS, 'weight of mutual distillation between the experts', 'W')
    mutual_hard: float = option(0.0, LOSS, 'the same over the 30 hardest classes of each image', 'W')
    mutual_temperature: float = option(1.0, LOSS, 'softmax temperature of --mutual and --mutual-hard', 'T')
    mutual_gated: float = option(
        0.0, LOSS,
        'weight of mutual distillation from the experts that are right, strongest in classes not learnt yet (TCL: 1, '
        'with a loss that sums over the experts; 1 / K where it is their mean, as in balpoe)', 'W',
    )  # fmt: skip
    soft_suppression: float = option(
        0.0, LOSS,
        'weight of a loss that lowers wrong classes which the experts rank above the true one (TCL: 0.02)', 'W',
    )  # fmt: skip
    smoothing: float = option(0.0, LOSS, 'label smoothing', 'E')
    sampler: str = option(
        'instance', LOSS, 'sampling strategy (default: instance, every image once per epoch)',
        choices=('instance', 'balanced', 'sqrt', 'progressive'),
    )  # fmt: skip

    opt: str = option('sgd', OPTIMIZER, 'optimizer of timm', 'NAME')
    opt_eps: float | None = option(None, OPTIMIZER, 'epsilon of the optimizer (default: its own)', 'E')
    opt_betas: list[float] | None = option(None, OPTIMIZER, 'betas of the optimizer (default: its own)', 'B')
    opt_kwargs: dict[str, Any] = option({}, OPTIMIZER, 'further arguments of the optimizer')
    momentum: float = option(0.9, OPTIMIZER, 'momentum of the optimizer', 'M')
    weight_decay: float = option(2e-5, OPTIMIZER, 'weight decay', 'W')
    layer_decay: float | None = option(
        None, OPTIMIZER,
        'learning rate factor from each layer to the one before it (fine-tuning: 0.7 to 0.9)', 'D',
    )  # fmt: skip
    clip_grad: float | None = option(None, OPTIMIZER, 'clip gradients to this norm or value', 'NORM')
    clip_mode: str = option('norm', OPTIMIZER, 'how --clip-grad clips', choices=('norm', 'value', 'agc'))
    grad_accum_steps: int = option(1, OPTIMIZER, 'batches per optimizer step', 'N')

    epochs: int = option(
        300, SCHEDULE, 'number of epochs (default: picked; 300 with a recipe that does not set it)', 'N'
    )
    time_budget: float | None = option(
        None, SCHEDULE,
        'pick no more epochs than fit into this time on this machine, which is measured: 30m, 2h, 90s (default: 1h)',
        'TIME', read=duration,
    )  # fmt: skip
    sched: str = option('cosine', SCHEDULE, 'schedule of timm', 'NAME')
    sched_on_updates: bool = option(False, SCHEDULE, 'step the schedule after every update instead of every epoch')
    lr: float | None = option(None, SCHEDULE, 'learning rate; overrides --lr-base', 'LR')
    lr_base: float = option(0.1, SCHEDULE, 'lr = lr-base * global batch size / lr-base-size', 'LR')
    lr_base_size: int = option(256, SCHEDULE, 'global batch size that --lr-base refers to', 'N')
    lr_base_scale: str = option(
        '', SCHEDULE, 'how --lr-base scales with the batch size (default: by the optimizer)',
        choices=('', 'linear', 'sqrt'),
    )  # fmt: skip
    global_batch_size: int | None = option(
        None, SCHEDULE,
        'global batch size (batch x processes x accumulation) the learning rate was tuned for; a mismatch is logged',
        'N',
    )  # fmt: skip
    scale_lr: bool = option(
        False, SCHEDULE, 'scale --lr and --warmup-lr by the global batch size over --global-batch-size'
    )
    warmup_lr: float = option(1e-5, SCHEDULE, 'learning rate at the start of the warm-up', 'LR')
    warmup_epochs: int = option(5, SCHEDULE, 'epochs of warm-up', 'N')
    warmup_prefix: bool = option(False, SCHEDULE, 'do not count the warm-up as part of the schedule')
    min_lr: float = option(0.0, SCHEDULE, 'learning rate at the end', 'LR')
    decay_epochs: float | None = option(
        None, SCHEDULE,
        'step: epochs between two decays (default: 90); wsd, rsqrt: length of the decay at the end, in epochs or as a '
        'fraction of the training (default: 0.2)', 'N',
    )  # fmt: skip
    decay_milestones: list[int] = option([90, 180, 270], SCHEDULE, 'multistep: epochs of the decays', 'N')
    decay_rate: float = option(0.1, SCHEDULE, 'factor of each decay', 'R', flags=('--dr',))
    cooldown_epochs: int = option(0, SCHEDULE, 'epochs at --min-lr after the schedule', 'N')
    patience_epochs: int = option(10, SCHEDULE, 'plateau: epochs without progress before a decay', 'N')

    augmentation: str | None = option(
        None, AUGMENTATION, 'augmentation (default: cifar for images of up to 40 pixels, else timm)',
        choices=AUGMENTATIONS,
    )  # fmt: skip
    scale: tuple[float, float] | None = option(None, AUGMENTATION, 'range of the area of random crops', 'S')
    ratio: tuple[float, float] | None = option(None, AUGMENTATION, 'range of the aspect ratio of random crops', 'R')
    hflip: float = option(0.5, AUGMENTATION, 'probability of a horizontal flip', 'P')
    vflip: float = option(0.0, AUGMENTATION, 'probability of a vertical flip', 'P')
    color_jitter: list[float] = option([0.4], AUGMENTATION, 'strength of the colour jitter', 'F')
    aa: str | None = option(None, AUGMENTATION, 'AutoAugment or RandAugment policy, as timm writes it', 'NAME')
    reprob: float = option(0.0, AUGMENTATION, 'probability of random erasing', 'P')
    mixup: float = option(0.0, AUGMENTATION, 'alpha of mixup; 0 for none', 'A')
    cutmix: float = option(0.0, AUGMENTATION, 'alpha of cutmix; 0 for none', 'A')
    mixup_prob: float = option(1.0, AUGMENTATION, 'probability of mixup or cutmix per batch', 'P')
    mixup_switch_prob: float = option(0.5, AUGMENTATION, 'probability of cutmix if both are on', 'P')
    mixup_mode: str = option('batch', AUGMENTATION, 'what shares a mixing ratio', choices=('batch', 'pair', 'elem'))
    mixup_off_epoch: int = option(0, AUGMENTATION, 'epoch in which mixup and cutmix end; 0 for never', 'N')
    interpolation: str = option('', AUGMENTATION, 'how images are resized (default: as the model does)', 'NAME')
    crop_pct: float | None = option(None, AUGMENTATION, 'centre crop of evaluation images (default: of the model)', 'P')
    mean: list[float] | None = option(
        None, AUGMENTATION, 'mean of the pixels, per channel (default: of the model)', 'M'
    )
    std: list[float] | None = option(
        None, AUGMENTATION, 'standard deviation of the pixels, per channel (default: of the model)', 'S'
    )

    batch_size: int = option(128, RUN, 'images per batch and process', 'N', flags=('-b',))
    validation_batch_size: int | None = option(
        None, RUN, 'batch size for evaluation (default: --batch-size)', 'N', flags=('-vb',)
    )
    device: str | None = option(None, RUN, 'cpu, cuda, cuda:1, ... (default: cuda if available)')
    amp: bool = option(False, RUN, 'mixed precision', negatable=True)
    amp_dtype: str | None = option(
        None, RUN, 'type of --amp (default: bfloat16 on the CPU and with --cuda-graph)', choices=('float16', 'bfloat16')
    )
    channels_last: bool = option(False, RUN, 'keep images and weights channels-last', negatable=True)
    torchcompile: bool = option(False, RUN, 'compile the network')
    cuda_graph: bool = option(
        False, RUN, 'replay forward and backward pass as one CUDA graph (one GPU; faster where the network is small)'
    )
    sync_bn: bool = option(False, RUN, 'synchronise BatchNorm over the processes')
    dist_bn: str = option(
        'reduce', RUN, 'BatchNorm statistics over the processes after each epoch: averaged (reduce), those of the '
        'first (broadcast), or as they are', choices=('', 'broadcast', 'reduce'),
    )  # fmt: skip
    seed: int = option(42, RUN, 'random seed, of everything but --val-fraction', 'N')
    output: str = option('./output', RUN, 'folder of the runs', 'DIR')
    experiment: str = option('', RUN, 'name of the run (default: model and data)', 'NAME')
    resume: str = option(
        '', RUN, "a checkpoint or the folder of a run, or 'auto' for the last checkpoint of this run", 'PATH'
    )
    checkpoint_hist: int = option(1, RUN, 'best checkpoints to keep', 'N')
    eval_metric: str | None = option(
        None, RUN,
        'metric that selects the best checkpoint (default: balanced, the mean over classes, where the evaluation '
        'images are not balanced, else top1)', 'NAME',
    )  # fmt: skip
    val_interval: int = option(1, RUN, 'evaluate every N epochs, and after the last one', 'N')
    log: str | None = option(None, RUN, 'also send results to this tracker', choices=TRACKERS)
    quiet: bool = option(False, RUN, 'warnings only; on a terminal the progress bar stays')
    log_interval: int = option(50, RUN, 'log every N batches', 'N')

    def __post_init__(self) -> None:
        for name in options_of(type(self)):
            try:
                object.__setattr__(self, name, typed(type(self), name, getattr(self, name)))
            except ValueError as error:
                raise RideError(f'{flag(name)} {getattr(self, name)!r} was given; it must be {error}.') from None

    @property
    def given(self) -> frozenset[str]:
        """Names of the options that somebody set."""
        return frozenset(name for name in options_of(TrainConfig) if getattr(self, name) is not None)


@dataclass(frozen=True, kw_only=True)
class ResolvedConfig(TrainConfig):
    """A training with all of its choices made. Nothing writes to it; `but` gives another one.

    Attributes:
        explicit: Options that the command line or the caller set.
        from_recipe: Options that the recipe set.
        open: Whether what nobody set is picked from the images and the machine.
        command: The command line, for the record; None in Python.
        distributed: Whether several processes train.
        world_size: How many.
        rank: Of this process.
        local_rank: Of this process on its machine.
        data_config: Input size, normalisation and interpolation of the images, as in a `pretrained_cfg`.
    """

    explicit: frozenset[str] = frozenset()
    from_recipe: frozenset[str] = frozenset()
    open: bool = True
    command: str | None = None
    distributed: bool = False
    world_size: int = 1
    rank: int = 0
    local_rank: int = 0
    data_config: Mapping[str, Any] | None = None

    @property
    def said(self) -> frozenset[str]:
        """Options that the command line, the caller or the recipe set."""
        return self.explicit | self.from_recipe

    @property
    def from_weights(self) -> bool:
        """Whether the network is initialised from trained weights."""
        return bool(self.init) or self.pretrained

    def but(self, **values: Any) -> 'ResolvedConfig':
        """The same with other values."""
        return dataclasses.replace(self, **values)

    def settings(self) -> dict[str, Any]:
        """Plain values of all options and facts, as checkpoints and `args.yaml` keep them."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name in ('explicit', 'from_recipe', 'open'):
            del values[name]
        return {name: dict(value) if isinstance(value, Mapping) else value for name, value in values.items()}
