"""Convert specs to plain data that JSON can hold, and back, for configuration files and reports."""

import functools
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from types import MappingProxyType
from typing import Any

import torch

from qspec_core import fake_quantize, observers
from qspec_core._errors import SpecError
from qspec_core._spec import FixedQParamsQuantizationSpec, QuantizationSpec
from qspec_core.observers import PartialWrapper

__all__ = ["spec_from_dict", "spec_to_dict"]

_KINDS = MappingProxyType({kind.__name__: kind for kind in (QuantizationSpec, FixedQParamsQuantizationSpec)})
_NAMES: Mapping[str, Any] = MappingProxyType(  # classes, which share no base
    {
        name: value
        for module in (observers, fake_quantize)
        for name, value in ((name, getattr(module, name)) for name in module.__all__)
        if isinstance(value, type)
    }
)


def spec_to_dict(spec: QuantizationSpec | FixedQParamsQuantizationSpec) -> dict[str, Any]:  # as JSON is
    """Convert a spec to plain data. `spec_from_dict` makes an equal spec of it.

    Args:
        spec: a spec whose constructor is a class of `qspec_core.observers` or `qspec_core.fake_quantize`, with or
            without arguments filled in by `with_args`.
    Returns: strings, numbers, booleans, None, lists and dictionaries.
    Raises: SpecError: the spec shares or derives, and so refers to nodes of one graph; or its constructor, or an
        argument of the constructor, has no form in JSON.
    """
    kind = type(spec).__name__
    if type(spec) is not _KINDS.get(kind):
        raise SpecError(
            f"{kind} has no form in JSON",
            found=spec,
            expected="QuantizationSpec or FixedQParamsQuantizationSpec",
            remedy="save the rule that makes the spec; a spec that shares or derives refers to nodes of one graph",
        )
    present = {field.name: getattr(spec, field.name) for field in fields(spec)}
    return {"kind": kind} | {name: _encode(value) for name, value in present.items() if value is not None}


def spec_from_dict(data: Mapping[str, Any]) -> QuantizationSpec | FixedQParamsQuantizationSpec:
    """Make a spec from data of `spec_to_dict`.

    Raises: SpecError: the data has a name that qspec does not have, or fields that the spec does not have.
    """
    kind = _KINDS.get(data.get("kind", ""))
    if kind is None:
        raise _unknown("kind", data.get("kind"), _KINDS)
    values = {name: _decode(value) for name, value in data.items() if name != "kind"}
    try:
        spec: QuantizationSpec | FixedQParamsQuantizationSpec = kind(**values)
    except TypeError as error:
        raise SpecError(
            f"the data does not have the fields of {kind.__name__}",
            found=sorted(values),
            expected=[field.name for field in fields(kind)],
            remedy="pass data that spec_to_dict returned",
        ) from error
    return spec


def _encode(value: Any) -> Any:  # any argument of a constructor
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.dtype | torch.qscheme):
        return {"torch": str(value).removeprefix("torch.")}
    if isinstance(value, list | tuple):
        return {"tuple" if isinstance(value, tuple) else "list": [_encode(item) for item in value]}
    name = type(value).__name__
    if isinstance(value, Enum) and _NAMES.get(name) is type(value):
        return {"enum": name, "name": value.name}
    if is_dataclass(value) and _NAMES.get(name) is type(value):
        return {"call": name, "arguments": {f.name: _encode(getattr(value, f.name)) for f in fields(value)}}
    if isinstance(value, type) and value in _NAMES.values():
        return {"class": value.__name__}
    if isinstance(value, PartialWrapper) and not value.callable_args:
        return _encode_partial(value.p) | {"wrapped": True}
    if isinstance(value, functools.partial):
        return _encode_partial(value)
    raise SpecError(
        f"a spec holds an object of type {type(value).__name__}, which has no form in JSON",
        found=repr(value),
        expected="a class of qspec_core.observers or qspec_core.fake_quantize, with_args of one, a torch dtype "
        "or qscheme, or a number",
        remedy="use a constructor of qspec, or define the spec in code",
    )


def _encode_partial(partial: "functools.partial[Any]") -> dict[str, Any]:
    keywords = {key: _encode(value) for key, value in partial.keywords.items()}
    return {"partial": _encode(partial.func), "positional": [_encode(a) for a in partial.args], "keywords": keywords}


def _decode(value: Any) -> Any:  # as in _encode
    if not isinstance(value, Mapping):
        return value
    if "torch" in value:
        found = getattr(torch, str(value["torch"]), None)
        if not isinstance(found, torch.dtype | torch.qscheme):
            raise _unknown("dtype or qscheme of torch", value["torch"])
        return found
    if "tuple" in value or "list" in value:
        items = [_decode(item) for item in value.get("tuple", value.get("list"))]
        return tuple(items) if "tuple" in value else items
    if "partial" in value:
        keywords = {key: _decode(item) for key, item in value["keywords"].items()}
        made = functools.partial(_decode(value["partial"]), *map(_decode, value["positional"]), **keywords)
        return PartialWrapper(made) if value.get("wrapped") else made
    name = value.get("class", value.get("call", value.get("enum")))
    found = _NAMES.get(str(name))
    if found is None:
        raise _unknown("name", name, _NAMES)
    if "enum" in value:
        return found[value["name"]]
    return found(**{key: _decode(item) for key, item in value["arguments"].items()}) if "call" in value else found


def _unknown(what: str, found: object, known: Mapping[str, object] | None = None) -> SpecError:
    return SpecError(
        f"the data has a {what} that qspec does not have",
        found=found,
        expected=", ".join(sorted(known)) if known else None,
        remedy="pass data that spec_to_dict returned, in this version of qspec or an older one",
    )
