"""The pattern-table language: rows as data, and the matcher that finds them in a graph."""

from qspec_core.patterns._flow import Flow, Mode, Outputs
from qspec_core.patterns._matcher import Matching, match_rows
from qspec_core.patterns._operands import (
    Operand,
    OtherRole,
    PostOp,
    PreOp,
    Role,
    activation,
    activations,
    bias,
    constant,
    weight,
)
from qspec_core.patterns._reasons import Note, Reason, ReasonCode
from qspec_core.patterns._rows import DELEGATED, Delegated, Link, Match, PatternTable, Row

__all__ = [
    "DELEGATED",
    "Delegated",
    "Flow",
    "Link",
    "Match",
    "Matching",
    "Mode",
    "Note",
    "Operand",
    "OtherRole",
    "Outputs",
    "PatternTable",
    "PostOp",
    "PreOp",
    "Reason",
    "ReasonCode",
    "Role",
    "Row",
    "activation",
    "activations",
    "bias",
    "constant",
    "match_rows",
    "weight",
]
