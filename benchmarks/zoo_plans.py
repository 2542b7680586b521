"""What `train_zoo.py` trains: the published networks of each data set, and the plain ones next to them."""

from dataclasses import dataclass

__all__ = ['PLANS', 'TEACHER', 'Net', 'Plan']


@dataclass(frozen=True)
class Net:
    """A network: its name, the recipe of its experts, further options, whether it gets a router and keeps its tensors.

    `router_options` are those of its router's training. `kept` false leaves its results alone in `weights/`, for the
    others to be compared with. `note` is what its card says of the training next to commands and results.
    """

    name: str
    recipe: str
    options: tuple[str, ...] = ()
    router: bool = True
    kept: bool = True
    router_options: tuple[str, ...] = ()
    note: str = ''


@dataclass(frozen=True)
class Plan:
    """The networks of a data set in order of worth, its router's recipe and names, and options of the export."""

    nets: tuple[Net, ...]
    router_recipe: str
    data_name: str
    data_id: str
    export: tuple[str, ...] = ()


TEACHER = 'ride_resnet32_6e.ride_cifar100lt'

CIFAR100LT = Plan(
    nets=(
        Net('ride_resnet32_3e.ride_cifar100lt', 'cifar100lt_ride'),
        Net('ride_resnet32_1e.ce_cifar100lt', 'cifar100lt_ce', router=False),
        # chosen on run A's held-out images: expert 1 alone is unbiased, and in the order 0 1 2 an image needs 2.81
        # experts; without clipping the router's loss ends at 68 instead of 2.3, all its answers at 0 or 1
        Net(
            'ride_resnet32_3e.balpoe_cifar100lt', 'cifar100lt_balpoe',
            router_options=('--expert-order', '1', '0', '2', '--clip-grad', '1'),
        ),
        Net(
            'ride_resnet32_3e.best_cifar100lt', 'cifar100lt_best',
            router_options=('--expert-order', '1', '0', '2', '--clip-grad', '1'),
        ),
        Net(
            'ride_resnet32_4e.ride_cifar100lt', 'cifar100lt_ride', ('--model', 'ride_resnet32_4e'),
            router_options=('--clip-grad', '1', '--router-threshold', '0.8'),
            note="The router's clipping and threshold were chosen on run A's held-out images. Without clipping "
            '(the same command without --clip-grad 1) its loss ended at 3.8, where a constant answer has 2.8; with it '
            'at 1.5. 0.8 is the cheapest threshold within 0.3 points of all four experts over the images (2.34 experts '
            'on average). The rule asks for that over the classes too, where a single image of a rare class counts 0.5 '
            'points and more; without --router-threshold 0.8 it takes 0.05 (3.52 experts).',
        ),
        Net('ride_resnet32_2e.ride_cifar100lt', 'cifar100lt_ride', ('--model', 'ride_resnet32_2e')),
        Net(TEACHER, 'cifar100lt_ride_teacher', router=False),
        Net('ride_resnet32_3e.ride_distill_cifar100lt', 'cifar100lt_ride_distill'),
    ),
    router_recipe='cifar100lt_router',
    data_name='CIFAR-100-LT',
    data_id='uoft-cs/cifar100',
)  # fmt: skip

TINYIMAGENETLT = Plan(
    nets=(
        Net('ride_resnet50_4e.ride_tinyimagenetlt', 'tinyimagenetlt_ride'),
        Net('resnet50.ce_tinyimagenetlt', 'tinyimagenetlt_ce', router=False, kept=False),
        Net(
            'resnet50.balanced_softmax_tinyimagenetlt', 'tinyimagenetlt_balanced_softmax', router=False, kept=False
        ),
        Net('ride_resnet50_4e.balpoe_tinyimagenetlt', 'tinyimagenetlt_balpoe', router=False, kept=False),
        Net(
            'ride_resnet50_3e.ride_tinyimagenetlt', 'tinyimagenetlt_ride', ('--model', 'ride_resnet50_3e'),
            router=False, kept=False,
        ),
        Net(
            'ride_resnet50_2e.ride_tinyimagenetlt', 'tinyimagenetlt_ride', ('--model', 'ride_resnet50_2e'),
            router=False, kept=False,
        ),
    ),
    router_recipe='tinyimagenetlt_router',
    data_name='Tiny-ImageNet-LT',
    data_id='zh-plus/tiny-imagenet',
    # 101 MiB of tensors; 60 leaves room for the heads of the files below the 64 that hosts of repositories take well
    export=('--dtype', 'float16', '--max-shard-size', '60'),
)  # fmt: skip

PLANS = {'cifar100lt': CIFAR100LT, 'tinyimagenetlt': TINYIMAGENETLT}
