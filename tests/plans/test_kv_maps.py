"""KV maps: the examples of LCKV's README, its unit test, and the presets of the papers."""

from typing import Any

import pytest

import restack
from restack import PlanError
from restack.plans import write_kv_map


def owners(notation: str, visits: int) -> list[int]:
    return list(restack.plan(notation, visits).owners)


def slides(notation: str, visits: int) -> list[bool]:
    return [visit.sliding for visit in restack.plan(notation, visits).visits]


def refusal(notation: Any, visits: int = 8, **options: Any) -> str:
    with pytest.raises(PlanError) as caught:
        restack.plan(notation, visits, **options)
    return str(caught.value)


LCKV_W2 = [0, *[20] * 20, 21]  # 22 layers: the README's 0_20*20_21
SANDWICH_MIDDLE = [0, *[10] * 20, 21]
CLA2 = [0, 0, 2, 2, 4, 4, 6, 6, 8, 8, 10, 10, 12, 12, 14, 14, 16, 16, 18, 18, 20, 20]
YOCO = [*range(11), *[11] * 11]


@pytest.mark.parametrize(
    ("preset", "visits", "expected"),
    [
        ("lckv-w2", 22, LCKV_W2),
        ("lckv-w10", 22, [0, 1, 2, 3, 4, *[16] * 12, 17, 18, 19, 20, 21]),
        ("lckv-w0", 22, [21] * 22),
        ("sandwich-top:3", 22, LCKV_W2),
        ("sandwich-middle:3", 22, SANDWICH_MIDDLE),
        ("sandwich-bottom:3", 22, [0, *[1] * 20, 21]),
        ("sandwich-middle:11", 22, [0, 1, 2, 3, 4, *[10] * 12, 17, 18, 19, 20, 21]),
        ("sandwich-bottom:4", 8, [0, 1, 2, 2, 2, 2, 2, 7]),
        ("cla1", 4, [0, 1, 2, 3]),
        ("cla2", 22, CLA2),
        ("cla3", 8, [0, 0, 0, 3, 3, 3, 6, 6]),
        ("cla8", 8, [0] * 8),
        ("lasagna-bottom:11", 22, CLA2),
        ("lasagna-top:4", 8, [1, 1, 3, 3, 5, 5, 7, 7]),  # the grouped example of LCKV's old branch
        ("lasagna-middle:2", 8, [1, 1, 1, 1, 5, 5, 5, 5]),
        ("lasagna-bottom:3", 8, [0, 0, 2, 2, 2, 5, 5, 5]),
        ("pizza-bottom:4", 8, [0, 1, 2, 3, 3, 3, 3, 3]),
        ("pizza-top:4", 8, [0, 1, 2, 7, 7, 7, 7, 7]),
        ("pizza-middle:4", 8, [0, 1, 2, 5, 5, 5, 5, 5]),
        ("pizza-bottom:1", 3, [0, 0, 0]),
        ("pizza-bottom:8", 8, [0, 1, 2, 3, 4, 5, 6, 7]),
        ("yoco", 22, YOCO),
        ("yoco", 1, [0]),
        ("yoco", 5, [0, 1, 2, 2, 2]),
    ],
)
def test_presets(preset: str, visits: int, expected: list[int]) -> None:
    assert owners(preset, visits) == expected
    assert restack.plan("all", visits, kv=preset) == restack.plan(preset, visits)
    assert restack.plan(kv=preset, layers=visits) == restack.plan(preset, visits)
    assert slides(preset, visits) == [preset == "yoco" and visit < visits // 2 for visit in range(visits)]


@pytest.mark.parametrize(
    ("text", "visits", "expected", "sliding"),
    [
        ("0_20x20_21", 22, LCKV_W2, []),
        ("0_1_2", 3, [0, 1, 2], []),
        ("0_0_2_2", 4, [0, 0, 2, 2], []),
        ("1_2s_0", 3, [1, 2, 0], [1]),  # a chain, from LCKV's own unit test
        ("0s_1s_2s_3s_4s_5s_6s_7s_8s_9s_10s_11x11", 22, YOCO, range(11)),
        (
            "0_1s_1s_3s_3s_3s_0_7s_7s_9s_9s_9s_12_13s_13s_15s_15s_15s_12_19s_19s_19s",
            22,
            [0, 1, 1, 3, 3, 3, 0, 7, 7, 9, 9, 9, 12, 13, 13, 15, 15, 15, 12, 19, 19, 19],
            [1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 13, 14, 15, 16, 17, 19, 20, 21],
        ),
        ("1sx2_0", 3, [1, 1, 0], [0, 1]),
    ],
)
def test_maps(text: str, visits: int, expected: list[int], sliding: Any) -> None:
    assert owners(text, visits) == expected
    assert [visit for visit, slide in enumerate(slides(text, visits)) if slide] == list(sliding)
    assert restack.plan("all", visits, kv=text) == restack.plan(text, visits)


def test_a_map_of_one_visit() -> None:
    assert restack.plan("all", 1, kv="0s").visits[0].sliding
    assert restack.plan("3", 8, kv="0").is_plain


def test_an_own_owner_is_none() -> None:
    assert [visit.kv for visit in restack.plan("0_0_2_2", 4).visits] == [None, 0, None, 2]
    assert restack.plan("0_1_2", 3).is_identity


def test_maps_index_visits_not_layers() -> None:
    plan = restack.plan("3,3,3", 4, kv="0_0_2")
    assert plan.order == (3, 3, 3)
    assert plan.owners == (0, 0, 2)
    assert restack.plan("3,3,3;kv=0_0_2", 4) == plan
    assert restack.plan("3,3,3", 4, kv="cla2").owners == (0, 0, 2)


def test_a_plan_takes_one_map() -> None:
    assert restack.plan("0:4", 4, kv="0_1_2s_3") == restack.plan("0:4;kv=0_1_2s_3", 4)
    with pytest.raises(PlanError, match="a KV map of its own"):
        restack.plan("0:4;kv=0x4", 4, kv="0_1_2s_3")


@pytest.mark.parametrize("text", ["0_20x20_21", "1_2s_0", "0s_1s_0sx2", "0x3"])
def test_written_maps(text: str) -> None:
    visits = 22 if "21" in text else len(text.split("_")) + ("x2" in text) + 2 * ("x3" in text)
    plan = restack.plan("all", visits, kv=text)
    assert write_kv_map(plan) == text
    full = write_kv_map(plan, abbreviate=False)
    assert "x" not in full
    assert len(full.split("_")) == visits  # one entry a layer, as LCKV's parser asks for
    assert restack.plan("all", visits, kv=full) == plan


@pytest.mark.parametrize(
    ("text", "place", "said"),
    [
        ("0_8", "8", "owner 8 is past the plan's 8 visits; name one of 0 to 7"),
        ("0_1_2", "", "the map ends after 3 of the plan's 8 visits"),
        ("0_1_2_3_4_5_6_7_0", "0", "the map has more entries than the plan's 8 visits"),
        ("0x9_1", "0x9", "the map has more entries than the plan's 8 visits"),
        ("0_1*20", "*", "not part of a KV map; write a map as in 0_1_1_3s, or 0_20x20_21"),
        ("0__1", "_", "a visit's number should stand here"),
        ("0_1_", "", "a visit's number should stand here"),
        ("0_-1", "-", "a visit's number should stand here"),
        ("0_1ss", "s", "not part of a KV map"),
        ("0_1x", "x", "not part of a KV map"),
        ("0_1x0", "0", "0 times is no repeat"),
        ("0_1 _2", " ", "not part of a KV map"),
        ("0_12345678901", "12345678901", "past any model's layers"),
        ("0_1x99999999999", "99999999999", "past any model's layers"),
    ],
)
def test_refused_maps(text: str, place: str, said: str) -> None:
    for message in (refusal(text), refusal("all", kv=text)):
        shown, below = message.split("\n")
        start, end = below.index("^"), below.rindex("^") + 1
        assert shown[start:end] == place
        assert said in below


def test_mix_attention() -> None:
    """The pairs of LCKV's README, for its 22 layers."""
    written = "0_1s_1s_3s_3s_3s_0_7s_7s_9s_9s_9s_12_13s_13s_15s_15s_15s_12_19s_19s_19s"
    assert restack.plan("mix-attention", 22) == restack.plan(written, 22)
    for visits in range(1, 40):
        plan = restack.plan("mix-attention", visits)
        assert all(owner <= visit for visit, owner in enumerate(plan.owners))
        assert all(plan.owners[owner] == owner for owner in plan.owners)


@pytest.mark.parametrize(
    ("preset", "said"),
    [
        ("lckv-w3", "lckv-w3: the warm-up visits stand half at each end of 8; write an even number below 8"),
        ("lckv-w8", "write an even number below 8"),
        ("cla0", "cla0: groups of 0 do not fit 8 visits; write cla1 to cla8"),
        ("cla9", "groups of 9 do not fit 8 visits"),
        ("pizza-top:0", "0 owners do not fit 8 visits; write 1 to 8"),
        ("lasagna-top:9", "9 owners do not fit 8 visits"),
        ("sandwich-top", "the presets are lckv-w2, cla2, yoco, mix-attention, or pizza|sandwich|lasagna"),
        ("sandwich-side:3", "nor a KV preset"),
        ("lckv_w2", "nor a KV preset"),
        ("yoko", "nor a KV preset"),
        ("cla٣", "nor a KV preset"),
        ("yoco ,", "nor a KV preset"),
    ],
)
def test_refused_presets(preset: str, said: str) -> None:
    assert said in refusal(preset)
    assert said in refusal("all", kv=preset)


@pytest.mark.parametrize("kv", ["", " ", "all", "0:4", "CLA2", "\ud800", "²", "_", "s"])
def test_other_texts_are_no_map(kv: str) -> None:
    assert "nor a KV preset" in refusal("all", kv=kv) or "KV map" in refusal("all", kv=kv)


@pytest.mark.parametrize("kv", [5, 0, True, [0, 0, 2, 2], (0, 1), b"0_0", {"0": 1}, 1.5])
def test_a_map_is_text(kv: Any) -> None:
    assert "write a KV map as in '0_0_2_2'" in refusal("all", kv=kv)


@pytest.mark.parametrize("text", ["", "  "])
def test_an_empty_map_is_told_to_be_left_out(text):
    with pytest.raises(restack.PlanError, match=r"^the KV map is empty; write .* or leave it out$"):
        restack.plan("all", 4, kv=text)
