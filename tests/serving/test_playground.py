"""The page at `/`: in a real browser, where there is one, and what it asks of the server."""

import json
import re
import urllib.error
import urllib.parse

import pytest

import restack
from restack.recipes.description import described as identity
from restack.serving.playground import FILES
from tests.serving.running import DEEPER, running


def described(server, model):
    return json.loads(server.get(f"/v1/playground/plan?model={urllib.parse.quote(model)}"))


def test_a_plan_is_described(server):
    found = described(server, "demo@0:8,4:12@0.5;kv=0x2_2x14")
    assert found["plan"] == "0:8,4:12@0.5;kv=0x2_2x14"
    assert [visit["layer"] for visit in found["visits"]] == [*range(8), *range(4, 12)]
    assert [visit["owner"] for visit in found["visits"]] == [0, 0] + [2] * 14
    assert {visit["damp"] for visit in found["visits"]} == {1.0, 0.5}
    assert found["mergekit"] is None  # which has no such thing
    assert described(server, "deeper")["plan"] == DEEPER
    assert "layer_range" in described(server, "deeper")["mergekit"]


def test_a_scan_is_told_with_what_says_whose_it_is(server):
    assert json.loads(server.get("/v1/playground/scan")) is None
    demo, deeper, shallow = json.loads(server.get("/v1/playground/bases"))
    assert (demo["name"], demo["depth"], deeper["depth"], shallow["depth"]) == ("demo", 12, 16, 8)
    assert demo["identity"] == identity(restack.open("demo", dtype="float32"))
    assert deeper["identity"]["plan"] == DEEPER


def test_a_scan_needs_the_key():
    with running(api_key="secret", scan={"model": "demo"}) as server:
        for path in ("/v1/playground/scan", "/v1/playground/bases"):
            with pytest.raises(urllib.error.HTTPError, match="401"):
                server.get(path)


def test_the_page_takes_nothing_from_elsewhere(server):
    parts = [server.get(path) for path in ("/", *(f"/playground/{name}" for name in FILES))]
    for part in parts:
        places = re.findall(r"https?://[^\s\"'`]+", part)
        assert set(places) <= {"http://www.w3.org/2000/svg"}
    assert server.post("/playground/secret.py", {})[0] in (404, 405)


@pytest.fixture
def page(browser, server):
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    found = context.new_page()
    wrong = []
    found.on("pageerror", lambda error: wrong.append(str(error)))
    found.goto(server.url)
    yield found
    assert not wrong
    context.close()


def cells(page, count):
    from playwright.sync_api import expect

    expect(page.locator("#stack rect")).to_have_count(count, timeout=20_000)


def test_a_stack_is_drawn_as_it_is_typed(page):
    cells(page, 12)
    page.fill("#spec", DEEPER)
    cells(page, 16)
    assert page.locator("#stack .run2").count() == 4
    page.get_by_role("button", name="::2").click()
    cells(page, 6)
    assert page.locator("#stack .skipped").count() == 6
    page.get_by_role("button", name="cla2").click()
    cells(page, 12)
    assert page.locator("#stack .kv").count() == 6


def test_what_is_wrong_is_pointed_at_and_can_be_mended(page):
    from playwright.sync_api import expect

    cells(page, 12)
    page.fill("#spec", "0:8,4:120")
    expect(page.locator("#error")).to_contain_text(
        "^^^ stop 120 is past the model's 12 layers", timeout=20_000
    )
    assert page.locator("#error").text_content().index("^") == len("0:8,4:")
    expect(page.locator("#send")).to_be_disabled()
    page.fill("#spec", "0:8")
    cells(page, 8)
    expect(page.locator("#error")).to_be_hidden()
    expect(page.locator("#send")).to_be_enabled()


def test_both_answer_side_by_side(page, server):
    from playwright.sync_api import expect

    page.fill("#spec", DEEPER)
    cells(page, 16)
    page.fill("#question", "What is 3 + 4?")
    page.press("#question", "Enter")
    expect(page.locator(".said small")).to_have_count(2, timeout=30_000)
    for side, model in (("left", "demo"), ("right", f"demo@{DEEPER}")):
        answer = server.openai.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": "What is 3 + 4?"}],
            temperature=0,
            max_tokens=200,
        )
        said = page.locator(f"#{side} .assistant").text_content()
        assert said.startswith(answer.choices[0].message.content)


def test_escape_stops_both(page, server):
    from playwright.sync_api import expect

    cells(page, 12)
    page.fill("#temperature", "2")
    page.fill("#tokens", "900")
    page.fill("#question", "Tell me a story.")
    page.press("#question", "Enter")
    expect(page.locator("#left .assistant")).not_to_be_empty(timeout=20_000)
    page.keyboard.press("Escape")
    expect(page.locator(".said small")).to_have_count(2, timeout=20_000)
    assert server.is_idle(10)


def test_it_is_copied_in_four_ways(page):
    from playwright.sync_api import expect

    page.fill("#spec", DEEPER)
    cells(page, 16)
    for kind, part in (
        ("spec", DEEPER), ("mergekit", "layer_range"), ("recipe", "restack save"), ("curl", f"demo@{DEEPER}"),
    ):  # fmt: skip
        page.get_by_role("button", name=kind, exact=True).click()
        expect(page.locator("#copied")).to_have_text(f"{kind} copied")
        assert part in page.evaluate("navigator.clipboard.readText()")


def test_a_key_is_asked_for(browser):
    from playwright.sync_api import expect

    with running(api_key="secret") as server:
        page = browser.new_page()
        page.goto(server.url)
        expect(page.locator("#key-field")).to_be_visible(timeout=20_000)
        page.fill("#key", "secret")
        page.press("#key", "Enter")
        cells(page, 12)
        page.close()
