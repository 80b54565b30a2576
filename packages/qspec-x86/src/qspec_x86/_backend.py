"""The backend as qspec-core sees it."""

import warnings
from typing import Any

from torch import nn
from torch.fx import GraphModule

from qspec_core import LoweringError
from qspec_core.backend import Backend
from qspec_core.lowering import require_converted
from qspec_core.patterns import Mode
from qspec_x86._config import default_config
from qspec_x86._lowering._aoti import compile_module, has_compiler, package
from qspec_x86._lowering._flow import lower_eager
from qspec_x86._quantizer import X86InductorQuantizer
from qspec_x86._rows import TABLE
from qspec_x86._target import TARGETS, resolve_target

__all__ = [
    "BACKEND",
    "NotCompiledWarning",
    "default_quantizer",
    "lower",
    "lower_pt2e_quantized_to_x86",
    "training_quantizer",
]


class NotCompiledWarning(UserWarning):
    """A quantized graph could not be compiled ahead of time and runs in its slower eager form."""


def default_quantizer(*, mode: Mode = Mode.STATIC, target: str = "any") -> X86InductorQuantizer:
    """The quantizer of `qspec_core.quantize`: it quantizes everything that has a row.

    Args:
        mode: when activations are quantized.
        target: class of the deployment CPU: "any", "vnni" or "native".
    """
    return X86InductorQuantizer(target=target, embeddings=True).set_global(default_config(mode))


def training_quantizer(*, mode: Mode = Mode.STATIC, target: str = "any") -> X86InductorQuantizer:
    """The quantizer of `qspec_core.quantize_aware`: as `default_quantizer`, with fake-quantizes. Tables of embeddings
    stay in float.

    Args:
        mode: when activations are quantized.
        target: class of the deployment CPU: "any", "vnni" or "native".
    """
    return X86InductorQuantizer(target=target).set_global(default_config(mode, is_qat=True))


def lower(
    converted: GraphModule,
    example_inputs: tuple[Any, ...],  # a model's arguments may be of any type
    target: str = "any",
) -> nn.Module:
    """Lower to the fastest form: compiled ahead of time if there is a C++ compiler, else eager.

    Args:
        converted: from `convert_pt2e`. It is not changed.
        example_inputs: positional arguments of one call.
        target: class of the deployment CPU: "any", "vnni" or "native".
    Returns: a module, which refuses inputs that it was not compiled for.
    Raises:
        BackendError: there is no such target.
        GraphError: the module is not from `convert_pt2e`.
    Warns: NotCompiledWarning: the graph runs in the eager form; the message says why.
    """
    resolved = resolve_target(target)
    require_converted(converted, "lowering to x86")
    if not has_compiler():
        return _eager(converted, resolved, "there is no C++ compiler")
    try:
        return compile_module(converted, example_inputs, target)
    except LoweringError as error:
        return _eager(converted, resolved, error.problem)
    except Exception as error:  # export, Inductor or the C++ compiler failed for this graph
        return _eager(converted, resolved, f"{type(error).__name__}: {error}")


def _eager(converted: GraphModule, target: str, problem: str) -> GraphModule:
    warnings.warn(f"not compiled, runs in the slower eager form: {problem}", NotCompiledWarning, stacklevel=3)
    return lower_eager(converted, target)


def lower_pt2e_quantized_to_x86(module: GraphModule, example_inputs: tuple[Any, ...]) -> GraphModule:
    """Lower a converted graph, under the PT2E name: the eager form for target "any".

    Args:
        module: from `convert_pt2e`. It is not changed.
        example_inputs: not used; the graph has the shapes. The PT2E signature has it.
    """
    del example_inputs
    return lower_eager(module, "any")


BACKEND = Backend(
    name="x86",
    table=TABLE,
    quantizer=default_quantizer,
    training_quantizer=training_quantizer,
    lower=lower,
    package=package,
    targets=TARGETS,
    modes=frozenset(Mode),
    suffix=".pt2",
    conformance="qspec_x86._conformance:KIT",
)
"""Object of the entry point `x86` in the group `qspec.backends.v1`."""
