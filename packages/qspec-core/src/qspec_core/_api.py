"""`quantize`: export, prepare, calibrate, convert and lower in one call."""

import copy
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from qspec_core._agreement import LoweringCheck
from qspec_core._bias_correction import InputMeans, correct_biases
from qspec_core._calibration import CalibrationBatch, calibrate, describe, has_numpy
from qspec_core._checked import lower_and_check
from qspec_core._convert import convert_pt2e
from qspec_core._coverage import Coverage, coverage
from qspec_core._errors import BackendError, ExportError, NothingQuantizedError
from qspec_core._prepare import prepare_pt2e
from qspec_core._quantizer import Quantizer
from qspec_core._torch import EXPORT_LOCK
from qspec_core.backend import Backend, Packaged, get_backend
from qspec_core.onnx import OnnxCheck, to_checked_onnx, to_onnx
from qspec_core.patterns import Mode, ReasonCode

__all__ = ["ProgressCallback", "Result", "export_in_evaluation", "quantize", "resolve_mode", "silent"]

ProgressCallback = Callable[[str], None]
"""Called with the name of each step of `quantize` as it begins."""


def silent(_: str) -> None:
    """The default progress callback: it prints nothing."""


@dataclass(frozen=True)
class Result:
    """The result of `quantize`.

    Args:
        exported: the float model as it was exported.
        converted: the quantized program, in `quantized_decomposed` operators, which exporters and runtimes read.
        backend: the backend it was made for.
        target: class of the deployment device.
        example_inputs: the arguments it was exported with.
        dynamic_shapes: the dimensions that may vary, as `torch.export.export` takes them.
        check: compare the lowered program with the converted graph before it is used.
    """

    exported: GraphModule
    converted: GraphModule
    backend: Backend
    target: str
    example_inputs: tuple[Any, ...]  # a model's arguments may be of any type
    dynamic_shapes: Any = None  # as torch.export takes it
    check: bool = True
    # At most one: the lowered program with its check.
    _made: list[tuple[nn.Module, LoweringCheck | None]] = field(
        default_factory=list, init=False, repr=False, compare=False
    )

    @property
    def coverage(self) -> Coverage:
        """The row that quantized each operator, or the reason why it was not quantized.

        After lowering, an operator whose kernel gave other numbers than the converted graph is skipped, with the
        figures.
        """
        found = coverage(self.converted)
        for _, check in self._made:
            if check is not None:
                found = found.with_skipped(dict(check.left_in_float), ReasonCode.DIVERGED)
        return found

    @property
    def lowered(self) -> nn.Module:
        """The program on its backend, in the fastest form that is safe; made when first asked for.

        It is compared with the converted graph first, see `qspec_core.lower`.

        Raises: LoweringError: it cannot run there, or gives other numbers than the converted graph.
        Warns: DivergenceWarning: an operator runs in float, since its kernel gave other numbers.
        """
        return self._lowered_and_checked()[0]

    @property
    def lowering_check(self) -> LoweringCheck | None:
        """How far the lowered program is from the converted graph; None with `check=False`. Lowers, if nothing has."""
        return self._lowered_and_checked()[1]

    def _lowered_and_checked(self) -> tuple[nn.Module, LoweringCheck | None]:
        with EXPORT_LOCK:
            if not self._made:
                made = lower_and_check(self.converted, self.example_inputs, self.backend, self.target, check=self.check)
                self._made.append(made)
            return self._made[0]

    def __deepcopy__(self, memo: dict[int, Any]) -> "Result":
        """Copy the graphs and the example inputs. The copy shares the backend, and lowers when asked."""
        graphs = copy.deepcopy((self.exported, self.converted, self.example_inputs), memo)
        exported, converted, inputs = graphs
        return Result(exported, converted, self.backend, self.target, inputs, self.dynamic_shapes, self.check)

    def __reduce_ex__(self, protocol: object) -> Any:  # never returns
        raise ExportError(
            "a Result cannot be pickled: it holds exported graphs, whose guards Python cannot pickle",
            found="pickle or torch.save of a Result",
            remedy="write the program with result.save(path), or the backend's file with result.package(path); copy a "
            "Result with copy.deepcopy",
        )

    def save(self, path: str | Path) -> Path:
        """Write the quantized program with `torch.export.save`. `qspec_core.load_program` reads it.

        `torch.export.load` reads it too, after an import of qspec_core.

        The file carries the coverage, the backend and the target under the extra file `qspec.json`.

        Raises: ExportError: the folder of the path does not exist.
        """
        path = _in_folder(Path(path))
        with EXPORT_LOCK:
            program = torch.export.export(self.converted, self.example_inputs, dynamic_shapes=self.dynamic_shapes)
        notes = {"backend": self.backend.name, "target": self.target, "coverage": self.coverage.to_dict()}
        torch.export.save(program, path, extra_files={"qspec.json": json.dumps(notes)})
        return path

    def package(self, path: str | Path) -> Path:
        """Write the backend's deployable file, after `lowered` agreed with the converted graph.

        Where the lowered program holds the file, that file is written. With `check=False` nothing is run before.

        Args:
            path: the file; one without an ending gets the backend's.
        Returns: the path of the file written.
        Raises:
            BackendError: the backend has none.
            ExportError: the folder of the path does not exist.
            LoweringError: the program cannot run there.
        """
        if self.backend.package is None:
            raise BackendError(
                f"backend {self.backend.name!r} has no deployable file",
                remedy="use result.lowered in this process, or result.save for the portable program",
            )
        path = _in_folder(Path(path))
        path = path if path.suffix else path.with_suffix(self.backend.suffix)
        lowered: object = self.lowered if self.check or self._made else None
        if isinstance(lowered, Packaged):
            return lowered.write_package(path)
        return self.backend.package(self.converted, self.example_inputs, path, self.target)

    def to_onnx(
        self, path: str | Path, *, opset: int | None = None, profile: str | None = None, check: bool = True
    ) -> OnnxCheck | None:
        """Write the quantized program as an ONNX file; see `qspec_core.onnx.to_onnx`.

        Args:
            path: the file.
            opset: 18 to 25; None for 21.
            profile: the consumer that the file is written for; None for any.
            check: compare the file with the converted graph before it appears at the path.
        Returns: what the check found, see `qspec_core.onnx.check_onnx`; None with `check=False`.
        Raises:
            OnnxExportError: ONNX cannot say it, the path cannot be written, or the extra is not installed.
            OnnxCheckError: the file computes something else.
        """
        options: dict[str, Any] = {"opset": opset, "profile": profile, "dynamic_shapes": self.dynamic_shapes}
        if check:
            return to_checked_onnx(self.converted, self.example_inputs, path, **options)
        to_onnx(self.converted, self.example_inputs, path, **options)
        return None


def _in_folder(path: Path) -> Path:
    """The path itself, if its folder exists: it is checked before the work, which may take minutes."""
    if not path.parent.is_dir():
        raise ExportError(
            f"the folder of {path} does not exist",
            found=str(path.parent.absolute()),
            expected="a folder",
            remedy=f"create it first: Path({str(path.parent)!r}).mkdir(parents=True)",
        )
    return path


def quantize(
    model: nn.Module | torch.export.ExportedProgram,
    example_inputs: tuple[Any, ...],  # a model's arguments may be of any type
    *,
    backend: str | Backend,
    calibration: Iterable[CalibrationBatch] | None = None,
    target: str | None = None,
    mode: Mode | str = Mode.STATIC,
    quantizer: Quantizer | None = None,
    dynamic_shapes: Any = None,  # as torch.export takes it
    bias_correction: bool = True,
    check: bool = True,
    progress: ProgressCallback = silent,
) -> Result:
    """Quantize a float model for a backend. The model itself is not changed.

    Threads may quantize at the same time; they export one after the other, since `torch.export` changes the model while
    it traces.

    Args:
        model: a float module, an exported program, or an exported graph module, on any device: it is calibrated there,
            and lowered to the backend's.
        example_inputs: positional arguments of one call.
        backend: name of an installed backend, or a `Backend`.
        calibration: batches like the model's real inputs, each a tuple of positional or a mapping of keyword arguments;
            only static quantization needs them.
        target: class of the deployment device, one of the backend's targets; None for its default.
        mode: when activations are quantized: "static", "dynamic" or "weight only".
        quantizer: used in place of the backend's default one.
        dynamic_shapes: passed to `torch.export.export`.
        bias_correction: in static quantization, subtract from each layer's bias the mean error that rounding its weight
            adds to the output; see `docs/architecture.md`.
        check: compare the lowered program with the converted graph before it is used, see `qspec_core.lower`.
        progress: called with the name of each step as it begins.
    Returns: the quantized program, with the coverage of each operator.
    Raises:
        BackendError: the backend is not installed, or has no such target or mode.
        ExportError: the model cannot be exported with these inputs.
        CalibrationError: static quantization without calibration, or a batch that does not fit or is not finite.
        NothingQuantizedError: no row of the backend matched.
    """
    chosen = get_backend(backend) if isinstance(backend, str) else backend
    target, mode = chosen.resolve_target(target), resolve_mode(chosen, mode)
    progress("export")
    exported = export_in_evaluation(model, example_inputs, dynamic_shapes)
    progress("prepare")
    made = chosen.quantizer(mode=mode, target=target) if quantizer is None else quantizer
    prepared = _prepare(exported, made)
    means = InputMeans(prepared) if bias_correction and mode is Mode.STATIC else None
    if mode is Mode.STATIC:
        progress("calibrate")
        calibrate(prepared if means is None else means.module, calibration)
    progress("convert")
    converted = convert_pt2e(prepared)
    if means is not None:
        converted = correct_biases(converted, means)
    return Result(exported, converted, chosen, target, example_inputs, dynamic_shapes, check)


def _prepare(exported: GraphModule, quantizer: Quantizer) -> GraphModule:
    try:
        return prepare_pt2e(exported, quantizer)
    except NothingQuantizedError as error:
        raise NothingQuantizedError(
            error.problem,
            where=error.where,
            found=error.found,
            expected=error.expected,
            remedy="choose another backend or mode by the reasons above, or pass quantizer= with another configuration",
        ) from error


def resolve_mode(backend: Backend, mode: Mode | str) -> Mode:
    """The mode named. Raises: BackendError: the backend does not have it."""
    known = {entry.value: entry for entry in Mode}
    found = mode if isinstance(mode, Mode) else known.get(mode)
    if found is None or found not in backend.modes:
        raise BackendError(
            f"backend {backend.name!r} has no mode {mode!r}",
            found=mode,
            expected=", ".join(sorted(entry.value for entry in backend.modes)),
            remedy="name one of the modes listed",
        )
    return found


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode, and every submodule back into the mode it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def export_in_evaluation(
    model: object, example_inputs: tuple[Any, ...], dynamic_shapes: Any
) -> GraphModule:  # as in `quantize`
    """Export a module in evaluation mode. An exported program or graph is taken as it is.

    Raises: ExportError: the model cannot be exported with these inputs.
    """
    if isinstance(model, GraphModule):
        return model
    if not isinstance(example_inputs, tuple):
        raise ExportError(
            "example_inputs is not a tuple",
            found=type(example_inputs).__qualname__,
            expected="a tuple of the model's positional arguments",
            remedy="write (x,) for a single input",
        )
    if has_numpy(example_inputs):
        raise ExportError(
            "example_inputs holds a NumPy array",
            found=describe(example_inputs),
            expected="torch tensors",
            remedy="convert each array with torch.from_numpy(x), to the dtype of the model",
        )
    try:
        if isinstance(model, torch.export.ExportedProgram):
            return _graph_module(model)
        if isinstance(model, nn.Module):
            with EXPORT_LOCK, _evaluating(model), torch.no_grad():
                return _graph_module(torch.export.export(model, example_inputs, dynamic_shapes=dynamic_shapes))
    except Exception as error:  # torch.export raises dozens of types; each is named below
        raise ExportError(
            f"torch.export cannot export {type(model).__qualname__} with these example inputs",
            found=f"{type(error).__name__}: {error}",
            expected=f"inputs that the model's forward takes; given: {describe(example_inputs)}",
            remedy="call the model itself on example_inputs; where that works, see torch.export's message above",
        ) from error
    raise ExportError(
        "quantize takes a module or an exported program",
        found=type(model).__qualname__,
        expected="torch.nn.Module, torch.export.ExportedProgram, or a graph module from one",
        remedy="pass the float model itself",
    )


def _graph_module(program: torch.export.ExportedProgram) -> GraphModule:
    module = program.module()
    if not isinstance(module, GraphModule):
        raise TypeError(f"ExportedProgram.module() gave {type(module).__qualname__}")
    return module
