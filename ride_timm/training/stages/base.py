"""What all stages of a training share."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from timm.models import get_model_args
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.utils import is_primary
from torch import nn

from ride_timm.data.splits import is_same_split, val_plan
from ride_timm.errors import RideError, reason_of
from ride_timm.inference.load import TrainedNet
from ride_timm.inference.network import known_cfg
from ride_timm.models import count_experts
from ride_timm.options import flag
from ride_timm.records.training_record import SplitPlan
from ride_timm.tasks import ExpertTask
from ride_timm.training.averaging import is_averaged
from ride_timm.training.config import ResolvedConfig
from ride_timm.training.initial import load_initial, read_initial
from ride_timm.training.run_data import RunData, build_data
from ride_timm.training.setup import build_model

__all__ = ['Stage', 'warn']

_logger = logging.getLogger(__name__)


class Stage(ABC):
    """A stage of a training: what it needs, what trains in it, and on which loss.

    Attributes:
        name: Its `--stage`.
        settings: Options that it sets where neither the command line nor a recipe does.
        own_options: Options that other stages have no use for.
        useless_options: Options that it has no use for.
        first: Whether it is the first one, which needs no trained network.
        routed: Whether it trains a router, and so is evaluated routed.
    """

    name: ClassVar[str]
    settings: ClassVar[Mapping[str, Any]] = {}
    own_options: ClassVar[tuple[str, ...]] = ()
    useless_options: ClassVar[tuple[str, ...]] = ()
    first: ClassVar[bool] = False
    routed: ClassVar[bool] = False

    def read_init(self, config: ResolvedConfig) -> TrainedNet | None:
        """Read `--init`.

        Returns:
            The network to initialise from, or None.

        Raises:
            RideError: It is missing, cannot be read, or does not suit the stage.
        """
        if not config.init:
            self.without_init()
            return None
        given = {key: value for key, value in config.model_kwargs.items() if not key.startswith('router')}
        init = read_initial(config.init, config.model, config.init_ema, given)
        if is_averaged(init.settings) and not config.init_ema:
            warn(config, f'{init.source} holds averaged weights too, which the results of its run use; see --init-ema.')
        return init

    def without_init(self) -> None:
        """Accept that there is no `--init`, or raise a RideError."""
        raise RideError(
            f'The stage {self.name} builds on a trained network and no --init was given; name its last.pth.tar, or a '
            'model.safetensors.'
        )

    def open_data(self, config: ResolvedConfig, init: TrainedNet | None) -> RunData:
        """Open the images, in the order of the classes that `--init` knows, and with the images held out that it knows.

        Raises:
            RideError: The data cannot be opened, or has other classes or other held-out images than the stage needs.
        """
        return build_data(
            config,
            class_names=init.class_names if init is not None else None,
            exact=self.needs_same_classes(config),
            holdout=self.holdout_plan(config, init),
            val_part=self.val_plan(config, init),
            pixel_range=init.record.pixel_range if init is not None else None,
            measure=self.first,  # later stages read images as their network did
        )

    def needs_same_classes(self, config: ResolvedConfig) -> bool:
        """Whether the data must have just the classes of `--init`."""
        return False

    @abstractmethod
    def holdout_plan(self, config: ResolvedConfig, init: TrainedNet | None) -> SplitPlan | None:
        """Which training images are held out for choices."""

    def val_plan(self, config: ResolvedConfig, init: TrainedNet | None) -> SplitPlan | None:
        """Which training images are evaluated on, where the data has none for it: in later stages, those unseen."""
        known = init.record.val_part if init is not None else None
        plan = val_plan(config, known, init is not None and not self.first)
        same_data = init is not None and init.settings.get('data_dir') == config.data_dir
        if plan is not None and same_data and not is_same_split(plan, known):
            warn(config, f'The weights of {config.init} may have seen the images that are evaluated on.')
        return plan

    def keeps_heads(self, config: ResolvedConfig, init: TrainedNet, data: RunData) -> bool:
        """Whether the heads of `--init` are kept."""
        return self.needs_same_classes(config)

    def model_options(self, config: ResolvedConfig, init: TrainedNet | None, data: RunData) -> ResolvedConfig:
        """The options with the arguments of the architecture that the stage asks for."""
        config = _with_size(config, init)
        old_head = getattr(getattr(init, 'model', None), 'head', None)
        if init is None or old_head != 'biased_cosine' or self.keeps_heads(config, init, data):
            return config
        return config.but(model_kwargs={**config.model_kwargs, 'head': 'cosine'})  # the bias belongs to the old heads

    def build_network(
        self, config: ResolvedConfig, init: TrainedNet | None, data: RunData, device: torch.device
    ) -> nn.Module:
        """Create the network, and copy the weights of `--init` into it.

        Raises:
            RideError: The network cannot be created, or the weights do not fit it.
        """
        # a router belongs to heads and experts as they are, which the other stages change
        several = init is not None and count_experts(init.model) > 0
        model = build_model(config, device, self.routed if several else None)
        if init is None:
            return model
        keep = self.keeps_heads(config, init, data)
        load_initial(model, init, keep, config.init_noise, config.seed)
        if is_primary(config):
            remarks = [*([] if keep else ['new heads']), *self.router_remarks(init)]
            _logger.info(f'Weights of {init.source}' + (f' ({", ".join(remarks)})' if remarks else ''))
        return model

    def router_remarks(self, init: TrainedNet) -> list[str]:
        """What becomes of the router of `--init`, for the log."""
        return ['without its router'] if getattr(init.model, 'router', None) is not None else []

    @abstractmethod
    def build_task(
        self, config: ResolvedConfig, model: Any, data: RunData, criterion: Any, device: torch.device
    ) -> ExpertTask:
        """Create the task: what trains, on which loss.

        Args:
            config: The run's options.
            model: The network.
            data: The images.
            criterion: The classification loss; None in a stage without one.
            device: Where the buffers of losses go.

        Raises:
            RideError: A loss or the teacher does not suit the data.
        """

    def build_optimizer(self, config: ResolvedConfig, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of what trains; of parts of a network every parameter is decayed, unless layers differ.

        Args:
            config: The run's options.
            model: The network, after `build_task` has frozen what does not train.

        Raises:
            RideError: The optimizer does not take its options.
        """
        # of a whole network timm takes the layers, and keeps biases and normalisation from weight decay
        whole = self.first and (not config.train_only or config.layer_decay is not None)
        trained: Any = model if whole else [p for p in model.parameters() if p.requires_grad]
        try:
            optimizer: torch.optim.Optimizer = create_optimizer_v2(
                trained, **optimizer_kwargs(config), **config.opt_kwargs
            )
        except (AssertionError, ImportError, TypeError, ValueError) as error:
            raise RideError(
                f'--opt {config.opt} cannot be created ({reason_of(error)}); check --opt, --opt-kwargs and --lr.'
            ) from error
        return optimizer

    def inherited_record(self, init: TrainedNet | None) -> dict[str, Any]:
        """What the record of the run takes over from that of `--init`."""
        return {}


class LaterStage(Stage):
    """A stage on top of trained experts, which holds out just what these have not seen."""

    def open_data(self, config: ResolvedConfig, init: TrainedNet | None) -> RunData:
        """As in `Stage`; a warning says where the images are not those that the experts were trained on."""
        data = super().open_data(config, init)
        assert init is not None
        if init.class_names is None and self.needs_same_classes(config):
            if init.model.num_classes != data.train.num_classes:
                raise RideError(
                    f'{init.source} has {init.model.num_classes} classes and {data.train.source} '
                    f'{data.train.num_classes}; stage {self.name} needs the same classes.'
                )
            warn(config, f'{init.source} does not name its classes; they are taken to be in the order of the data.')
        counts = data.train.class_counts.tolist()
        if init.class_counts is not None and list(init.class_counts) != counts:
            warn(
                config,
                f'The network of --init was trained on {sum(init.class_counts)} images of these classes and this stage '
                f'trains on {sum(counts)}.',
            )
        return data

    def holdout_plan(self, config: ResolvedConfig, init: TrainedNet | None) -> SplitPlan | None:
        """The images that the experts have not seen."""
        assert init is not None
        known = init.record.holdout
        if config.holdout == 0.0 or (config.holdout is None and known is None):
            self.without_holdout(config)
            return None
        if known is None:
            raise RideError(
                f'--holdout {config.holdout:g} was given, but {init.source} was trained without one, so its experts '
                'have seen the images that would be held out; leave it out, or train the experts with the same '
                '--holdout first.'
            )
        for name, kept in (('holdout', known.fraction), ('holdout_seed', known.seed)):
            given = getattr(config, name)
            if given not in (None, kept):
                raise RideError(
                    f'{flag(name)} {given:g} was given, but {init.source} was trained with {kept:g}; leave it out to '
                    'hold out the same images.'
                )
        return known

    def without_holdout(self, config: ResolvedConfig) -> None:
        """Say what follows from the lack of held-out images."""


def _with_size(config: ResolvedConfig, init: TrainedNet | None) -> ResolvedConfig:
    """Build what takes images of one size alone, such as a ViT, for --img-size, else for the size of the weights."""
    size = config.img_size or (None if init is None else get_model_args(init.model).get('img_size'))
    cfg = known_cfg(str(config.model_kwargs.get('backbone', config.model)))
    if size is None or cfg is None or not cfg.fixed_input_size:
        return config
    return config.but(model_kwargs={'img_size': size, **config.model_kwargs})


def warn(config: ResolvedConfig, text: str) -> None:
    """Log a warning, in one of the processes."""
    if is_primary(config):
        _logger.warning(text)


def experts_record(init: TrainedNet) -> dict[str, Any]:
    """What users of trained experts need to know of their training, which a router does not change."""
    counts = {} if init.class_counts is None else {'class_counts': list(init.class_counts)}
    return {**init.record.for_later_users.to_json(), **counts}
