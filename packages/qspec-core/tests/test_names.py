"""Names and arguments that code written for another PT2E stack uses: these calls must work."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from core_support import CONFIG, WEIGHT, aten, calls, export
from torch import nn

import qspec_core
from qspec_core import (
    EmbeddingQuantizer,
    OperatorConfig,
    QuantizationAnnotation,
    WrapperModule,
    debug,
    fake_quantize,
    get_embedding_operators_config,
    get_module_name_filter,
    is_valid_annotation,
    model_is_exported,
    observers,
    passes,
)

SPEC = "dtype", "quant_min", "quant_max", "qscheme"
UNIFORM = "dtype", "qscheme", "reduce_range", "quant_min", "quant_max", "factory_kwargs", "eps", "is_dynamic"
MOVING = tuple(name for name in UNIFORM if name != "factory_kwargs")
AFFINE = "mapping_type", "target_dtype", "granularity"
LIMITS = "quant_min", "quant_max", "eps"
AFFINE_END = "scale_dtype", "zero_point_dtype", "preserve_zero", "zero_point_domain"

ARGUMENTS: dict[str, tuple[str, ...]] = {
    "prepare_pt2e": ("model", "quantizer"),
    "convert_pt2e": ("model", "use_reference_representation", "fold_quantize"),
    "move_exported_model_to_eval": ("model",),
    "move_exported_model_to_train": ("model",),
    "allow_exported_model_train_eval": ("model",),
    "QuantizationSpec": (
        "dtype",
        "observer_or_fake_quant_ctr",
        "quant_min",
        "quant_max",
        "qscheme",
        "ch_axis",
        "is_dynamic",
    ),
    "FixedQParamsQuantizationSpec": (
        "dtype",
        "scale",
        "zero_point",
        "quant_min",
        "quant_max",
        "qscheme",
        "is_dynamic",
    ),
    "SharedQuantizationSpec": ("edge_or_node",),
    "DerivedQuantizationSpec": ("derived_from", "derive_qparams_fn", *SPEC, "ch_axis", "is_dynamic"),
    "QuantizationAnnotation": ("input_qspec_map", "output_qspec", "allow_implicit_sharing", "_annotated"),
    "QuantizationConfig": ("input_activation", "output_activation", "weight", "bias", "is_qat"),
    "OperatorConfig": ("config", "operators"),
    "annotate_input_qspec_map": ("node", "input_node", "qspec"),
    "annotate_output_qspec": ("node", "qspec"),
    "get_input_act_qspec": ("quantization_config",),
    "get_output_act_qspec": ("quantization_config",),
    "get_weight_qspec": ("quantization_config",),
    "get_bias_qspec": ("quantization_config",),
    "get_module_name_filter": ("module_name",),
    "is_valid_annotation": ("annotation",),
    "model_is_exported": ("m",),
    "WrapperModule": ("fn",),
    "ComposableQuantizer": ("quantizers",),
    "MinMaxObserver": UNIFORM,
    "HistogramObserver": ("bins", *UNIFORM),
    "PerChannelMinMaxObserver": ("ch_axis", *UNIFORM),
    "MovingAverageMinMaxObserver": ("averaging_constant", *MOVING),
    "MovingAveragePerChannelMinMaxObserver": ("averaging_constant", "ch_axis", *MOVING),
    "FixedQParamsObserver": ("scale", "zero_point", "dtype", "qscheme", "quant_min", "quant_max", "is_dynamic"),
    "PlaceholderObserver": (
        "dtype",
        "custom_op_name",
        "compute_dtype",
        "quant_min",
        "quant_max",
        "qscheme",
        "eps",
        "is_dynamic",
    ),
    "NoopObserver": ("dtype", "custom_op_name"),
    "RecordingObserver": ("dtype",),
    "DerivedObserverOrFakeQuantize": ("dtype", "obs_or_fqs", "derive_qparams_fn", *SPEC[1:], "ch_axis"),
    "observers.AffineQuantizedMinMaxObserver": (*AFFINE, *LIMITS, *AFFINE_END),
    "observers.AffineQuantizedMovingAverageMinMaxObserver": (
        *AFFINE,
        "averaging_constant",
        *LIMITS,
        "is_dynamic",
        *AFFINE_END,
    ),
    "observers.AffineQuantizedPlaceholderObserver": (*AFFINE, *LIMITS, "is_dynamic", *AFFINE_END),
    "fake_quantize.FakeQuantize": ("observer", "quant_min", "quant_max", "is_dynamic"),
    "fake_quantize.FusedMovingAvgObsFakeQuantize": ("observer", "quant_min", "quant_max"),
    "fake_quantize.FixedQParamsFakeQuantize": ("observer",),
    "fake_quantize.AffineFakeQuantize": ("observer", "is_dynamic"),
    "fake_quantize.LearnableFakeQuantize": ("observer", "quant_min", "quant_max", "use_grad_scaling"),
    "debug.generate_numeric_debug_handle": ("ep",),
    "debug.prepare_for_propagation_comparison": ("model",),
    "debug.extract_results_from_loggers": ("model",),
    "debug.compare_results": ("ref_results", "actual_results"),
    "debug.OutputLogger": ("debug_info", "node_name", "nn_module_stack"),
    "debug.QuantizationComparisonResult": ("actual", "ref"),
    "debug.NodeAccuracySummary": (
        "debug_info",
        "actual_node_name",
        "actual_module_stack",
        "ref_node_name",
        "ref_module_stack",
        "results",
    ),
    "passes.constant_fold": ("gm", "constraint_fn"),
}
"""By name, from the package's root: the arguments in the order in which they may be given without names."""


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_by_position_and_name(name: str) -> None:
    found: Any = qspec_core  # a function or class that is looked up by name
    for part in name.split("."):
        found = getattr(found, part)
    parameters = inspect.signature(found).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    positional = [parameter.name for parameter in parameters if parameter.kind in kinds]
    want = ARGUMENTS[name]
    assert tuple(positional[: len(want)]) == want
    required = [p for p in parameters if p.default is p.empty and p.kind in (*kinds, inspect.Parameter.KEYWORD_ONLY)]
    assert {parameter.name for parameter in required} <= set(want)


def test_annotation_says_something() -> None:
    module = export(nn.Linear(2, 2), torch.randn(1, 2))
    (x,) = module.graph.find_nodes(op="placeholder")
    assert not is_valid_annotation(None)
    assert not is_valid_annotation(QuantizationAnnotation(_annotated=True))
    assert is_valid_annotation(QuantizationAnnotation({x: None}))
    assert is_valid_annotation(QuantizationAnnotation(output_qspec=WEIGHT))


def test_filter_by_module_takes_what_is_inside_and_no_longer_names() -> None:
    block = nn.Sequential(nn.Linear(2, 2))
    module = export(nn.Sequential(block, nn.Linear(2, 2)), torch.randn(1, 2))
    first, second = calls(module, aten.linear.default)
    for name, want in (("0", (True, False)), ("0.0", (True, False)), ("1", (False, True)), ("", (True, True))):
        is_inside = get_module_name_filter(name)
        assert (is_inside(first), is_inside(second)) == want


def test_function_as_a_module() -> None:
    function: Callable[..., torch.Tensor] = torch.add
    x = torch.randn(3)
    wrapped = WrapperModule(function)
    assert torch.equal(wrapped(x, x, alpha=2), x * 3)
    assert model_is_exported(export(wrapped, x, x))
    assert not model_is_exported(wrapped)
    assert not model_is_exported(torch.fx.symbolic_trace(nn.ReLU()))


def test_embedding_quantizer_lists_what_it_serves() -> None:
    eight, four = (get_embedding_operators_config(bits) for bits in (8, 4))
    assert EmbeddingQuantizer.get_supported_operators() == [eight, four]
    configs = EmbeddingQuantizer.get_supported_quantization_configs()
    assert configs == [eight.config, four.config]
    operators = EmbeddingQuantizer.get_supported_operator_for_quantization_config(four.config)
    assert operators == OperatorConfig(*four).operators
    assert [nn.Embedding] in operators
    assert EmbeddingQuantizer.get_supported_operator_for_quantization_config(CONFIG) == []


def test_words_of_node_metadata() -> None:
    assert (debug.CUSTOM_KEY, debug.FROM_NODE_KEY) == ("custom", "from_node")
    assert qspec_core.Q_ANNOTATION_KEY == "quantization_annotation"


def test_observers_and_fake_quantizes_have_a_common_name() -> None:
    assert isinstance(observers.MinMaxObserver(), fake_quantize.ObserverOrFakeQuantize)
    assert isinstance(fake_quantize.default_fake_quant(), fake_quantize.ObserverOrFakeQuantize)
    assert isinstance(observers.default_observer, observers.PartialWrapper)
    assert passes.constant_fold is not None
