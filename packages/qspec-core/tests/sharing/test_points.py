"""Annotations that cannot be resolved: type and fields of the error, for every kind."""

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.fx import Graph, Node

from qspec_core import (
    AnnotationError,
    DerivedQuantizationSpec,
    QuantizationAnnotation,
    QuantizationSpec,
    QuantizationSpecBase,
    SharedQuantizationSpec,
    SharingError,
    resolve_sharing,
)

KEY = "quantization_annotation"
SPEC = QuantizationSpec(torch.uint8, torch.nn.Identity)
USER_CODE = 'File "/home/me/model.py", line 7, in forward\n    return torch.relu(x)\n'


def derive(observers: object) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(1.0), torch.tensor(0)


@pytest.fixture
def graph() -> Graph:
    """x -> a -> b -> c, each operator in a module of the same name."""
    graph = Graph()
    last = graph.placeholder("x")
    for name in "abc":
        last = graph.create_node("call_function", torch.relu, (last,), name=name)
        last.meta["nn_module_stack"] = {name: (f"L['self'].layers.{name}", "Layer")}
        last.meta["stack_trace"] = USER_CODE
    return graph


def named(graph: Graph) -> dict[str, Node]:
    return {node.name: node for node in graph.nodes}


def annotate(node: Node, inputs: dict[Node, QuantizationSpecBase | None], output: object = None) -> None:
    node.meta[KEY] = QuantizationAnnotation(inputs, output)  # type: ignore[arg-type]


def assert_refused(graph: Graph, kind: type[AnnotationError], at: str, *parts: str) -> AnnotationError:
    """Resolve, and check the parts that all of these errors have in common."""
    with pytest.raises(AnnotationError) as caught:
        resolve_sharing(graph)
    error = caught.value
    assert type(error) is kind
    assert error.where.node == at
    assert error.where.module_path == f"layers.{at}"
    assert error.where.source_line == "/home/me/model.py:7: return torch.relu(x)"
    assert error.remedy
    for part in parts:
        assert part in error.problem
    return error


def test_edge_that_is_not_in_the_graph(graph: Graph) -> None:
    nodes = named(graph)
    annotate(nodes["c"], {nodes["a"]: SPEC})
    error = assert_refused(graph, AnnotationError, "c", "edge 'a' -> 'c' (in module 'layers.c')", "is not an argument")
    assert (error.found, error.expected) == ("a", "one of b")


def test_edge_whose_argument_was_replaced(graph: Graph) -> None:
    nodes = named(graph)
    annotate(nodes["c"], {nodes["b"]: SPEC})
    nodes["c"].replace_input_with(nodes["b"], nodes["a"])
    error = assert_refused(graph, AnnotationError, "c", "'b' is not an argument")
    assert "annotate again" in error.remedy


def test_edge_of_an_erased_producer(graph: Graph) -> None:
    nodes = named(graph)
    annotate(nodes["c"], {nodes["b"]: SPEC})
    nodes["c"].replace_input_with(nodes["b"], nodes["a"])
    graph.erase_node(nodes["b"])
    assert_refused(graph, AnnotationError, "c", "edge 'b' -> 'c'", "'b' was erased from the graph")


def test_edge_of_a_node_of_another_graph(graph: Graph) -> None:
    annotate(named(graph)["c"], {Graph().placeholder("b"): SPEC})
    assert_refused(graph, AnnotationError, "c", "edge 'b' -> 'c'", "'b' belongs to another graph")


def test_argument_that_belongs_to_another_graph(graph: Graph) -> None:
    node, stranger = named(graph)["c"], Graph().placeholder("stranger")
    node.args = (stranger,)
    annotate(node, {stranger: SPEC})
    assert_refused(graph, AnnotationError, "c", "'stranger' belongs to another graph")


def test_edge_from_something_that_is_not_a_node(graph: Graph) -> None:
    annotate(named(graph)["c"], {"b": SPEC})  # type: ignore[dict-item]
    assert assert_refused(graph, AnnotationError, "c", "which is not an edge").found == "'b'"


def test_edge_into_a_node_without_arguments(graph: Graph) -> None:
    nodes = named(graph)
    annotate(nodes["x"], {nodes["a"]: SPEC})
    with pytest.raises(AnnotationError) as caught:
        resolve_sharing(graph)
    assert caught.value.expected == "no input spec: the node has no arguments"


def test_nodes_without_a_spec_are_not_points(graph: Graph) -> None:
    nodes = named(graph)
    annotate(nodes["c"], {nodes["a"]: None})
    nodes["b"].meta[KEY] = QuantizationAnnotation(_annotated=True)
    assert resolve_sharing(graph).groups == ()


@pytest.mark.parametrize("place", ["input", "output"])
def test_something_that_is_not_a_spec(graph: Graph, place: str) -> None:
    nodes = named(graph)
    bad = torch.uint8
    annotate(nodes["c"], {nodes["b"]: bad} if place == "input" else {}, bad if place == "output" else None)  # type: ignore[dict-item]
    point = "edge 'b' -> 'c'" if place == "input" else "output of 'c'"
    error = assert_refused(graph, AnnotationError, "c", point, "not a quantization spec")
    assert error.found == "torch.uint8"
    assert "SharedQuantizationSpec" in str(error.expected)


@pytest.mark.parametrize(
    "annotation", [{"output_qspec": SPEC}, SimpleNamespace(output_qspec=SPEC), SimpleNamespace(input_qspec_map={})]
)
def test_annotation_without_the_attributes(graph: Graph, annotation: object) -> None:
    named(graph)["c"].meta[KEY] = annotation
    assert_refused(graph, AnnotationError, "c", "annotation of 'c' is not a QuantizationAnnotation")


@pytest.mark.parametrize("derived", [False, True])
@pytest.mark.parametrize(
    ("target", "words", "why"),
    [
        ("out b", "output of 'b' (in module 'layers.b')", "the annotation of 'b' has no output_qspec"),
        ("out x", "output of 'x' (in the root module)", "'x' has no annotation"),
        ("edge ab", "edge 'a' -> 'b' (in module 'layers.b')", "the annotation of 'b' has no spec for its input 'a'"),
        ("edge xc", "edge 'x' -> 'c' (in module 'layers.c')", "'x' is not an argument of 'c'"),
        ("other", "output of 'elsewhere'", "'elsewhere' belongs to another graph"),
        ("erased", "output of 'gone'", "'gone' was erased from the graph"),
        ("nothing", "None", "it is neither a node nor a pair (producer, consumer) of nodes"),
        ("list", "[", "it is neither a node nor a pair (producer, consumer) of nodes"),
        ("half", "(b, None)", "it is neither a node nor a pair (producer, consumer) of nodes"),
    ],
)
def test_reference_to_a_point_without_a_spec(graph: Graph, target: str, words: str, why: str, derived: bool) -> None:
    nodes = named(graph)
    gone = graph.create_node("call_function", torch.relu, (nodes["x"],), name="gone")
    graph.erase_node(gone)
    targets = {
        "out b": nodes["b"],
        "out x": nodes["x"],
        "edge ab": (nodes["a"], nodes["b"]),
        "edge xc": (nodes["x"], nodes["c"]),
        "other": Graph().placeholder("elsewhere"),
        "erased": gone,
        "nothing": None,
        "list": [nodes["a"], nodes["b"]],
        "half": (nodes["b"], None),
    }
    bad: Any = targets[target]  # on purpose no point in some cases
    annotate(nodes["a"], {}, SPEC)
    annotate(nodes["b"], {nodes["a"]: None})
    spec = DerivedQuantizationSpec([nodes["a"], bad], derive, torch.int32) if derived else SharedQuantizationSpec(bad)
    annotate(nodes["c"], {nodes["b"]: spec})
    verb = "derives from" if derived else "shares with"
    error = assert_refused(
        graph, SharingError, "c", f"edge 'b' -> 'c' (in module 'layers.c') {verb} {words}", "no spec"
    )
    assert error.found == why
    if target == "edge ab":
        assert "output of 'a'" in str(error.expected)
    if target == "out b":
        assert "edge 'b' -> 'c'" in str(error.expected)


def test_cycle_of_references_names_every_point_and_module(graph: Graph) -> None:
    a, b, c = (named(graph)[name] for name in "abc")
    annotate(a, {}, SharedQuantizationSpec((b, c)))
    annotate(b, {}, SharedQuantizationSpec(a))
    annotate(c, {b: SharedQuantizationSpec(b)})
    error = assert_refused(
        graph,
        SharingError,
        "a",
        "cycle of references",
        "output of 'a' (in module 'layers.a') shares with edge 'b' -> 'c' (in module 'layers.c')",
        "edge 'b' -> 'c' (in module 'layers.c') shares with output of 'b' (in module 'layers.b')",
        "output of 'b' (in module 'layers.b') shares with output of 'a' (in module 'layers.a')",
    )
    assert str(error.found).startswith("3 point(s)")
    assert "a spec of its own" in error.remedy
    assert error.__suppress_context__


def test_point_that_shares_with_itself(graph: Graph) -> None:
    a = named(graph)["a"]
    annotate(a, {}, SharedQuantizationSpec(a))
    assert_refused(graph, SharingError, "a", "output of 'a' (in module 'layers.a') shares with output of 'a'")


def test_cycle_of_derivations_names_the_references_between(graph: Graph) -> None:
    a, b, c = (named(graph)[name] for name in "abc")
    annotate(a, {}, DerivedQuantizationSpec([b], derive, torch.int32))
    annotate(b, {}, SharedQuantizationSpec(c))
    annotate(c, {}, DerivedQuantizationSpec([a], derive, torch.int32))
    error = assert_refused(
        graph,
        SharingError,
        "a",
        "cycle of derivations",
        "output of 'a' (in module 'layers.a') derives from output of 'b' (in module 'layers.b')",
        "output of 'b' (in module 'layers.b') shares with output of 'c' (in module 'layers.c')",
        "output of 'c' (in module 'layers.c') derives from output of 'a' (in module 'layers.a')",
    )
    assert "does not depend on it" in error.remedy


def test_a_long_cycle_shows_its_ends() -> None:
    graph = Graph()
    nodes = [graph.placeholder(f"p{at}") for at in range(100)]
    for at, node in enumerate(nodes):
        annotate(node, {}, SharedQuantizationSpec(nodes[at - 1]))
    with pytest.raises(SharingError) as caught:
        resolve_sharing(graph)
    assert "... 88 more ..." in caught.value.problem
    assert len(caught.value.problem.splitlines()) == 14


class Deriving:
    def derive(self, observers: object) -> tuple[torch.Tensor, torch.Tensor]:
        return derive(observers)


def test_a_method_of_one_object_is_one_function(graph: Graph) -> None:
    x, a, b, c = (named(graph)[name] for name in "xabc")
    b.args = (a,)
    c.args = (a,)
    owners = (Deriving(), Deriving())
    annotate(x, {}, SPEC)
    annotate(b, {a: DerivedQuantizationSpec([x], owners[0].derive, torch.int32)})
    for owner, expected in ((owners[0], 2), (owners[1], 3)):
        annotate(c, {a: DerivedQuantizationSpec([x], owner.derive, torch.int32)})
        assert len(resolve_sharing(graph).groups) == expected


def test_annotations_are_read_by_their_attributes(graph: Graph) -> None:
    @dataclass
    class Foreign:
        input_qspec_map: dict[Node, QuantizationSpecBase | None] | None
        output_qspec: QuantizationSpecBase | None
        allow_implicit_sharing: bool

    a, b = (named(graph)[name] for name in "ab")
    a.meta[KEY] = Foreign(None, SPEC, True)
    b.meta[KEY] = annotation = Foreign({a: SPEC}, None, True)
    assert len(resolve_sharing(graph).groups) == 1
    annotation.allow_implicit_sharing = False
    assert len(resolve_sharing(graph).groups) == 2


def test_resolving_leaves_specs_and_annotations_as_they_were(graph: Graph) -> None:
    a, b = (named(graph)[name] for name in "ab")
    annotate(a, {}, SPEC)
    annotate(b, {a: SharedQuantizationSpec(a)}, SPEC)
    before = replace(b.meta[KEY], input_qspec_map=dict(b.meta[KEY].input_qspec_map))
    resolve_sharing(graph)
    assert b.meta[KEY] == before
