"""What passes through the model, and that it is nothing else than a fresh run of the same text would give."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Qwen3NextConfig,
)

from restack import recipes, view
from restack.chat import Conversation
from restack.runtime import Sampling
from restack.runtime.decoding.stepper import Stepper
from restack.runtime.native import kernel
from tests.llama.tiny import model as house

GREEDY = Sampling(temperature=0, max_tokens=12)
STORY = "Tell me a story about Ben and a kite."
SMALL = {"vocab_size": 1147, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
SMALL |= {
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "max_position_embeddings": 1024,
    "eos_token_id": None,
}


def fresh(talk):
    """Another conversation with the same messages, that has read nothing."""
    result = Conversation(talk.model, talk.tokenizer, sampling=talk.sampling, ai_prefix=talk.ai_prefix)
    result.messages = list(talk.messages)
    return result


def alike(one, other):
    """How many first tokens are the same."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(one))


def made_by_transformers(talk, tokens):
    """The greedy text after a prompt, by transformers alone."""
    output = talk.model.generate(
        tokens, attention_mask=torch.ones_like(tokens), do_sample=False, max_new_tokens=12
    )
    return talk.tokenizer.decode(output[0, tokens.shape[1] :], skip_special_tokens=True)


def test_a_turn_reads_only_what_is_new(demo, counter):
    counter.watch(demo[0])
    talk = Conversation(*demo, sampling=GREEDY)
    read_before = []
    for question in ("Hello!", "What is the capital of France?", STORY, "What is 3 + 4?"):
        talk.ask(question)
        passed, last = counter.take(), talk.last
        assert passed == last.read + len(last.tokens) - 1  # the last token is not read before the next turn
        prompt = talk.tokens(talk.messages[:-1])
        assert last.reused == alike(read_before, prompt) > 0 or not read_before
        assert last.read == len(prompt) - last.reused
        read_before = [*prompt, *last.tokens[:-1]]


@pytest.mark.parametrize("prefix", ["", "Well,", "Let's see.\n"])
def test_what_is_said_is_what_a_fresh_run_says(demo, prefix):
    talk = Conversation(*demo, sampling=GREEDY, ai_prefix=prefix)
    for question in ("Hello!", STORY, "What is 3 + 4?"):
        before = fresh(talk)
        before.hear(question)
        expected = prefix + made_by_transformers(talk, before.prompt())
        assert talk.ask(question).content == expected
    assert talk.last.reused


def test_going_on_reads_the_suffix_alone(demo, counter):
    counter.watch(demo[0])
    talk = Conversation(*demo, sampling=GREEDY, ai_prefix="Well, once")
    first = talk.ask(STORY)
    assert first.finish == "stop"  # so that all of its words were read
    counter.take()
    whole = talk.continue_(" Suddenly, a")
    suffix = talk.tokenizer(" Suddenly, a", add_special_tokens=False)["input_ids"]
    assert counter.take() - (len(talk.last.tokens) - 1) == talk.last.read == len(suffix)
    assert whole.content.startswith(first.content + " Suddenly, a")
    assert (whole.given, whole.generated) == (
        "Well, once Suddenly, a",
        first.generated + whole.content.removeprefix(first.content + " Suddenly, a"),
    )
    assert talk.messages[-1] is whole and len(talk.messages) == 2
    tokens = talk.tokens(talk.messages[:1], first.content + " Suddenly, a")
    assert whole.content == first.content + " Suddenly, a" + made_by_transformers(
        talk, torch.tensor([tokens])
    )


def test_going_on_without_words_is_as_if_it_had_not_stopped(demo):
    whole = Conversation(*demo, sampling=Sampling(temperature=0, max_tokens=24)).ask(STORY)
    talk = Conversation(*demo, sampling=GREEDY)
    assert talk.ask(STORY).finish == "length"
    assert talk.continue_().content == whole.content


def test_what_was_taken_back_is_cropped(demo, counter):
    counter.watch(demo[0])
    talk = Conversation(*demo, sampling=GREEDY)
    talk.ask("Hello!")
    talk.ask(STORY)
    assert [message.role for message in talk.undo()] == ["user", "assistant"]
    counter.take()
    before = fresh(talk)
    answer = talk.ask("What is 3 + 4?")
    assert counter.take() <= len(talk.tokenizer("What is 3 + 4?")["input_ids"]) + 9 + len(talk.last.tokens)
    assert answer.content == before.ask("What is 3 + 4?").content


def test_an_edit_reads_from_there_on(demo):
    talk = Conversation(*demo, sampling=GREEDY)
    talk.ask("Hello!")
    talk.ask("What is the capital of France?")
    talk.edit(2, "What is the capital of Spain?")
    assert len(talk.messages) == 3
    before = fresh(talk)
    assert talk.answer().content == before.answer().content == "The capital of Spain is Madrid."
    assert talk.last.read < 10 < talk.last.reused


def test_another_answer_takes_the_place_of_the_last(demo):
    talk = Conversation(*demo, sampling=Sampling(temperature=2.0, max_tokens=12))
    first = talk.ask(STORY)
    second = talk.regenerate()
    assert first.content != second.content
    assert talk.messages[1:] == [second]
    assert talk.last.read == 1  # the last token of the prompt, for its logits


def test_forks_go_their_own_ways(demo):
    talk = Conversation(*demo, sampling=GREEDY)
    talk.ask("Hello!")
    fork = talk.fork()
    expected = fresh(talk).ask(STORY).content, fresh(talk).ask("What is 3 + 4?").content
    assert (fork.ask(STORY).content, talk.ask("What is 3 + 4?").content) == expected
    assert fork.last.reused and talk.last.reused
    assert len(fork.messages) == len(talk.messages) == 4


def test_an_interrupt_leaves_a_cache_that_is_right(demo):
    talk = Conversation(*demo, sampling=GREEDY)
    talk.ask("Hello!")
    layer = demo[0].model.layers[5]
    heard = []

    def interrupt(*arguments):
        if len(heard) > 5:
            raise KeyboardInterrupt  # in the middle of a forward: five layers have read one token more

    handle = layer.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        talk.ask(STORY, heard.append)
    handle.remove()
    assert talk.messages[-1].finish == "interrupted"
    before = fresh(talk)
    assert talk.ask("What is 3 + 4?").content == before.ask("What is 3 + 4?").content
    assert talk.last.reused


@pytest.mark.parametrize("kind", ["llama", "window not full", "sliding"])
def test_an_interrupt_between_keys_and_values(demo, kind, monkeypatch):
    """Wherever it comes in a step of transformers' decoding: every concatenation of every layer."""
    monkeypatch.setattr("restack.runtime.decoding.loop.structure", lambda model: None)
    model = tiny(kind)
    cat = torch.cat
    for place in range(1, 9):  # four layers, keys and values
        talk = Conversation(model, demo[1], sampling=GREEDY)
        talk.ask("Hello!")
        calls = []

        def interrupted(tensors, *arguments, place=place, calls=calls, **options):
            result = cat(tensors, *arguments, **options)
            if len(tensors) == 2 and tensors[1].ndim == 4 and tensors[1].shape[-2] == 1:  # one token more
                calls.append(1)
                if len(calls) == 24 + place:
                    raise KeyboardInterrupt
            return result

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(torch, "cat", interrupted)
            talk.ask(STORY)
        before = fresh(talk)
        assert talk.messages[-1].finish == "interrupted"
        assert talk.ask("What is 3 + 4?").content == before.ask("What is 3 + 4?").content


@pytest.mark.parametrize("kind", ["llama", "window not full", "sliding"])
def test_an_interrupt_while_the_lean_loop_hands_back(demo, kind, monkeypatch):
    """Wherever it comes, after a step or between the tensors of any two slots."""
    if kernel() is None:
        pytest.skip("no C++ compiler")
    model = tiny(kind)
    give_back, set_attribute = Stepper.give_back, object.__setattr__
    for place in range(13):
        talk = Conversation(model, demo[1], sampling=GREEDY)
        talk.ask("Hello!")
        calls = []

        def set_or_interrupt(slot, name, value, place=place, calls=calls):
            if len(calls) == place:
                raise KeyboardInterrupt
            calls.append(name)
            set_attribute(slot, name, value)

        def interrupted(stepper, cache, set_or_interrupt=set_or_interrupt):
            with monkeypatch.context() as patch:
                for slot_class in {type(slot) for slot in cache.layers}:
                    patch.setattr(slot_class, "__setattr__", set_or_interrupt)
                give_back(stepper, cache)
                raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Stepper, "give_back", interrupted)
            talk.ask(STORY)
        assert len(calls) == min(place, 12 if kind != "llama" else 8)
        before = fresh(talk)
        assert talk.messages[-1].finish == "interrupted"
        assert talk.ask("What is 3 + 4?").content == before.ask("What is 3 + 4?").content


def test_an_interrupt_and_then_another_view(demo):
    """What was recorded of a prompt that was cut short is not taken for what was known before."""
    base, tokenizer = demo
    deep = view(base, "0:10,8:12")
    for layer in (2, 4, 7, 11):
        talk = Conversation(base, tokenizer, sampling=GREEDY)
        talk.ask("Hello!")

        def interrupt(*arguments):
            raise KeyboardInterrupt

        handle = base.model.layers[layer].register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            talk.ask("Tell me a long story about Ben and a kite, and then another one about Ann and a boat.")
        handle.remove()
        talk.model = deep
        before = fresh(talk)
        assert talk.ask("Hello!").content == before.ask("Hello!").content
        assert talk.last.first_visit == 9  # of what was known, nothing is lost
        for new, old in zip(talk.cache.cache.layers, before.cache.cache.layers, strict=True):
            torch.testing.assert_close(new.keys, old.keys, atol=1e-4, rtol=1e-4)


def test_an_error_leaves_nothing_that_could_be_wrong(demo):
    talk = Conversation(*demo, sampling=GREEDY)
    talk.ask("Hello!")

    def fail(*arguments):
        raise RuntimeError("out of memory")

    handle = demo[0].model.layers[5].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError):
        talk.ask(STORY)
    handle.remove()
    assert len(talk.messages) == 2 and talk.cache.tokens == []
    assert talk.ask(STORY).content == fresh(talk).regenerate().content


def test_an_interrupt_while_the_first_prompt_is_read_leaves_nothing(demo):
    talk = Conversation(*demo, sampling=GREEDY)

    def interrupt(*arguments):
        raise KeyboardInterrupt

    handle = demo[0].model.layers[5].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        talk.ask("Hello!")
    handle.remove()
    assert talk.messages == [] and talk.cache.tokens == [] and talk.cache.bytes == 0
    assert talk.ask("Hello!").content == fresh(talk).ask("Hello!").content


KINDS = {
    "llama": lambda: LlamaConfig(**SMALL),
    "gpt2": lambda: GPT2Config(
        vocab_size=1147, n_embd=32, n_layer=4, n_head=4, n_positions=1024, eos_token_id=None
    ),
    "sliding": lambda: MistralConfig(**SMALL, sliding_window=16),
    "window not full": lambda: MistralConfig(**SMALL, sliding_window=512),
    "hybrid": lambda: Qwen3NextConfig(
        **SMALL,
        layer_types=["linear_attention", "full_attention"] * 2,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        num_experts=2,
        num_experts_per_tok=1,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
    ),
    "mamba": lambda: MambaConfig(
        vocab_size=1147, hidden_size=32, state_size=4, num_hidden_layers=2, eos_token_id=None
    ),
}


def tiny(kind):
    torch.manual_seed(1)
    if kind.startswith("house"):
        maps = {"house": None, "house shared": "0_0_2_2_4_4", "house cyclic": "0_4x4_5"}
        # So many passes that reading all at once comes to the same as reading token by token.
        return house(maps[kind], vocab_size=1147, max_position_embeddings=1024, forward_passes=200)
    return AutoModelForCausalLM.from_config(KINDS[kind]()).eval()


@pytest.mark.parametrize("kind", [*KINDS, "house", "house shared", "house cyclic"])
def test_every_kind_of_cache(demo, kind, counter):
    model = tiny(kind)
    model.generation_config.eos_token_id = None
    counter.watch(model)
    notes = []
    talk = Conversation(model, demo[1], sampling=GREEDY, on_note=notes.append)
    for act in ("ask", "ask", "continue", "undo"):
        before = fresh(talk)
        if act == "undo":
            talk.undo()
            before = fresh(talk)
        question = STORY if act == "ask" else "What is 3 + 4?"
        told = [side.continue_(" So") if act == "continue" else side.ask(question) for side in (talk, before)]
        assert told[0].content == told[1].content
    can_be_cropped = kind in ("llama", "gpt2", "window not full") or "house" in kind
    assert bool(talk.last.reused) == can_be_cropped
    assert len(notes) == (not can_be_cropped)
    assert all("is read again from its beginning" in note for note in notes)


def test_rope_that_is_stretched_reads_anew(demo):
    config = LlamaConfig(
        **SMALL | {"max_position_embeddings": 64},
        rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 8.0},
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    model.config.max_position_embeddings = 512  # so that there is room
    model.config.rope_parameters["original_max_position_embeddings"] = 64
    notes = []
    talk = Conversation(model, demo[1], sampling=GREEDY, on_note=notes.append)
    for _ in range(4):
        before = fresh(talk)
        assert talk.ask("Hello!").content == before.ask("Hello!").content
    assert "RoPE is scaled by the length of the text" in notes[0]


def test_keys_of_a_long_text_are_not_taken_for_a_short_one(demo):
    """LongRoPE turns all keys of a long text otherwise, those at its beginning too."""
    factors = {"short_factor": [1.0] * 4, "long_factor": [8.0] * 4}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 8.0, **factors}
    config = LlamaConfig(**SMALL, rope_parameters={**rope, "original_max_position_embeddings": 64})
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config).eval()
    talk = Conversation(model, demo[1], sampling=GREEDY)
    talk.ask("Hello!")
    talk.ask(STORY * 6)
    talk.undo()
    before = fresh(talk)
    assert talk.ask("Bye!").content == before.ask("Bye!").content
    assert talk.last.reused == 0
    torch.testing.assert_close(talk.cache.cache.layers[0].keys, before.cache.cache.layers[0].keys)


def test_a_view_in_the_middle_reads_what_was_said(demo):
    base, tokenizer = demo
    talk = Conversation(base, tokenizer, sampling=GREEDY)
    for spec in ("0:8,4:12", "0:12", "0:4,3:12", "0:8,4:12"):
        talk.ask("Hello!")
        talk.model = view(base, spec)
        before = fresh(talk)
        assert talk.ask(STORY).content == before.ask(STORY).content


@pytest.fixture
def runs(demo, monkeypatch):
    """How many tokens each run of a layer was given, whichever object the layer is."""
    found = []
    layer = type(demo[0].model.layers[0])

    def forward(self, hidden_states, *arguments, forward=layer.forward, **options):
        found.append(hidden_states.shape[1])
        return forward(self, hidden_states, *arguments, **options)

    monkeypatch.setattr(layer, "forward", forward)
    return found


@pytest.mark.parametrize(
    ("before", "after", "first"),
    [
        ("0:12", "0:8,4:12", 6),  # alike up to 8; what enters 3, 6 and 9 is kept
        ("0:8,4:12", "0:12", 8),
        ("0:12", "0:10", 10),  # nothing is left to run
        ("0:12", "0:2,4:12", None),
        ("0:12", "0:7@0.5,7:", None),
    ],
)
def test_a_view_in_the_middle_runs_the_visits_that_are_its_own(demo, runs, before, after, first):
    base, tokenizer = demo
    talk = Conversation(view(base, before), tokenizer, sampling=GREEDY)
    talk.ask("Hello!")
    talk.ask(STORY)
    history = len(talk.cache.tokens)
    talk.model = view(base, after)
    alone = fresh(talk)
    runs.clear()
    answer, last = talk.ask("What is 3 + 4?"), talk.last
    visits = len(talk.model.model.layers)
    assert last.first_visit == first
    assert bool(last.reused) == (first is not None)
    own = 0 if first is None else last.reused * (visits - first)
    assert sum(runs) == own + (last.read + len(last.tokens) - 1) * visits
    assert last.reused == (history if first is not None else 0)
    assert answer.content == alone.ask("What is 3 + 4?").content
    talk.ask("Bye!")
    assert talk.last.first_visit is None and talk.last.reused > history


def test_views_that_take_turns_go_on_from_each_other(demo):
    base, tokenizer = demo
    views = [base, view(base, "0:8,4:12"), view(base, "0:8,6:12")]
    talk = Conversation(base, tokenizer, sampling=GREEDY)
    talk.ask("Hello!")
    firsts = []
    for number in (1, 2, 0, 2, 1, 1, 0):
        talk.model = views[number]
        alone = fresh(talk)
        assert talk.ask("What is 3 + 4?").content == alone.ask("What is 3 + 4?").content
        firsts.append(talk.last.first_visit)
    assert firsts == [6, 8, 8, 8, 8, None, 8]


def test_a_second_conversation_adds_its_keys_and_values_alone(demo):
    base, tokenizer = demo
    talk = Conversation(view(base, "0:12,4:"), tokenizer, sampling=GREEDY)
    talk.ask("Hello!")
    config = base.config
    numbers = 20 * 2 * config.num_key_value_heads * config.head_dim  # of a token, for 20 visits
    numbers += 3 * config.hidden_size  # what enters three of them
    assert talk.cache.bytes == 4 * numbers * len(talk.cache.tokens)
    opened = recipes.open("demo@0:12,4:", dtype="float32")
    assert {id(p) for p in talk.model.parameters()} == {id(p) for p in base.parameters()}
    assert opened is not talk.model
