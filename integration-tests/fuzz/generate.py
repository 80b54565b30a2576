"""Random networks, as a hypothesis strategy. Each step runs when it is drawn, so that shapes fit and values are finite.

hypothesis draws the seed of each network and keeps sessions repeatable. It does not draw each choice: most networks
of a session would be small changes of the network before.
"""

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import torch
from fuzz.catalogue import ACTIVATIONS, ANYTHING, FIRST, LAYERS, Operator
from fuzz.networks import Input, Network, Step
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["for_each_network", "networks"]

_LARGEST = 1e3
_MOST = 20_000  # elements of a value
_TRIES = 4
_FIELD = re.compile(r"\{(\w+)\}")
_SIZES = (1, 2, 3, 4, 5, 7, 8, 16, 17)
_MODULES = ("ReLU", "ReLU6", "SiLU", "GELU", "Hardswish", "Sigmoid", "Tanh", "LeakyReLU", "ELU", "Hardsigmoid", "Mish")
_CHOICES: dict[str, tuple[object, ...]] = {
    "out": _SIZES,
    "k": (1, 2, 3, 5),
    "odd": (1, 3),
    "s": (1, 1, 2, 3),
    "p": (0, 1, 2),
    "d": (1, 1, 2),
    "flag": (True, False),
    "flag2": (True, False),
    "size": (1, 2, 3, 5),
    "factor": (2, 1.5, 0.5, 3),
    "number": (0.5, -1.5, 2.0, 0.0, 3),
    "positive": (0.1, 0.5, 1.0, 2.5),
    "pad": (0, 1, 2),
    "pad2": (0, 1, 3),
    "pad_mode": ("'reflect'", "'replicate'", "'circular'"),
    "padding_mode": ("'zeros'", "'zeros'", "'zeros'", "'reflect'", "'circular'", "'replicate'"),
    "act": tuple(f"nn.{name}()" for name in _MODULES),
    "initial": ("zeros", "ones", "rand"),
    "start": (1, -1, -2),
}


@dataclass
class Draws:
    """The drawn fields of one template. Each is drawn when it is first read."""

    random: Random
    shape: torch.Size
    known: dict[str, object] = field(default_factory=dict)

    def fill(self, template: str, names: dict[str, str]) -> str:
        """The template with its fields drawn, except for `names`."""
        return _FIELD.sub(lambda found: names.get(found[1]) or str(self[found[1]]), template)

    def __getitem__(self, name: str) -> object:
        if name not in self.known:
            choices = _CHOICES.get(name) or self._by_shape(name)
            self.known[name] = self.random.choice(choices)
        return self.known[name]

    def _by_shape(self, name: str) -> tuple[object, ...]:
        shape, rank = self.shape, len(self.shape)
        channels = shape[1] if rank > 1 else 1
        if name in ("dim", "dim2"):
            return tuple(dim for dim in range(-1, rank) if dim) or (0,)
        if name == "g":
            return tuple(dict.fromkeys([1, 1, channels, *(n for n in (2, 3) if channels % n == 0)]))
        if name == "gout":
            return tuple(int(str(self["g"])) * n for n in (1, 2, 3))
        if name == "heads":
            return tuple(n for n in (1, 2, 4) if shape[-1] % n == 0)
        if name == "perm":
            middle = list(range(1, rank))
            return (str((0, *reversed(middle))), str((0, *middle[1:], 1)), str((0, middle[-1], *middle[:-1])))
        if name == "repeats":
            return (", ".join(["1"] * (rank - 1) + ["2"]),)
        found = {"c": channels, "n": shape[-1], "rows": shape[-2] if rank > 1 else 1, "spatial": rank - 2}
        return (found.get(name, ", ".join(map(str, shape[1:]))),)


@dataclass
class Builder:
    """A network under construction, with the value of each step."""

    random: Random
    values: dict[str, Tensor] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    held: nn.Module = field(default_factory=nn.Module)

    def add(self, operator: Operator, source: str, other: str) -> bool:
        """Add one operator, if it runs on these values."""
        name = f"v{len(self.steps)}"
        names = {"x": source, "y": other, "m": f"self.m_{name}"}
        draws = Draws(self.random, self.values[source].shape)
        build, call = draws.fill(operator.build, names), draws.fill(operator.call, names)
        reads = (source, other) if "{y}" in operator.call else (source,)
        return self._try(Step(name, operator.name, call, build, reads))

    def again(self, source: str) -> bool:
        """Call the module of an earlier step a second time."""
        usable = [step for step in self.steps if step.build.startswith("nn.") and step.call == self._plain(step)]
        if not usable:
            return False
        step = self.random.choice(usable)
        name = f"v{len(self.steps)}"
        return self._try(Step(name, f"{step.operator} again", f"self.{step.member}({source})", "", (source,)))

    @staticmethod
    def _plain(step: Step) -> str:
        return f"self.{step.member}({step.reads[0]})"

    def _try(self, step: Step) -> bool:
        scope = {"torch": torch, "nn": nn, "F": functional, "self": self.held}
        read = {name: self.values[name].clone() for name in step.reads}  # a step may write to what it reads
        scope |= read
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                exec("\n".join(step.built()), scope)
                self.held.eval()
                exec("\n".join(step.called()), scope)
        except Exception:  # whatever torch raises for shapes that do not fit
            return False
        value = scope[step.name]
        if not isinstance(value, Tensor) or not _fits(value) or not all(map(_fits, read.values())):
            return False
        self.values |= read | {step.name: value}
        self.steps.append(step)
        return True


def _fits(value: Tensor) -> bool:
    if not 0 < value.numel() <= _MOST or value.dim() == 0:
        return False
    return not value.is_floating_point() or bool(value.isfinite().all() and value.abs().max() <= _LARGEST)


def networks(most: int = 6) -> st.SearchStrategy[Network]:
    """Networks of up to `most` steps, of which one at least is a layer if one fits."""
    return st.randoms(use_true_random=True).map(lambda random: _network(random, most))


def for_each_network(count: int, first: int, use: Callable[[Network], None]) -> None:
    """Call a function with each network of one seed, the same ones each time."""

    def used(network: Network) -> None:
        use(network)

    checks = list(HealthCheck)
    limits = settings(
        max_examples=count, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=checks
    )
    seed(first)(limits(given(networks())(used)))()


def _network(random: Random, most: int) -> Network:
    dynamic = random.random() < 0.3
    inputs = _inputs(random, dynamic)
    builder = Builder(random)
    torch.manual_seed(0)
    for item in inputs:
        builder.values[item.name] = eval(item.value)
    first = inputs[0].name
    if not builder.values[first].is_floating_point():
        _one_of(builder, FIRST, first, first)
    count = random.randint(1, most)
    layer = random.randrange(count)
    for index in range(count):
        _step(builder, is_layer=index == layer)
    read = {name for step in builder.steps for name in step.reads}
    ends = [step.name for step in builder.steps if step.name not in read]
    dtype = random.choice(["float32"] * 6 + ["float16", "bfloat16"])
    return Network(inputs, tuple(builder.steps), tuple(ends) or (first,), dtype, dynamic)


def _step(builder: Builder, *, is_layer: bool) -> None:
    random = builder.random
    usable = [name for name, value in builder.values.items() if value.is_floating_point()]
    if not usable:
        return
    source = usable[-1] if random.random() < 0.75 else random.choice(usable)
    if not is_layer and random.random() < 0.06 and builder.again(source):
        return
    same = [name for name in usable if builder.values[name].shape == builder.values[source].shape]
    other = random.choice(same if random.random() < 0.7 else usable)
    kinds = (LAYERS,) if is_layer else (LAYERS, ACTIVATIONS, ACTIVATIONS, ANYTHING, ANYTHING, ANYTHING)
    _one_of(builder, random.choice(kinds), source, other)


def _one_of(builder: Builder, operators: tuple[Operator, ...], source: str, other: str) -> None:
    """Add an operator that takes a value of this rank. Shapes may not fit, so several are tried."""
    rank = str(builder.values[source].dim())
    fitting = [operator for operator in operators if rank in operator.ranks]
    for _ in range(_TRIES if fitting else 0):
        if builder.add(builder.random.choice(fitting), source, other):
            return


def _inputs(random: Random, dynamic: bool) -> tuple[Input, ...]:
    batch = random.choice([2, 3, 4] if dynamic else [1, 1, 2, 3])
    rank = random.choice([2, 3, 4, 4, 4, 5])
    shape = [batch, *(random.choice(_SIZES) for _ in range(rank - 1))]
    if rank <= 3 and random.random() < 0.2:
        return (Input("x0", f"torch.randint(0, 11, ({batch}, {shape[1]}))"),)
    first = Input("x0", _laid_out(random, shape))
    if random.random() < 0.75:
        return (first,)
    if random.random() < 0.5:  # broadcast against the first
        shape = [shape[0], *(random.choice([1, size]) for size in shape[1:])]
    return first, Input("x1", _laid_out(random, shape))


def _laid_out(random: Random, shape: list[int]) -> str:
    """Expression of a tensor of this shape, in some layout and magnitude."""
    plain = f"torch.randn({', '.join(map(str, shape))})"
    layout = random.choice(["plain", "plain", "plain", "last", "permuted", "cut", "picture"])
    if layout == "last" and len(shape) in (4, 5):
        form = "channels_last" if len(shape) == 4 else "channels_last_3d"
        plain = f"{plain}.to(memory_format=torch.{form})"
    elif layout == "permuted":
        order = [*range(len(shape))][::-1]
        plain = f"torch.randn({', '.join(map(str, shape[::-1]))}).permute({', '.join(map(str, order))})"
    elif layout == "cut":
        plain = f"torch.randn({', '.join(map(str, [*shape[:-1], 2 * shape[-1]]))})[..., ::2]"
    elif layout == "picture" and len(shape) == 4 and shape[0] == 1:
        plain = f"torch.randn({shape[2]}, {shape[3]}, {shape[1]}).permute(2, 0, 1)[None]"
    scale = random.choice([1.0] * 6 + [1e-3, 20.0])
    return plain if scale == 1 else f"{scale} * {plain}"
