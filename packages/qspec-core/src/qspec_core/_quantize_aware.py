"""`quantize_aware`: export and prepare a model for training, and convert it afterwards, in one call each."""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from qspec_core._api import ProgressCallback, Result, export_in_evaluation, resolve_mode, silent
from qspec_core._convert import convert_pt2e
from qspec_core._coverage import Coverage, coverage
from qspec_core._errors import BackendError, CalibrationError
from qspec_core._qat import prepare_qat_pt2e
from qspec_core._quantizer import Quantizer
from qspec_core._train_eval import allow_exported_model_train_eval
from qspec_core.backend import Backend, get_backend
from qspec_core.observers import ObserverNeverRanWarning
from qspec_core.patterns import Mode

__all__ = ["Training", "quantize_aware"]


@dataclass(frozen=True)
class Training:
    """A model in quantization-aware training.

    Args:
        module: the module to train, in any loop. Its `train()` and `eval()` switch dropout and batch norm. It trains
            the parameters of the model that was given.
        exported: the float model as it was exported.
        backend: the backend it trains for.
        target: class of the deployment device.
        example_inputs: the arguments it was exported with.
        dynamic_shapes: the dimensions that may vary, as `torch.export.export` takes them.
        check: compare the lowered program with the converted graph before it is used.
    """

    module: GraphModule
    exported: GraphModule
    backend: Backend
    target: str
    example_inputs: tuple[Any, ...]  # a model's arguments may be of any type
    dynamic_shapes: Any = None  # as torch.export takes it
    check: bool = True

    @property
    def coverage(self) -> Coverage:
        """The row that will quantize each operator, or the reason why it will not be quantized."""
        return coverage(self.module)

    def finish(self) -> Result:
        """Convert the trained module, as it evaluates now. The module can be trained further afterwards.

        Returns: the quantized program, as `quantize` gives it.
        Raises: CalibrationError: the module has not run, so that the ranges of activations are not known.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("error", ObserverNeverRanWarning)
            try:
                converted = convert_pt2e(self.module)
            except ObserverNeverRanWarning as warning:
                raise CalibrationError(
                    "the module has not been trained: the ranges of some activations are not known",
                    found=str(warning),
                    expected="a module that ran on training data",
                    remedy="train training.module first, or run it on a few batches",
                ) from warning
        shapes = self.dynamic_shapes
        return Result(self.exported, converted, self.backend, self.target, self.example_inputs, shapes, self.check)


def quantize_aware(
    model: nn.Module | torch.export.ExportedProgram,
    example_inputs: tuple[Any, ...],  # a model's arguments may be of any type
    *,
    backend: str | Backend,
    target: str | None = None,
    mode: Mode | str = Mode.STATIC,
    quantizer: Quantizer | None = None,
    dynamic_shapes: Any = None,  # as torch.export takes it
    check: bool = True,
    progress: ProgressCallback = silent,
) -> Training:
    """Prepare a float model for quantization-aware training for a backend.

    `training.module` trains the parameters of the given model, and the statistics of its batch norms. A module is
    exported in evaluation mode, so that code under `if self.training` is left out; dropouts and batch norms are
    switched back to training.

    Args:
        model: a float module, an exported program, or an exported graph module, on any device.
        example_inputs: positional arguments of one call.
        backend: name of an installed backend, or a `Backend`.
        target: class of the deployment device, one of the backend's targets; None for its default.
        mode: when activations are quantized: "static", "dynamic" or "weight only".
        quantizer: used in place of the backend's default one for training.
        dynamic_shapes: passed to `torch.export.export`; give the dimension of the batch if its size varies.
        check: compare the lowered program with the converted graph before it is used, see `qspec_core.lower`.
        progress: called with the name of each step as it begins.
    Returns: the module to train, in training mode, and `finish()`, which converts it.
    Raises:
        BackendError: the backend is not installed, has no such target or mode, or no quantizer for training.
        ExportError: the model cannot be exported with these inputs.
        GraphError, NothingQuantizedError, SpecError: as `prepare_qat_pt2e`.
    """
    chosen = get_backend(backend) if isinstance(backend, str) else backend
    target, mode = chosen.resolve_target(target), resolve_mode(chosen, mode)
    if quantizer is None:
        quantizer = _training_quantizer(chosen, mode, target)
    progress("export")
    exported = export_in_evaluation(model, example_inputs, dynamic_shapes)
    progress("prepare")
    module = allow_exported_model_train_eval(prepare_qat_pt2e(exported, quantizer))
    module.train()
    return Training(module, exported, chosen, target, example_inputs, dynamic_shapes, check)


def _training_quantizer(backend: Backend, mode: Mode, target: str) -> Quantizer:
    if backend.training_quantizer is None:
        raise BackendError(
            f"backend {backend.name!r} has no quantizer for training",
            found="training_quantizer=None",
            expected="a factory of quantizers whose configuration has fake-quantizes",
            remedy="pass quantizer= with such a configuration, or use quantize",
        )
    return backend.training_quantizer(mode=mode, target=target)
