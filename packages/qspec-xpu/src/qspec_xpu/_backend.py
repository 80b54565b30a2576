"""The backend as qspec-core sees it."""

from pathlib import Path
from typing import Any

from torch import nn
from torch.fx import GraphModule

from qspec_core import LoweringError
from qspec_core.backend import Backend
from qspec_core.lowering import on_device
from qspec_core.patterns import Mode
from qspec_xpu._config import default_config
from qspec_xpu._device import require_device
from qspec_xpu._lowering._flow import lower_portable
from qspec_xpu._quantizer import XPUInductorQuantizer
from qspec_xpu._rows import TABLE
from qspec_xpu._torch import compile_package, tensors_on

__all__ = ["BACKEND", "default_quantizer", "lower", "lower_pt2e_quantized_to_xpu", "package", "training_quantizer"]

_DEVICE = "xpu"


def default_quantizer(*, mode: Mode = Mode.STATIC, target: str = "any") -> XPUInductorQuantizer:
    """The quantizer of `qspec_core.quantize`: it quantizes everything that has a row.

    Args:
        mode: when activations are quantized.
        target: class of the deployment device; there is one, "any".
    """
    BACKEND.resolve_target(target)
    return XPUInductorQuantizer().set_global(default_config(mode))


def training_quantizer(*, mode: Mode = Mode.STATIC, target: str = "any") -> XPUInductorQuantizer:
    """The quantizer of `qspec_core.quantize_aware`: as `default_quantizer`, with fake-quantizes.

    Args: as `default_quantizer`.
    """
    BACKEND.resolve_target(target)
    return XPUInductorQuantizer().set_global(default_config(mode, is_qat=True))


def lower(
    converted: GraphModule,
    example_inputs: tuple[Any, ...],  # a model's arguments may be of any type
    target: str = "any",
) -> nn.Module:
    """Lower to a module on the GPU, which runs directly and under `torch.compile`.

    Args:
        converted: from `convert_pt2e`, on any device. It is not changed.
        example_inputs: not used; the graph has the shapes.
        target: class of the deployment device; there is one, "any".
    Raises:
        BackendError: there is no such target, or no Intel GPU; it names the driver or the build of torch.
        GraphError: the module is not from `convert_pt2e`.
        LoweringError: the graph is lowered already, or its tensors are on two devices.
    """
    del example_inputs
    BACKEND.resolve_target(target)
    lowered = lower_portable(converted)
    require_device("lowering to XPU")
    return on_device(lowered, _DEVICE)


def lower_pt2e_quantized_to_xpu(module: GraphModule, example_inputs: tuple[Any, ...]) -> nn.Module:
    """Lower a converted graph, under a name like those of PT2E; the same as `lower`."""
    return lower(module, example_inputs)


def package(
    converted: GraphModule,
    example_inputs: tuple[Any, ...],  # as in `lower`
    path: Path,
    target: str = "any",
) -> Path:
    """Compile a quantized graph ahead of time into a file that needs torch alone.

    Args:
        converted: from `convert_pt2e`, on any device. It is not changed.
        example_inputs: positional arguments of one call, on any device.
        path: file to write; its name ends in `.pt2`.
        target: class of the deployment device; there is one, "any".
    Returns: the path.
    Raises: as `lower`, and LoweringError for the file's name.
    """
    path = Path(path)
    if path.suffix != ".pt2":
        raise LoweringError(
            "the name of a compiled package must end in .pt2",
            found=str(path),
            remedy=f"write to {path.with_suffix('.pt2')}",
        )
    lowered = lower(converted, example_inputs, target)
    compile_package(lowered, tensors_on(_DEVICE, example_inputs), path)
    return path


BACKEND = Backend(
    name="xpu",
    table=TABLE,
    quantizer=default_quantizer,
    training_quantizer=training_quantizer,
    lower=lower,
    package=package,
    modes=frozenset(Mode),
    suffix=".pt2",
    conformance="qspec_xpu._conformance:KIT",
)
"""Object of the entry point `xpu` in the group `qspec.backends.v1`."""
