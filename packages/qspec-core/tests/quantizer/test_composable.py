"""Several quantizers on one model: each adds its own, and a stated policy settles what two of them want."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from core_support import ACT, CONFIG, WEIGHT, Frozen, aten, calls, export, table
from torch import Tensor, nn
from torch.fx import GraphModule

from qspec_core import (
    Q_ANNOTATION_KEY,
    AnnotationError,
    ComposableQuantizer,
    EdgeOrNode,
    EmbeddingQuantizer,
    NothingQuantizedError,
    OnConflict,
    QuantizationAnnotation,
    Quantizer,
    SpecError,
    TableQuantizer,
    convert_pt2e,
    coverage,
    prepare_pt2e,
)
from qspec_core.graph import observer_nodes
from qspec_core.observers import FixedQParamsObserver

NARROW = replace(ACT, quant_max=127)
X = torch.randn(2, 4)


class Step(Quantizer):
    """Writes its name into `log` at every step, and annotates by a function."""

    def __init__(self, name: str, log: list[str], annotate: Callable[[GraphModule], object] = lambda _: None) -> None:
        self.name, self.log, self.function = name, log, annotate

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        self.log.append(f"{self.name} transforms")
        return model

    def annotate(self, model: GraphModule) -> GraphModule:
        self.log.append(f"{self.name} annotates")
        self.function(model)
        return model

    def validate(self, model: GraphModule) -> None:
        self.log.append(f"{self.name} validates")

    def prepare_obs_or_fq_callback(
        self, model: GraphModule, edge_or_node_to_obs_or_fq: dict[EdgeOrNode, nn.Module]
    ) -> None:
        self.log.append(f"{self.name} edits")
        for point in edge_or_node_to_obs_or_fq:
            edge_or_node_to_obs_or_fq[point] = FixedQParamsObserver(0.5, len(self.log), torch.uint8)


def relu_output(spec: Any) -> Callable[[GraphModule], None]:  # a spec, or None to remove the annotation
    def annotate(model: GraphModule) -> None:
        (relu,) = calls(model, aten.relu.default)
        if spec is None:
            relu.meta.pop(Q_ANNOTATION_KEY, None)
        elif Q_ANNOTATION_KEY in relu.meta:
            relu.meta[Q_ANNOTATION_KEY].output_qspec = spec  # in place: the policy must see this too
        else:
            relu.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(output_qspec=spec)

    return annotate


@pytest.fixture(scope="module", name="exported")
def _exported() -> GraphModule:
    return export(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), X)


def test_every_step_of_each_runs_in_order(exported: GraphModule) -> None:
    log: list[str] = []
    both = ComposableQuantizer([Step("first", log, relu_output(ACT)), Step("second", log)])
    ((_, observer),) = observer_nodes(prepare_pt2e(exported, both))
    steps = ("transforms", "annotates", "validates", "edits")
    assert log == [f"{name} {step}" for step in steps for name in ("first", "second")]
    assert observer.zero_point == 8  # the last callback saw the map that the one before had edited


@pytest.mark.parametrize("change", [NARROW, None], ids=["changed", "removed"])
def test_conflict_is_an_error_unless_a_policy_says_otherwise(exported: GraphModule, change: Any) -> None:
    def specs(policy: OnConflict | str | None) -> list[int]:
        steps = [Step("first", [], relu_output(ACT)), Step("second", [], relu_output(change))]
        both = ComposableQuantizer(steps) if policy is None else ComposableQuantizer(steps, on_conflict=policy)
        both.prepare_obs_or_fq_callback = lambda *_: None  # type: ignore[method-assign]  # keep the observers
        return [int(observer.quant_max) for _, observer in observer_nodes(prepare_pt2e(exported, both))]  # type: ignore[arg-type]  # an observer's field

    frozen = Frozen(exported)
    for policy in (None, OnConflict.ERROR, "error"):
        with pytest.raises(AnnotationError, match="Step changes an annotation of an earlier quantizer") as caught:
            specs(policy)
        assert caught.value.where.node == "relu"
        assert caught.value.where.module_path == "1"
        assert "on_conflict" in caught.value.remedy
        assert caught.value.expected.output_qspec is ACT  # type: ignore[attr-defined]  # an annotation
    frozen.check()
    assert specs("keep first") == [255]
    assert specs(OnConflict.OVERRIDE) == ([] if change is None else [127])


def test_equal_annotation_written_again_is_no_conflict(exported: GraphModule) -> None:
    def again(model: GraphModule) -> None:
        (relu,) = calls(model, aten.relu.default)
        relu.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(output_qspec=ACT, _annotated=True)

    steps = [Step("first", [], again), Step("second", [], again)]
    assert len(observer_nodes(prepare_pt2e(exported, ComposableQuantizer(steps)))) == 1


def test_unknown_policy_and_empty_list_are_refused() -> None:
    with pytest.raises(ValueError, match="loudest"):
        ComposableQuantizer([TableQuantizer(table())], on_conflict="loudest")
    with pytest.raises(SpecError, match="was given no quantizer") as caught:
        ComposableQuantizer([])
    assert "list the quantizers" in caught.value.remedy


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.word = nn.Embedding(11, 8)
        self.bag = nn.EmbeddingBag(7, 8, mode="sum")
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: Tensor, pieces: Tensor) -> Tensor:
        result: Tensor = self.head(self.word(tokens).mean(1) + self.bag(pieces))
        return result


TOKENS, PIECES = torch.randint(0, 11, (2, 5)), torch.randint(0, 7, (2, 3))


def rows(weight: Tensor, high: int) -> Tensor:
    """A table after quantization of each row to 0..high, with a zero point that is no integer."""
    low = weight.amin(1, keepdim=True).clamp(max=0)
    scale = ((weight.amax(1, keepdim=True).clamp(min=0) - low) / high).clamp(min=2**-12)
    return torch.round((weight - low) / scale).clamp(0, high) * scale + low


@pytest.mark.parametrize("bits", [8, 4])
def test_tables_become_integers_and_look_up_what_their_steps_allow(bits: int) -> None:
    model = Words()
    exported = export(model, TOKENS, PIECES)
    prepared = prepare_pt2e(exported, EmbeddingQuantizer(bits))
    converted = convert_pt2e(prepared)
    found = {entry.module: entry.row for entry in coverage(converted).quantized}
    assert found == {"word": "embedding", "bag": "embedding_bag"}
    stored = [value for value in converted.state_dict().values() if value.dtype == torch.uint8]
    assert sorted(tuple(value.shape) for value in stored) == [(7, 8), (11, 8)]
    assert all(int(value.max()) == 2**bits - 1 for value in stored)  # the whole range is used, and no more
    with torch.no_grad():
        word = rows(model.word.weight, 2**bits - 1)[TOKENS].mean(1)
        bag = rows(model.bag.weight, 2**bits - 1)[PIECES].sum(1)
        torch.testing.assert_close(converted(TOKENS, PIECES), model.head(word + bag), rtol=1e-4, atol=1e-4)


def test_embeddings_beside_the_rows_of_a_device() -> None:
    exported = export(Words(), TOKENS, PIECES)
    device = TableQuantizer(table()).set_global(CONFIG)
    both = ComposableQuantizer([EmbeddingQuantizer(4).set_module_name("bag", None), device])
    assert both.has_configuration
    prepared = prepare_pt2e(exported, both)
    prepared(TOKENS, PIECES)
    quantized = {entry.module: entry.row for entry in coverage(convert_pt2e(prepared)).quantized if entry.module}
    assert quantized == {"word": "embedding", "head": "linear"}


def test_quantizers_that_match_nothing_together_raise(exported: GraphModule) -> None:
    none = ComposableQuantizer([TableQuantizer(table())])
    assert not none.has_configuration
    assert observer_nodes(prepare_pt2e(exported, none)) == []
    with pytest.raises(NothingQuantizedError):
        prepare_pt2e(exported, ComposableQuantizer([EmbeddingQuantizer(), TableQuantizer(table())]))


def test_embedding_bits_other_than_8_and_4_are_refused() -> None:
    with pytest.raises(SpecError, match="4 or 8 bits") as caught:
        EmbeddingQuantizer(5)
    assert caught.value.found == "bits=5"


def test_weight_of_the_device_is_not_touched_by_the_embedding_rows() -> None:
    prepared = prepare_pt2e(export(nn.Linear(4, 3), X), TableQuantizer(table()).set_global(CONFIG))
    assert {getattr(observer, "qscheme", None) for _, observer in observer_nodes(prepared)} == {
        ACT.qscheme,
        WEIGHT.qscheme,
    }
