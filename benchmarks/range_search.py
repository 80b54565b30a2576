"""Range search in histograms: qspec's observer beside torchao's, over all activations of a model.

Called by `flow.py`. Both observers see the same tensors, in one process.
"""

import time
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from flow_models import TOKENS, exported
from serving import serve
from torch import Tensor, nn

from qspec_core import prepare_pt2e
from qspec_core.observers import HistogramObserver
from qspec_x86 import X86InductorQuantizer, get_default_x86_inductor_quantization_config

__all__ = ["main"]

BATCHES, TURNS = 8, 3
LONG = 5.0  # seconds after which one turn is enough


def main() -> None:
    """Serve `search`, which calibrates a model and times both searches over all its activations."""
    torch.set_num_threads(1)
    serve({"search": search})


def search(model: str) -> dict[str, Any]:
    """Seconds of each side (the minimum of its turns) and number of histograms."""
    pairs = _observed(model)
    for ours, theirs in pairs[:2]:  # leave what the first call builds out of the comparison
        ours.calculate_qparams()
        theirs.calculate_qparams()
    sides = {"qspec": [ours for ours, _ in pairs], "torchao": [theirs for _, theirs in pairs]}
    times: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(TURNS):
        for side, observers in sides.items():
            if not times[side] or times[side][0] < LONG:
                times[side].append(_seconds(observers))
    return {side: [min(found)] for side, found in times.items()} | {"observers": [len(pairs)]}


def _observed(model: str) -> list[tuple[HistogramObserver, Any]]:
    """Both observers of each activation, calibrated on the same batches."""
    from torchao.quantization.pt2e.observer import HistogramObserver as Theirs

    program, (like,) = exported(model)
    config = get_default_x86_inductor_quantization_config()
    prepared = prepare_pt2e(program.module(), X86InductorQuantizer().set_global(config))
    pairs: list[tuple[HistogramObserver, Any]] = []
    hooks = []
    for observer in prepared.modules():
        if isinstance(observer, HistogramObserver):
            theirs = Theirs(dtype=torch.uint8, quant_min=0, quant_max=255, eps=2**-12)
            hooks.append(observer.register_forward_pre_hook(partial(_show, theirs)))
            pairs.append((observer, theirs))
    torch.manual_seed(1)
    with torch.no_grad():
        for _ in range(BATCHES):
            prepared(_batch(like))
    for hook in hooks:
        hook.remove()
    return pairs


def _show(other: Any, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Let a second observer see the inputs of a module."""
    other(*inputs)


def _batch(like: Tensor) -> Tensor:
    return torch.randn_like(like) if like.is_floating_point() else torch.randint_like(like, TOKENS)


def _seconds(observers: Iterable[Any]) -> float:
    start = time.process_time()
    for observer in observers:
        observer.calculate_qparams()
    return time.process_time() - start


if __name__ == "__main__":
    main()
