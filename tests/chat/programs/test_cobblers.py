import json
import math
from types import SimpleNamespace

import pytest
import torch

from restack import view
from restack.chat.programs import Agent, Cobblers, Transcript, cobblers
from restack.chat.programs.routing import CLASSIFY
from restack.errors import UsageError
from restack.runtime import ContextFull, Sampling
from tests.chat.programs.scripted import Heard, Stopped, agent, said

GREEDY = Sampling(temperature=0, max_tokens=32)
ORIGINAL = """\
Please classify the question to one of these classes:
1. Programming
2. Maths
3. Others

Question: {prompt}"""
SHARES = {"sum": (0.7, 0.2, 0.1), "code": (0.1, 0.8, 0.1), "hm": (0.4, 0.3, 0.3)}


@pytest.fixture
def routed(monkeypatch):
    """Routers choose by the first word of the question."""
    asked = []

    def probabilities(model, tokenizer, prompt, options):
        asked.append(options)
        return [math.log(share) for share in SHARES[prompt.split()[0]]]

    monkeypatch.setattr("restack.chat.programs.routing.option_log_probabilities", probabilities)

    def router(self, on_note):
        texts = []
        return SimpleNamespace(hear=texts.append, prompt=lambda: texts[0].partition("Question: ")[2])

    monkeypatch.setattr(type(agent("router")), "conversation", choose(router))
    return asked


def choose(router):
    usual = type(agent("router")).conversation
    return lambda self, on_note: router(self, on_note) if self.name == "router" else usual(self, on_note)


def experts(*counts):
    return [agent(name, *[f"{name[0]}{n}" for n in range(9)]) for name in ("Maths", "Programming", "Others")]


def test_the_first_questions_expert_stays(routed):
    heard = Heard()
    lines = cobblers(agent("router"), experts(), ["code this", "sum that", "hm"], audience=heard)
    assert said(lines) == [
        (1, "You", "code this"), (1, "Programming", "P0"), (2, "You", "sum that"), (2, "Programming", "P1"),
        (3, "You", "hm"), (3, "Programming", "P2"),
    ]  # fmt: skip
    assert routed == [["Maths", "Programming", "Others"]]
    assert heard.notes == ["Programming 80%, Maths 10%, Others 10%"]
    assert lines[3].details == {"expert": "Programming", "confidence": 0.8}


def test_restart_lets_the_router_choose_again(routed):
    together = Cobblers(agent("router"), experts())
    together.ask("code this")
    together.restart()
    together.ask("sum that")
    assert [line.speaker for line in together.stage.lines] == ["You", "Programming", "You", "Maths"]
    assert [len(part.conversation.messages) for part in together.experts.values()] == [2, 0, 0]


def test_per_question_all_experts_hear_all(routed):
    together = Cobblers(agent("router"), experts(), per_question=True)
    for question in ("code this", "sum that", "code it again"):
        together.ask(question)
    assert [line.speaker for line in together.stage.lines[1::2]] == ["Programming", "Maths", "Programming"]
    for part in together.experts.values():
        told = [(message.role, message.content) for message in part.conversation.messages]
        assert told == [("user", "code this"), ("assistant", "P0"), ("user", "sum that"), ("assistant", "M0"),
                        ("user", "code it again"), ("assistant", "P1")]  # fmt: skip


def test_an_answer_without_words_is_not_passed_on(routed):
    heard = Heard()
    together = Cobblers(
        agent("router"), [agent("Maths", ""), *experts()[1:]], per_question=True, audience=heard
    )
    together.ask("sum it")
    assert heard.notes[-1] == "Maths said nothing."
    assert together.experts["Others"].conversation.messages == []


@pytest.mark.parametrize(
    ("settings", "expert"),
    [
        ({}, "Others"),
        ({"fallback": "Programming"}, "Programming"),
        ({"confidence": 0.3}, "Maths"),
        ({"confidence": 0.4, "fallback": "Programming"}, "Maths"),
    ],
)
def test_the_fallback_answers_where_the_router_is_not_sure(routed, settings, expert):
    heard = Heard()
    lines = cobblers(agent("router"), experts(), ["hm"], audience=heard, **settings)
    assert lines[1].speaker == expert and lines[1].details["confidence"] == 0.4
    sure = "Maths 40%, Programming 30%, Others 30%"
    assert heard.notes == [sure if expert == "Maths" else f"{sure}; below 50%, {expert} answers"]


def test_what_is_not_answered_leaves_nothing_behind(routed):
    together = Cobblers(agent("router"), [agent("Maths", ContextFull("full"), "M"), *experts()[1:]])
    with pytest.raises(ContextFull):
        together.ask("sum it")
    assert (together.choice, together.stage.lines, together.stage.turn) == (None, [], 0)
    together.ask("sum it")
    assert said(together.stage.lines) == [(1, "You", "sum it"), (1, "Maths", "M")]


def test_an_interrupt_before_the_first_word_leaves_a_turn_with_no_answer(routed):
    together = Cobblers(agent("router"), [agent("Maths", Stopped("")), *experts()[1:]], per_question=True)
    with pytest.raises(KeyboardInterrupt):
        together.ask("sum it")
    assert said(together.stage.lines) == [(1, "You", "sum it"), (1, "Maths", "")]
    assert together.stage.lines[1].message.finish == "interrupted"
    assert not any(part.conversation.messages for part in together.experts.values())


def test_an_interrupted_answer_is_kept_and_the_others_hear_it(routed, tmp_path):
    path = tmp_path / "talk.jsonl"
    together = Cobblers(
        agent("router"),
        [agent("Maths", Stopped("It is")), *experts()[1:]],
        per_question=True,
        audience=Transcript(path),
    )
    with pytest.raises(KeyboardInterrupt):
        together.ask("sum it")
    question, answer = map(json.loads, path.read_text().splitlines())
    assert (question["content"], answer["content"], answer["finish"]) == ("sum it", "It is", "interrupted")
    assert (answer["expert"], answer["confidence"]) == ("Maths", 0.7)
    assert together.experts["Others"].conversation.messages[-1].content == "It is"


@pytest.mark.parametrize(
    ("names", "settings", "told"),
    [
        (["Maths"], {}, "there is one expert, and a router chooses from two or more"),
        ([], {}, "there are no experts"),
        (["Maths", "Maths"], {}, "'Maths' names two speakers"),
        (["Maths", ""], {}, "'' cannot be a speaker's name"),
        (["Java", "JavaScript"], {}, "'Java' begins that of 'JavaScript'"),
        (["Maths", "Others"], {"fallback": "Cooking"}, "'Cooking' is no expert; name one of Maths, Others"),
        (["Maths", "Others"], {"confidence": 1.1}, "confidence 1.1: write a probability"),
        (["Maths", "Others"], {"prompt": "Which?"}, "lacks {prompt}"),
    ],
)
def test_what_is_refused(names, settings, told):
    with pytest.raises(UsageError, match=told):
        Cobblers(agent("router"), [agent(name) for name in names], **settings)


def test_an_empty_question(routed):
    with pytest.raises(UsageError, match="the question is empty"):
        Cobblers(agent("router"), experts()).ask(" \n")


def test_the_router_is_asked_as_in_the_original_and_decides_by_a_softmax_over_transformers_logits(demo):
    model, tokenizer = demo
    names = ["Programming", "Maths", "Others"]
    question = "What is {classes} in {prompt}?"
    asked = ORIGINAL.replace("{prompt}", question)
    agents = [Agent(name, model, tokenizer, sampling=GREEDY) for name in names]
    choice = Cobblers(Agent("router", model, tokenizer, system="You are Kim."), agents).route(question)
    messages = [{"role": "system", "content": "You are Kim."}, {"role": "user", "content": asked}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    logs = []
    for name in names:
        begun, added = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, name))
        with torch.no_grad():
            logits = model(torch.tensor([begun + added])).logits[0].double().log_softmax(-1)
        logs.append(sum(logits[len(begun) - 1 + at, token].item() for at, token in enumerate(added)))
    expected = torch.tensor(logs).softmax(0).tolist()
    assert list(choice.probabilities.values()) == pytest.approx(expected, abs=1e-5)
    assert choice.confidence == pytest.approx(max(expected), abs=1e-5)


def test_experts_are_plans_of_the_demo(demo):
    model, tokenizer = demo
    agents = [Agent("Numbers", view(model, "0:8,4:12"), tokenizer, sampling=GREEDY),
              Agent("Knowledge", model, tokenizer, sampling=GREEDY)]  # fmt: skip
    lines = cobblers(
        Agent("router", model, tokenizer),
        agents,
        ["What is 12 + 30?", "What is the capital of France?"],
        per_question=True,
        prompt="Which word is it? {classes} {prompt}",
    )
    assert [(line.speaker, line.message.content) for line in lines[1::2]] == [
        ("Numbers", "12 + 30 = 42."),
        ("Knowledge", "The capital of France is Paris."),
    ]


def test_a_model_without_a_template_is_given_the_names_with_a_blank(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "restack.chat.programs.routing.option_log_probabilities",
        lambda model, tokenizer, prompt, options: seen.extend(options) or [0.0, 0.0],
    )
    plain = SimpleNamespace(chat_template=None)
    router = agent("router")
    object.__setattr__(router, "tokenizer", plain)
    Cobblers(router, [agent("Maths", "x"), agent("Others", "y")]).route("hm")
    assert seen == [" Maths", " Others"]


def test_the_prompt_is_that_of_the_original():
    assert CLASSIFY.replace("{classes}", "1. Programming\n2. Maths\n3. Others") == ORIGINAL
