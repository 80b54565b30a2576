"""Contenders that run in torch: float, qspec's x86 backend in its three forms, torchao's x86 flow."""

import copy
import warnings
from collections.abc import Sequence
from functools import partial

import torch
from contender import Built, Setting
from counting import count_layers
from profiles import of_module
from torch import Tensor, nn
from torch.fx import GraphModule

import qspec_core as qspec

__all__ = [
    "float_eager",
    "float_inductor",
    "qspec_compiled",
    "qspec_dynamic",
    "qspec_eager",
    "qspec_lowered",
    "qspec_vnni",
    "torchao_converted",
    "torchao_dynamic",
    "torchao_inductor",
    "torchao_x86",
]


def float_eager(setting: Setting) -> Built:
    """The model as it is."""
    return Built(setting.model)


def float_inductor(setting: Setting) -> Built:
    """The model under torch.compile with its weights frozen."""
    return Built(torch.compile(setting.model, options={"freezing": True}))


def _quantized(setting: Setting, target: str = "native") -> qspec.Result:
    batches = [(crop,) for crop in setting.calibration]
    return qspec.quantize(setting.model, setting.example, calibration=batches, backend="x86", target=target)


def _layers(result: qspec.Result) -> str:
    return f"{len(result.coverage.quantized_layers)} of {len(result.coverage.layers)}"


def qspec_lowered(setting: Setting) -> Built:
    """`result.lowered`: what users get."""
    from qspec_x86 import lower_eager

    result = _quantized(setting)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        lowered = result.lowered
    notes = tuple(str(entry.message) for entry in caught if entry.category.__module__.startswith("qspec"))
    size = result.package(setting.folder / "qspec.pt2").stat().st_size
    # A profiler sees no operators in compiled code, so the eager form, which has the same kernels, is profiled.
    profile = partial(of_module, lower_eager(result.converted, "native"))
    return Built(lowered, _layers(result), size, result.converted, notes=notes, profile=profile)


def qspec_eager(setting: Setting) -> Built:
    """The eager form."""
    from qspec_x86 import lower_eager

    result = _quantized(setting)
    return Built(lower_eager(result.converted, "native"), _layers(result))


def qspec_compiled(setting: Setting) -> Built:
    """The eager form under torch.compile."""
    from qspec_x86 import lower_eager

    result = _quantized(setting)
    return Built(torch.compile(lower_eager(result.converted, "native")), _layers(result))


def qspec_dynamic(setting: Setting) -> Built:
    """`result.lowered` in dynamic quantization, which needs no calibration."""
    result = qspec.quantize(setting.model, setting.example, backend="x86", mode="dynamic", target="native")
    lowered = result.lowered
    size = result.package(setting.folder / "qspec-dynamic.pt2").stat().st_size
    return Built(lowered, _layers(result), size, result.converted)


def qspec_vnni(setting: Setting) -> Built:
    """The result of a CPU with VNNI, computed in plain torch: for accuracy, not for time."""
    result = _quantized(setting, "vnni")
    return Built(result.converted, _layers(result), converted=result.converted, notes=("plain torch: not for time",))


def torchao_x86(setting: Setting) -> Built:
    """torchao's quantizer, its lowering and torch.compile, with the weight range that this CPU needs."""
    from torchao.quantization.pt2e.lowering import lower_pt2e_quantized_to_x86

    converted, layers = _torchao(setting)
    with torch.no_grad():
        return _frozen(lower_pt2e_quantized_to_x86(converted, setting.example), layers)


def torchao_dynamic(setting: Setting) -> Built:
    """torchao's `quantize_` with int8 weights and a range for each token: linear layers only."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    model = copy.deepcopy(setting.model)
    linears = sum(isinstance(module, nn.Linear) for module in model.modules())
    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    with torch.no_grad():
        return _frozen(model, f"{linears} linear")


def torchao_inductor(setting: Setting) -> Built:
    """torchao's quantizer, and the int8 fusions that are in Inductor up to torch 2.13."""
    return _frozen(*_torchao(setting))


def _torchao(setting: Setting) -> tuple[nn.Module, str]:
    """The model as torchao converts it, and the number of layers that it quantized."""
    converted = torchao_converted(setting.model, setting.calibration, reduce_range=not setting.vnni)
    return converted, "{} of {}".format(*count_layers(converted))


def torchao_converted(model: nn.Module, calibration: Sequence[Tensor], *, reduce_range: bool) -> GraphModule:
    """A model as torchao converts it for x86; `reduce_range` for a CPU without VNNI."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    config = x86.get_default_x86_inductor_quantization_config(reduce_range=reduce_range)
    with torch.no_grad():
        module = torch.export.export(model, (calibration[0],)).module()
        prepared = prepare_pt2e(module, x86.X86InductorQuantizer().set_global(config))
        for batch in calibration:
            prepared(batch)
        converted: GraphModule = convert_pt2e(prepared)
    return converted


def _frozen(module: nn.Module, layers: str) -> Built:
    from torch._inductor import config as inductor

    inductor.freezing = True  # set for the process, as in torchao's tutorial: an option of torch.compile is not enough
    return Built(torch.compile(module), layers)
