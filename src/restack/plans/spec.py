"""The spec language: the layer specs of chatllm.cpp, with repeats, damping, scales, donors and a KV map.

    plan  := item ("," item)* [";kv=" map]
    item  := [donor "/"] (slice | index) ["x" K] ["@" D] ["{" filter ":" S ("," filter ":" S)* "}"]
    slice := as in Python, half-open, negatives from the end

`all` is every layer of the only donor. Blanks around items are ignored. Everything else that is not in the
grammar, or not in the model, is an error that points at the character. The canonical form, `write`, is the
text of a plan: greedy longest runs.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal

from restack.errors import PlanError
from restack.plans import kv_map
from restack.plans.pointing import MAX_DIGITS, error_at, extent, number_at, shown
from restack.plans.value import (
    MAX_FILTER_LENGTH,
    MAX_FILTERS,
    MAX_VISITS,
    Plan,
    Scale,
    Visit,
    checked_depths,
)

INTEGER = re.compile(r"-?[0-9]+")
NUMBER = re.compile(r"-?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)")
FILTER = re.compile(rf"[A-Za-z0-9_.*-]{{1,{MAX_FILTER_LENGTH}}}")
DASHED = re.compile(rf"([0-9]{{1,{MAX_DIGITS}}})-([0-9]{{1,{MAX_DIGITS}}})")  # 0-3: not ours, but often meant
MAX_NUMBER = 400  # characters of a damp or scale: the longest that `write` prints has some 345


def parse(text: str, depths: Sequence[int]) -> Plan:
    """The plan that a spec writes, over donors of these depths.

    Raises:
        PlanError: the text is not a spec, or names a layer, donor or owner that does not exist; the message
            shows the place, what is wrong and what to write instead.
    """
    if not isinstance(text, str):
        raise PlanError(f"{shown(text)} is no text; write a spec as in '0:8,4:12'")
    return _Reader(text, checked_depths(depths)).plan()


def write(plan: Plan) -> str:
    """The canonical text of a plan; `parse(write(p), p.depths) == p`."""
    items = []
    start = 0
    visits = tuple(replace(visit, kv=None, sliding=False) for visit in plan.visits)
    while start < len(visits):
        visit = visits[start]
        layers, length = _longest_item(visits, start, plan.depths[visit.donor])
        donor = f"{visit.donor}/" if len(plan.depths) > 1 else ""
        items.append(donor + layers + _modifiers(visit))
        start += length
    text = ",".join(items)
    return text if kv_map.is_plain(plan) else f"{text};kv={kv_map.write(plan)}"


class _Reader:
    """Reads a spec from left to right; `at` is the next character, `end` is past the last of the layers."""

    def __init__(self, text: str, depths: tuple[int, ...]) -> None:
        self.text = text
        self.depths = depths
        self.at = 0
        self.end = text.index(";") if ";" in text else len(text)

    def plan(self) -> Plan:
        if self.text[: self.end].strip(" ") != "all":
            visits = self.items()
        elif len(self.depths) == 1:
            visits = [Visit(layer) for layer in range(self.depths[0])]
        else:
            raise self.error(0, self.end, "all of which donor?", "write 0/:,1/: or the ranges you mean")
        plan = Plan(tuple(visits), self.depths)
        if self.end == len(self.text):
            return plan
        if not self.text.startswith(";kv=", self.end):
            wrong = "after a semicolon only a KV map may follow"
            remedy = "write a comma between items, or ;kv=0_0_2_2"
            raise self.error(self.end, self.end + 1, wrong, remedy)
        return kv_map.read(self.text, plan, start=self.end + len(";kv="))

    def items(self) -> list[Visit]:
        visits = self.item()
        while self.mark(","):
            start = self.at
            visits += self.item()
            if len(visits) > MAX_VISITS:
                raise self.error(start, self.at, f"the plan passes {MAX_VISITS} visits here", "repeat less")
        return visits

    def item(self) -> list[Visit]:
        self.blanks()
        start = self.at
        if start == self.end or self.text[start] == ",":
            raise self.here("an empty item", "remove the comma, or write the layers you mean")
        donor = self.donor()
        layers = self.layers(self.depths[donor])
        times = self.times() if self.mark("x") else 1
        damp = self.finite() if self.mark("@") else 1.0
        scale = self.scale() if self.mark("{") else ()
        last = self.at
        self.blanks()
        if self.at < self.end and self.text[self.at] != ",":
            raise self.here("not part of a spec", self.remedy_for_junk(start))
        if len(layers) * times > MAX_VISITS:
            raise self.error(start, last, f"more than {MAX_VISITS} visits", "repeat less")
        return [Visit(layer, damp=damp, scale=scale, donor=donor) for layer in layers] * times

    def remedy_for_junk(self, start: int) -> str:
        """What to write for an item that begins at `start` and goes wrong at `at`."""
        dashed = DASHED.match(self.text, start, self.end)
        if dashed and dashed.end(1) == self.at:
            return f"write {dashed[1]}:{int(dashed[2]) + 1} for layers {dashed[1]} to {dashed[2]}"
        return "write slices and layers with a comma between them, as in 0:8,4:12,11"

    def donor(self) -> int:
        start = self.at
        found = INTEGER.match(self.text, start, self.end)
        if not found or not self.text.startswith("/", found.end(), self.end):
            if len(self.depths) > 1:
                wrong = f"which of the {len(self.depths)} donors?"
                raise self.here(wrong, "write its number and a slash before the layers, as in 0/0:16")
            return 0
        donor = self.integer()
        if not 0 <= donor < len(self.depths):
            wrong = f"donor {donor} is past the plan's {len(self.depths)}"
            raise self.error(start, self.at, wrong, f"write 0/ to {len(self.depths) - 1}/")
        self.at += 1  # the slash
        return donor

    def layers(self, depth: int) -> Sequence[int]:
        bounds: list[int | None] = []
        spans: list[tuple[int, int]] = []
        while True:
            start = self.at
            bounds.append(self.integer() if INTEGER.match(self.text, start, self.end) else None)
            spans.append((start, self.at))
            if not self.text.startswith(":", self.at, self.end):
                break
            if len(bounds) == 3:
                raise self.here("a slice has at most start:stop:step", "write a comma between items")
            self.at += 1
        if len(bounds) > 1:
            return self.slice(bounds, spans, depth)
        if bounds[0] is None and self.text.startswith("(", self.at):
            raise self.here("a block (i,j) stands alone", "in a spec write slices, as in 0:8,4:12")
        if bounds[0] is None:
            raise self.here("not a layer or a slice", "write 0:8 for layers 0 to 7, or 5 for one")
        if not -depth <= bounds[0] < depth:
            wrong = f"layer {bounds[0]} is past {extent(depth)}"
            raise self.error(*spans[0], wrong, f"the last layer is {depth - 1} or -1")
        return (bounds[0] % depth,)

    def slice(self, bounds: list[int | None], spans: list[tuple[int, int]], depth: int) -> range:
        step = bounds[2] if len(bounds) == 3 else None
        if step == 0:
            raise self.error(*spans[2], "step 0 goes nowhere", "write 1 or leave it out")
        for place, (name, highest) in enumerate((("start", depth - 1), ("stop", depth))):
            bound = bounds[place]
            if bound is not None and not -depth <= bound <= highest:
                wrong = f"{name} {bound} is past {extent(depth)}"
                raise self.error(*spans[place], wrong, _remedy_for_bound(bounds, place, depth))
        layers = _range(bounds, depth)
        if not layers:
            start, end = spans[0][0], self.at
            why, remedy = _about_empty(layers)
            raise self.error(start, end, f"{self.text[start:end]} holds no layer: {why}", remedy)
        return layers

    def integer(self) -> int:
        found = INTEGER.match(self.text, self.at, self.end)
        if not found:
            raise self.here("a whole number should stand here", "write digits 0 to 9")
        self.at = found.end()
        return number_at(self.text, *found.span())

    def times(self) -> int:
        start = self.at
        times = self.integer()
        if times < 1:
            wrong = f"{times} runs is not a repeat"
            raise self.error(start, self.at, wrong, "write x1 or more, or leave the item out")
        return times

    def finite(self) -> float:
        found = NUMBER.match(self.text, self.at, self.end)
        if not found:
            raise self.here("a decimal number should stand here", "write one as in 0.7")
        if len(found[0]) > MAX_NUMBER or not math.isfinite(number := float(found[0])):
            raise self.error(*found.span(), "this number is too long", "write a finite one as in 0.7")
        self.at = found.end()
        if self.text.startswith(("e", "E"), self.at, self.end):
            raise self.here("a spec has no exponents", "write the number out, as in 0.001")
        return number

    def scale(self) -> Scale:
        scale = []
        while True:
            found = FILTER.match(self.text, self.at, self.end)
            if not found:
                raise self.here("part of a tensor's name should stand here", "write it as in {o_proj:0.7}")
            self.at = found.end()
            if not self.mark(":"):
                raise self.here("a filter needs its scale", "write it as in {o_proj:0.7}")
            scale.append((found[0], self.finite()))
            if len(scale) > MAX_FILTERS:
                raise self.error(*found.span(), f"more than {MAX_FILTERS} filters", "write fewer")
            if self.mark("}"):
                return tuple(scale)
            if not self.mark(","):
                raise self.here("the filters do not end", "close them with }, or write a comma and another")

    def mark(self, character: str) -> bool:
        found = self.text.startswith(character, self.at, self.end)
        self.at += found
        return found

    def blanks(self) -> None:
        while self.mark(" "):
            pass

    def here(self, wrong: str, remedy: str) -> PlanError:
        return self.error(self.at, self.at + 1, wrong, remedy)

    def error(self, start: int, end: int, wrong: str, remedy: str) -> PlanError:
        return error_at(self.text, start, end, wrong, remedy)


def _range(bounds: list[int | None], depth: int) -> range:
    return range(*slice(*bounds).indices(depth))


def _remedy_for_bound(bounds: list[int | None], place: int, depth: int) -> str:
    """What to write for a slice whose start (place 0) or stop (1) is past the model: leave it open there."""
    opened = [*bounds[:place], None, *bounds[place + 1 :]]
    other = opened[1 - place]
    if (other is not None and not -depth <= other <= depth - place) or not _range(opened, depth):
        return f"write a start from 0 to {depth - 1} and a stop up to {depth}"
    text = ":".join("" if bound is None else str(bound) for bound in opened)
    upwards = len(bounds) < 3 or (bounds[2] or 1) > 0
    if place == 0:
        return f"write {text} to start at {'layer 0' if upwards else 'the end'}"
    return f"write {text} to run to {'the end' if upwards else 'layer 0'}"


def _about_empty(layers: range) -> tuple[str, str]:
    """Why a slice has no layers, and what to write: `layers` has its bounds, counted from 0."""
    low, high = sorted((layers.start, layers.stop))
    if low == high:
        return "its stop is not included", f"write {low} for that layer alone"
    step = abs(layers.step)
    up, down = f"{low}:{high}" + (f":{step}" if step > 1 else ""), f"{high}:{low}:-{step}"
    return f"its step is {layers.step}", f"write {up} to run up, or {down} to run down"


def _longest_item(visits: tuple[Visit, ...], start: int, depth: int) -> tuple[str, int]:
    """The item that covers most visits from `start` on, without its modifiers, and how many it covers."""
    run = _run_length(visits, start)
    step = visits[start + 1].layer - visits[start].layer if run > 1 else 0
    times = 1
    while visits[start : start + run] == visits[start + times * run : start + (times + 1) * run]:
        times += 1
    last = start + times * run
    if times > 1 and run > 1 and last < len(visits) and visits[last] == _stepped(visits[last - 1], step):
        times -= 1  # the last repeat is the beginning of a longer run
    first, final = visits[start].layer, visits[start + run - 1].layer
    if run == 1:
        text = str(first)
    elif step > 0:
        text = f"{first}:{min(final + step, depth)}" + (f":{step}" if step > 1 else "")
    else:
        text = f"{first}:{final + step if final + step >= 0 else ''}:{step}"
    return text + (f"x{times}" if times > 1 else ""), run * times


def _run_length(visits: tuple[Visit, ...], start: int) -> int:
    """How many visits from `start` on are one slice: evenly spaced, otherwise alike."""
    if start + 1 == len(visits):
        return 1
    step = visits[start + 1].layer - visits[start].layer
    length = 1
    while (
        step
        and start + length < len(visits)
        and visits[start + length] == _stepped(visits[start + length - 1], step)
    ):
        length += 1
    return length if length >= (2 if step == 1 else 3) else 1


def _stepped(visit: Visit, step: int) -> Visit:
    return replace(visit, layer=visit.layer + step)


def _modifiers(visit: Visit) -> str:
    damp = "" if visit.damp == 1 else f"@{_decimal(visit.damp)}"
    scale = ",".join(f"{name}:{_decimal(factor)}" for name, factor in visit.scale)
    return damp + (f"{{{scale}}}" if scale else "")


def _decimal(number: float) -> str:
    """The shortest decimal text of a float, without an exponent."""
    return format(Decimal(repr(number)), "f").removesuffix(".0")
