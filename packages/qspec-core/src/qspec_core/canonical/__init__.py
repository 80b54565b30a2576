"""The canonical form: one spelling for each operator, however a model was written or exported, so that a row needs one
anchor.

Each pass edits a graph module that qspec owns, in place. The caller generates code afterwards.
"""

from torch.fx import GraphModule

from qspec_core.canonical._activation import canonicalize_activations
from qspec_core.canonical._batch_norm import fold_batch_norms
from qspec_core.canonical._convolution import canonicalize_convolutions
from qspec_core.canonical._einsum import canonicalize_einsums
from qspec_core.canonical._functional import make_functional
from qspec_core.canonical._identity import remove_identities
from qspec_core.canonical._linear import canonicalize_linears
from qspec_core.canonical._padding import canonicalize_pads
from qspec_core.canonical._record import (
    FOLDED_KEY,
    NUMERIC_DEBUG_HANDLE_KEY,
    REMOVED_KEY,
    STANDS_FOR_KEY,
    debug_handle,
    remove_unread,
    set_debug_handle,
    value_source,
)
from qspec_core.canonical._recurrent import FEATURES_KEY, RECURRENT_KEY, expand_recurrent_layers
from qspec_core.canonical._shape import canonicalize_shapes
from qspec_core.canonical._weights import fold_weights

__all__ = [
    "FEATURES_KEY",
    "FOLDED_KEY",
    "NUMERIC_DEBUG_HANDLE_KEY",
    "RECURRENT_KEY",
    "REMOVED_KEY",
    "STANDS_FOR_KEY",
    "canonicalize",
    "debug_handle",
    "expand_recurrent_layers",
    "fold_batch_norms",
    "fold_weights",
    "set_debug_handle",
    "value_source",
]

_PASSES = (
    remove_identities,  # before make_functional: dropout in evaluation returns its input itself, which is an alias
    make_functional,
    canonicalize_shapes,
    canonicalize_activations,
    canonicalize_convolutions,
    canonicalize_pads,
    canonicalize_einsums,
    canonicalize_linears,
)


def canonicalize(module: GraphModule) -> None:
    """Bring an owned graph to canonical form, in place; the values it computes stay the same.

    Args:
        module: an exported graph module that the caller owns; its code is not generated again.
    Cost: O(nodes + edges).
    """
    for canonical_pass in _PASSES:
        canonical_pass(module)
    remove_unread(module)
