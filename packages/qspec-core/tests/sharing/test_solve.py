"""The solver over integers: depth, and the cycles it reports."""

import pytest

from qspec_core._sharing._solve import CycleError, Point, solve

DEEP = 50_000


@pytest.mark.parametrize("step", [-1, 1])
def test_a_deep_chain_of_references_is_one_group(step: int) -> None:
    end = 0 if step < 0 else DEEP - 1
    solution = solve([Point(at, 0, reference=None if at == end else at + step) for at in range(DEEP)])
    assert set(solution.group_of) == {0}
    assert list(solution.constructors) == [end]


def test_a_deep_chain_of_derivations_is_ordered_by_level() -> None:
    solution = solve([Point(at, at, derived_from=(at + 1,) if at < DEEP - 1 else ()) for at in range(DEEP)])
    assert list(solution.levels) == list(range(DEEP))[::-1]
    assert solution.derived_from[0] == (1,)


def test_a_deep_ladder_of_derivations_joins_level_by_level() -> None:
    # Two derived points on each tensor; those of the next derive one from each, and agree once these have joined.
    points = [Point(0, 0, is_output=True)]
    for level in range(1, DEEP // 2):
        before = len(points)
        points += [Point(level, 1, derived_from=(max(0, before - 2 + side),)) for side in range(2)]
    solution = solve(points)
    assert len(solution.constructors) == DEEP // 2
    assert list(solution.levels) == list(range(DEEP // 2))


def test_a_deep_cycle_of_references_starts_at_its_first_point() -> None:
    points = [Point(0, 0), Point(1, reference=DEEP - 1), *(Point(at, reference=at - 1) for at in range(2, DEEP))]
    with pytest.raises(CycleError) as caught:
        solve([*points, Point(DEEP, reference=5)])
    assert not caught.value.derivation
    assert caught.value.points == (1, *range(DEEP - 1, 1, -1))


def test_a_cycle_excludes_the_references_that_lead_into_it() -> None:
    with pytest.raises(CycleError) as caught:
        solve([Point(0, reference=1), Point(1, reference=2), Point(2, reference=1)])
    assert caught.value.points == (1, 2)


def test_a_cycle_starts_at_its_first_point_wherever_it_was_entered() -> None:
    with pytest.raises(CycleError) as caught:
        solve([Point(0, reference=3), Point(1, reference=2), Point(2, reference=3), Point(3, reference=1)])
    assert caught.value.points == (1, 2, 3)


def test_derived_specs_wait_for_their_sources_in_any_order() -> None:
    # Points 0 and 1 derive from 2 and 3, which join as both derive from 4.
    upper = [Point(0, 1, derived_from=(2,)), Point(0, 1, derived_from=(3,))]
    lower = [Point(1, 2, derived_from=(4,)), Point(1, 2, derived_from=(4,))]
    assert list(solve([*upper, *lower, Point(2, 0)]).group_of) == [0, 0, 1, 1, 2]


def test_derived_specs_agree_where_their_sources_share() -> None:
    source, sharing = Point(0, 0), Point(1, reference=0)
    derived = [Point(2, 1, derived_from=(at,)) for at in (0, 1)]
    solution = solve([source, sharing, *derived])
    assert list(solution.group_of) == [0, 0, 1, 1]
    assert solution.derived_from[1] == (0,)


def test_a_cycle_of_derivations_includes_the_references_between_them() -> None:
    plain = Point(0, 0)
    points = [Point(0, 1, derived_from=(3,)), plain, Point(1, 1, derived_from=(1, 4)), Point(1, reference=2)]
    points += [Point(2, reference=5), Point(2, 1, derived_from=(3,))]
    with pytest.raises(CycleError) as caught:
        solve(points)
    assert caught.value.derivation
    # Point 0 derives from the cycle, and is not in it.
    assert caught.value.points == (2, 4, 5, 3)


def test_a_point_that_derives_from_itself_is_a_cycle() -> None:
    with pytest.raises(CycleError) as caught:
        solve([Point(0, 0), Point(1, 1, derived_from=(0, 1))])
    assert caught.value.points == (1,)


def test_no_points_give_no_groups() -> None:
    assert list(solve([]).group_of) == []


def test_among_several_ends_of_references_an_output_comes_before_an_earlier_edge() -> None:
    points = [Point(0, 0), Point(1, is_output=True, reference=0), Point(1, reference=3), Point(2, 0, is_output=True)]
    solution = solve(points)
    assert list(solution.group_of) == [0, 0, 0, 0]
    assert list(solution.constructors) == [3]
