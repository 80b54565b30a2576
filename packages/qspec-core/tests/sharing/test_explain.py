"""Texts of `explain`, for points that share and points that do not."""

import itertools

import pytest
import torch
from torch.fx import Graph, Node

from qspec_core import (
    DerivedQuantizationSpec,
    EdgeOrNode,
    FixedQParamsQuantizationSpec,
    QuantizationAnnotation,
    QuantizationSpec,
    QuantizationSpecBase,
    SharedQuantizationSpec,
    resolve_sharing,
)

UINT8 = QuantizationSpec(torch.uint8, torch.nn.Identity)


def graph_of(**inputs: str) -> tuple[Graph, dict[str, Node]]:
    """Nodes by name; the letters of each value are its inputs."""
    graph, nodes = Graph(), dict[str, Node]()
    for name, sources in inputs.items():
        arguments = tuple(nodes[source] for source in sources)
        kind = "call_function" if arguments else "placeholder"
        nodes[name] = graph.create_node(kind, torch.add if arguments else name, arguments, name=name)
    return graph, nodes


def put(point: EdgeOrNode, spec: QuantizationSpecBase, *, allow: bool = True) -> None:
    node = point if isinstance(point, Node) else point[1]
    annotation = node.meta.setdefault("quantization_annotation", QuantizationAnnotation())
    annotation.allow_implicit_sharing = allow
    if isinstance(point, Node):
        annotation.output_qspec = spec
    else:
        annotation.input_qspec_map[point[0]] = spec


def test_chain_of_references_and_agreement() -> None:
    graph, n = graph_of(x="", cat="x", relu="x")
    put((n["x"], n["cat"]), UINT8)
    put(n["cat"], SharedQuantizationSpec((n["x"], n["cat"])))
    put((n["x"], n["relu"]), QuantizationSpec(torch.uint8, torch.nn.ReLU))
    text = resolve_sharing(graph).explain(n["cat"], (n["x"], n["relu"]))
    first, second = "edge 'x' -> 'cat' (in the root module)", "edge 'x' -> 'relu' (in the root module)"
    assert text.splitlines() == [
        f"output of 'cat' (in the root module) and {second} share, as members of group 0:",
        f"  output of 'cat' (in the root module) refers to {first}",
        f"  {first} and {second} are on the tensor 'x', agree, and both allow implicit sharing",
    ]
    assert "is referred to by output of 'cat'" in resolve_sharing(graph).explain((n["x"], n["relu"]), n["cat"])


def test_long_chain_shows_its_ends_and_needs_no_recursion() -> None:
    graph = Graph()
    nodes = [graph.placeholder(f"p{at}") for at in range(5_000)]
    put(nodes[-1], UINT8)
    for node, following in itertools.pairwise(nodes):
        put(node, SharedQuantizationSpec(following))
    text = resolve_sharing(graph).explain(nodes[0], nodes[-1])
    assert "... 4987 more ..." in text
    assert "output of 'p4998' (in the root module) refers to output of 'p4999'" in text


def spec(**fields: object) -> QuantizationSpec:
    return QuantizationSpec(**{"dtype": torch.int8, "observer_or_fake_quant_ctr": torch.nn.Identity, **fields})  # type: ignore[arg-type]


AXIS = {"qscheme": torch.per_channel_symmetric, "ch_axis": 0}


@pytest.mark.parametrize(
    ("one", "other", "reason"),
    [
        (spec(), spec(dtype=torch.uint8), "differ in dtype: torch.int8 and torch.uint8"),
        (spec(), spec(is_dynamic=True), "differ in is_dynamic: False and True"),
        (spec(), spec(quant_min=-128), "differ in quant_min: None and -128"),
        (spec(quant_max=0), spec(quant_max=1), "differ in quant_max: 0 and 1"),
        (spec(**AXIS), spec(), "differ in qscheme: torch.per_channel_symmetric and None"),
        (spec(**AXIS), spec(**{**AXIS, "ch_axis": 1}), "differ in ch_axis: 0 and 1"),
        (spec(), FixedQParamsQuantizationSpec(torch.int8, 0.5, 0), "differ in scale: None and 0.5"),
        (
            FixedQParamsQuantizationSpec(torch.int8, 0.5, 0),
            FixedQParamsQuantizationSpec(torch.int8, 0.5, 1),
            "differ in zero_point: 0 and 1",
        ),
    ],
)
def test_first_difference(one: QuantizationSpecBase, other: QuantizationSpecBase, reason: str) -> None:
    graph, n = graph_of(x="", a="x")
    put(n["x"], one)
    put((n["x"], n["a"]), other)
    assert resolve_sharing(graph).explain(n["x"], (n["x"], n["a"])).endswith(f"do not share: their specs {reason}")


def derive(observers: object) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(1.0), torch.tensor(0)


def derive_else(observers: object) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(1.0), torch.tensor(0)


@pytest.mark.parametrize(
    ("source", "function", "reason"),
    [
        ("x", derive, None),
        ("y", derive, "derive from different groups: (0,) and (1,)"),
        ("x", derive_else, "derive by different functions"),
        ("", None, "one of their specs is derived and the other is not"),
    ],
)
def test_derived(source: str, function: object, reason: str | None) -> None:
    graph, n = graph_of(x="", y="", z="", a="z", b="z")
    put(n["x"], UINT8)
    put(n["y"], UINT8)
    put((n["z"], n["a"]), DerivedQuantizationSpec([n["x"]], derive, torch.int32))
    other = DerivedQuantizationSpec([n[source]], function, torch.int32) if source else UINT8  # type: ignore[arg-type]
    put((n["z"], n["b"]), other)
    text = resolve_sharing(graph).explain((n["z"], n["a"]), (n["z"], n["b"]))
    assert (" share, as members" in text) if reason is None else (reason in text)


@pytest.mark.parametrize(
    ("allows", "owners"), [((False, True), "'x'"), ((True, False), "'a'"), ((False, False), "'x' and of 'a'")]
)
def test_forbidding_annotation(allows: tuple[bool, bool], owners: str) -> None:
    graph, n = graph_of(x="", a="x")
    put(n["x"], UINT8, allow=allows[0])
    put((n["x"], n["a"]), UINT8, allow=allows[1])
    text = resolve_sharing(graph).explain(n["x"], (n["x"], n["a"]))
    assert f"specs agree, but the annotation of {owners} has allow_implicit_sharing=False" in text


def test_different_tensors() -> None:
    graph, n = graph_of(x="", a="x")
    put(n["x"], UINT8)
    put(n["a"], UINT8)
    text = resolve_sharing(graph).explain(n["x"], n["a"])
    assert text.endswith("they are on different tensors ('x' and 'a'), and no chain of references connects them")


def test_different_tensors_whose_groups_meet() -> None:
    graph, n = graph_of(x="", a="x")
    put(n["x"], UINT8)
    put((n["x"], n["a"]), spec())
    put(n["a"], SharedQuantizationSpec((n["x"], n["a"])))
    text = resolve_sharing(graph).explain(n["x"], n["a"])
    assert "their groups meet at output of 'x' (in the root module) and edge 'x' -> 'a'" in text
    assert "where their specs differ in dtype" in text


def test_no_spec_and_the_same_point() -> None:
    graph, n = graph_of(x="", a="x")
    put(n["x"], UINT8)
    resolution = resolve_sharing(graph)
    for pair in ((n["x"], n["a"]), (n["a"], n["x"])):
        text = resolution.explain(*pair)
        assert (
            text == "output of 'a' (in the root module) carries no spec and shares with nothing: 'a' has no annotation"
        )
    assert resolution.explain(n["x"], n["x"]) == "output of 'x' (in the root module) is one point"
