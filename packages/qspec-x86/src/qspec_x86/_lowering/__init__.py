"""Lowering functions of the rows: each rewrites one match, or returns the reason why it cannot.

`_flow` has the entry functions that lower a whole graph. It is not imported here, because it reads the rows."""

from qspec_x86._lowering._conv import lower_convolution
from qspec_x86._lowering._embedding import lower_embedding, lower_embedding_bag
from qspec_x86._lowering._layer import NARROWED
from qspec_x86._lowering._linear import lower_linear
from qspec_x86._lowering._transposed import lower_transposed
from qspec_x86._lowering._weight_only import lower_weight_only

__all__ = [
    "NARROWED",
    "lower_convolution",
    "lower_embedding",
    "lower_embedding_bag",
    "lower_linear",
    "lower_transposed",
    "lower_weight_only",
]
