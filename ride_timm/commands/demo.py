"""`ride-timm demo MODEL`: a page in the browser that shows what a network, its experts and its router say of an image.

Drop an image: the answer, each expert's own vote and, for a network with a router, after which expert it stopped and
why. The slider sets the routing threshold and answers anew. Images are prepared as `ride-timm predict` does it, so that
both say the same. The page is served on this machine alone unless `--host` opens it, and loads nothing from elsewhere.
It answers only where it is called by an IP address, `localhost`, the name of this machine or that of `--host`, takes
files of up to 50 MB, and removes each an hour later and all of them at the end.
In Python: `build_demo(load(MODEL)).launch()`.
"""

import argparse
import functools
import html
import ipaddress
import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ride_timm._compat import hand_over_path
from ride_timm.commands.options import (
    add_abstain_option,
    add_device_option,
    add_model_argument,
    add_prior_option,
    broader_taxonomy,
)
from ride_timm.commands.parser import Parser
from ride_timm.data.descriptions import readable_label
from ride_timm.data.finding import find_images
from ride_timm.errors import RideError, one_line
from ride_timm.evaluation.cost import gmacs, gmacs_by_experts
from ride_timm.inference.abstention import Abstention, choose_abstention
from ride_timm.inference.load import TrainedNet, load
from ride_timm.inference.prediction import UNKNOWN, Prediction, Skipped, predict
from ride_timm.inference.prior import apply_options, is_corrected
from ride_timm.inference.taxonomy import Taxonomy
from ride_timm.installation import require
from ride_timm.logs import setup_logging
from ride_timm.models import count_experts
from ride_timm.records.results import read_results
from ride_timm.values import check_values, choose_device

if TYPE_CHECKING:
    import gradio

__all__ = ['build_demo', 'build_parser', 'main']

LARGEST_UPLOAD = '50mb'
CLEAN_EVERY, KEEP_FOR = 600, 3600
"""Seconds between two clean-ups, and how old an upload must be to go."""

STYLE = """
.decision { font-size: .92rem; line-height: 1.45; }
.likely { height: .5rem; border-radius: .25rem; background: var(--border-color-primary); overflow: hidden; }
.likely div { height: 100%; background: var(--body-text-color-subdued); }
.dropped img { width: 100%; height: 100%; object-fit: contain; }
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of `ride-timm demo`."""
    parser = Parser(
        prog='ride-timm demo',
        description="Classify images in the browser, with each expert's prediction and the routing.",
    )
    add_model_argument(parser)
    parser.add_argument(
        '--examples', nargs='+', default=[], metavar='IMAGES', help='example images for the page: files, folders, globs'
    )
    parser.add_argument('--top-k', type=int, default=5, metavar='N', help='how many classes to name (default: 5)')
    parser.add_argument('--threshold', type=float, metavar='T', help="start of the slider (default: the network's)")
    add_prior_option(parser)
    add_abstain_option(parser)
    parser.add_argument('--host', default='127.0.0.1', help='address to serve on; 0.0.0.0 exposes it to the network')
    parser.add_argument('--port', type=int, help='default: the first free one from 7860 on')
    parser.add_argument('--open', action='store_true', help='open the page in the browser')
    add_device_option(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Serve the page until Ctrl+C."""
    args = build_parser().parse_args(argv)
    check_values(vars(args))
    setup_logging(logging.WARNING)
    with _own_folder():  # before Gradio is imported, which remembers the folder
        _gradio()
        _serve(_build(args), args)
    return 0


def _build(args: argparse.Namespace) -> 'gradio.Blocks':
    """The page that the command line asks for."""
    examples = find_images(args.examples, None)
    if examples.problems:
        raise RideError(f'--examples: {examples.problems[0]}.')
    trained = load(args.model)
    channels = int(getattr(trained.model, 'in_chans', 3))
    if channels not in (1, 3):
        raise RideError(
            f'{args.model} takes images of {channels} channels, which a page cannot show; use ride-timm predict.'
        )
    if args.threshold is not None and getattr(trained.model, 'router', None) is None:
        raise RideError(f'--threshold was given, but {args.model} has no router; train one first, or leave it out.')
    apply_options(trained, args.prior, args.logit_adjustment)
    return build_demo(
        trained,
        title=args.model, top_k=args.top_k, threshold=args.threshold, abstain=args.abstain, confidence=args.confidence,
        taxonomy=broader_taxonomy(args, trained), examples=examples.paths, device=args.device,
    )  # fmt: skip


def build_demo(
    trained: TrainedNet,
    *,
    title: str | None = None,
    top_k: int = 5,
    threshold: float | None = None,
    abstain: float | None = None,
    confidence: float = 0.95,
    taxonomy: Taxonomy | None = None,
    examples: Sequence[str] = (),
    device: torch.device | str | None = None,
) -> 'gradio.Blocks':
    """The page, not yet served.

    Args:
        trained: Of `ride_timm.load`; `ride_timm.inference.prior.apply_prior` may have changed it.
        title: The heading; None means the network's name.
        top_k: How many classes the answer names, at most all.
        threshold: Where the slider begins, in [0, 1]; None means the network's own. Only with a router.
        abstain: Answer "unknown" so that at most this share of the other answers is wrong, see `ride_timm.predict`;
            with a router at the network's own threshold, where the slider then stays.
        confidence: Probability that this holds.
        taxonomy: With `abstain`: ancestors to name where a class is not sure enough.
        examples: Image files to offer.
        device: Where to compute; None means CUDA where there is one.

    Returns:
        Gradio's Blocks: `launch()` serves it.

    Raises:
        RideError: Gradio is not installed.
    """
    gr = _gradio()
    model: Any = trained.model
    title = title or trained.name
    experts = count_experts(model)
    routed = experts > 1 and model.router is not None
    device = choose_device(device)
    begin = float(model.router_threshold if threshold is None else threshold) if routed else 0.0
    abstention = None if abstain is None else choose_abstention(trained, abstain, confidence, begin if routed else None)
    answer = functools.partial(
        _answer, trained, costs=_costs(model), top_k=top_k, abstention=abstention, taxonomy=taxonomy,
        device=device,
    )  # fmt: skip
    page = {'title': f'{title}: ride-timm', 'analytics_enabled': False, 'delete_cache': (CLEAN_EVERY, KEEP_FOR)}
    with gr.Blocks(**page) as demo:
        above = ', or what the class is part of,' if taxonomy else ''
        promise = f' "Unknown"{above} where it is not sure: {abstention}.' if abstention else ''
        about = f'{_introduction(model, experts, routed)}{_measured(trained)}{promise}'
        gr.HTML(f'<h1>{html.escape(title)}</h1><p>{html.escape(about)}</p>')
        with gr.Row():
            with gr.Column():
                # the file as it is, so that it is decoded as everywhere else in the package
                image = gr.Image(
                    label='Image', type='filepath', image_mode=None, sources=['upload', 'clipboard'], height=320,
                    elem_classes='dropped',
                )  # fmt: skip
                hand_over_path(image, _path_of)
                slider = gr.Slider(
                    0, 1, value=begin, step=0.001, visible=routed, label='Routing threshold',
                    interactive=abstention is None,
                    info='0: all experts. 1: only the first.',
                )  # fmt: skip
            with gr.Column():
                shown = [gr.Label(label='Answer', num_top_classes=top_k), gr.HTML()]
        with gr.Row():
            for index in range(experts if experts > 1 else 0):
                with gr.Column(min_width=180):
                    shown += [gr.Label(label=f'Expert {index}', show_heading=False), gr.HTML(elem_classes='decision')]
        if examples:
            gr.Examples([[path] for path in examples], [image], label='Examples')
        # one at a time: the handlers share the network, and hooks on it
        for event in (image.change, slider.change):
            event(
                answer, [image, slider], shown,
                concurrency_id='network', trigger_mode='always_last', show_progress='minimal', api_visibility='private',
            )  # fmt: skip
    return demo


def _answer(
    trained: TrainedNet,
    path: str | None,
    threshold: float,
    *,
    costs: Sequence[float],
    top_k: int,
    device: torch.device | str,
    abstention: Abstention | None = None,
    taxonomy: Taxonomy | None = None,
) -> list[Any]:
    """Values of all components that show something: the answer, its cost, and two an expert."""
    model: Any = trained.model
    experts = count_experts(model) if count_experts(model) > 1 else 0
    if path is None:
        return [None, ''] * (experts + 1)
    routed = threshold if experts and model.router is not None else None
    options: dict[str, Any] = {'top_k': top_k, 'threshold': routed, 'abstention': abstention, 'taxonomy': taxonomy}
    found = next(predict(trained, [path], **options, device=device))
    if isinstance(found, Skipped):
        reason = html.escape(found.reason.replace(path, Path(path).name))
        return [None, f'<p role="alert">No answer: {reason}</p>', *[None, ''] * experts]
    values: list[Any] = [_said(found), _cost(found, costs)]
    for index in range(experts):
        vote = found.experts[index]
        values += [{readable_label(vote.label): vote.confidence} if vote else None, _decision(found, index, threshold)]
    return values


def _said(found: Prediction) -> dict[str, float] | str:
    """The likeliest classes and their confidences; where the first is not sure enough, what it is part of."""
    if found.said:
        return {readable_label(vote.label): vote.confidence for vote in found.top}
    return UNKNOWN if found.broader is None else {readable_label(found.broader[0]): found.broader[1]}


def _cost(found: Prediction, costs: Sequence[float]) -> str:
    """What was computed for the image."""
    if found.num_experts is None or len(costs) == 1:
        return f'{costs[-1]:.4g} GMACs'
    spent = costs[found.num_experts - 1]
    share = '' if found.num_experts == len(costs) else f' of {costs[-1]:.4g}'
    return f'{found.num_experts} of {len(costs)} experts, {spent:.4g}{share} GMACs'


def _decision(found: Prediction, index: int, threshold: float) -> str:
    """What the router said after an expert, as HTML."""
    if found.experts[index] is None:
        return '<p>Not asked.</p>'
    share = found.go_on[index] if index < len(found.go_on) else None
    if share is None:
        return '<p>The last expert.</p>' if any(other is not None for other in found.go_on) else ''
    # the router's own comparison is strict, and decides on more digits than are shown
    stopped = found.num_experts == index + 1
    words = 'Stops here' if stopped else f'Asks expert {index + 1}'
    shares = f'{100 * share:.1f} %, threshold {100 * threshold:.4g} %'
    return (
        f'<div class="likely"><div style="width: {100 * share:.1f}%"></div></div>'
        f'<p>Another expert needed: {shares}. <strong>{words}.</strong></p>'
    )


def _introduction(model: Any, experts: int, routed: bool) -> str:
    """A sentence on the network."""
    parts = [f'{model.num_classes} classes']
    if experts > 1:
        parts.append(f'{experts} experts on a shared trunk')
        parts.append('a router that uses only as many as an image needs' if routed else 'no router: all are used')
    return ', '.join(parts) + '.'


def _measured(trained: TrainedNet) -> str:
    """A sentence on its accuracy, the leading one first, from the results in its folder; empty without any.

    They are those of the folder's network, of no other checkpoint in it, and with the logits that it was trained to.
    """
    folder = Path(trained.source.removeprefix('local-dir:'))
    if not (folder / 'results.json').is_file() or is_corrected(trained.model):
        return ''
    try:
        results = read_results(folder)
    except RideError:  # of another program, or of an earlier version
        return ''
    found = ', '.join(f'{results.test.all_experts[key]:.1f} % {name}' for name, key in results.accuracies.items())
    return f' On {results.data.test_images:,} {results.images_name}: {found}.'


def _costs(model: Any) -> list[float]:
    """GMACs of an image by the number of experts it passes; a plain network's alone."""
    size = model.pretrained_cfg['input_size']
    return gmacs_by_experts(model, size) if count_experts(model) else [gmacs(model, size)]


def _path_of(payload: Any) -> str | None:
    return None if payload is None else payload.path


@contextmanager
def _own_folder() -> Iterator[None]:
    """A folder for what is uploaded, inside the one that Gradio would use, which goes with the server."""
    before = os.environ.get('GRADIO_TEMP_DIR')
    if before:
        Path(before).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix='ride-timm-demo-', dir=before, ignore_cleanup_errors=True) as folder:
        os.environ['GRADIO_TEMP_DIR'] = folder
        try:
            yield
        finally:
            os.environ.pop('GRADIO_TEMP_DIR')
            if before:
                os.environ['GRADIO_TEMP_DIR'] = before


class KnownHosts:
    """ASGI middleware that answers only requests which call this server by a name of its own.

    A page of another site can have its domain point here (DNS rebinding) and would then read the answers as its own; an
    IP address cannot be claimed like that.

    Args:
        app: The application behind it.
        names: Names to answer to, in addition to IP addresses.
    """

    def __init__(self, app: Any, names: Sequence[str]) -> None:
        self.app = app
        self.names = {name.lower() for name in names}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, or answer it with status 400."""
        from starlette.responses import PlainTextResponse  # comes with gradio

        if scope['type'] == 'lifespan' or self._knows(dict(scope['headers']).get(b'host', b'').decode('latin-1')):
            await self.app(scope, receive, send)
        else:
            text = f'Open this page by an IP address or as {", ".join(sorted(self.names))}.\n'
            await PlainTextResponse(text, status_code=400)(scope, receive, send)

    def _knows(self, host: str) -> bool:
        name = host.rpartition(':')[0] if host.rpartition(':')[2].isdecimal() else host
        try:
            return bool(ipaddress.ip_address(name.strip('[]')))
        except ValueError:
            return name.lower() in self.names


def _end(signum: int, _: Any) -> None:
    sys.exit(128 + signum)


def _serve(demo: 'gradio.Blocks', args: argparse.Namespace) -> None:
    """Serve until the process is interrupted."""
    from starlette.middleware import Middleware

    signal.signal(signal.SIGTERM, _end)  # on which Python would end without cleaning up
    theme = _gradio().themes.Default(font='system-ui', font_mono='monospace')  # fonts that every machine has
    machine = socket.gethostname()
    hosts = Middleware(KnownHosts, names=['localhost', args.host, machine, f'{machine}.local'])
    try:
        _, url, _ = demo.launch(
            server_name=args.host, server_port=args.port, inbrowser=args.open, share=False, quiet=True,
            prevent_thread_lock=True, footer_links=[], ssr_mode=False, css=STYLE, theme=theme,
            max_file_size=LARGEST_UPLOAD, app_kwargs={'middleware': [hosts]},
        )  # fmt: skip
    except OSError as error:
        port = 'no port from 7860 to 7959' if args.port is None else f'not port {args.port}'
        raise RideError(
            f'The page cannot be served on {args.host}, {port} ({one_line(error)}); choose another --port or --host.'
        ) from None
    print(f'{args.model}: open {url} in a browser; Ctrl+C stops it.', flush=True)
    demo.block_thread()


def _gradio() -> Any:
    """Gradio, told to ask nobody about anything."""
    os.environ.setdefault('GRADIO_ANALYTICS_ENABLED', 'False')
    require('The demo', 'ride-timm[demo]', 'gradio')
    import gradio

    return gradio
