"""The spec language: the layer specs of chatllm.cpp, with repeats, damping, scales, donors and a KV map.

    plan  := item ("," item)* [";kv=" map]
    item  := [donor "/"] (slice | index) ["x" K] ["@" D] ["{" filter ":" S ("," filter ":" S)* "}"]
    slice := as in Python, half-open, negatives from the end

Blanks around items are ignored. Everything else that is not in the grammar, or not in the model, is an error that
points at the character. Its canonical form, `write`, is the text of a plan: greedy longest runs.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

from restack.errors import PlanError
from restack.plans import kv_map
from restack.plans.pointing import error_at
from restack.plans.value import MAX_VISITS, Plan, Visit

INTEGER = re.compile(r"-?[0-9]+")
NUMBER = re.compile(r"-?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)")
FILTER = re.compile(r"[A-Za-z0-9_.*-]+")
MAX_DIGITS = 9  # of an index: more cannot be a layer, and Python refuses to read very long integers


def parse(text: str, depths: Sequence[int]) -> Plan:
    """The plan that a spec writes, over donors of these depths.

    Raises:
        PlanError: the text is not a spec, or names a layer, donor or owner that does not exist; the message shows
            the place, what is wrong and what to write instead.
    """
    return _Reader(text, tuple(depths)).plan()


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


@dataclass
class _Reader:
    """Reads a spec from left to right; `at` is the next character."""

    text: str
    depths: tuple[int, ...]
    at: int = 0

    def plan(self) -> Plan:
        body, mark, owners = self.text.partition(";")
        if body.strip() != "all":
            visits = self.items(len(body))
        elif len(self.depths) == 1:
            visits = [Visit(layer) for layer in range(self.depths[0])]
        else:
            raise self.error(0, len(body), "all of which donor?", "write 0/:,1/: or the ranges you mean")
        plan = Plan(tuple(visits), self.depths)
        if not mark:
            return plan
        if not owners.startswith("kv="):
            raise self.error(
                len(body), len(self.text), "only a KV map may follow the layers", "write ;kv=0_0_2_2"
            )
        return kv_map.read(self.text, plan, start=len(body) + len(";kv="))

    def items(self, end: int) -> list[Visit]:
        visits: list[Visit] = []
        while True:
            visits += self.item(end)
            if len(visits) > MAX_VISITS:
                raise self.error(self.at - 1, self.at, f"more than {MAX_VISITS} visits", "repeat less")
            if self.at == end:
                return visits
            self.at += 1  # the comma

    def item(self, end: int) -> list[Visit]:
        self.blanks(end)
        start = self.at
        if start == end or self.text[start] == ",":
            raise self.error(
                start, start + 1, "an empty item", "remove the comma, or write the layers you mean"
            )
        donor = self.donor(end)
        layers = self.layers(donor, end)
        times = self.times(end) if self.mark("x", end) else 1
        damp = self.finite(end) if self.mark("@", end) else 1.0
        scale = self.scale(end) if self.mark("{", end) else ()
        self.blanks(end)
        if self.at < end and self.text[self.at] != ",":
            raise self.error(
                self.at, self.at + 1, "not part of a spec", "write slices and layers as in 0:8,4:12,11"
            )
        if len(layers) * times > MAX_VISITS:
            raise self.error(start, self.at, f"more than {MAX_VISITS} visits", "repeat less")
        return [Visit(layer, damp=damp, scale=scale, donor=donor) for layer in layers] * times

    def donor(self, end: int) -> int:
        found = INTEGER.match(self.text, self.at, end)
        if not found or found.end() == end or self.text[found.end()] != "/":
            if len(self.depths) > 1:
                raise self.error(
                    self.at,
                    self.at + 1,
                    f"which of the {len(self.depths)} donors?",
                    "write 0/ or 1/ before the layers",
                )
            return 0
        donor = self.integer(end)
        if not 0 <= donor < len(self.depths):
            raise self.error(
                found.start(), found.end(), f"donor {donor} is past the plan's {len(self.depths)}",
                f"write 0/ to {len(self.depths) - 1}/",
            )  # fmt: skip
        self.at += 1
        return donor

    def layers(self, donor: int, end: int) -> Sequence[int]:
        start = self.at
        depth = self.depths[donor]
        first = self.bound(end)
        if self.at == end or self.text[self.at] != ":":
            if first is None:
                raise self.error(
                    start, start + 1, "not a layer or a slice", "write 0:8 for layers 0..7, or 5 for one"
                )
            layer = first + depth if first < 0 else first
            if not 0 <= layer < depth:
                remedy = f"the last layer is {depth - 1} or -1"
                raise self.error(start, self.at, f"layer {first} is past {_extent(depth)}", remedy)
            return (layer,)
        parts = [(first, start, self.at)]
        while self.at < end and self.text[self.at] == ":":
            if len(parts) == 3:
                raise self.error(
                    self.at, self.at + 1, "a slice has at most start:stop:step", "write a comma between items"
                )
            self.at += 1
            begin = self.at
            parts.append((self.bound(end), begin, self.at))
        return self.slice(parts, depth, start)

    def slice(self, parts: list[tuple[int | None, int, int]], depth: int, start: int) -> range:
        names = ("start", "stop", "step")
        step = parts[2][0] if len(parts) == 3 else None
        if step == 0:
            raise self.error(*parts[2][1:], "step 0 goes nowhere", "write 1 or leave it out")
        for name, (value, begin, end) in zip(names[:2], parts[:2], strict=True):
            if value is None or -depth <= value <= depth:
                continue
            remedy = _open_ended(name, parts, step)
            raise self.error(begin, end, f"{name} {value} is past {_extent(depth)}", remedy)
        bounds = slice(parts[0][0], parts[1][0], step)
        layers = range(*bounds.indices(depth))
        if not layers:
            text = self.text[start : self.at]
            raise self.error(
                start, self.at, f"{text} holds no layer of {_extent(depth)}", "a stop is not included"
            )
        return layers

    def bound(self, end: int) -> int | None:
        return self.integer(end) if INTEGER.match(self.text, self.at, end) else None

    def integer(self, end: int) -> int:
        found = INTEGER.match(self.text, self.at, end)
        if not found:
            raise self.error(self.at, self.at + 1, "a whole number should stand here", "write digits 0 to 9")
        if len(found[0].lstrip("-0")) > MAX_DIGITS:
            raise self.error(*found.span(), "this number is past any model's layers", "write fewer digits")
        self.at = found.end()
        return int(found[0])

    def times(self, end: int) -> int:
        start = self.at
        times = self.integer(end)
        if times < 1:
            raise self.error(
                start, self.at, f"{times} runs is not a repeat", "write x1 or more, or leave the item out"
            )
        return times

    def finite(self, end: int) -> float:
        found = NUMBER.match(self.text, self.at, end)
        if not found:
            raise self.error(
                self.at, self.at + 1, "a decimal number should stand here", "write one as in 0.7"
            )
        number = float(found[0])
        if number in (float("inf"), float("-inf")):
            raise self.error(*found.span(), "this number is too large", "write a finite one as in 0.7")
        self.at = found.end()
        return number

    def scale(self, end: int) -> tuple[tuple[str, float], ...]:
        scale = []
        while True:
            found = FILTER.match(self.text, self.at, end)
            if not found:
                raise self.error(
                    self.at, self.at + 1, "a tensor filter should stand here", "write {o_proj:0.7}"
                )
            self.at = found.end()
            if not self.mark(":", end):
                raise self.error(self.at, self.at + 1, "a filter needs its scale", "write {o_proj:0.7}")
            scale.append((found[0], self.finite(end)))
            if self.mark("}", end):
                return tuple(scale)
            if not self.mark(",", end):
                raise self.error(self.at, self.at + 1, "the filters do not end", "close them with }")

    def mark(self, character: str, end: int) -> bool:
        found = self.at < end and self.text[self.at] == character
        self.at += found
        return found

    def blanks(self, end: int) -> None:
        while self.at < end and self.text[self.at] == " ":
            self.at += 1

    def error(self, start: int, end: int, wrong: str, remedy: str) -> PlanError:
        return error_at(self.text, start, end, wrong, remedy)


def _extent(depth: int) -> str:
    return f"the model's {depth} layers (0..{depth - 1})" if depth > 1 else "the model's one layer (0)"


def _open_ended(name: str, parts: list[tuple[int | None, int, int]], step: int | None) -> str:
    """What to write for a slice that passes the end: the same one, left open at that end."""
    texts = ["" if value is None else str(value) for value, *_ in parts]
    texts[0 if name == "start" else 1] = ""
    end = "the end" if (name == "stop") == (step is None or step > 0) else "layer 0"
    verb = "run to" if name == "stop" else "start at"
    return f"write {':'.join(texts)} to {verb} {end}"


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
