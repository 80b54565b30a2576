"""The conformance kit in training: each row is trained for a few steps, converted, lowered, and compared."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule

from qspec_core._convert import convert_pt2e
from qspec_core._errors import BackendError
from qspec_core._qat import prepare_qat_pt2e
from qspec_core.backend import Backend
from qspec_core.fake_quantize import disable_observer
from qspec_core.testing._cases import RowCase, conformance_cases
from qspec_core.testing._checks import check_coverage, tested_match
from qspec_core.testing._errors import CheckName, ConformanceError
from qspec_core.testing._probe import Plan, Probe

__all__ = ["training_cases"]

_STEPS, _RATE = 3, 0.001
_TOLERANCE = 1 / 50
"""Part of the span of a result by which a value at a tie, rounded to the other side, may change it: a few steps."""


def training_cases(backend: Backend) -> tuple[RowCase, ...]:
    """Generate the tests of training that a backend must pass: for each row, chain and mode.

        @pytest.mark.parametrize("case", training_cases(BACKEND), ids=str)
        def test_training(case):
            case.check()

    Left out are rows without activations, which training leaves in float, and samples with a configuration of their
    own.

    Args:
        backend: the backend; it has a `training_quantizer`.
    Returns: the cases, rows in the table's order.
    Raises: BackendError: the backend has no quantizer for training.
    """
    if backend.training_quantizer is None:
        raise BackendError(
            f"backend {backend.name!r} has no quantizer for training",
            found="training_quantizer=None",
            remedy="give the Backend a training_quantizer, or run conformance_cases alone",
        )
    found = (case for case in conformance_cases(backend) if isinstance(case, RowCase))
    return tuple(
        _TrainedRowCase(case.device, case.plan, case.mode)
        for case in found
        if case.plan.row.activations and case.plan.sample.config is None
    )


@dataclass(frozen=True)
class _TrainedRowCase(RowCase):
    """A row case whose probe is trained before it is converted."""

    def __str__(self) -> str:
        return f"{super().__str__()}, trained"

    def _converted(
        self, probe: Probe, exported: GraphModule, batches: list[tuple[Tensor, ...]], target: str
    ) -> GraphModule:
        """Train, convert, and run all checks before lowering."""
        backend = self.device.backend
        if backend.training_quantizer is None:
            raise TypeError("training_cases makes no case for a backend without a quantizer for training")
        quantizer = backend.training_quantizer(mode=self.mode, target=target)
        prepared = prepare_qat_pt2e(exported, quantizer, allow_empty=True)
        _train(prepared, batches)
        converted = convert_pt2e(prepared)
        check_coverage(converted, self.plan)
        tested_match(converted, backend.table, self.plan)
        for batch in batches:
            with torch.no_grad():
                _check_trained(prepared(*batch)[0], converted(*batch)[0], self.plan)
        return converted


def _train(prepared: GraphModule, batches: list[tuple[Tensor, ...]]) -> None:
    """Run a few steps of gradient descent, then stop observing. A probe without parameters only observes."""
    parameters = list(prepared.parameters())
    optimizer = torch.optim.SGD(parameters, _RATE) if parameters else None
    for step in range(_STEPS):
        loss = prepared(*batches[step % len(batches)])[0].float().square().mean()
        if optimizer is not None and loss.requires_grad:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        for batch in batches:  # ranges of the last weights
            prepared(*batch)
    prepared.apply(disable_observer)


def _check_trained(expected: Tensor, found: Tensor, plan: Plan) -> None:
    """Check that a converted graph computes what the fake-quantized module does.

    Raises: ConformanceError: it does not.
    """
    low, high = torch.aminmax(expected.float())
    allowed = _TOLERANCE * (high - low).item() + 1e-6
    error = (found.float() - expected.float()).abs().max().item()
    if not error <= allowed:
        raise ConformanceError(
            f"the converted graph of {plan.label!r} computes something else than the module that was trained",
            check=CheckName.CONVERTED,
            found=f"an error of {error:.3g}",
            expected=f"at most {allowed:.3g}",
            remedy="let the row's adapt hooks give fake-quantizes the same range as observers",
        )
