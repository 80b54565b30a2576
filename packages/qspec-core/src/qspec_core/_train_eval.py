"""Switch exported graphs between training and evaluation, by the arguments of their operators: the modules are gone."""

from types import MethodType

import torch
from torch import nn
from torch.fx import GraphModule, Node

from qspec_core._errors import GraphError
from qspec_core._torch import OpOverload, run_on_copies
from qspec_core.canonical._batch_norm_forms import is_counter
from qspec_core.graph import argument, argument_names, calls, graph_modules, replace_argument, require_exported

__all__ = [
    "FROZEN_KEY",
    "allow_exported_model_train_eval",
    "freeze_bn_stats",
    "has_batch_norms",
    "move_exported_model_to_eval",
    "move_exported_model_to_train",
    "switch_graph",
    "update_bn_stats",
]

aten = torch.ops.aten
_FLAGS: dict[OpOverload, str] = {
    aten.batch_norm.default: "training",
    aten._native_batch_norm_legit.default: "training",
    aten._native_batch_norm_legit_functional.default: "training",
    aten.native_batch_norm.default: "training",
    aten.cudnn_batch_norm.default: "training",
    aten.miopen_batch_norm.default: "training",
    aten.dropout.default: "train",
    aten.dropout_.default: "train",
    aten.feature_dropout.default: "train",
    aten.feature_dropout_.default: "train",
    aten.alpha_dropout.default: "train",
    aten.alpha_dropout_.default: "train",
    aten.feature_alpha_dropout.default: "train",
    aten.native_dropout.default: "train",
    aten.rrelu.default: "training",
    aten.rrelu_.default: "training",
    aten.lstm.input: "train",
    aten.gru.input: "train",
    aten.rnn_tanh.input: "train",
    aten.rnn_relu.input: "train",
}
"""Operators that behave differently in training, with the argument that switches them."""

_STATISTICS = ("running_mean", "running_var")
_EVALUATION_ONLY: dict[OpOverload, OpOverload] = {
    aten._native_batch_norm_legit_no_training.default: aten._native_batch_norm_legit.default,
}
"""Batch norms without an argument that switches them, with the operator that has one. Both give the same results."""

_FIXED: dict[OpOverload, bool] = {
    aten._batch_norm_with_update.default: True,
    aten._batch_norm_with_update_functional.default: True,
    aten._batch_norm_no_update.default: False,
}
"""Batch norms that cannot be switched, with the mode that they are in."""

_MODE = "_exported_training"
"""Attribute of a graph module: the mode it was switched to last, True for training. PT2E's name."""

FROZEN_KEY = "qspec_frozen_batch_norms"
"""Key in the metadata of a graph module whose batch norms stay in evaluation mode. Its value is the mode of the rest:
True for training."""


def move_exported_model_to_eval(model: GraphModule) -> GraphModule:
    """Switch dropout and batch norm of an exported graph, subgraphs included, to evaluation. In place.

    Args:
        model: an exported graph module.
    Returns: the same module.
    Raises: GraphError: the model is not exported, or an operator cannot be switched.
    Cost: O(nodes).
    """
    return _switch(require_exported(model, "move_exported_model_to_eval"), False)


def move_exported_model_to_train(model: GraphModule) -> GraphModule:
    """Switch dropout and batch norm of an exported graph, subgraphs included, to training. In place.

    Operators that export or preparation removed, such as dropout traced in evaluation, stay removed.

    Args:
        model: an exported graph module.
    Returns: the same module.
    Raises: GraphError: the model is not exported, or an operator cannot be switched.
    Cost: O(nodes).
    """
    return _switch(require_exported(model, "move_exported_model_to_train"), True)


def allow_exported_model_train_eval(model: GraphModule) -> GraphModule:
    """Let `.train()` and `.eval()` of an exported graph and its copies switch operators instead of raising. In place.

    Args:
        model: an exported graph module.
    Returns: the same module.
    Raises: GraphError: the model is not exported.
    """
    require_exported(model, "allow_exported_model_train_eval")
    _allow_switches(model)
    run_on_copies(model, _allow_switches)
    return model


def _allow_switches(model: nn.Module) -> None:
    model.train = MethodType(_train, model)  # type: ignore[method-assign]  # one instance, as torch.export does
    model.eval = MethodType(_eval, model)  # type: ignore[method-assign]  # as above


def freeze_bn_stats(mod: nn.Module) -> None:
    """Freeze the batch norms of an exported graph; for `model.apply(freeze_bn_stats)`. Does nothing to other modules.

    They normalize by their running statistics, also while the rest trains, and do not change them. Their weights and
    biases still train.
    """
    if isinstance(mod, GraphModule) and FROZEN_KEY not in mod.meta and calls(mod.graph, *_FLAGS):
        training = any(argument(node, _flag(node)) for node in calls(mod.graph, *_FLAGS))
        mod.meta[FROZEN_KEY] = training
        if switch_graph(mod, training):
            mod.recompile()


def update_bn_stats(mod: nn.Module) -> None:
    """Let frozen batch norms follow the mode of the graph again; for `model.apply(update_bn_stats)`.

    Does nothing to other modules.
    """
    if isinstance(mod, GraphModule) and FROZEN_KEY in mod.meta:
        training = bool(mod.meta.pop(FROZEN_KEY))
        if switch_graph(mod, training):
            mod.recompile()


def has_batch_norms(mod: nn.Module) -> bool:
    """Whether a module is a graph with batch norms that can be frozen."""
    return isinstance(mod, GraphModule) and any(
        "running_mean" in argument_names(node.target)  # type: ignore[arg-type]  # calls() found it by them
        for node in calls(mod.graph, *_FLAGS)
    )


def _flag(node: Node) -> str:
    return _FLAGS[node.target]  # type: ignore[index]  # calls() found it by them


def _train(self: GraphModule, mode: bool = True) -> GraphModule:
    return _switch(self, mode)


def _eval(self: GraphModule) -> GraphModule:
    return _switch(self, False)


def _switch(model: GraphModule, training: bool) -> GraphModule:
    if vars(model).get(_MODE) == training:  # a loop that calls train() in every epoch need not generate code again
        return model
    graphs = [body for _, body in graph_modules(model)]
    for body in graphs:
        _require_switchable(body, training)
    for body in graphs:
        if switch_graph(body, training):
            body.recompile()
    model.training = training
    vars(model)[_MODE] = training
    return model


def _require_switchable(body: GraphModule, training: bool) -> None:
    """Raise if an operator of a graph is fixed in the other mode."""
    for node in calls(body.graph, *_FIXED):
        if _FIXED[node.target] is not training:  # type: ignore[index]  # calls() found it by them
            raise GraphError(
                f"{node.target} cannot be switched to {'training' if training else 'evaluation'}",
                where=node,
                found=f"an operator that is in {'evaluation' if training else 'training'} mode always",
                expected="aten.batch_norm, as torch.export writes it",
                remedy="export the model again without decomposing it",
            )


def switch_graph(body: GraphModule, training: bool) -> bool:
    """Switch the operators of one graph. The caller generates code again if anything changed.

    Batch norms that are frozen stay in evaluation. Batches are counted in training only.

    Returns: whether anything changed.
    """
    changed = False
    is_frozen = FROZEN_KEY in body.meta
    if is_frozen:
        body.meta[FROZEN_KEY] = training
    if training:
        for node in calls(body.graph, *_EVALUATION_ONLY):
            numbers = [argument(node, name) for name in ("momentum", "eps")]
            tensors = [argument(node, name) for name in ("input", "weight", "bias", *_STATISTICS)]
            node.target = _EVALUATION_ONLY[node.target]  # type: ignore[index]  # calls() found it by them
            node.args, node.kwargs = (*tensors, False, *numbers), {}
    for node in calls(body.graph, *_FLAGS):
        name = _flag(node)
        is_norm = "running_mean" in argument_names(node.target)  # type: ignore[arg-type]  # as above
        if is_norm and argument(node, "running_mean") is None:
            continue  # it uses the statistics of its input in either mode
        wanted = training and not (is_norm and is_frozen)
        if argument(node, name) is not wanted:
            replace_argument(node, name, wanted)
            changed = True
    for node in calls(body.graph, aten.add_.Tensor, aten.add.Tensor):
        step = int(training and not is_frozen)
        if is_counter(body, argument(node, "self")) and argument(node, "other") in (0, 1) and step != node.args[1]:
            replace_argument(node, "other", step)
            changed = True
    return changed
