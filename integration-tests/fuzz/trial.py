"""One network through one backend: quantized, lowered, and compared at each stage."""

import copy
import dataclasses
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from fuzz.networks import Case, source_of
from torch import Tensor, nn

import qspec_core as qspec
from qspec_core._agreement import calls_of, check_lowered

__all__ = ["AGREES", "FAULTY", "Outcome", "trial"]

AGREES, NO_ROW, FLOAT_TOO, INVALID = "agrees", "no row matches", "the float flow fails too", "not a model"
FINDING = "finding"
FAULTY = 5.0
"""SQNR of the converted graph, in dB, under which it is reported. Small networks may be sensitive: it is no finding."""
_QUIET = 1e-6


@dataclass(frozen=True)
class Outcome:
    """Outcome of one trial.

    Args:
        status: one of the constants above.
        stage: "quantize", "convert", "lower" or "run", for a finding.
        kind: type of the error, "diverges", or a warning.
        problem: message, first line.
        at: the operator named by the error.
        decibels: SQNR of the converted graph against the float model, the worst result; None if it was not reached.
    """

    status: str
    stage: str = ""
    kind: str = ""
    problem: str = ""
    at: str = ""
    decibels: float | None = None

    @property
    def is_finding(self) -> bool:
        return self.status == FINDING

    @property
    def key(self) -> tuple[str, str, str]:
        """Key that findings of one cause share: stage, kind, and the message without numbers and names."""
        message = self.problem.partition("; likewise")[0]
        said = self.at if self.kind == "diverges" else re.sub(r"\d+|\[[^]]*\]|'[^']*'|\"[^\"]*\"", "#", message)
        return self.stage, self.kind, re.sub(r"(_#)+", "", said)[:120]


class _Stopped(Exception):
    """A trial ended early."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome)
        self.outcome = outcome


def trial(case: Case) -> Outcome:
    """Run one case. Nothing is raised."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _trial(case)
    except _Stopped as stopped:
        return stopped.outcome


def _trial(case: Case) -> Outcome:
    model, inputs, expected = _float(case)
    exported = _exported(case, model, inputs)
    backend = _backend(case)
    with _stage("quantize", case, model, inputs):
        shapes = _shapes(case, inputs)
        result = qspec.quantize(
            exported,
            inputs,
            backend=backend,
            mode=case.mode,
            calibration=[_copied(inputs)] * 2,
            check=False,
            dynamic_shapes=shapes,
        )
    with _stage("convert", case, model, inputs), torch.no_grad():
        own = copy.deepcopy(result.converted)  # it may write to buffers
        decibels = _sqnr(_leaves(own(*_copied(inputs))), expected)
    with _stage("lower", case, model, inputs), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", qspec.DivergenceWarning)
        warnings.simplefilter("always", _not_compiled())
        lowered = qspec.lower(result.converted, inputs, backend=backend)
    for warning in caught:
        if issubclass(warning.category, qspec.DivergenceWarning):
            return _finding("lower", "diverges", str(warning.message), _without_numbers(str(warning.message)))
        if issubclass(warning.category, _not_compiled()):
            return _finding("lower", "not compiled", str(warning.message), "")
    with _stage("run", case, model, inputs):
        again = tuple(_other_values(value) for value in inputs)
        state = any("_(" in step.call for step in case.network.steps)
        check = check_lowered(lowered, calls_of(result.converted, again), keeps_state=state)
    if not check.holds:
        return _finding("run", "diverges", f"on other values: {check.worst}", "other values")
    return Outcome(AGREES, decibels=decibels)


def _finding(stage: str, kind: str, problem: str, at: str) -> Outcome:
    return Outcome(FINDING, stage, kind, problem.partition("\n")[0][:600], at)


def _without_numbers(message: str) -> str:
    """The name of the node that a warning begins with, without its number."""
    return re.sub(r"(_\d+)+$", "", message.partition(" ")[0])


@contextmanager
def _stage(name: str, case: Case, model: nn.Module, inputs: tuple[Any, ...]) -> Iterator[None]:
    """Turn an error into an outcome.

    Refusals are right where no row matches, and where the device's own flow fails for the float model.
    """
    try:
        yield
    except qspec.NothingQuantizedError as error:
        raise _Stopped(Outcome(NO_ROW)) from error
    except qspec.QSpecError as error:
        if case.backend == "xnnpack" and name in ("lower", "run") and not _float_flow_runs(case, model, inputs):
            raise _Stopped(Outcome(FLOAT_TOO)) from error
        diverges = "other numbers" in error.problem
        where = re.sub(r"(_\d+)+$", "", error.where.node or "")
        problem = f"{error.problem}; found {str(error.found).partition(chr(10))[0]}"
        kind = "diverges" if diverges else type(error).__name__
        raise _Stopped(_finding(name, kind, problem, where)) from error
    except Exception as error:  # an error that is not qspec's is what the fuzzer looks for
        raise _Stopped(_finding(name, f"raw {type(error).__name__}", str(error).strip(), "")) from error


def _float(case: Case) -> tuple[nn.Module, tuple[Any, ...], list[Any]]:
    """The model, its inputs and its results."""
    scope: dict[str, Any] = {}
    try:
        exec(source_of(case.network), scope)
        model, inputs = scope["model"], scope["inputs"]
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with torch.no_grad():
            expected = _leaves(model(*_copied(inputs)))
        model.load_state_dict(before)
    except Exception as error:  # a network that was cut may be no model
        raise _Stopped(Outcome(INVALID, problem=str(error).partition("\n")[0])) from error
    if not all(bool(value.isfinite().all()) for value in expected):
        raise _Stopped(Outcome(INVALID, problem="the results are not finite"))
    return model, inputs, expected


def _exported(case: Case, model: nn.Module, inputs: tuple[Any, ...]) -> torch.export.ExportedProgram:
    try:
        with torch.no_grad():
            return torch.export.export(model, inputs, dynamic_shapes=_shapes(case, inputs))
    except Exception as error:  # torch.export raises dozens of types
        raise _Stopped(Outcome(FLOAT_TOO, problem=f"torch.export: {str(error).partition(chr(10))[0]}")) from error


def _shapes(case: Case, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    return tuple({0: torch.export.Dim("batch", max=64)} for _ in inputs) if case.network.dynamic else None


def _backend(case: Case) -> qspec.Backend:
    backend = qspec.get_backend(case.backend)
    if case.form != "eager":
        return backend
    import qspec_x86

    def eager(converted: torch.fx.GraphModule, inputs: tuple[Any, ...], target: str) -> nn.Module:
        return qspec_x86.lower_eager(converted, target)

    return dataclasses.replace(backend, lower=eager)


def _not_compiled() -> type[Warning]:
    import qspec_x86

    return qspec_x86.NotCompiledWarning


def _float_flow_runs(case: Case, model: nn.Module, inputs: tuple[Any, ...]) -> bool:
    """Whether ExecuTorch lowers and runs the float model."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime, Verification

    try:
        program = torch.export.export(model, inputs)
        manager = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
        loaded = Runtime.get().load_program(manager.buffer, verification=Verification.Minimal)
        loaded.load_method("forward").execute([value.contiguous() for value in inputs])
    except Exception:  # ExecuTorch raises what it likes
        return False
    return True


def _leaves(results: object) -> list[Any]:
    return list(results) if isinstance(results, tuple | list) else [results]


def _copied(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.clone() for value in inputs)


def _other_values(value: Tensor) -> Tensor:
    """Values like those of an input, in its layout."""
    return value.clone().mul_(-0.75) if value.is_floating_point() else value.flip(-1)


def _sqnr(found: list[Any], expected: list[Any]) -> float:
    """Signal to noise of the worst floating-point result, in dB."""
    return min((_decibels(a, b) for a, b in zip(found, expected, strict=True) if b.is_floating_point()), default=99.0)


def _decibels(found: Tensor, expected: Tensor) -> float:
    signal, noise = expected.double().square().sum(), (found.double() - expected.double()).square().sum()
    if noise <= _QUIET * signal:
        return 60.0
    return float(10 * torch.log10(signal / noise))
