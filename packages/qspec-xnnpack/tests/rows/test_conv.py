"""Convolutions through ExecuTorch's runtime: static ones within one step of the converted graph, dynamic ones equal."""

from collections.abc import Callable, Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from xnnpack_support import (
    WEIGHTS,
    Case,
    Function,
    Layer,
    SideBySide,
    check_complete,
    check_dynamic,
    check_one_scale,
    check_rows,
    datatypes,
    dynamic,
    layer,
    layer_hardtanh,
    layer_relu,
)

import qspec_core as qspec
from qspec_xnnpack._rows import _conv


class Normed(nn.Module):
    """A layer, then its batch norm."""

    def __init__(self, layer: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.layer, self.norm = layer, norm
        for statistic in (norm.running_mean, norm.running_var):
            nn.init.uniform_(statistic, 0.5, 2.0)  # type: ignore[arg-type]  # nn.Module types attributes loosely

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.norm(self.layer(x))
        return normed


def layer_relu6(x: Tensor, made: Function) -> Tensor:
    return F.relu6(made(x))


def uneven_pad_layer(x: Tensor, made: Function) -> Tensor:
    return F.relu6(made(F.pad(x, (0, 1, 2, 1))))


def uneven_pad_signal(x: Tensor, made: Function) -> Tensor:
    return F.relu6(made(F.pad(x, (1, 2))))


def layer_clamp(x: Tensor, made: Function) -> Tensor:
    return made(x).clamp(-0.25, 1.5)


CONV = (nn.Conv2d, (8, 16, 3), {"padding": 1, "stride": 2})
DEPTHWISE = (nn.Conv2d, (8, 8, 3), {"groups": 8, "bias": False, "dilation": 2})
GROUPED = (nn.Conv2d, (8, 12, (3, 1)), {"groups": 4})
SIGNAL = (1, 8, 20)
CONV1D = (nn.Conv1d, (8, 16, 3), {"padding": 1, "stride": 2})
TRANSPOSED = (nn.ConvTranspose2d, (8, 6, 3), {"stride": 2, "padding": 1, "output_padding": 1})
TRANSPOSED1D = (nn.ConvTranspose1d, (8, 6, 3), {"stride": 2, "padding": 1, "output_padding": 1})


def normed2d() -> nn.Module:
    return Normed(nn.ConvTranspose2d(8, 6, 3, bias=False), nn.BatchNorm2d(6))


def normed1d() -> nn.Module:
    return Normed(nn.ConvTranspose1d(8, 6, 3), nn.BatchNorm1d(6))


CASES = {
    "conv2d": Case("conv2d", layer, layer=CONV),
    "conv2d same": Case("conv2d", layer, layer=(nn.Conv2d, (8, 4, 3), {"padding": "same"})),
    "conv2d relu": Case("conv2d + relu", layer_relu, layer=CONV),
    "conv2d relu6": Case("conv2d + hardtanh", layer_relu6, layer=CONV),
    "conv2d hardtanh": Case("conv2d + hardtanh", layer_hardtanh, layer=CONV),
    "depthwise": Case("conv2d + hardtanh", layer_relu6, layer=DEPTHWISE),
    "depthwise multiplier": Case("conv2d", layer, layer=(nn.Conv2d, (8, 16, 3), {"groups": 8})),
    "grouped": Case("conv2d", layer, layer=GROUPED),
    "padded conv2d": Case("conv2d + hardtanh", uneven_pad_layer, layer=CONV),
    "padded depthwise": Case("conv2d + hardtanh", uneven_pad_layer, layer=DEPTHWISE),
    "conv1d": Case("conv1d", layer, (SIGNAL,), CONV1D),
    "conv1d relu": Case("conv1d + relu", layer_relu, (SIGNAL,), CONV1D),
    "conv1d relu6": Case("conv1d + hardtanh", layer_relu6, (SIGNAL,), CONV1D),
    "conv1d same": Case("conv1d", layer, (SIGNAL,), (nn.Conv1d, (8, 4, 4), {"padding": "same"})),
    "conv1d depthwise": Case("conv1d", layer, (SIGNAL,), (nn.Conv1d, (8, 8, 3), {"groups": 8, "dilation": 2})),
    "conv1d grouped": Case("conv1d + relu", layer_relu, (SIGNAL,), (nn.Conv1d, (8, 12, 3), {"groups": 4})),
    "padded conv1d": Case("conv1d + hardtanh", uneven_pad_signal, (SIGNAL,), CONV1D),
    "conv_transpose2d": Case("conv_transpose2d", layer, layer=TRANSPOSED),
    "conv_transpose2d relu": Case("conv_transpose2d + relu", layer_relu, layer=TRANSPOSED),
    "conv_transpose2d relu6": Case("conv_transpose2d + hardtanh", layer_relu6, layer=TRANSPOSED),
    "conv_transpose2d no bias": Case("conv_transpose2d", layer, layer=(nn.ConvTranspose2d, (8, 5, 2), {"bias": False})),
    "conv_transpose1d": Case("conv_transpose1d", layer, (SIGNAL,), TRANSPOSED1D),
    "conv_transpose1d relu": Case("conv_transpose1d + relu", layer_relu, (SIGNAL,), TRANSPOSED1D),
    "conv_transpose1d hardtanh": Case("conv_transpose1d + hardtanh", layer_hardtanh, (SIGNAL,), TRANSPOSED1D),
    "conv_transpose2d batch norm": Case("conv_transpose2d + relu", layer_relu, layer=(normed2d, (), {})),
    "conv_transpose1d batch norm": Case("conv_transpose1d", layer, (SIGNAL,), (normed1d, (), {})),
    "conv2d clamp": Case("conv2d + hardtanh", layer_clamp, layer=CONV),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("row", [row.name for row in _conv.ROWS])
def test_rows_run_in_integers(row: str) -> None:
    check_rows({name: case for name, case in CASES.items() if case.row.partition(" + ")[0] == row})


def test_every_chain_has_a_case() -> None:
    check_complete(CASES, _conv.ROWS)


GROUPED_TRANSPOSED: Layer = (nn.ConvTranspose2d, (8, 6, 3), {"stride": 2, "groups": 2})
ONE_SCALE = {
    **{name: CASES[name] for name in ("conv2d relu6", "depthwise", "padded conv2d", "conv1d relu")},
    **{name: CASES[name] for name in ("conv_transpose2d relu", "conv_transpose1d")},
    # With a scale for each channel the kernel takes groups=1 only.
    "conv_transpose2d grouped": Case("conv_transpose2d + relu", layer_relu, layer=GROUPED_TRANSPOSED),
}


def test_weights_with_one_scale_run_in_integers() -> None:
    check_one_scale(ONE_SCALE)


CONVOLUTIONS: tuple[tuple[str, Callable[..., nn.Module], tuple[int, ...], Mapping[str, object]], ...] = (
    ("conv2d + relu", nn.Conv2d, (8, 12, 3), {"stride": 2, "padding": 1}),
    ("conv2d + relu", nn.Conv2d, (8, 12, 3), {"groups": 2, "bias": False}),
    ("conv_transpose2d + relu", nn.ConvTranspose2d, (8, 6, 3), {"stride": 2}),
)


def test_dynamic_convolutions_run_in_integers() -> None:
    torch.manual_seed(0)
    layers: list[nn.Module] = [made(*sizes, **options) for _, made, sizes, options in CONVOLUTIONS]
    model = SideBySide([nn.Sequential(layer, nn.ReLU()) for layer in layers]).eval()
    inputs = [torch.randn(1, 8, 9, 10) for _ in layers]
    result = dynamic(model, *inputs)
    program = check_dynamic(model, result, inputs, [label for label, *_ in CONVOLUTIONS], 35)
    assert datatypes(program.buffer).count("xnn_datatype_qdint8") == len(layers)
    assert datatypes(program.buffer).count("xnn_datatype_qcint8") == len(layers)


@pytest.mark.parametrize(
    ("layer", "shape", "weight", "words"),
    [
        (nn.Conv2d(8, 8, 3, groups=8), (1, 8, 9, 9), {}, "depthwise"),
        (nn.Conv2d(1, 8, 3), (1, 1, 9, 9), {}, "one input channel in each group"),
        (nn.ConvTranspose2d(1, 4, 3), (1, 1, 9, 9), {}, "one input channel in each group"),
        (nn.Conv2d(8, 8, 3), (2, 8, 9, 9), {}, "batch of 2"),
        (
            nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(8, 8, 3)),
            (1, 8, 9, 9),
            {},
            "absorbs no pad when dynamic",
        ),
        (nn.Conv1d(8, 8, 3), (1, 8, 9), {}, "no dynamic form"),
        (nn.Conv2d(8, 8, 3), (1, 8, 9, 9), WEIGHTS["xnn_datatype_qcint4"], "for linear layers"),
    ],
    ids=["depthwise", "one channel", "transposed, one channel", "batch", "pad", "conv1d", "4 bits"],
)
def test_dynamic_convolutions_without_kernel_stay_float(
    layer: nn.Module, shape: tuple[int, ...], weight: Mapping[str, int], words: str
) -> None:
    with pytest.raises(qspec.NothingQuantizedError) as caught:
        dynamic(layer.eval(), torch.randn(shape), **weight)
    assert words in str(caught.value)
