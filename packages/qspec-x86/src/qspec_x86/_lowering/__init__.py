"""How the rows lower: each function rewrites one match, or returns the reason why it cannot."""

from qspec_x86._lowering._conv import lower_convolution
from qspec_x86._lowering._embedding import lower_embedding, lower_embedding_bag
from qspec_x86._lowering._integers import lower_cat, lower_max_pool2d, lower_pad, lower_view
from qspec_x86._lowering._layer import NARROWED
from qspec_x86._lowering._linear import lower_linear
from qspec_x86._lowering._transposed import lower_transposed, turns_of
from qspec_x86._lowering._weight_only import lower_weight_only

__all__ = [
    "NARROWED",
    "lower_cat",
    "lower_convolution",
    "lower_embedding",
    "lower_embedding_bag",
    "lower_linear",
    "lower_max_pool2d",
    "lower_pad",
    "lower_transposed",
    "lower_view",
    "lower_weight_only",
    "turns_of",
]
