"""Plans side by side: nobody's visits are lost or reordered, and what can be shared is."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restack import plan
from restack.runtime.decoding.routes import legs, route, supersequence

SEQUENCES = st.lists(st.integers(0, 4), max_size=7)


def is_within(part, whole):
    left = iter(whole)
    return all(item in left for item in part)


@given(SEQUENCES, SEQUENCES)
def test_a_supersequence_holds_both(one, other):
    common = supersequence(one, other)
    assert is_within(one, common) and is_within(other, common)
    assert max(len(one), len(other)) <= len(common) <= len(one) + len(other)
    assert supersequence(one, one) == tuple(one)


@given(st.lists(st.integers(0, 1), max_size=4), st.lists(st.integers(0, 1), max_size=4))
def test_there_is_no_shorter_one(one, other):
    shorter = product((0, 1), repeat=max(0, len(supersequence(one, other)) - 1))
    assert len(one) + len(other) == 0 or not any(
        is_within(one, each) and is_within(other, each) for each in shorter
    )


@given(st.lists(st.tuples(SEQUENCES.filter(len), st.sets(st.integers(0, 7))), min_size=1, max_size=4))
def test_each_route_is_gone_once_in_its_order_with_its_stops(given_routes):
    routes = {route(tuple(reads), frozenset(stops)) for reads, stops in given_routes}
    found = legs(frozenset(routes))
    for each in routes:
        own = [(leg.starts[each], leg.length) for leg in found if each in leg.starts]
        assert [visit for start, length in own for visit in range(start, start + length)] == list(
            range(len(each.reads))
        )
        starts = {start for start, _ in own}
        assert {stop for stop in each.stops if stop < len(each.reads)} <= starts
    for leg in found:
        for offset in range(leg.length):
            assert len({each.reads[start + offset] for each, start in leg.starts.items()}) == 1


@pytest.mark.parametrize(
    ("specs", "passes"),
    [
        (["0:24"], 24),
        (["0:24", "0:24"], 24),
        (["0:24", "0:8,4:12,8:16,12:20,16:24", "0:10,10:20:2,20:"], 40),
        (["0:4", "4:8"], 8),
    ],
)
def test_passes_over_layers(specs, passes):
    visited = [tuple(visit.layer for visit in plan(spec, 24).visits) for spec in specs]
    found = legs(frozenset(route(each, frozenset()) for each in visited))
    assert sum(leg.length for leg in found) == passes
