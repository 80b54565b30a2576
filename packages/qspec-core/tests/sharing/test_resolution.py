"""Groups of `resolve_sharing` against a reference that joins pairs until nothing changes, on random graphs."""

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from torch.fx import Graph, Node

from qspec_core import (
    DerivedQuantizationSpec,
    EdgeOrNode,
    FixedQParamsQuantizationSpec,
    QuantizationAnnotation,
    QuantizationSpec,
    QuantizationSpecBase,
    SharedQuantizationSpec,
    SharingError,
    SharingGroup,
    SharingResolution,
    resolve_sharing,
)

Name = tuple[int, int]
"""A point of a plan: (producer, consumer), or (node, node) for the output of a node."""

Kind = tuple[str, int, tuple[Name, ...]]
"""Spec of a point: plain, shared or derived; which of the specs below; the points that it refers to."""

Maker = Callable[[Name], QuantizationSpecBase]


class Constructor:
    """A distinct constructor for every point, so that a test sees whose spec was taken."""

    def __init__(self, point: Name) -> None:
        self.point = point

    def __call__(self, **fields: object) -> torch.nn.Module:
        return torch.nn.Identity()


def plain(dtype: torch.dtype, **fields: int | bool | torch.qscheme) -> Maker:
    return lambda name: QuantizationSpec(dtype, Constructor(name), **fields)  # type: ignore[arg-type]


def fixed(scale: float, zero_point: int) -> Maker:
    return lambda name: FixedQParamsQuantizationSpec(torch.uint8, scale, zero_point)


PLAIN: list[Maker] = [
    plain(torch.uint8),
    plain(torch.uint8, quant_min=0, quant_max=255),
    plain(torch.uint8, quant_max=255),
    plain(torch.int8),
    plain(torch.int8, is_dynamic=True),
    plain(torch.int8, qscheme=torch.per_tensor_symmetric),
    plain(torch.int8, qscheme=torch.per_channel_symmetric, ch_axis=0),
    plain(torch.int8, qscheme=torch.per_channel_symmetric, ch_axis=1),
    plain(torch.float16),
    fixed(0.5, 0),
    fixed(0.25, 0),
    fixed(0.25, 3),
]


def derive_one(observers: object) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(1.0), torch.tensor(0)


def derive_two(observers: object) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(2.0), torch.tensor(0)


DERIVED = [(derive_one, torch.int32), (derive_two, torch.int32), (derive_one, torch.int16)]


@dataclass(frozen=True)
class Plan:
    """A graph and its annotations without `Node` objects: each node's inputs, each point's kind and targets."""

    inputs: tuple[tuple[int, ...], ...]
    kinds: dict[Name, Kind]
    allows: tuple[bool, ...]

    def points(self) -> list[Name]:
        edges = {(source, at) for at, sources in enumerate(self.inputs) for source in sources}
        return [*sorted(edges), *((at, at) for at in range(len(self.inputs)))]


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    count = draw(st.integers(1, 6))
    inputs = tuple(tuple(draw(st.lists(st.integers(0, at - 1), max_size=3))) if at else () for at in range(count))
    plan = Plan(inputs, {}, tuple(draw(st.lists(st.sampled_from([True, True, False]), min_size=count, max_size=count))))
    palette = draw(st.lists(st.integers(0, len(PLAIN) - 1), min_size=1, max_size=2))
    chosen = st.sampled_from(["plain", "plain", "plain", "shared", "shared", "derived", "none"])
    kinds = {name: draw(chosen) for name in plan.points()}
    known = [name for name, kind in kinds.items() if kind != "none"] or plan.points()
    target = st.sampled_from(draw(st.sampled_from([known, known, known, plan.points()])))
    for name, kind in kinds.items():
        if kind == "plain":
            plan.kinds[name] = ("plain", draw(st.sampled_from(palette)), ())
        elif kind == "shared":
            plan.kinds[name] = ("shared", 0, (draw(target),))
        elif kind == "derived":
            sources = tuple(draw(st.lists(target, min_size=1, max_size=2)))
            plan.kinds[name] = ("derived", draw(st.integers(0, len(DERIVED) - 1)), sources)
    return plan


@dataclass(frozen=True)
class Built:
    graph: Graph
    nodes: dict[int, Node]

    def point(self, name: Name) -> EdgeOrNode:
        return self.nodes[name[0]] if name[0] == name[1] else (self.nodes[name[0]], self.nodes[name[1]])

    def name(self, point: EdgeOrNode) -> Name:
        numbers = {node: number for number, node in self.nodes.items()}
        return (numbers[point], numbers[point]) if isinstance(point, Node) else (numbers[point[0]], numbers[point[1]])


def build(plan: Plan, seed: int = 0) -> Built:
    """The plan as an fx graph; another seed gives another topological order and another order of annotations."""
    rng, graph, nodes = random.Random(seed), Graph(), dict[int, Node]()
    while len(nodes) < len(plan.inputs):
        ready = [at for at, needs in enumerate(plan.inputs) if at not in nodes and all(need in nodes for need in needs)]
        at = ready[0] if seed == 0 else rng.choice(ready)
        arguments = [nodes[source] for source in plan.inputs[at]]
        if arguments:
            nodes[at] = graph.create_node(
                "call_function", torch.cat, (arguments[:2],), {"out": arguments[2:]}, f"n{at}"
            )
        else:
            nodes[at] = graph.create_node("placeholder", f"n{at}", name=f"n{at}")
    built = Built(graph, nodes)
    names = list(plan.kinds)
    if seed:
        rng.shuffle(names)
    for name in names:
        annotation = nodes[name[1]].meta.setdefault(
            "quantization_annotation", QuantizationAnnotation(allow_implicit_sharing=plan.allows[name[1]])
        )
        spec = make_spec(plan, built, name)
        if name[0] == name[1]:
            annotation.output_qspec = spec
        else:
            annotation.input_qspec_map[nodes[name[0]]] = spec
    return built


def make_spec(plan: Plan, built: Built, name: Name) -> QuantizationSpecBase:
    kind, choice, targets = plan.kinds[name]
    if kind == "plain":
        return PLAIN[choice](name)
    if kind == "shared":
        return SharedQuantizationSpec(built.point(targets[0]))
    function, dtype = DERIVED[choice]
    return DerivedQuantizationSpec([built.point(target) for target in targets], function, dtype)


def root_of(plan: Plan, name: Name) -> Name | None:
    """The end of the references from a point; None if they form a cycle."""
    for _ in range(len(plan.kinds) + 1):
        if plan.kinds[name][0] != "shared":
            return name
        name = plan.kinds[name][2][0]
    return None


def reference(plan: Plan) -> set[frozenset[Name]] | str:
    """Groups found by trying every pair until nothing changes; or the text of the error in the plan."""
    if any(target not in plan.kinds for _, _, targets in plan.kinds.values() for target in targets):
        return "no spec"
    if any(root_of(plan, name) is None for name in plan.kinds):
        return "references"
    label = {name: number for number, name in enumerate(plan.kinds)}
    changed = True
    while changed:
        changed = False
        for a, b in itertools.permutations(plan.kinds, 2):
            if label[a] != label[b] and must_join(plan, label, a, b):
                label = {name: label[a] if number == label[b] else number for name, number in label.items()}
                changed = True
    if derives_from_itself(plan, label):
        return "derivations"
    return {frozenset(name for name in label if label[name] == number) for number in label.values()}


def must_join(plan: Plan, label: dict[Name, int], a: Name, b: Name) -> bool:
    """The rules of sharing for one pair, given which points have joined so far."""
    if plan.kinds[a][0] == "shared" and plan.kinds[a][2] == (b,):
        return True
    if a[0] != b[0] or not (plan.allows[a[1]] and plan.allows[b[1]]):
        return False
    root, other = root_of(plan, a), root_of(plan, b)
    if root is None or other is None or plan.kinds[root][:2] != plan.kinds[other][:2]:
        return False
    return [label[name] for name in plan.kinds[root][2]] == [label[name] for name in plan.kinds[other][2]]


def derives_from_itself(plan: Plan, label: dict[Name, int]) -> bool:
    reach = {(label[a], label[t]) for a, (kind, _, targets) in plan.kinds.items() if kind == "derived" for t in targets}
    for middle, start, end in itertools.product(set(label.values()), repeat=3):
        if (start, middle) in reach and (middle, end) in reach:
            reach.add((start, end))
    return any(start == end for start, end in reach)


def constructor_choices(plan: Plan, group: frozenset[Name]) -> set[Name]:
    """Points whose constructor the rules permit; more than one if graph order decides."""
    ends = {root_of(plan, name) for name in group if plan.kinds[name][0] == "shared"}
    candidates = {end for end in ends if end is not None} or set(group)
    return {name for name in candidates if name[0] == name[1]} or candidates


def found_groups(built: Built, resolution: SharingResolution) -> set[frozenset[Name]]:
    return {frozenset(built.name(point) for point in group.points) for group in resolution.groups}


@settings(max_examples=600, deadline=None)
@given(plans(), st.integers(0, 10_000))
def test_groups_equal_the_pairwise_reference_in_any_order(plan: Plan, seed: int) -> None:
    expected, built = reference(plan), build(plan, seed)
    event(expected if isinstance(expected, str) else "groups")
    if isinstance(expected, str):
        with pytest.raises(SharingError, match=expected):
            resolve_sharing(built.graph)
        return
    resolution = resolve_sharing(built.graph)
    assert found_groups(built, resolution) == expected
    check_constructors(plan, built, resolution)
    check_order(plan, built, resolution)


def in_graph_order(built: Built) -> list[EdgeOrNode]:
    return [point for node in built.graph.nodes for point in (*((arg, node) for arg in node.all_input_nodes), node)]


def check_constructors(plan: Plan, built: Built, resolution: SharingResolution) -> None:
    order = {built.name(point): at for at, point in enumerate(in_graph_order(built))}
    for group in resolution.groups:
        choices = constructor_choices(plan, frozenset(built.name(point) for point in group.points))
        chosen = min(choices, key=order.__getitem__)
        if isinstance(group.spec, QuantizationSpec):
            assert isinstance(group.spec.observer_or_fake_quant_ctr, Constructor)
            assert group.spec.observer_or_fake_quant_ctr.point == chosen
        annotation = built.nodes[chosen[1]].meta["quantization_annotation"]
        inputs = annotation.input_qspec_map
        assert group.spec is (annotation.output_qspec if chosen[0] == chosen[1] else inputs[built.nodes[chosen[0]]])


def check_order(plan: Plan, built: Built, resolution: SharingResolution) -> None:
    points = [point for point in in_graph_order(built) if built.name(point) in plan.kinds]
    groups = [resolution.group_of(point) for point in points]
    assert list(dict.fromkeys(group.index for group in groups if group)) == list(range(len(resolution.groups)))
    for group in resolution.groups:
        assert list(group.points) == [p for p, g in zip(points, groups, strict=True) if g is group]
        sources = group.spec.derived_from if isinstance(group.spec, DerivedQuantizationSpec) else ()
        assert [resolution.groups[number] for number in group.derived_from] == [resolution.group_of(s) for s in sources]
    assert sorted(resolution.order) == list(range(len(resolution.groups)))
    place = {number: at for at, number in enumerate(resolution.order)}
    assert all(place[source] < place[group.index] for group in resolution.groups for source in group.derived_from)


@settings(max_examples=200, deadline=None)
@given(plans(), st.integers(1, 10_000))
def test_explain_agrees_with_the_groups_and_its_steps_connect(plan: Plan, seed: int) -> None:
    built = build(plan, seed)
    if isinstance(reference(plan), str):
        return
    resolution = resolve_sharing(built.graph)
    for a, b in itertools.combinations(in_graph_order(built), 2):
        text, groups = resolution.explain(a, b), (resolution.group_of(a), resolution.group_of(b))
        if None in groups:
            assert "carries no spec" in text
        elif groups[0] is groups[1]:
            assert "share, as members of group" in text
            check_steps(plan, built, text.splitlines()[1:], built.name(a), built.name(b))
        else:
            assert "do not share: " in text
            reasons = ("differ in", "derived and the other", "derive from different", "derive by different")
            assert any(part in text for part in (*reasons, "different tensors", "allow_implicit_sharing=False"))


def check_steps(plan: Plan, built: Built, steps: Sequence[str], at: Name, end: Name) -> None:
    """Each line leads from the previous point to another one by a constraint of the plan."""
    words = {words_of(name): name for name in plan.kinds}
    for step in steps:
        named = sorted((step.index(text), name) for text, name in words.items() if text in step)
        (_, first), (_, second) = named
        assert first == at
        if " refers to " in step:
            assert plan.kinds[first][::2] == ("shared", (second,))
        elif " is referred to by " in step:
            assert plan.kinds[second][::2] == ("shared", (first,))
        else:
            assert first[0] == second[0]
            assert plan.allows[first[1]]
            assert plan.allows[second[1]]
        at = second
    assert at == end


def words_of(name: Name) -> str:
    return f"output of 'n{name[0]}'" if name[0] == name[1] else f"edge 'n{name[0]}' -> 'n{name[1]}'"


UINT8, INT8 = 0, 3
X, Y = (0, 0), (1, 1)


def only_group(plan: Plan) -> tuple[Built, SharingGroup]:
    built = build(plan)
    (group,) = resolve_sharing(built.graph).groups
    return built, group


def test_the_same_input_twice_is_one_edge() -> None:
    _, group = only_group(Plan(((), (0, 0)), {(0, 1): ("plain", UINT8, ())}, (True, True)))
    assert len(group.points) == 1


def test_two_of_three_points_join_where_the_third_forbids() -> None:
    kinds: dict[Name, Kind] = dict.fromkeys((X, (0, 1), (0, 2)), ("plain", UINT8, ()))
    for forbidding, expected in enumerate([{(0, 1), (0, 2)}, {X, (0, 2)}, {X, (0, 1)}]):
        plan = Plan(((), (0,), (0,)), kinds, tuple(at != forbidding for at in range(3)))
        built = build(plan)
        assert expected in found_groups(built, resolve_sharing(built.graph))


def test_points_on_one_tensor_form_one_group_per_agreeing_subset() -> None:
    kinds: dict[Name, Kind] = {(0, at): ("plain", UINT8 if at < 3 else INT8, ()) for at in range(1, 5)}
    built = build(Plan(((), *[(0,)] * 4), kinds, (True,) * 5))
    assert found_groups(built, resolve_sharing(built.graph)) == {
        frozenset({(0, 1), (0, 2)}),
        frozenset({(0, 3), (0, 4)}),
    }


def test_a_reference_joins_where_implicit_sharing_is_off() -> None:
    plan = Plan(((), (0,)), {X: ("plain", UINT8, ()), Y: ("shared", 0, (X,))}, (False, False))
    assert len(only_group(plan)[1].points) == 2


@pytest.mark.parametrize(
    ("kinds", "owner"),
    [
        # References end in (0, 1), which comes before the output of the producer with an equal spec.
        ({X: ("plain", UINT8, ()), (0, 1): ("plain", UINT8, ()), Y: ("shared", 0, ((0, 1),))}, (0, 1)),
        ({X: ("plain", UINT8, ()), (0, 1): ("plain", UINT8, ()), (0, 2): ("plain", UINT8, ())}, X),
        ({(0, 2): ("plain", UINT8, ()), (0, 1): ("plain", UINT8, ())}, (0, 1)),
        # Two ends, both edges: the first in graph order is used.
        ({(0, 2): ("plain", UINT8, ()), (2, 2): ("shared", 0, ((0, 2),)), (0, 1): ("plain", UINT8, ()),
          Y: ("shared", 0, ((0, 1),))}, (0, 1)),
    ],
)  # fmt: skip
def test_constructor_of_a_group(kinds: dict[Name, Kind], owner: Name) -> None:
    _, group = only_group(Plan(((), (0,), (0,)), kinds, (True,) * 3))
    assert isinstance(group.spec, QuantizationSpec)
    assert isinstance(group.spec.observer_or_fake_quant_ctr, Constructor)
    assert group.spec.observer_or_fake_quant_ctr.point == owner


def test_a_range_of_none_and_the_same_range_given_are_different() -> None:
    kinds: dict[Name, Kind] = {X: ("plain", UINT8, ()), (0, 1): ("plain", 1, ())}
    built = build(Plan(((), (0,)), kinds, (True, True)))
    assert len(resolve_sharing(built.graph).groups) == 2


def test_a_graph_without_annotations_has_no_groups() -> None:
    built = build(Plan(((), (0,)), {}, (True, True)))
    resolution = resolve_sharing(built.graph)
    assert (resolution.groups, resolution.order) == ((), ())
    assert resolution.group_of(built.nodes[0]) is None
