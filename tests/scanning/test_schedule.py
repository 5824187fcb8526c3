"""Plans are run in an order in which nothing that two begin with alike is run twice, and little is kept."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restack import plan
from restack.plans import Plan
from restack.scanning.candidates import base, grid
from restack.scanning.schedule import cuts, most_kept, schedule

DEPTH = 5
PLANS = st.lists(
    st.lists(st.integers(0, DEPTH - 1), min_size=1, max_size=7).map(lambda order: Plan.of(order, DEPTH)),
    min_size=1,
    max_size=12,
    unique=True,
)


def all_blocks(depth, **options):
    return [candidate.plan for candidate in (base(depth), *grid(depth, **options))]


def scheduled(plans):
    return schedule(plans, [cuts(each) for each in plans])


def nodes(plans):
    """How many visits there are in a trie of plans: distinct beginnings."""
    return len({each.order[:length] for each in plans for length in range(1, len(each) + 1)})


@given(PLANS)
def test_each_beginning_is_run_once(plans):
    steps = scheduled(plans)
    assert sorted(step.number for step in steps) == list(range(len(plans)))
    # a plan that is the beginning of another has nothing to go on from: its last visit is run again
    extra = sum(
        any(other.order[: len(one)] == one.order and other != one for other in plans) for one in plans
    )
    run = sum(len(plans[step.number]) - step.start for step in steps)
    assert nodes(plans) <= run <= nodes(plans) + extra * max(map(len, plans))


@given(PLANS)
def test_what_a_step_goes_on_from_is_kept_by_a_plan_that_began_alike(plans):
    kept = {}
    for step in scheduled(plans):
        order = plans[step.number].order
        if step.start:
            assert kept[step.start] == order[: step.start]
        for visit in step.saves:
            assert visit > step.start
            kept[visit] = order[:visit]
        for visit in step.drops:
            del kept[visit]
    assert not kept


@pytest.mark.parametrize("depth", [1, 2, 12, 40])
def test_all_blocks_take_half_of_the_layer_runs_and_two_places(depth):
    plans = all_blocks(depth)
    steps = scheduled(plans)
    run = sum(len(plans[step.number]) - step.start for step in steps)
    # j layers that are shared, and then i..n-1: by hand, n + the sum of squares
    assert run == depth + sum(size * size for size in range(1, depth + 1))
    assert run <= 0.55 * sum(map(len, plans)) or depth < 3
    assert most_kept(steps) <= 2


def test_skips_and_repeats_keep_few_places_too():
    plans = all_blocks(20, repeats=(2, 3), damps=(0.5, 1.0), skips=True)
    assert most_kept(scheduled(plans)) <= 6


def test_keys_and_values_are_not_cut_from_their_readers():
    assert cuts(plan("0:4;kv=0_0_2_2", 4)) == {2}
    assert cuts(plan("0:4;kv=0_1_2_0", 4)) == set()
    assert cuts(plan("0:4", 4)) == {1, 2, 3}


def test_visits_that_share_otherwise_are_not_alike():
    plans = [plan("0:4;kv=0_0_2_2", 4), plan("0:4", 4), plan("0:4@0.5", 4), plan("0:2,2:4@0.5", 4)]
    starts = {step.number: step.start for step in scheduled(plans)}
    assert starts[2] == 0  # damped from its first visit
    assert starts[0] == 0  # cannot be entered at 1, where its second visit reads what the first keeps
    assert {starts[1], starts[3]} == {
        1,
        2,
    }  # alike up to 2; the first of them goes on after visit 0 of plan 0


def test_a_plan_tail_keeps_its_owners():
    tail = plan("0:4;kv=0_0_2_2", 4).tail(2)
    assert tail.order == (2, 3)
    assert tail.owners == (0, 0)
    assert plan("0:3", 4).tail(0) == plan("0:3", 4)


@pytest.mark.parametrize("start", [-1, 4, 1, 3])
def test_a_tail_that_cannot_be_is_refused(start):
    with pytest.raises(ValueError, match="begin at"):
        plan("0:4;kv=0_0_2_2", 4).tail(start)


def test_neighbours_are_in_depth_first_order():
    plans = all_blocks(6)
    order = [plans[step.number].order for step in scheduled(plans)]
    seen = set()
    for one, other in pairwise(order):  # once a beginning is left, it does not come again
        common = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(one))
        for length in range(common + 1, len(one) + 1):
            seen.add(one[:length])
        assert not any(other[:length] in seen for length in range(common + 1, len(other) + 1))
