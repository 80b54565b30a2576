"""The scorecard of a backend: which rows conform in which modes, and what whole models get."""

import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from qspec_core._agreement import calls_of, check_lowered
from qspec_core._convert import convert_pt2e
from qspec_core._coverage import coverage
from qspec_core._errors import BackendError, QSpecError
from qspec_core._prepare import prepare_pt2e
from qspec_core._torch import EXPORT_LOCK
from qspec_core.backend import Backend
from qspec_core.patterns import Mode
from qspec_core.testing._architectures import ARCHITECTURES, Architecture
from qspec_core.testing._badge import badge
from qspec_core.testing._cases import Case, RowCase, UntestableCase, conformance_cases
from qspec_core.testing._errors import ConformanceError, DeviceMissingError
from qspec_core.testing._kit import kit_of

__all__ = ["ArchitectureScore", "RowScore", "Scorecard", "scorecard"]

_BATCHES = 2
_PASSED, _SKIPPED = "passed", "skipped"


@dataclass(frozen=True)
class RowScore:
    """One row and mode.

    Args:
        row: name of the row, with its chain.
        mode: when activations are quantized.
        passed: cases that passed.
        failed: names of the checks that failed.
        skipped: cases that passed up to lowering, where the device's runtime is missing.
    """

    row: str
    mode: str
    passed: int
    failed: tuple[str, ...] = ()
    skipped: int = 0


@dataclass(frozen=True)
class ArchitectureScore:
    """One small architecture in one mode.

    Args:
        name: of the architecture.
        mode: when activations are quantized.
        layers: convolution and linear layers in it.
        quantized_layers: those that a row quantized.
        operators: floating-point operators in it.
        quantized: those that a row quantized.
        lowered: "agrees" with the converted graph, "diverges", or the error's type.
    """

    name: str
    mode: str
    layers: int
    quantized_layers: int
    operators: int
    quantized: int
    lowered: str


@dataclass(frozen=True)
class Scorecard:
    """Result of `scorecard`. `str(card)` is a table.

    Args:
        backend: name of the backend.
        target: class of deployment device of the architectures.
        rows: by row and mode, in the table's order.
        general: each rule of the table, refusal and package, with "passed", "skipped" or the check that failed.
        architectures: small whole models.
    """

    backend: str
    target: str
    rows: tuple[RowScore, ...]
    general: Mapping[str, str]
    architectures: tuple[ArchitectureScore, ...]

    @property
    def failures(self) -> tuple[str, ...]:
        """The failures, one line each."""
        found = [f"{score.row}, {score.mode}: {', '.join(score.failed)}" for score in self.rows if score.failed]
        found += [f"{name}: {how}" for name, how in self.general.items() if how not in (_PASSED, _SKIPPED)]
        found += [f"{s.name}, {s.mode}: {s.lowered}" for s in self.architectures if s.lowered == "diverges"]
        return tuple(found)

    @property
    def layers(self) -> tuple[int, int]:
        """Convolution and linear layers of all architectures that a row quantized, and all of them."""
        return sum(s.quantized_layers for s in self.architectures), sum(s.layers for s in self.architectures)

    def to_dict(self) -> dict[str, Any]:  # plain data
        """The card as plain data. It depends on the backend alone, not on the machine's speed."""
        return asdict(self) | {"general": dict(self.general), "failures": list(self.failures)}

    def to_json(self) -> str:
        """The card as JSON, in a fixed order."""
        return json.dumps(self.to_dict(), indent=1, default=str) + "\n"

    def to_svg(self) -> str:
        """A badge: rows that conform, and layers that are quantized."""
        good = sum(1 for score in self.rows if not score.failed)
        quantized, layers = self.layers
        text = f"{good}/{len(self.rows)} rows, {quantized}/{layers} layers"
        return badge(f"qspec {self.backend}", text, is_good=not self.failures)

    def __str__(self) -> str:
        lines = [f"backend {self.backend}, target {self.target}", "", "rows"]
        lines += [
            f"  {s.row:<40} {s.mode:<12} {s.passed:>3} passed"
            + (f", {s.skipped} skipped" if s.skipped else "")
            + (f", FAILED: {', '.join(s.failed)}" if s.failed else "")
            for s in self.rows
        ]
        lines += ["", "table, refusals, package"]
        lines += [f"  {name:<53} {how}" for name, how in self.general.items()]
        lines += ["", "small architectures            mode          layers   operators   lowered"]
        lines += [
            f"  {s.name:<28} {s.mode:<12} {f'{s.quantized_layers}/{s.layers}':>7} {f'{s.quantized}/{s.operators}':>11}"
            f"   {s.lowered}"
            for s in self.architectures
        ]
        return "\n".join([*lines, "", f"{len(self.failures)} failures", *(f"  {line}" for line in self.failures)])


def scorecard(
    backend: Backend,
    *,
    architectures: Mapping[str, Architecture] | None = None,
    cases: Iterable[Case] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Scorecard:
    """Run the conformance kit and small whole models on a backend.

    Args:
        backend: the backend, with its own `Kit`.
        architectures: the models, by name; None for those of the kit.
        cases: from `conformance_cases`; None for those of the backend.
        progress: called with the name of each case and model as it begins.
    Cost: that of all cases, plus one quantization and lowering of each model in each mode.
    """
    general: dict[str, str] = {}
    rows: dict[tuple[str, str], Counter[str]] = {}
    for case in conformance_cases(backend) if cases is None else cases:
        if progress is not None:
            progress(str(case))
        outcome = _outcome(case)
        if isinstance(case, RowCase):
            rows.setdefault((case.plan.label, case.mode.value), Counter())[outcome] += 1
        elif isinstance(case, UntestableCase):
            rows.setdefault((case.row.name, "no sample"), Counter())[outcome] += 1
        else:
            general[str(case)] = outcome
    targets = kit_of(backend).targets
    target = (targets if targets is not None else backend.targets)[0]
    models = []
    for mode in sorted(backend.modes, key=_value):
        for name, architecture in (ARCHITECTURES if architectures is None else architectures).items():
            if progress is not None:
                progress(f"{name}, {mode.value}")
            models.append(_score(name, architecture, backend, mode, target))
    return Scorecard(
        backend.name, target, tuple(_row(*key, found) for key, found in rows.items()), general, tuple(models)
    )


def _outcome(case: Case) -> str:
    try:
        case.check()
    except ConformanceError as error:
        return error.check.value
    except DeviceMissingError:
        return _SKIPPED
    except Exception as error:  # a broken backend can raise anything
        return type(error).__name__
    return _PASSED


def _row(row: str, mode: str, found: Counter[str]) -> RowScore:
    failed = tuple(sorted(name for name in found if name not in (_PASSED, _SKIPPED)))
    return RowScore(row, mode, found[_PASSED], failed, found[_SKIPPED])


def _value(mode: Mode) -> str:
    return mode.value


def _settle(module: nn.Module) -> nn.Module:
    """Give batch norms statistics that are not the identity."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            if part.running_var is not None and part.running_mean is not None:
                part.running_var.uniform_(0.5, 1.5)
                part.running_mean.uniform_(-0.5, 0.5)
    return module.eval()


def _score(name: str, architecture: Architecture, backend: Backend, mode: Mode, target: str) -> ArchitectureScore:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, shape = architecture()
        model = _settle(model)
        batches = [(torch.randn(shape),) for _ in range(_BATCHES)]
    with EXPORT_LOCK, torch.no_grad():
        exported = torch.export.export(model, batches[0]).module()
    try:
        prepared = prepare_pt2e(exported, backend.quantizer(mode=mode, target=target), allow_empty=True)
        with torch.no_grad():
            for batch in batches:
                prepared(*batch)
        converted = convert_pt2e(prepared)
    except QSpecError as error:
        return ArchitectureScore(name, mode.value, 0, 0, 0, 0, type(error).__name__)
    found = coverage(converted)
    lowered = _lowered(backend, converted, batches[0], target) if found.quantized else "nothing quantized"
    layers = len(found.layers), len(found.quantized_layers)
    return ArchitectureScore(name, mode.value, *layers, len(found), len(found.quantized), lowered)


def _lowered(backend: Backend, converted: Any, inputs: tuple[Any, ...], target: str) -> str:
    kit = kit_of(backend)
    lower = kit.lower if kit.lower is not None else backend.lower
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a device's remark about a model, not a result
            check = check_lowered(lower(converted, inputs, target), calls_of(converted, inputs), keeps_state=False)
    except BackendError:
        return _SKIPPED
    except Exception as error:  # a broken backend can raise anything
        return type(error).__name__
    return "agrees" if check.holds else "diverges"
