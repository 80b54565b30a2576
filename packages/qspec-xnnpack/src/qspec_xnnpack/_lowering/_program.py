"""Lowered module: a .pte program in memory that ExecuTorch's runtime executes."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qspec_core import GraphError

__all__ = ["Delegation", "XNNPACKProgram"]

Execute = Callable[[Sequence[Any]], Sequence[Any]]


@dataclass(frozen=True)
class Delegation:
    """Parts of the program that the delegate executes.

    Args:
        delegates: number of calls into the delegate.
        outside: operators that run outside it, with the quantize of inputs and the dequantize of outputs if they do.
        rows: label of each row that runs in integers, by the name of its anchor in the converted graph.
    """

    delegates: int
    outside: tuple[str, ...]
    rows: Mapping[str, str]


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs that the program was compiled for.

    Args:
        in_spec: structure of `(args, kwargs)`, from the exported program.
        out_spec: structure of the result.
        inputs: for each flat input, shape and dtype of a tensor; any other value itself.
        written: the flat inputs that the program writes to, by index. Their values are its first results.
    """

    in_spec: Any  # torch's pytree specs have no public name
    out_spec: Any  # as above
    inputs: tuple[Any, ...]  # as above
    written: tuple[int, ...] = ()


class XNNPACKProgram(nn.Module):
    """Module that runs a .pte program. It can be copied and pickled; the runtime loads the program again in each copy.

    Args:
        buffer: content of the .pte file.
        signature: inputs and outputs of the program.
        delegation: parts that the delegate executes.
        load: loads a buffer into the runtime and returns the function that executes it.
    """

    def __init__(
        self, buffer: bytes, signature: Signature, delegation: Delegation, load: Callable[[bytes], Execute]
    ) -> None:
        super().__init__()
        self.buffer = buffer
        self.signature = signature
        self.delegation = delegation
        self._load = load
        self._execute: Execute | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program on inputs of the shapes that it was lowered for. It writes to the inputs that the model
        writes to.

        Raises: GraphError: the structure, a shape or a dtype differs from that of the example inputs.
        """
        given = self._flat_inputs(args, kwargs)
        outputs = list(self.load()([in_order(value) if isinstance(value, Tensor) else value for value in given]))
        for index in self.signature.written:
            given[index].copy_(outputs.pop(0))
        return self.signature.out_spec.unflatten(outputs)

    def load(self) -> Execute:
        """Load the program into the runtime, once, and return the function that executes flat inputs."""
        if self._execute is None:
            self._execute = self._load(self.buffer)
        return self._execute

    def write_package(self, path: str | Path) -> Path:
        """Write the .pte file, over an existing one, and return its path."""
        path = Path(path)
        path.write_bytes(self.buffer)
        return path

    def extra_repr(self) -> str:
        """Size and delegation, for printing."""
        return f"{len(self.buffer)} bytes, {self.delegation.delegates} delegates, outside: {self.delegation.outside}"

    def __deepcopy__(self, memo: dict[int, Any]) -> "XNNPACKProgram":
        return XNNPACKProgram(self.buffer, self.signature, self.delegation, self._load)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_execute": None}  # the runtime's handle is valid in this process only

    def _flat_inputs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        try:
            flat = self.signature.in_spec.flatten_up_to((args, kwargs))
        except ValueError as error:
            raise _misfit("inputs of another structure", str(error), str(self.signature.in_spec)) from error
        for index, (given, known) in enumerate(zip(flat, self.signature.inputs, strict=True)):
            if _likeness(given) != known:
                raise _misfit(f"input {index} with a shape or dtype that it does not take", _likeness(given), known)
        return list(flat)


@dataclass(frozen=True)
class _TensorLike:
    """Shape and dtype of an input tensor, which a program fixes."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{list(self.shape)} {self.dtype}"


def _likeness(value: Any) -> Any:  # whatever a model takes
    """Shape and dtype of a tensor; any other value itself, because export makes it a constant."""
    return _TensorLike(tuple(value.shape), value.dtype) if isinstance(value, Tensor) else value


def in_order(value: Tensor) -> Tensor:
    """A contiguous tensor whose strides say so in every dimension. Those of dimensions of size 1 may be any number in
    torch, and ExecuTorch reads the order of the dimensions from them: (1, 1, 7, 5) may look channels-last."""
    value = value.contiguous()
    strides = tuple(math.prod(value.shape[dim + 1 :]) for dim in range(value.dim()))
    return value if value.stride() == strides else value.as_strided(value.shape, strides)


def signature_of(
    program: torch.export.ExportedProgram, example_inputs: tuple[Any, ...], written: tuple[int, ...]
) -> Signature:
    """The signature of a program exported with these inputs, of which it writes to those in `written`."""
    in_spec, out_spec = program.call_spec.in_spec, program.call_spec.out_spec
    flat = in_spec.flatten_up_to((example_inputs, {}))
    return Signature(in_spec, out_spec, tuple(map(_likeness, flat)), written)


def _misfit(what: str, found: object, expected: object) -> GraphError:
    return GraphError(
        f"the lowered program was given {what}",
        found=found,
        expected=expected,
        remedy="give inputs of the shapes lowered for, or lower again with example inputs of these shapes",
    )
