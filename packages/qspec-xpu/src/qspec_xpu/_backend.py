"""The backend that this package registers. Its pattern table is empty in this version."""

from typing import Any, NoReturn

from torch.fx import GraphModule

from qspec_core import LoweringError
from qspec_core.backend import Backend
from qspec_core.patterns import Mode, Outputs, PatternTable

__all__ = ["BACKEND"]


def _empty_table() -> LoweringError:
    return LoweringError(
        "this version of qspec-xpu registers an empty pattern table: it can neither quantize nor lower a model",
        found="0 rows",
        expected="a backend with rows",
        remedy="choose another backend; `qspec backends` lists those installed",
    )


def _quantizer(*, mode: Mode, target: str) -> NoReturn:
    """Refuse before anything is calibrated: without rows, no operator could be annotated."""
    raise _empty_table()


def _lower(converted: GraphModule, example_inputs: tuple[Any, ...], target: str) -> NoReturn:
    """Refuse: no row says how to lower anything."""
    raise _empty_table()


BACKEND = Backend(
    name="xpu",
    table=PatternTable(rows=(), outputs=Outputs.DEMAND),
    quantizer=_quantizer,
    lower=_lower,
)
