"""The configuration of a layer, selected by module name, type, operator or predicate, and their precedence."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from core_support import ACT, CONFIG, DYNAMIC, LINEAR, WEIGHT, Net, aten, calls, export, quantizer, settled, table
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from qspec_core import (
    Q_ANNOTATION_KEY,
    QuantizationConfig,
    QuantizationSpec,
    SelectorError,
    SpecError,
    TableQuantizer,
    coverage,
    get_bias_qspec,
    get_input_act_qspec,
    get_output_act_qspec,
    get_weight_qspec,
    prepare_pt2e,
    resolve_sharing,
)
from qspec_core.observers import MinMaxObserver
from qspec_core.patterns import Mode, Reason

# Three configurations that an annotated graph shows apart: by the largest value of their weights.
A, B, C = (replace(CONFIG, weight=replace(WEIGHT, quant_max=limit)) for limit in (127, 63, 31))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(4, 8)
        self.down = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.down(torch.relu(self.up(x)))
        return result


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(), Block())
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.blocks(x))
        return result


LAYERS = ("blocks.0.up", "blocks.0.down", "blocks.1.up", "blocks.1.down", "head")


@pytest.fixture(scope="module", name="model")
def _model() -> GraphModule:
    return export(Model(), torch.randn(2, 4))


class Chosen:
    """The configuration of each layer, told by its largest weight value; None for a layer in float."""

    def __init__(self, configure: Callable[[TableQuantizer], object]) -> None:
        self.quantizer = TableQuantizer(table())
        configure(self.quantizer)

    def on(self, model: GraphModule) -> Mapping[str, int | None]:
        limits: dict[str, int | None] = {}

        def remember(graph: GraphModule, observers: Mapping[Any, Any]) -> None:  # keys are points, values observers
            for path, node in zip(LAYERS, calls(graph, aten.linear.default), strict=True):
                weight = node.all_input_nodes[1]
                limits[path] = getattr(observers.get((weight, node)), "quant_max", None)

        self.quantizer.prepare_obs_or_fq_callback = remember  # type: ignore[method-assign,assignment]  # a spy
        prepare_pt2e(model, self.quantizer, allow_empty=True)
        return limits


def chosen(model: GraphModule, configure: Callable[[TableQuantizer], object]) -> list[int | None]:
    limits = Chosen(configure).on(model)
    return [limits[path] for path in LAYERS]


def test_global(model: GraphModule) -> None:
    assert chosen(model, lambda q: q.set_global(A)) == [127] * 5
    assert chosen(model, lambda q: q.set_global(A).set_global(B)) == [63] * 5
    assert chosen(model, lambda q: q) == [None] * 5


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("head", [None, None, None, None, 127]),
        ("blocks.1", [None, None, 127, 127, None]),
        ("blocks.1.up", [None, None, 127, None, None]),
        ("blocks", [127, 127, 127, 127, None]),
        ("blocks.*.up", [127, None, 127, None, None]),
        ("*.down", [None, 127, None, 127, None]),
        ("blocks.[1-9]*", [None, None, 127, 127, None]),
        ("blocks.?", [127, 127, 127, 127, None]),
        ("*", [127] * 5),
    ],
)
def test_module_name(model: GraphModule, name: str, want: list[int | None]) -> None:
    assert chosen(model, lambda q: q.set_module_name(name, A)) == want


@pytest.mark.parametrize("kind", [Block, f"{__name__}.Block"])
def test_module_type(model: GraphModule, kind: type | str) -> None:
    assert chosen(model, lambda q: q.set_module_type(kind, A)) == [127, 127, 127, 127, None]


@pytest.mark.parametrize("target", [aten.linear.default, aten.linear])
def test_operator_type(model: GraphModule, target: Any) -> None:
    assert chosen(model, lambda q: q.set_operator_type(target, A)) == [127] * 5


def test_none_switches_off(model: GraphModule) -> None:
    assert chosen(model, lambda q: q.set_global(A).set_module_name("blocks.0", None)) == [None, None, 127, 127, 127]
    assert chosen(model, lambda q: q.set_global(A).set_module_type(Block, None)) == [None] * 4 + [127]
    assert chosen(model, lambda q: q.set_global(A).set_operator_type(aten.linear, None)) == [None] * 5


def test_filter_function(model: GraphModule) -> None:
    def narrow(node: Node) -> bool:
        return bool(node.meta["val"].shape[-1] <= 4)

    assert chosen(model, lambda q: q.set_global(A).set_filter_function(narrow)) == [None, 127, None, 127, 127]
    unfiltered = TableQuantizer(table()).set_global(A).set_filter_function(narrow).set_filter_function(None)
    assert len(coverage(prepare_pt2e(model, unfiltered)).quantized_layers) == 5


def test_name_before_type_before_operator_before_global(model: GraphModule) -> None:
    def configure(q: TableQuantizer) -> None:
        q.set_module_name("blocks.0.up", None)  # set first, so that the order of setting plays no part
        q.set_module_type(Block, C)
        q.set_operator_type(aten.linear, B)
        q.set_global(A)

    assert chosen(model, configure) == [None, 31, 31, 31, 63]


def test_innermost_module_wins_then_the_rule_set_last(model: GraphModule) -> None:
    def nested(q: TableQuantizer) -> None:
        q.set_module_name("blocks.0.up", B).set_module_name("blocks.0", C).set_module_name("blocks", A)

    def equals(q: TableQuantizer) -> None:
        q.set_module_name("blocks.0", B).set_module_name("blocks.?", C)

    def types(q: TableQuantizer) -> None:
        q.set_module_type(nn.Linear, B).set_module_type(Block, C)

    assert chosen(model, nested) == [63, 31, 127, 127, None]
    assert chosen(model, equals) == [31, 31, 31, 31, None]
    assert chosen(model, types) == [63] * 5


def test_same_selector_set_again_replaces_the_rule(model: GraphModule) -> None:
    def configure(q: TableQuantizer) -> None:
        q.set_module_name("blocks.?", A).set_module_name("blocks.0", B).set_module_name("blocks.?", C)

    assert chosen(model, configure) == [31, 31, 31, 31, None]


@pytest.mark.parametrize(
    ("configure", "label", "near"),
    [
        (lambda q: q.set_module_name("blocks.0.upp", A), "module name 'blocks.0.upp'", "blocks.0.up"),
        (lambda q: q.set_module_name("block.*", A), "module name 'block.*'", "blocks"),
        (lambda q: q.set_module_type("Blck", None), "module type 'Blck'", "Block"),
        (lambda q: q.set_module_type(nn.LSTM, A), "module type 'torch.nn.modules.rnn.LSTM'", "torch.nn.modules.linear"),
        (lambda q: q.set_operator_type(aten.lerp, A), "operator type 'aten.lerp'", "aten.relu.default"),
    ],
)
def test_selector_that_matches_nothing_names_what_is_near(
    model: GraphModule, configure: Callable[[TableQuantizer], object], label: str, near: str
) -> None:
    q = quantizer()
    configure(q)
    with pytest.raises(SelectorError, match="matches nothing in the model") as caught:
        prepare_pt2e(model, q)
    assert f"the selector by {label}" in caught.value.problem
    assert near in str(caught.value.expected)


def test_selector_far_from_everything_says_how_many_names_there_are(model: GraphModule) -> None:
    with pytest.raises(SelectorError) as caught:
        prepare_pt2e(model, quantizer().set_module_name("zzz", None))
    assert caught.value.expected == "one of 8 names in the model"


def test_reasons_of_what_was_not_selected(model: GraphModule) -> None:
    def reasons(q: TableQuantizer) -> list[str]:
        return [entry.reason for entry in coverage(prepare_pt2e(model, q, allow_empty=True)).layers]

    q = TableQuantizer(table()).set_module_name("head", A).set_module_name("blocks.0", None)
    assert reasons(q) == ["excluded by configuration: module_name blocks.0"] * 2 + [
        "not selected by any configuration"
    ] * 2 + [""]
    q = quantizer().set_filter_function(lambda _: False)
    assert reasons(q) == ["excluded by configuration: the filter function returned False"] * 5
    assert reasons(quantizer(None)) == ["excluded by configuration: global"] * 5


def test_module_type_of_a_model_traced_strictly() -> None:
    exported = export(Model(), torch.randn(2, 4), strict=True)
    assert chosen(exported, lambda q: q.set_module_type(Block, A)) == [127, 127, 127, 127, None]
    assert chosen(exported, lambda q: q.set_module_name("blocks.1.*", A)) == [None, None, 127, 127, None]


def test_mode_follows_from_the_activations() -> None:
    assert CONFIG.mode is Mode.STATIC
    assert DYNAMIC.mode is Mode.DYNAMIC
    assert replace(CONFIG, input_activation=None).mode is Mode.WEIGHT_ONLY


def test_specs_by_role_refuse_what_no_kernel_takes() -> None:
    floats = QuantizationSpec(torch.float32, MinMaxObserver)
    config = QuantizationConfig(ACT, ACT, WEIGHT, floats)
    roles: list[Callable[[QuantizationConfig | None], QuantizationSpec | None]] = [
        get_input_act_qspec,
        get_output_act_qspec,
        get_weight_qspec,
        get_bias_qspec,
    ]
    assert [role(config) for role in roles] == [ACT, ACT, WEIGHT, floats]
    assert [role(None) for role in roles] == [None] * 4
    wrong = QuantizationConfig(WEIGHT, WEIGHT, ACT, ACT)
    for role, label in zip(roles, ("activation", "activation", "weight", "bias"), strict=True):
        with pytest.raises(SpecError, match=f"{label} spec has a form that no kernel takes"):
            role(wrong)


def test_network_without_the_selected_operator_is_left_alone() -> None:
    exported = export(Net(lambda _, x: x * 2), torch.randn(3))
    prepared = prepare_pt2e(exported, TableQuantizer(table()))
    assert resolve_sharing(prepared.graph).groups == ()
    assert not any(Q_ANNOTATION_KEY in node.meta for node in prepared.graph.nodes)


def test_rules_can_be_read_back() -> None:
    q = TableQuantizer(table())
    assert (q.has_configuration, q._selection.global_config) == (False, None)
    q.set_global(A).set_module_name("head", None).set_global(B)
    assert q.has_configuration
    assert q._selection.global_config is B
    assert [rule.selector for rule in q._selection.rules] == ["head", ""]


def test_innermost_of_nested_modules_of_one_type_counts() -> None:
    class Box(nn.Sequential):
        """Another type than Sequential."""

    nested = nn.Sequential(Box(nn.Sequential(nn.Linear(4, 4))))
    box = f"{Box.__module__}.{Box.__qualname__}"
    q = TableQuantizer(table()).set_module_type(nn.Sequential, A).set_module_type(box, None)
    assert len(coverage(prepare_pt2e(export(nested, torch.randn(2, 4)), q)).quantized) == 1


def test_selectors_may_name_what_folding_removes() -> None:
    model = settled(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(), nn.BatchNorm2d(4), nn.ReLU()))
    exported = export(model, torch.randn(2, 3, 5, 5))
    selects: list[Callable[[TableQuantizer], TableQuantizer]] = [
        lambda q: q.set_module_type(nn.BatchNorm2d, None),
        lambda q: q.set_module_name("2", None),
        lambda q: q.set_operator_type(aten.batch_norm, None),
        lambda q: q.set_operator_type(aten.batch_norm.default, None),
        lambda q: q.set_module_type(nn.Dropout, None).set_module_name("1", A),
    ]
    for select in selects:
        found = coverage(prepare_pt2e(exported, select(quantizer())))
        assert [entry.row for entry in found.quantized] == ["conv2d + relu"] * 2
    with pytest.raises(SelectorError):
        prepare_pt2e(exported, quantizer().set_module_type(nn.BatchNorm3d, None))


def test_row_of_another_mode_gives_no_reasons() -> None:
    def refuse(node: Node) -> Reason | None:
        return Reason.unsupported("a reason of weights alone")

    weight_only = replace(LINEAR, name="linear.weight_only", modes=frozenset({Mode.WEIGHT_ONLY}), checks=(refuse,))
    rows = table((replace(LINEAR, modes=frozenset({Mode.STATIC})), weight_only))
    module = export(Net(lambda self, x: torch.nn.functional.linear(x, x)), torch.randn(2, 4))
    prepared = prepare_pt2e(module, TableQuantizer(rows).set_global(CONFIG), allow_empty=True)
    (entry,) = coverage(prepared)
    assert entry.reason == "unsupported argument: operand weight is computed, not a constant"
