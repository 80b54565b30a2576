"""Build one observer for each group of points that share."""

import torch
from torch import nn

from qspec_core._errors import QSpecError, SourceLocation, SpecError
from qspec_core._sharing import SharingGroup, SharingResolution
from qspec_core._spec import DerivedQuantizationSpec, EdgeOrNode, FixedQParamsQuantizationSpec, QuantizationSpec
from qspec_core.fake_quantize import FakeQuantize, FixedQParamsFakeQuantize
from qspec_core.graph import tensor_value
from qspec_core.observers import DerivedObserverOrFakeQuantize, FixedQParamsObserver, build_observer

__all__ = ["build_observers"]


def build_observers(resolution: SharingResolution, *, is_qat: bool = False) -> dict[EdgeOrNode, nn.Module]:
    """Build one observer for each group. Every point of a group maps to the group's observer.

    Args:
        resolution: the groups of a graph.
        is_qat: points with fixed scale and zero point are rounded, for training.
    """
    made: dict[int, nn.Module] = {}
    for index in resolution.order:
        group = resolution.groups[index]
        place = _place(group)
        try:
            made[index] = _build(group, [made[source] for source in group.derived_from], is_qat)
            _size_and_move(made[index], group)
        except Exception as error:  # a constructor is its author's code, and may raise anything
            raise _not_built(error, place) from error
        made[index].where = place  # type: ignore[assignment]  # a plain attribute, read by observers in errors
    return {point: made[group.index] for group in resolution.groups for point in group.points}


def _build(group: SharingGroup, sources: list[nn.Module], is_qat: bool) -> nn.Module:
    spec = group.spec
    if isinstance(spec, QuantizationSpec):
        return build_observer(spec)
    if isinstance(spec, FixedQParamsQuantizationSpec):
        low, high = (int(limit) for limit in spec.range) if spec.range is not None else (None, None)
        qscheme = torch.per_tensor_affine if spec.qscheme is None else spec.qscheme
        limits = {"quant_min": low, "quant_max": high}
        fixed = FixedQParamsObserver.with_args(
            scale=spec.scale, zero_point=spec.zero_point, dtype=spec.dtype, qscheme=qscheme, **limits
        )
        return FixedQParamsFakeQuantize(fixed) if is_qat else fixed()
    if isinstance(spec, DerivedQuantizationSpec):
        fields = {name: getattr(spec, name) for name in ("dtype", "quant_min", "quant_max", "qscheme", "ch_axis")}
        return DerivedObserverOrFakeQuantize(obs_or_fqs=sources, derive_qparams_fn=spec.derive_qparams_fn, **fields)
    raise TypeError(
        f"no observer is built from {type(spec).__qualname__}"
    )  # resolve_sharing has refused every other class


def _size_and_move(observer: nn.Module, group: SharingGroup) -> None:
    """Give a fake-quantize buffers for its group's first tensor, and move an observer to the device of that tensor."""
    point = group.points[0]
    value = tensor_value(point[0] if isinstance(point, tuple) else point)
    if value is None:
        return
    if isinstance(observer, FakeQuantize):
        observer.allocate(value.shape)
    if value.device != torch.get_default_device():  # the device it was built on
        observer.to(value.device)


def _not_built(error: Exception, place: SourceLocation) -> QSpecError:
    """The error for an exception that an observer's constructor raised, with the place of its point."""
    if isinstance(error, QSpecError):
        return error.at(place)
    return SpecError(
        "the constructor of a spec's observer failed",
        where=place,
        found=repr(error),
        remedy="correct observer_or_fake_quant_ctr and the arguments of its with_args(...)",
    )


def _place(group: SharingGroup) -> SourceLocation:
    """Place of a group's first point. A parameter has no place of its own, so its reader's is used."""
    point = group.points[0]
    source, reader = point if isinstance(point, tuple) else (point, point)
    place = SourceLocation.of(source)
    return SourceLocation(source.name, *SourceLocation.of(reader)[1:]) if place.source_line is None else place
