import pytest
import torch

from restack import recipes
from restack.chat import PLAIN_TEMPLATE, Conversation, Message
from restack.chat.template import PLAIN_STOPS
from restack.errors import UsageError
from restack.runtime import ContextFull, Sampling
from restack.views import view

GREEDY = Sampling(temperature=0, max_tokens=24)


def by_transformers(model, tokenizer, messages, tokens=24, **template):
    """The greedy answer by transformers alone."""
    template = {"add_generation_prompt": True} | template
    ids = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True, **template)[
        "input_ids"
    ]
    output = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=tokens)
    return tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def said(talk):
    """The messages as transformers has them."""
    return [{"role": message.role, "content": message.content} for message in talk.messages]


def after(talk, *messages):
    """The conversation, these messages being all that was said."""
    talk.messages = [Message.of(message["role"], message["content"]) for message in messages]
    return talk


def test_an_answer_is_what_transformers_gives_and_history_is_kept(demo):
    talk = Conversation(*demo, system="You are Demo.", sampling=GREEDY)
    system = {"role": "system", "content": "You are Demo."}
    first = talk.ask("What is the capital of France?").content
    assert first == by_transformers(*demo, [system, user("What is the capital of France?")])
    second = talk.ask("What is 3 + 4?").content
    history = [system, user("What is the capital of France?"), assistant(first), user("What is 3 + 4?")]
    assert second == by_transformers(*demo, history)
    assert said(talk) == [*history, assistant(second)]


def test_pieces_together_are_the_answer(demo):
    pieces = []
    answer = Conversation(*demo, sampling=GREEDY).ask("Tell me a story about Ben and a kite.", pieces.append)
    assert "".join(piece.text for piece in pieces) == answer.content
    assert len(pieces) > 3


def test_the_prefix_begins_the_answer_and_is_kept(demo):
    prefix = "Let's think step by step.\n"
    talk = Conversation(*demo, ai_prefix=prefix, sampling=GREEDY)
    answer = talk.ask("What is 345 + 213?").content
    messages = [user("What is 345 + 213?"), assistant(prefix)]
    told = by_transformers(*demo, messages, add_generation_prompt=False, continue_final_message=True)
    assert answer == prefix + told
    assert said(talk)[-1] == assistant(answer)


def test_the_model_can_change_in_the_middle(demo):
    model, tokenizer = demo
    talk = Conversation(model, tokenizer, sampling=GREEDY)
    first = talk.ask("Hello!").content
    talk.model = view(model, "0:8,4:12")
    second = talk.ask("What is 3 + 4?").content
    history = [user("Hello!"), assistant(first), user("What is 3 + 4?")]
    assert second == by_transformers(talk.model, tokenizer, history)


def test_reset_keeps_the_system_prompt(demo):
    talk = Conversation(*demo, system="You are Demo.", sampling=GREEDY)
    talk.ask("Hello!")
    talk.reset()
    assert said(talk) == [{"role": "system", "content": "You are Demo."}]


def test_an_interrupted_answer_is_kept_as_far_as_it_came(demo):
    def interrupt(piece):
        heard.append(piece.text)
        if len(heard) == 3:
            raise KeyboardInterrupt

    heard = []
    talk = Conversation(*demo, sampling=GREEDY)
    with pytest.raises(KeyboardInterrupt):
        talk.ask("Tell me a story about Ben and a kite.", interrupt)
    assert said(talk)[-1] == assistant("".join(heard))


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_message_is_refused(demo, text):
    talk = Conversation(*demo)
    with pytest.raises(UsageError, match="empty"):
        talk.ask(text)
    assert talk.messages == []


@pytest.mark.parametrize("prefix", ["", "Well,"])
def test_a_message_past_the_context_is_refused_and_forgotten(demo, prefix):
    pieces = []
    talk = Conversation(*demo, ai_prefix=prefix, sampling=GREEDY)
    with pytest.raises(ContextFull, match="the model's context is 1024"):
        talk.ask("word " * 2000, pieces.append)
    assert talk.messages == pieces == []


def test_what_is_not_utf8_is_not_put_on_the_template(demo):
    talk = Conversation(*demo)
    with pytest.raises(UsageError, match="the conversation is not UTF-8"):
        talk.ask("caf\udce9")
    assert talk.messages == []


# Llama 3's in short: what is said is trimmed.
TRIMMING = (
    "{% for message in messages %}<{{ message['role'] }}>\n\n{{ message['content'] | trim }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>\n\n{% endif %}"
)
WITHOUT_OPENING = TRIMMING.partition("{% if add")[0]
# Llama 2's in short: a user's message ends with what opens the answer, but for a blank.
BRACKETS = (
    "{% for message in messages %}{% if message['role'] == 'user' %}[INST] {{ message['content'] }} [/INST]"
    "{% else %} {{ message['content'] | trim }} <end>{% endif %}{% endfor %}"
)
# Qwen 3's in short: an answer in the history has no thoughts, and the last one has empty ones.
THINKING = (
    "{% for message in messages %}<{{ message['role'] }}>\n"
    "{% if message['role'] == 'assistant' %}{{ '<think>\n\n</think>\n\n' if loop.last }}"
    "{{ message['content'].split('</think>')[-1] }}{% else %}{{ message['content'] }}{% endif %}<end>"
    "{% endfor %}{% if add_generation_prompt %}<assistant>\n{% endif %}"
)


@pytest.mark.parametrize("prefix", ["Step 1:\n", " Step 1:  ", "\n", "Step 1:"])
@pytest.mark.parametrize(
    ("template", "before"),
    [
        (TRIMMING, "<user>\n\nHello!<end><assistant>\n\n"),
        (TRIMMING.replace(" | trim", ""), "<user>\n\nHello!<end><assistant>\n\n"),
        (WITHOUT_OPENING, "<user>\n\nHello!<end><assistant>\n\n"),
        (WITHOUT_OPENING.replace(" | trim", ""), "<user>\n\nHello!<end><assistant>\n\n"),
        (BRACKETS, "[INST] Hello! [/INST] "),
        (BRACKETS.replace(" | trim", ""), "[INST] Hello! [/INST] "),
        (THINKING, "<user>\nHello!<end><assistant>\n"),
    ],
)
def test_a_prefix_keeps_its_blanks_under_every_template(demo, template, before, prefix):
    if (template, prefix) in ((WITHOUT_OPENING, "\n"), (BRACKETS, " Step 1:  ")):
        before = before.rstrip()  # nobody can tell the template's blanks from those that it trimmed
    tokenizer = recipes.open_tokenizer("demo")
    tokenizer.chat_template = template
    talk = Conversation(demo[0], tokenizer, ai_prefix=prefix)
    after(talk, user("Hello!"))
    expected = tokenizer(before + prefix, add_special_tokens=False)["input_ids"]
    assert talk.prompt().tolist() == [expected]


def test_thoughts_can_be_a_prefix(demo):
    tokenizer = recipes.open_tokenizer("demo")
    tokenizer.chat_template = THINKING
    talk = Conversation(demo[0], tokenizer, ai_prefix="<think>Easy.</think>")
    after(talk, user("Hello!"))
    assert tokenizer.decode(talk.prompt()[0]).endswith("<assistant>\n<think>Easy.</think>")


@pytest.mark.parametrize(
    ("prefix", "end"), [("Well,\n", "Assistant: Well,\n"), (" Well, ", "Assistant: Well, ")]
)
def test_a_prefix_keeps_its_blanks_without_a_template(no_template, prefix, end):
    talk = Conversation(*no_template, ai_prefix=prefix)
    after(talk, user("Hello!"))
    assert talk.tokenizer.decode(talk.prompt()[0]) == "<|bos|>User: Hello!\n\n" + end


@pytest.fixture
def no_template(demo):
    tokenizer = recipes.open_tokenizer("demo")
    tokenizer.chat_template = None
    return demo[0], tokenizer


def test_a_model_without_a_template_gets_a_plain_transcript(no_template):
    model, tokenizer = no_template
    talk = Conversation(model, tokenizer, sampling=GREEDY)
    prompts = []
    for question in ("Hello!", "What is 3 + 4?"):
        before = [*said(talk), user(question)]
        answer = talk.ask(question).content
        assert answer == by_transformers(*no_template, before, chat_template=PLAIN_TEMPLATE)
        assert said(talk) == [*before, assistant(answer)]
        prompts.append(tokenizer.decode(talk.prompt()[0]))
    assert prompts[0].startswith("<|bos|>User: Hello!\n\nAssistant:")
    assert prompts[1].startswith(prompts[0].removesuffix("Assistant:"))


def test_a_tokenizer_without_a_beginning_token_gets_none(no_template):
    model, tokenizer = no_template
    tokenizer.bos_token = None
    talk = Conversation(model, tokenizer, sampling=GREEDY)
    after(talk, user("Hello!"), assistant(" Hi."), user("Bye!"))
    told = tokenizer.decode(talk.prompt()[0])
    assert told == "User: Hello!\n\nAssistant: Hi.\n\nUser: Bye!\n\nAssistant:"


def test_a_plain_answer_ends_before_the_next_speaker(no_template, monkeypatch):
    monkeypatch.setitem(PLAIN_STOPS, "assistant", (" ",))
    pieces = []
    talk = Conversation(*no_template, ai_prefix="Well, once", sampling=GREEDY)
    told = by_transformers(
        *no_template,
        [user("Hello!"), assistant("Well, once")],
        chat_template=PLAIN_TEMPLATE,
        add_generation_prompt=False,
        continue_final_message=True,
    )
    answer = talk.ask("Hello!", lambda piece: pieces.append(piece.text)).content
    assert answer == "".join(pieces) == "Well, once" + told.partition(" ")[0]
    assert said(talk)[-1] == assistant(answer)


NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role\n not supported') }}{% endif %}"
    "{% for message in messages %}{{ message['content'] }}{% endfor %}"
)
NO_THOUGHTS = "{% for message in messages %}{{ message['content'].split('</think>')[-1][:3] }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "options", "told"),
    [
        (
            NO_SYSTEM,
            {"system": "x"},
            "refuses a system prompt: System role not supported; leave out",
        ),
        (NO_THOUGHTS, {"ai_prefix": "Let me see."}, "refuses this prefix: .*; change --ai-prefix"),
        (NO_SYSTEM, {"system": "x", "ai_prefix": "y"}, "; leave out --system or change --ai-prefix"),
    ],
)
def test_what_a_template_refuses_is_told_in_one_line(demo, template, options, told):
    tokenizer = recipes.open_tokenizer("demo")
    tokenizer.chat_template = template
    talk = Conversation(demo[0], tokenizer, **options)
    before = list(talk.messages)
    with pytest.raises(UsageError, match=f"the model's chat template .*{told}") as caught:
        talk.ask("Hello!")
    assert "\n" not in str(caught.value)
    assert talk.messages == before


@pytest.mark.parametrize("prefix", ["", "Well,"])
def test_an_interrupt_before_the_first_word_forgets_the_question(demo, monkeypatch, prefix):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("restack.chat.speech.generate", interrupted)
    talk = Conversation(*demo, system="You are Demo.", ai_prefix=prefix)
    with pytest.raises(KeyboardInterrupt):
        talk.ask("Hello!")
    assert said(talk) == [{"role": "system", "content": "You are Demo."}]
