"""Observer constructors with arguments filled in, and the calls that build an observer from a spec."""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

from torch import nn

from qspec_core._errors import SpecError
from qspec_core._spec import QuantizationSpec

__all__ = ["Configurable", "PartialWrapper", "accepted_keywords", "build_observer", "construct", "converts_itself"]

SPEC_FIELDS = ("dtype", "quant_min", "quant_max", "qscheme", "ch_axis", "is_dynamic")
"""Fields of a spec that are passed to its constructor, if they are not None and the constructor takes them."""

_KEYWORD_KINDS = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class PartialWrapper:
    """A constructor with some arguments filled in. Two are equal if class and arguments are equal.

    Args:
        p: the constructor and its arguments.
        callable_args: functions without arguments, by argument name; each is called again at every construction.
    """

    def __init__(
        self, p: "functools.partial[nn.Module]", callable_args: Mapping[str, Callable[[], object]] | None = None
    ) -> None:
        self.p = p
        self.callable_args = dict(callable_args or {})

    def __call__(self, *args: Any, **kwargs: Any) -> nn.Module:  # Any: the arguments of whichever class is wrapped
        late = {name: function() for name, function in self.callable_args.items() if name not in kwargs}
        return self.p(*args, **{**late, **kwargs})

    def with_args(self, **kwargs: object) -> Self:
        """The same constructor with more arguments filled in; they replace earlier ones."""
        return type(self)(functools.partial(self.p, **kwargs), self.callable_args)

    def with_callable_args(self, **kwargs: Callable[[], object]) -> Self:
        """The same constructor with arguments computed at each construction, for example a device."""
        return type(self)(self.p, {**self.callable_args, **kwargs})

    def _state(self) -> tuple[object, ...]:
        return self.p.func, self.p.args, self.p.keywords, self.callable_args

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PartialWrapper) and self._state() == other._state()

    def __hash__(self) -> int:
        # Values may be unhashable (a block size given as a list): hash only the names of the keywords.
        return hash((self.p.func, frozenset(self.p.keywords), frozenset(self.callable_args)))

    def __repr__(self) -> str:
        name = getattr(self.p.func, "__name__", repr(self.p.func))
        filled = ", ".join([*map(repr, self.p.args), *(f"{key}={value!r}" for key, value in self.p.keywords.items())])
        text = f"{name}.with_args({filled})"
        if self.callable_args:
            late = ", ".join(
                f"{key}={getattr(value, '__qualname__', repr(value))}" for key, value in self.callable_args.items()
            )
            text += f".with_callable_args({late})"
        return text


class Configurable:
    """Adds `with_args` and `with_callable_args` to a class of modules."""

    @classmethod
    def with_args(cls, **kwargs: object) -> PartialWrapper:
        """This class with arguments filled in, for use as the constructor in a spec."""
        return PartialWrapper(functools.partial(_as_constructor(cls), **kwargs))

    @classmethod
    def with_callable_args(cls, **kwargs: Callable[[], object]) -> PartialWrapper:
        """This class with arguments computed at each construction."""
        return PartialWrapper(functools.partial(_as_constructor(cls)), kwargs)


def _as_constructor(cls: type) -> Callable[..., nn.Module]:
    constructor: Callable[..., nn.Module] = cls
    return constructor


def _unwrap(constructor: object) -> tuple[object, dict[str, object]]:
    """The innermost callable and all keywords filled in, of a `functools.partial` or an object whose `.p` is one."""
    keywords: dict[str, object] = {}
    while True:
        inner = constructor if isinstance(constructor, functools.partial) else getattr(constructor, "p", None)
        if isinstance(constructor, type) or not isinstance(inner, functools.partial):
            return constructor, keywords
        keywords = {**inner.keywords, **keywords}
        constructor = inner.func


def converts_itself(constructor: object) -> bool:
    """Whether the observer that a constructor builds has a method `convert`, which writes its own converted form."""
    return callable(getattr(_unwrap(constructor)[0], "convert", None))


def accepted_keywords(constructor: object) -> frozenset[str] | None:
    """Keyword arguments that a constructor takes, read from its signature; None if it takes any.

    A constructor with `**kwargs` passes them on: to the observer, if it has a parameter `observer`; otherwise, in a
    class, to the constructor of the next base. The result then includes the parameters of that constructor.
    """
    target, filled = _unwrap(constructor)
    if isinstance(target, type) and "observer" not in filled:
        return _accepted_by_class(target)
    return _accepted(target, filled.get("observer")) if callable(target) else frozenset()


@functools.lru_cache(maxsize=256)
def _accepted_by_class(target: type) -> frozenset[str] | None:
    """Cached: the tensors of a model use the same few classes."""
    return _accepted(target, None)


def _accepted(target: Callable[..., object], observer: object) -> frozenset[str] | None:
    named: frozenset[str] = frozenset()
    try:
        for parameters in _signatures(target):
            named |= {name for name, parameter in parameters.items() if parameter.kind in _KEYWORD_KINDS}
            if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
                return named
            wrapped = (observer or parameters["observer"].default) if "observer" in parameters else None
            if wrapped is not None and wrapped is not inspect.Parameter.empty:
                inner = accepted_keywords(wrapped)
                return None if inner is None else named | inner
    except ValueError:  # some callables written in C have no signature
        return None
    return None


def _signatures(target: Callable[..., object]) -> Iterator[Mapping[str, inspect.Parameter]]:
    """Parameters of a callable. For a class: of its constructor, then of the constructor of each base."""
    yield inspect.signature(target).parameters
    if not isinstance(target, type):
        return
    bases = [base for base in target.__mro__ if "__init__" in vars(base) and base not in (nn.Module, object)]
    for base in bases if "__init__" not in vars(target) else bases[1:]:
        yield inspect.signature(base).parameters


def construct(constructor: Callable[..., object], fields: Mapping[str, object]) -> object:
    """Call a constructor with the `fields` that it takes and that are not None."""
    accepted = accepted_keywords(constructor)
    given = {name: value for name, value in fields.items() if value is not None}
    return constructor(**{name: value for name, value in given.items() if accepted is None or name in accepted})


def build_observer(spec: QuantizationSpec, **overrides: object) -> nn.Module:
    """Build the observer or fake-quantize of a spec.

    The constructor gets the spec's fields that are not None and that its signature takes; one that does not use
    `ch_axis` need not name it. Class names do not matter.

    Args:
        spec: the spec; only its constructor and `SPEC_FIELDS` are read, so a third party's spec works too.
        overrides: keywords that replace or extend those of the spec; always passed to the constructor.
    Returns: a new module.
    Raises: SpecError: the constructor does not return a module.
    """
    fields = {name: value for name in SPEC_FIELDS if (value := getattr(spec, name, None)) is not None}
    constructor = spec.observer_or_fake_quant_ctr
    accepted = accepted_keywords(constructor)
    taken = {name: value for name, value in fields.items() if accepted is None or name in accepted}
    built: object = constructor(**{**taken, **overrides})
    if not isinstance(built, nn.Module):
        raise SpecError(
            "the constructor of a spec returned something that is not a module",
            found=repr(built),
            expected="an observer or a fake-quantize, both torch.nn.Module",
            remedy="set observer_or_fake_quant_ctr to a class or to the result of its with_args(...)",
        )
    return built
