"""Signal to noise of quantized networks over several draws, beside torchao's quantizer with the same ranges.

    python benchmarks/accuracy.py [--models NAME ...] [--weights N] [--draws N]

One draw of a network with random weights says little: a small difference in quantization or in the order of a sum moves
the result by 1 to 2 dB. So each network is built with several sets of weights, and each set is calibrated and compared
on several inputs. A line is a network for one class of CPU. It shows the mean over all draws, and by how much qspec is
better than torchao, with the standard error of that difference. Torchao's models are converted, not lowered: so are
qspec's.
"""

import argparse
import itertools
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import contest  # noqa: F401  # puts examples on the path
import torch
from contenders_torch import torchao_converted
from examples.pictures import sqnr
from flow_models import TOKENS, float_model
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import qspec_core as qspec
from qspec_core import convert_pt2e, prepare_pt2e
from qspec_x86 import X86InductorQuantizer, get_default_x86_inductor_quantization_config

__all__ = ["main"]

NETWORKS = ("mobilenet_v2:settled", "resnet50")
"""The benchmark models that torchao quantizes: it takes 1 of 50 layers of EfficientNet-Lite0, and raises on BERT."""

CALIBRATION, EVALUATION = 8, 16
CLASSES = ("vnni", "any")


@dataclass(frozen=True)
class Draw:
    """A network, the inputs to calibrate with, and the inputs to compare on."""

    network: nn.Module
    calibration: Sequence[Tensor]
    evaluation: Sequence[Tensor]


Quantize = Callable[[Draw, str], nn.Module]


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=list(NETWORKS), help="names that flow_models.py knows")
    parser.add_argument("--weights", type=int, default=3, help="how many random weights of each network")
    parser.add_argument("--draws", type=int, default=4, help="how many inputs for each of these")
    options = parser.parse_args()
    table = Table(
        "network", "CPU", "draws", *(f"{name}, dB" for name in CONTENDERS), *(f"{name} - torchao" for name in OURS)
    )
    for name in options.models:
        found = _measured(name, options.weights, options.draws)
        for target in CLASSES:
            table.add_row(name, target, *_cells({contender: found[contender, target] for contender in CONTENDERS}))
    Console(width=160).print(table)
    return 0


def _measured(name: str, weights: int, draws: int) -> dict[tuple[str, str], list[float]]:
    """Signal to noise in dB of each draw, by contender and class of CPU."""
    found: dict[tuple[str, str], list[float]] = {key: [] for key in itertools.product(CONTENDERS, CLASSES)}
    with Console(stderr=True).status(name), torch.no_grad():
        for draw in _drawn(name, weights, draws):
            reference = torch.cat([draw.network(x) for x in draw.evaluation])
            for contender, target in found:
                quantized = CONTENDERS[contender](draw, target)
                output = torch.cat([quantized(x) for x in draw.evaluation])
                found[contender, target].append(sqnr(reference, output))
    return found


def _drawn(name: str, weights: int, draws: int) -> Iterator[Draw]:
    for seed in range(weights):
        network, (like,) = float_model(name, seed=seed)
        for number in range(draws):
            torch.manual_seed(1 + number)
            inputs = [_like(like) for _ in range(CALIBRATION + EVALUATION)]
            yield Draw(network, inputs[:CALIBRATION], inputs[CALIBRATION:])


def _like(tensor: Tensor) -> Tensor:
    return torch.randn_like(tensor) if tensor.is_floating_point() else torch.randint_like(tensor, TOKENS)


def _cells(found: dict[str, list[float]]) -> Iterator[str]:
    theirs = found["torchao"]
    yield str(len(theirs))
    yield from (f"{statistics.mean(values):.2f}" for values in found.values())
    for name in OURS:
        gains = [own - other for own, other in zip(found[name], theirs, strict=True)]
        error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else float("nan")
        yield f"{statistics.mean(gains):+.2f} ± {error:.2f}"


def _default(draw: Draw, target: str) -> nn.Module:
    """The network as `quantize` converts it for this class of CPU."""
    batches = [(x,) for x in draw.calibration]
    return qspec.quantize(draw.network, batches[0], calibration=batches, backend="x86", target=target).converted


def _torchao_configuration(draw: Draw, target: str) -> nn.Module:
    """The PT2E configuration for x86 in qspec's flow: torchao's ranges and kinds of observers."""
    config = get_default_x86_inductor_quantization_config(reduce_range=target == "any")
    module = torch.export.export(draw.network, (draw.calibration[0],)).module()
    prepared = prepare_pt2e(module, X86InductorQuantizer().set_global(config))
    for x in draw.calibration:
        prepared(x)
    return convert_pt2e(prepared)


def _torchao(draw: Draw, target: str) -> nn.Module:
    return torchao_converted(draw.network, draw.calibration, reduce_range=target == "any")


OURS: dict[str, Quantize] = {"qspec": _default, "qspec, torchao's configuration": _torchao_configuration}
CONTENDERS: dict[str, Quantize] = {"torchao": _torchao, **OURS}

if __name__ == "__main__":
    sys.exit(main())
