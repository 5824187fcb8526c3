import pytest
import torch

from restack import recipes
from restack.chat import Conversation
from restack.errors import UsageError
from restack.runtime import Sampling
from restack.views import view

GREEDY = Sampling(temperature=0, max_tokens=24)


@pytest.fixture(scope="module")
def demo():
    return recipes.open("demo", dtype="float32"), recipes.open_tokenizer("demo")


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


def test_an_answer_is_what_transformers_gives_and_history_is_kept(demo):
    talk = Conversation(*demo, system="You are Demo.", sampling=GREEDY)
    system = {"role": "system", "content": "You are Demo."}
    first = talk.ask("What is the capital of France?")
    assert first == by_transformers(*demo, [system, user("What is the capital of France?")])
    second = talk.ask("What is 3 + 4?")
    history = [system, user("What is the capital of France?"), assistant(first), user("What is 3 + 4?")]
    assert second == by_transformers(*demo, history)
    assert talk.messages == [*history, assistant(second)]


def test_pieces_together_are_the_answer(demo):
    pieces = []
    answer = Conversation(*demo, sampling=GREEDY).ask("Tell me a story about Ben and a kite.", pieces.append)
    assert "".join(pieces) == answer
    assert len(pieces) > 3


def test_the_prefix_begins_the_answer_and_is_kept(demo):
    prefix = "Let's think step by step.\n"
    talk = Conversation(*demo, ai_prefix=prefix, sampling=GREEDY)
    answer = talk.ask("What is 345 + 213?")
    messages = [user("What is 345 + 213?"), assistant(prefix)]
    told = by_transformers(*demo, messages, add_generation_prompt=False, continue_final_message=True)
    assert answer == prefix + told
    assert talk.messages[-1] == assistant(answer)


def test_the_model_can_change_in_the_middle(demo):
    model, tokenizer = demo
    talk = Conversation(model, tokenizer, sampling=GREEDY)
    first = talk.ask("Hello!")
    talk.model = view(model, "0:8,4:12")
    second = talk.ask("What is 3 + 4?")
    history = [user("Hello!"), assistant(first), user("What is 3 + 4?")]
    assert second == by_transformers(talk.model, tokenizer, history)


def test_reset_keeps_the_system_prompt(demo):
    talk = Conversation(*demo, system="You are Demo.", sampling=GREEDY)
    talk.ask("Hello!")
    talk.reset()
    assert talk.messages == [{"role": "system", "content": "You are Demo."}]


def test_an_interrupted_answer_is_kept_as_far_as_it_came(demo):
    def interrupt(piece):
        heard.append(piece)
        if len(heard) == 3:
            raise KeyboardInterrupt

    heard = []
    talk = Conversation(*demo, sampling=GREEDY)
    with pytest.raises(KeyboardInterrupt):
        talk.ask("Tell me a story about Ben and a kite.", interrupt)
    assert talk.messages[-1] == assistant("".join(heard))


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_message_is_refused(demo, text):
    talk = Conversation(*demo)
    with pytest.raises(UsageError, match="empty"):
        talk.ask(text)
    assert talk.messages == []


def test_a_message_past_the_context_is_refused_and_forgotten(demo):
    talk = Conversation(*demo, sampling=GREEDY)
    with pytest.raises(UsageError, match="the model's context is 1024"):
        talk.ask("word " * 2000)
    assert talk.messages == []


def test_a_model_without_a_template_gets_a_plain_transcript(demo):
    model, _ = demo
    tokenizer = recipes.open_tokenizer("demo")
    tokenizer.chat_template = None
    talk = Conversation(model, tokenizer, sampling=GREEDY)
    prompt = tokenizer.decode(talk._prompt()[0]) if talk.messages else None
    assert prompt is None
    talk.messages.append(user("Hello!"))
    assert tokenizer.decode(talk._prompt()[0]).endswith("User: Hello!\n\nAssistant:")
