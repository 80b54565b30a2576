"""Random networks as plain data, and the programs that they print as."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

__all__ = ["Case", "Input", "Network", "Step", "source_of"]

BUFFER = "buffer: "
"""Start of `Step.build` where a buffer is registered in place of a module or parameter."""
_HEAD = """\
import torch
from torch import nn
from torch.nn import functional as F
"""


@dataclass(frozen=True)
class Input:
    """One input of a network.

    Args:
        name: of the variable.
        value: expression of the tensor, contiguous or not.
    """

    name: str
    value: str


@dataclass(frozen=True)
class Step:
    """One operator of a network.

    Args:
        name: of the variable that it writes.
        operator: for reports.
        call: expression of the value, after statements if there are any, each ended by "; ".
        build: expression of what `self.m_<name>` holds; empty if the step needs nothing.
        reads: names of the inputs and steps that it reads.
    """

    name: str
    operator: str
    call: str
    build: str
    reads: tuple[str, ...]

    @property
    def member(self) -> str:
        """Name of the module, parameter or buffer that belongs to the step."""
        return f"m_{self.name}"

    def built(self) -> list[str]:
        """Statements of the constructor."""
        if not self.build:
            return []
        if self.build.startswith(BUFFER):
            return [f'self.register_buffer("{self.member}", {self.build.removeprefix(BUFFER)})']
        return [f"self.{self.member} = {self.build}"]

    def called(self) -> list[str]:
        """Statements of `forward`."""
        *before, value = self.call.split("; ")
        return [*before, f"{self.name} = {value}"]


@dataclass(frozen=True)
class Network:
    """A network: its inputs, its steps in order, and the names of its results.

    Args:
        inputs: of one call.
        steps: in order.
        results: names of the values that it returns.
        dtype: of its weights and its floating-point inputs, as torch names it.
        dynamic: the first dimension of every input may vary.
    """

    inputs: tuple[Input, ...]
    steps: tuple[Step, ...]
    results: tuple[str, ...]
    dtype: str = "float32"
    dynamic: bool = False

    @property
    def operators(self) -> str:
        """Names of its operators, for reports."""
        return " + ".join(step.operator for step in self.steps)

    def pruned(self) -> "Network":
        """The same network without steps that no result needs. All inputs stay."""
        needed = set(self.results)
        kept: list[Step] = []
        for step in reversed(self.steps):
            if step.name in needed or "m_" in step.call.replace(step.member, ""):
                needed.update(step.reads)
                needed.update(self._owner(step))
                kept.append(step)
        steps = tuple(step for step in reversed(kept) if step.name in needed)
        return replace(self, steps=steps)

    def _owner(self, step: Step) -> Iterable[str]:
        """Names of other steps whose module a step calls."""
        return [other.name for other in self.steps if other is not step and f"self.{other.member}" in step.call]

    def ending_at(self, names: Iterable[str]) -> "Network":
        """The network that returns other values."""
        return replace(self, results=tuple(names)).pruned()

    def without(self, step: Step) -> "Network":
        """The network in which the first value that a step reads stands for its result."""
        source = step.reads[0]

        def renamed(names: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(source if name == step.name else name for name in names)

        steps = tuple(
            replace(other, reads=renamed(other.reads), call=_renamed(other.call, step.name, source))
            for other in self.steps
            if other is not step
        )
        return replace(self, steps=steps, results=tuple(dict.fromkeys(renamed(self.results)))).pruned()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Network":
        """From what `dataclasses.asdict` gave, perhaps through JSON."""
        steps = tuple(Step(**{**step, "reads": tuple(step["reads"])}) for step in data["steps"])
        inputs = tuple(Input(**item) for item in data["inputs"])
        return cls(inputs, steps, tuple(data["results"]), data["dtype"], data["dynamic"])


@dataclass(frozen=True)
class Case:
    """A network on a backend.

    Args:
        network: the network.
        backend: "x86" or "xnnpack".
        form: "eager" or "compiled" on x86, "program" on XNNPACK.
        mode: when activations are quantized.
    """

    network: Network
    backend: str
    form: str
    mode: str

    def to_dict(self) -> dict[str, Any]:
        """As data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Case":
        """From the data of `to_dict`."""
        return cls(Network.from_dict(data["network"]), data["backend"], data["form"], data["mode"])

    def program(self) -> str:
        """A program that quantizes, lowers and compares."""
        shapes = ""
        if self.network.dynamic:
            names = ", ".join("{0: batch}" for _ in self.network.inputs)
            shapes = f'batch = torch.export.Dim("batch", max=64)\nshapes = ({names},)\n'
        device = f'"{self.backend}"'
        more = "import qspec_core as qspec\n"
        if self.form == "eager":
            more = f"import dataclasses\n\n{more}import qspec_x86\n"
            shapes += (
                "\n\ndef eager(converted, inputs, target):\n"
                "    return qspec_x86.lower_pt2e_quantized_to_x86(converted, inputs)\n\n\n"
            )
            device = 'dataclasses.replace(qspec.get_backend("x86"), lower=eager)'
        dynamic = ", dynamic_shapes=shapes" if self.network.dynamic else ""
        return (
            more + source_of(self.network) + shapes + f"backend = {device}\n"
            f'result = qspec.quantize(model, inputs, backend=backend, mode="{self.mode}", calibration=[inputs], '
            f"check=False{dynamic})\n"
            "qspec.lower(result.converted, inputs, backend=backend)\n"
        )


def _renamed(call: str, old: str, new: str) -> str:
    """A call in which one variable stands for another. Names of variables are words of their own."""
    return "".join(new if word == old else word for word in words_of(call))


def words_of(text: str) -> list[str]:
    """Text in pieces: identifiers, and everything between them."""
    pieces, current = [], ""
    for character in text:
        if current and _is_word(current[-1]) != _is_word(character):
            pieces.append(current)
            current = ""
        current += character
    return [*pieces, current]


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_"


def source_of(network: Network) -> str:
    """Statements that define `Model`, `model` and `inputs`."""
    built = [line for step in network.steps for line in step.built()]
    called = [line for step in network.steps for line in step.called()]
    names = ", ".join(item.name for item in network.inputs)
    results = ", ".join(network.results) if len(network.results) > 1 else network.results[0]
    lines = [
        _HEAD,
        "",
        "class Model(nn.Module):",
        "    def __init__(self):",
        "        super().__init__()",
        *(f"        {line}" for line in built),
        "",
        f"    def forward(self, {names}):",
        *(f"        {line}" for line in called),
        f"        return {results}",
        "",
        "",
        "torch.manual_seed(0)",
        "model = Model().eval()" + ("" if network.dtype == "float32" else f".to(torch.{network.dtype})"),
        *(f"{item.name} = {_typed(item.value, network.dtype)}" for item in network.inputs),
        f"inputs = ({names},)",
        "",
    ]
    return "\n".join(lines)


def _typed(value: str, dtype: str) -> str:
    return value if dtype == "float32" or "randint" in value else f"({value}).to(torch.{dtype})"
