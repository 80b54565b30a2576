"""ExecuTorch's partitioner for XNNPACK, with the checks that its own rules lack (1.5.1)."""

import logging
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.fx.passes.infra.pass_base import PassResult

__all__ = ["CUSTOM_KEY", "DELEGATE_LOGGER", "OUTSIDE_KEY", "make_partitioner", "split_dequantizes"]

DELEGATE_LOGGER = "executorch.backends.xnnpack.partition.config"
"""Logger of the partitioner's rules; each refusal is one record."""
CUSTOM_KEY = "qspec_row"
"""Key of a row's anchor in `meta["custom"]`, the one entry that export and ExecuTorch's passes keep."""
OUTSIDE_KEY = "qspec_outside"
"""Key in `meta["custom"]` of operators that stay outside the delegate."""
_IMAGE_RANK = 4
# The delegate runs these in channels-last order, which needs rank 4. Convolutions get it by a pass of the delegate.
_IMAGE_OPERATORS = frozenset(
    {"amax.default", "avg_pool2d.default", "max.dim", "max_pool2d.default", "mean.dim", "prelu.default"}
    | {"upsample_bilinear2d.vec"}
)
_REACH = 3
"""Nodes between an operator and the farthest quantize or dequantize that a rule tags: a pad or a clamp, and itself."""


def make_partitioner() -> Any:  # executorch's XnnpackPartitioner; this module imports without ExecuTorch
    """The partitioner, with every rule checked, and a rule for ELU, whose kernel the list of ExecuTorch leaves out."""
    from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS
    from executorch.backends.xnnpack.partition.config.generic_node_configs import EluConfig
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

    rules = dict.fromkeys([*ALL_PARTITIONER_CONFIGS, EluConfig])
    return XnnpackPartitioner(configs=[_checked(rule) for rule in rules])


def _checked(rule: Any) -> Any:  # a class of executorch, and its subclass
    """A rule that refuses what the delegate computes wrongly, and that leaves no tags where it refuses.

    ExecuTorch's rules for layers tag the dequantizes before a layer as part of it, and then may refuse the layer: the
    delegate would return their integers, or nothing, in place of the float values that the layer outside it reads.
    """
    from executorch.backends.xnnpack.utils.quant_utils import IS_IMPLICIT_Q_DQ_TAG
    from executorch.exir.backend.utils import WhyNoPartition

    refuse = WhyNoPartition(logger=logging.getLogger(DELEGATE_LOGGER))

    class Checked(rule):  # type: ignore[misc]  # executorch is not typed
        def check_constraints(self, node: Node, program: torch.export.ExportedProgram) -> bool:
            reason = _refusal(node, self.target_name)
            if reason:
                refuse(node, reason)
                return False
            untagged = [near for near in _near(node) if not near.meta.get(IS_IMPLICIT_Q_DQ_TAG)]
            if super().check_constraints(node, program):
                return True
            for near in untagged:
                near.meta.pop(IS_IMPLICIT_Q_DQ_TAG, None)
            return False

    return Checked


def _refusal(node: Node, name: str) -> str:
    """Why the delegate would compute an operator wrongly, or fail; empty if it does not."""
    if (node.meta.get("custom") or {}).get(OUTSIDE_KEY):
        return "it was left out of the delegate"
    if name in _IMAGE_OPERATORS:
        source = node.args[0]
        value = source.meta.get("val") if isinstance(source, Node) else None
        if isinstance(value, torch.Tensor) and value.dim() != _IMAGE_RANK:
            return f"the kernel takes tensors of rank {_IMAGE_RANK}, got rank {value.dim()}"
    if name == "constant_pad_nd.default" and _pads_dequantized(node):
        return "the delegate would write integers, and a float operator reads them"
    if name == "upsample_bilinear2d.vec" and _has_scales_of_its_own(node):
        return "the kernel resizes by the ratio of the sizes, and the scales that it is given are others"
    if name == "elu.default":
        alpha = node.args[1] if len(node.args) > 1 else 1
        scales = [*node.args[2:], *(node.kwargs.get(key, 1) for key in ("scale", "input_scale"))]
        if any(scale != 1 for scale in scales) or not isinstance(alpha, float) or alpha <= 0:
            return f"the kernel takes a positive alpha and no scales, got alpha={alpha}, {scales}"
    return ""


def _pads_dequantized(node: Node) -> bool:
    """Whether a pad with zeros reads a dequantize, and no row absorbs it: ExecuTorch takes its result for integers."""
    from executorch.backends.xnnpack.utils.quant_utils import is_dequant, is_quant

    value = node.args[2] if len(node.args) > 2 else node.kwargs.get("value", 0)
    if (node.meta.get("custom") or {}).get(CUSTOM_KEY) is not None or value != 0:
        return False
    return is_dequant(node.all_input_nodes[0]) and not any(map(is_quant, node.users))


def _has_scales_of_its_own(node: Node) -> bool:
    """Whether a resize has scales that differ from the ratio of its sizes, as 1.5 does for 13 to 19 pixels."""
    scales = node.args[3] if len(node.args) > 3 else node.kwargs.get("scale_factors")
    align = node.args[2] if len(node.args) > 2 else node.kwargs.get("align_corners")
    source = node.args[0]
    before = source.meta.get("val") if isinstance(source, Node) else None
    after = node.meta.get("val")
    if not isinstance(scales, list | tuple) or align:
        return False
    if not isinstance(before, torch.Tensor) or not isinstance(after, torch.Tensor):
        return False
    sizes = zip(before.shape[2:], after.shape[2:], scales, strict=True)
    return any(out != size * scale for size, out, scale in sizes)


def _near(node: Node) -> list[Node]:
    """The nodes around an operator that a rule may tag."""
    found = {node: None}
    before, after = [node], [node]
    for _ in range(_REACH):
        before = [source for each in before for source in each.all_input_nodes]
        after = [user for each in after for user in each.users]
        found.update(dict.fromkeys([*before, *after]))
    return list(found)


def split_dequantizes(module: GraphModule) -> PassResult:
    """Give each reader of a dequantized image its own dequantize, in place.

    Where one is read in two memory formats, ExecuTorch changes the format for all its readers, those too that it has
    already marked with the other one. The result would be permuted.

    Args:
        module: a program in ExecuTorch's edge dialect.
    Cost: O(nodes + edges).
    """
    from executorch.backends.xnnpack.utils.quant_utils import is_dequant

    changed = False
    for node in list(module.graph.nodes):
        value = node.meta.get("val")
        if not is_dequant(node) or not isinstance(value, torch.Tensor) or value.dim() != _IMAGE_RANK:
            continue
        for user in list(node.users)[1:]:
            with module.graph.inserting_after(node):
                user.replace_input_with(node, module.graph.node_copy(node))
            changed = True
    if changed:
        module.recompile()
    return PassResult(module, changed)
