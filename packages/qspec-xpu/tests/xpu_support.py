"""Models through export, prepare, calibration and convert."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from qspec_core import Quantizer, convert_pt2e, prepare_pt2e

__all__ = ["convert", "export"]


def export(module: nn.Module, *example: Tensor, dynamic_shapes: Any = None) -> GraphModule:
    """Export a module in evaluation mode."""
    with torch.no_grad():
        graph = torch.export.export(module.eval(), example, dynamic_shapes=dynamic_shapes).module()
    assert isinstance(graph, GraphModule)
    return graph


def convert(
    quantizer: Quantizer,
    model: nn.Module,
    *example: Tensor,
    batches: Iterable[tuple[Tensor, ...]] | None = None,
    dynamic_shapes: Any = None,
) -> GraphModule:
    """Export, prepare, calibrate on the batches (the example if None) and convert."""
    prepared = prepare_pt2e(export(model, *example, dynamic_shapes=dynamic_shapes), quantizer)
    with torch.no_grad():
        for batch in [example] if batches is None else batches:
            prepared(*batch)
    return convert_pt2e(prepared)
