"""Switch exported graphs between training and evaluation, by the arguments of their operators: the modules are gone."""

from types import MethodType

import torch
from torch.fx import GraphModule

from qspec_core._torch import OpOverload
from qspec_core.graph import called_operator, graph_modules, replace_argument, require_exported

__all__ = ["allow_exported_model_train_eval", "move_exported_model_to_eval", "move_exported_model_to_train"]

aten = torch.ops.aten
_FLAGS: dict[OpOverload, str] = {
    aten.batch_norm.default: "training",
    aten.dropout.default: "train",
    aten.dropout_.default: "train",
    aten.feature_dropout.default: "train",
    aten.feature_dropout_.default: "train",
    aten.alpha_dropout.default: "train",
    aten.alpha_dropout_.default: "train",
}
"""Operators that behave differently in training, with the argument that switches them."""

_MODE = "_exported_training"
"""Attribute of a graph module: the mode it was switched to last, True for training. PT2E's name."""


def move_exported_model_to_eval(model: GraphModule) -> GraphModule:
    """Switch dropout and batch norm of an exported graph, subgraphs included, to evaluation. In place.

    Args:
        model: an exported graph module.
    Returns: the same module.
    Raises: GraphError: the model is not exported.
    Cost: O(nodes).
    """
    return _switch(require_exported(model, "move_exported_model_to_eval"), False)


def move_exported_model_to_train(model: GraphModule) -> GraphModule:
    """Switch dropout and batch norm of an exported graph, subgraphs included, to training. In place.

    Operators that export or preparation removed, such as dropout traced in evaluation, stay removed.

    Args:
        model: an exported graph module.
    Returns: the same module.
    Raises: GraphError: the model is not exported.
    Cost: O(nodes).
    """
    return _switch(require_exported(model, "move_exported_model_to_train"), True)


def allow_exported_model_train_eval(model: GraphModule) -> GraphModule:
    """Let `.train()` and `.eval()` of an exported graph switch its operators instead of raising. In place.

    Args:
        model: an exported graph module.
    Returns: the same module.
    Raises: GraphError: the model is not exported.
    """
    require_exported(model, "allow_exported_model_train_eval")
    model.train = MethodType(_train, model)  # type: ignore[method-assign]  # one instance, as torch.export does
    model.eval = MethodType(_eval, model)  # type: ignore[method-assign]  # as above
    return model


def _train(self: GraphModule, mode: bool = True) -> GraphModule:
    return _switch(self, mode)


def _eval(self: GraphModule) -> GraphModule:
    return _switch(self, False)


def _switch(model: GraphModule, training: bool) -> GraphModule:
    if vars(model).get(_MODE) == training:  # a loop that calls train() in every epoch need not generate code again
        return model
    for _, module in graph_modules(model):
        switched = False
        for node in module.graph.nodes:
            operator = called_operator(node)
            if operator in _FLAGS:
                replace_argument(node, _FLAGS[operator], training)
                switched = True
        if switched:
            module.recompile()
    model.training = training
    vars(model)[_MODE] = training
    return model
