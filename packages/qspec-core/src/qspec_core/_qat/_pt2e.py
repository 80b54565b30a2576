"""`prepare_qat_pt2e`: copy an exported graph, annotate it, and insert fake-quantizes in the form that trains."""

import torch
from torch.fx import GraphModule, Node

from qspec_core._coverage import operators
from qspec_core._prepare._checks import require_fresh, require_quantizer
from qspec_core._prepare._pt2e import annotate_graphs, insert_into_graphs
from qspec_core._qat._checks import (
    require_fake_quantizes,
    require_one_precision,
    require_running_statistics,
    require_trained,
    require_unconverted,
)
from qspec_core._qat._expand import expand_batch_norms
from qspec_core._qat._parameters import own_weight_readers, read_parameters, share_statistics, view_parameters
from qspec_core._quantizer import Quantizer
from qspec_core.canonical._batch_norm_forms import canonicalize_batch_norms
from qspec_core.graph import (
    argument,
    calls,
    copy_graph_module,
    gc_paused,
    graph_modules,
    replace_argument,
    require_exported,
)
from qspec_core.graph._sinking import sink_constants

__all__ = ["prepare_qat_pt2e"]

aten = torch.ops.aten
_DROPOUTS = (aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default)
_STEP = "prepare_qat_pt2e"


def prepare_qat_pt2e(model: GraphModule, quantizer: Quantizer, *, allow_empty: bool = False) -> GraphModule:
    """Copy an exported model, let a quantizer annotate it, and insert fake-quantizes, for training.

    The copy shares the parameters, and the statistics of batch norms, with the given model and with the module that it
    was exported from: training the copy trains them. The given graph itself is not changed.

    Rows match as after training: dropouts are looked through, and so is a batch norm that alone reads a convolution or
    linear layer. The weight of such a layer is rounded as that of the layer with the batch norm folded in, see
    `docs/qat.md`. `convert_pt2e` folds it.

    The result is in the mode in which the model was exported, training or evaluation. Switch it with
    `move_exported_model_to_train` and `move_exported_model_to_eval`.

    Args:
        model: an exported graph module, traced in training or evaluation mode: `torch.export.export(...).module()`.
        quantizer: annotates the copy; its configurations build fake-quantizes, as those with `is_qat=True` do.
        allow_empty: accept a quantizer that has a configuration and matches nothing.
    Returns: the module to train; `coverage(module)` tells which operators will be quantized, and why others will not.
    Raises:
        GraphError: the model is not exported, prepared or converted already, has a batch norm without running
            statistics, or a parameter that both a quantized layer and another operator read.
        NothingQuantizedError: a table quantizer that has a configuration matched nothing.
        AnnotationError, SharingError, SelectorError: as `prepare_pt2e`.
        SpecError: a spec's observer cannot be built, or no configuration builds a fake-quantize.
    Cost: O(nodes + edges).
    """
    require_fresh(require_exported(model, _STEP))
    require_unconverted(model)
    require_quantizer(quantizer, _STEP)
    with gc_paused():
        prepared = copy_graph_module(model)
        original = operators(prepared)
        trained = read_parameters(prepared)
        for (_, body), (_, given) in zip(graph_modules(prepared), graph_modules(model), strict=True):
            canonicalize_batch_norms(body)
            require_running_statistics(body)
            share_statistics(given, body)
        sink_constants(prepared)
        in_evaluation = [dropout for _, body in graph_modules(prepared) for dropout in _keep_dropouts(body)]
        for _, body in graph_modules(prepared):
            own_weight_readers(body)
        prepared = annotate_graphs(prepared, quantizer, original, allow_empty=allow_empty)
        insert_into_graphs(prepared, quantizer, is_qat=True)
        for _, body in graph_modules(prepared):
            view_parameters(body, trained)
        require_trained(prepared, trained)
        require_fake_quantizes(prepared)
        for _, body in graph_modules(prepared):
            require_one_precision(body)
            expand_batch_norms(body)
        for dropout in in_evaluation:
            replace_argument(dropout, "train", False)
        for _, body in graph_modules(prepared):
            body.recompile()
    return prepared


def _keep_dropouts(body: GraphModule) -> list[Node]:
    """Put dropouts in training mode, so that the canonical form does not remove them. Returns: those that were not."""
    idle = [dropout for dropout in calls(body.graph, *_DROPOUTS) if not argument(dropout, "train")]
    for dropout in idle:
        replace_argument(dropout, "train", True)
    return idle
