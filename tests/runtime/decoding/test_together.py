"""Texts of several plans in one pass: each gets what it gets alone, bit for bit."""

from functools import partial

import pytest
import torch

from restack import quantize, view
from restack.runtime.decoding import Step, decode, run_together, structure
from restack.runtime.decoding.routes import route
from restack.runtime.decoding.stepper import Stepper
from restack.runtime.native import Kernel, kernel
from restack.views.recording import recording
from tests.llama.tiny import ACYCLIC, CYCLIC
from tests.llama.tiny import model as house
from tests.runtime.decoding.test_decode import PROMPT, made
from tests.runtime.decoding.test_speculation import drafter

PLANS = ["0:4", "0:3,1:4", "3,0,0", "0:2,1@0.5,2@0,3@1.5", "0:4;kv=0_0_2_2", "0:4"]
FORMATS = ["float32", "bfloat16", "int8", "int4", "int4 of bfloat16"]


@pytest.fixture(autouse=True)
def has_kernel():
    if kernel() is None:
        pytest.skip("no C++ compiler")


def stored(format, name="llama", **settings):
    model = made(name, **settings)
    model = model.to(torch.bfloat16) if format.endswith("bfloat16") else model
    return quantize(model, format.split()[0]) if format.startswith("int") else model


class Text:
    """A text that has been read, of a length of its own, and what comes of each of its further steps."""

    def __init__(self, model, number, stops=(), room=5):
        count = model.config.vocab_size
        self.tokens = torch.randint(count, (40,), generator=torch.Generator().manual_seed(number)).tolist()
        self.stepper = Stepper(kernel(), structure(model), [0], room)
        self.route = route(self.stepper.reads, frozenset(stops))
        self.read = 3 + 2 * number
        for token in self.tokens[: self.read]:
            self.stepper.step([[token]], [0])
        self.logits, self.entered = [], []

    def next(self):
        return Step(self.stepper, self.route, self.tokens[self.stepper.lengths[0]])

    def note(self, step):
        self.logits.append(step.logits)
        self.entered.append(step.entered)


def run(texts, steps=10):
    for _ in range(steps):
        going = [text.next() for text in texts]
        run_together(going)
        for text, step in zip(texts, going, strict=True):
            text.note(step)


def compare(models, stops=()):
    together = [Text(model, number, stops) for number, model in enumerate(models)]
    alone = [Text(model, number, stops) for number, model in enumerate(models)]
    run(together)
    for text in alone:
        run([text])
    for one, other in zip(together, alone, strict=True):
        assert torch.equal(torch.cat(one.logits), torch.cat(other.logits))
        for of_one, of_other in zip(one.entered, other.entered, strict=True):
            assert of_one.keys() == of_other.keys() == set(stops)
            assert all(torch.equal(of_one[visit], of_other[visit]) for visit in stops)
    return together


@pytest.mark.parametrize("format", FORMATS)
def test_plans_of_one_model(format):
    base = stored(format)
    compare([view(base, plan) for plan in PLANS])


@pytest.mark.parametrize("name", ["mistral", "qwen2 with windows", "qwen3", "llama with biases"])
def test_families_and_windows(name):
    base = made(name)
    compare([view(base, plan) for plan in ("0:4", "0:3,1:4", "0:2,2@0.5,3")])


@pytest.mark.parametrize("kv_map", [*ACYCLIC.values(), *CYCLIC.values()])
def test_the_house_model_with_any_kv_map(kv_map):
    base = house(kv_map, initializer_range=0.3)
    compare([base, base, house(initializer_range=0.3)])


def test_models_that_share_nothing():
    compare([made("llama"), made("llama"), made("llama", tie_word_embeddings=True)])


def test_each_is_what_the_model_says():
    base = made("llama")
    for text, plan in zip(compare([view(base, plan) for plan in PLANS]), PLANS, strict=True):
        with torch.no_grad():
            whole = view(base, plan)(torch.tensor([text.tokens[: text.read + 10]])).logits[0, text.read :]
        torch.testing.assert_close(torch.cat(text.logits), whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("format", ["float32", "bfloat16"])
def test_what_enters_visits_is_kept_for_each(format):
    base = stored(format)
    compare([view(base, plan) for plan in ("0:4", "0:3,1:4", "0:2,3,1")], stops=(1, 2, 3))
    [text] = compare([base], stops=(0, 2, 4))
    entered = text.entered[-1]
    assert {hidden.dtype for hidden in entered.values()} == {base.dtype}
    if format == "float32":
        with torch.no_grad():
            whole = base.model(torch.tensor([text.tokens[: text.read + 10]]), output_hidden_states=True)
        for visit in (0, 2):
            torch.testing.assert_close(
                entered[visit], whole.hidden_states[visit][:, -1:], atol=1e-4, rtol=1e-4
            )


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("threads", [1, 3])
def test_a_row_does_not_depend_on_the_others(format, threads):
    torch.set_num_threads(threads)
    model = stored(format, "qwen3", vocab_size=97)
    found = structure(model)

    def logits(rows):
        stepper = Stepper(kernel(), found, [0] * len(rows), 40)
        steps = ([[(7 * row + 3 * place) % 97] for row in rows] for place in range(6))
        return torch.stack([stepper.step(tokens, range(len(rows))) for tokens in steps], dim=1)

    alone = torch.cat([logits([row]) for row in range(13)])
    for count in (2, 3, 4, 5, 8, 13):
        assert torch.equal(logits(range(count)), alone[:count])


def test_each_layer_is_read_once_for_all(monkeypatch):
    base, step, passes = made("llama"), Kernel.step, []

    def counted(kernel, visits, tokens, hidden):
        passes.append((len(visits), tokens.rows))
        step(kernel, visits, tokens, hidden)

    texts = [Text(view(base, plan), number) for number, plan in enumerate(["0:4", "0:3,1:4", "0,1,3", "0:4"])]
    monkeypatch.setattr(Kernel, "step", counted)
    run(texts, steps=1)
    assert sum(length for length, _ in passes) == 6  # what the deepest takes alone
    assert sum(length * rows for length, rows in passes) == 4 + 6 + 3 + 4


def test_what_fails_leaves_all_texts_as_they_were(monkeypatch):
    texts = [Text(made("llama"), number) for number in range(3)]
    alone = [Text(made("llama"), number) for number in range(3)]
    going = [text.next() for text in texts]
    with monkeypatch.context() as patch:
        patch.setattr(Kernel, "logits", lambda *given: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_together(going)
    assert all(step.logits is None for step in going)
    run(texts)
    for text, other in zip(texts, alone, strict=True):
        run([other])
        assert torch.equal(torch.cat(text.logits), torch.cat(other.logits))


class Others:
    """Company that counts, and runs each step beside one of another text."""

    def __init__(self, model):
        self.text = Text(model, 1, room=60)
        self.pauses = self.steps = 0

    def between(self):
        self.pauses += 1

    def run(self, step):
        self.steps += 1
        run_together([self.text.next(), step])
        return step.logits


def test_a_text_in_company_is_the_one_alone(monkeypatch):
    monkeypatch.setattr("restack.runtime.decoding.loop.PIECE", 5)
    base = made("llama")
    model, others, found = view(base, "0:3,1:4"), Others(base), []
    for company in (None, others):
        with recording(model, (0, 3, 6)) as hidden:
            lean = partial(decode, company=company)
            text = model.generate(PROMPT, do_sample=False, max_new_tokens=12, custom_generate=lean)
        found.append((text, *(hidden[visit] for visit in (0, 3, 6))))
    assert (others.pauses, others.steps) == (2, 11)
    assert torch.equal(found[0][0], found[1][0])
    for alone, beside in zip(found[0][1:], found[1][1:], strict=True):
        assert beside.shape[1] == 13 + 11
        torch.testing.assert_close(beside, alone, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("is_lean", [True, False])
def test_company_goes_on_where_steps_are_not_shared(is_lean):
    """Beside a draft, and where transformers runs the model."""
    model, others = made("llama"), Others(made("llama"))
    options = {"drafter": drafter(view(model, "0:3"), 2)} if is_lean else {}
    if not is_lean:
        model.lm_head.register_forward_hook(lambda *given: None)
    lean = partial(decode, company=others, **options)
    text = model.generate(PROMPT, do_sample=False, max_new_tokens=9, custom_generate=lean)
    assert text.shape[1] == 13 + 9 and others.steps == 0 and 3 <= others.pauses <= 9
