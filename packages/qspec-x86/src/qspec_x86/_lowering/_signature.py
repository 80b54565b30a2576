"""Inputs of a compiled package. Its code checks nothing: another shape, stride or dtype gives wrong numbers."""

import json
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from qspec_core import LoweringError
from qspec_core.graph import symbol_range, tensor_value

__all__ = ["Input", "Signature", "signature_of"]


@dataclass(frozen=True)
class Input:
    """One tensor that a package takes.

    Args:
        name: name of the graph's placeholder.
        dtype: name of its dtype, such as "float32".
        sizes: of each dimension, a number, or `(name, smallest, largest or None)` where it may vary.
        channels_last: whether its memory layout is channels-last; otherwise it is contiguous.
    """

    name: str
    dtype: str
    sizes: tuple[int | tuple[str, int, int | None], ...]
    channels_last: bool

    @property
    def memory_format(self) -> torch.memory_format:
        """Memory layout that the compiled code reads."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def describe(self) -> str:
        """As text, such as `float32 (s0 = 1 to 16, 3, 224, 224)`."""
        words = []
        for size in self.sizes:
            if isinstance(size, int):
                words.append(str(size))
            else:
                words.append(f"{size[0]} = {size[1]} to {'any' if size[2] is None else size[2]}")
        return f"{self.dtype} ({', '.join(words)})"

    def accepts(self, value: Tensor) -> bool:
        """Whether the package was compiled for the dtype, device and shape."""
        if str(value.dtype) != f"torch.{self.dtype}" or value.device.type != "cpu" or value.dim() != len(self.sizes):
            return False
        for size, found in zip(self.sizes, value.shape, strict=True):
            low, high = (size, size) if isinstance(size, int) else size[1:]
            if found < low or (high is not None and found > high):
                return False
        return True

    def fitted(self, value: object) -> Tensor:
        """The tensor, or a copy, in the memory layout that the compiled code reads.

        Raises: LoweringError: the package does not take it.
        """
        if isinstance(value, Tensor) and self.accepts(value):
            return value.contiguous(memory_format=self.memory_format)
        found = (
            f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
            if isinstance(value, Tensor)
            else type(value)
        )
        raise LoweringError(
            f"input {self.name!r} does not fit the compiled package",
            found=found,
            expected=self.describe(),
            remedy="convert the input, or export the model with dynamic_shapes for the sizes that vary",
        )


@dataclass(frozen=True)
class Signature:
    """All input tensors of a package, in order.

    Args:
        inputs: the tensors.
        target: class of the deployment CPU.
        instructions: instructions that the compiled code needs: "AVX2" or "AVX512".
        packed_for: class of CPU for which 4-bit weights are packed; None if there are none.
    """

    inputs: tuple[Input, ...]
    target: str
    instructions: str
    packed_for: str | None = None

    def to_json(self) -> str:
        """Serialize for a package's metadata."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Signature":
        """Read the text of `to_json`."""
        data = json.loads(text)
        inputs = []
        for entry in data["inputs"]:
            sizes = tuple(size if isinstance(size, int) else (size[0], size[1], size[2]) for size in entry["sizes"])
            inputs.append(Input(entry["name"], entry["dtype"], sizes, entry["channels_last"]))
        return cls(tuple(inputs), data["target"], data["instructions"], data["packed_for"])

    def fitted(self, leaves: list[Any]) -> list[Tensor]:  # arguments of a call, of any type
        """The tensors of a call, in the memory layouts that the compiled code reads.

        Raises: LoweringError: a tensor does not fit, or the number of tensors is wrong.
        """
        if len(leaves) != len(self.inputs):
            raise LoweringError(
                f"the compiled package takes {len(self.inputs)} tensors, got {len(leaves)}",
                found=len(leaves),
                expected=f"{len(self.inputs)}: {', '.join(entry.name for entry in self.inputs)}",
                remedy="pass the arguments that the model was exported with",
            )
        return [entry.fitted(leaf) for entry, leaf in zip(self.inputs, leaves, strict=True)]


def signature_of(
    module: GraphModule,
    leaves: list[Any],  # a model's arguments may be of any type
    target: str,
    instructions: str,
    packed_for: str | None,
) -> Signature:
    """Describe the inputs of a graph, with the memory layouts of the example inputs.

    Args:
        module: a lowered graph, whose placeholders carry fake tensors.
        leaves: the example inputs, flattened.
        target: class of the deployment CPU.
        instructions: instructions that the compiled code needs.
        packed_for: as in `Signature`.
    Raises: LoweringError: the example inputs do not fit the graph, or a size is computed from other sizes.
    """
    placeholders = module.graph.find_nodes(op="placeholder")
    if len(placeholders) != len(leaves):
        raise LoweringError(
            f"the graph takes {len(placeholders)} values, got {len(leaves)}",
            found=f"{len(leaves)} values",
            expected=f"{len(placeholders)}: {', '.join(node.name for node in placeholders)}",
            remedy="pass the example inputs that the model was exported with",
        )
    inputs = []
    for node, leaf in zip(placeholders, leaves, strict=True):
        value = tensor_value(node)
        if not isinstance(value, Tensor) or not isinstance(leaf, Tensor):
            raise LoweringError(
                "a compiled package takes tensors only",
                where=node,
                found=f"{type(leaf).__qualname__}",
                expected="torch.Tensor",
                remedy="make the value a constant of the model, or use qspec_x86.lower_eager",
            )
        sizes = tuple(_size(node, size) for size in value.shape)
        rows = leaf.is_contiguous()
        last = not rows and leaf.dim() == 4 and leaf.is_contiguous(memory_format=torch.channels_last)
        inputs.append(Input(node.name, str(value.dtype).removeprefix("torch."), sizes, last))
    signature = Signature(tuple(inputs), target, instructions, packed_for)
    signature.fitted(leaves)
    return signature


def _size(node: torch.fx.Node, size: int | torch.SymInt) -> int | tuple[str, int, int | None]:
    if isinstance(size, int):
        return size
    found = symbol_range(size)
    if found is None:
        raise LoweringError(
            "a size of an input is computed from other sizes",
            where=node,
            found=str(size),
            expected="a number, or a dimension of its own",
            remedy="export with independent dynamic_shapes, or use qspec_x86.lower_eager",
        )
    return found
