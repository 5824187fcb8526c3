import pytest
import torch
from transformers import LlamaConfig, MambaConfig, XLNetConfig

from restack import recipes
from restack.errors import UsageError
from restack.runtime import ContextFull, Sampling, context_length, generate, generate_all
from tests.runtime.speaker import Speaker


@pytest.fixture(scope="module")
def demo():
    return recipes.open("demo", dtype="float32"), recipes.open_tokenizer("demo")


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": float("inf")},
        {"temperature": float("nan")},
        {"temperature": 1e-40},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": float("inf")},
        {"max_tokens": 0},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(UsageError, match="write"):
        Sampling(**wrong)


@pytest.mark.parametrize(
    ("sampling", "settings"),
    [
        (Sampling(), {}),
        (Sampling(temperature=0, top_p=0.5, top_k=3), {"do_sample": False}),
        (Sampling(temperature=0, repetition_penalty=1.2), {"do_sample": False, "repetition_penalty": 1.2}),
        (Sampling(temperature=0.7), {"do_sample": True, "temperature": 0.7}),
        (Sampling(top_p=0.9, top_k=0), {"do_sample": True, "top_p": 0.9, "top_k": 0}),
        (Sampling(repetition_penalty=1.2), {"repetition_penalty": 1.2}),
    ],
)
def test_settings_are_those_of_transformers(sampling, settings):
    assert sampling.settings() == settings


@pytest.mark.parametrize("temperature", [1e-6, 1e30])
def test_the_ends_of_the_temperatures_can_be_drawn_at(demo, temperature):
    model, tokenizer = demo
    tokens = tokenizer("Once there was", return_tensors="pt")["input_ids"]
    sampling = Sampling(temperature=temperature, top_p=1, max_tokens=8)
    generate(model, tokenizer, tokens, sampling)  # infinite logits would be an error


@pytest.mark.parametrize(
    ("config", "tokens"),
    [(LlamaConfig(max_position_embeddings=77), 77), (XLNetConfig(), None), (MambaConfig(), None)],
)
def test_some_models_have_no_limit(config, tokens):
    assert context_length(config) == tokens


def test_a_model_without_a_limit_says_what_it_is_asked_for(demo):
    _, tokenizer = demo
    speaker = Speaker(tokenizer, "Hello!")
    speaker.config = XLNetConfig()
    assert generate(speaker, tokenizer, torch.tensor([[1] * 5000]), Sampling()).text == "Hello!"


def test_a_seed_repeats_the_text(demo):
    model, tokenizer = demo
    tokens = tokenizer("Once there was", return_tensors="pt")["input_ids"]

    def told(seed):
        torch.manual_seed(seed)
        return generate(model, tokenizer, tokens, Sampling(temperature=1.5, max_tokens=20)).text

    assert told(1) == told(1)
    assert len({told(seed) for seed in range(4)}) > 1


def test_the_text_is_what_transformers_generates(demo):
    model, tokenizer = demo
    tokens = tokenizer("Once there was", return_tensors="pt")["input_ids"]
    told = generate(model, tokenizer, tokens, Sampling(temperature=0, max_tokens=20)).text
    output = model.generate(
        tokens, attention_mask=torch.ones_like(tokens), do_sample=False, max_new_tokens=20
    )
    assert told == tokenizer.decode(output[0, tokens.shape[1] :], skip_special_tokens=True)


def test_max_tokens_stops_at_the_context(demo, monkeypatch):
    model, tokenizer = demo
    lengths = []

    def counted(*arguments, **options):
        output = generated(*arguments, **options)
        lengths.append(output.shape[1])
        return output

    generated = model.generate
    monkeypatch.setattr(model, "generate", counted)
    tokens = torch.full((1, 1020), tokenizer("a")["input_ids"][-1])
    sampling = Sampling(temperature=0, max_tokens=50)
    generate(model, tokenizer, tokens, sampling, suppress_tokens=[tokenizer.eos_token_id])
    assert lengths == [1024]  # 4 new ones
    with pytest.raises(ContextFull, match="context is 1024"):
        generate(model, tokenizer, torch.cat([tokens, tokens], 1), Sampling())


@pytest.mark.parametrize("place", [8, 9])
def test_the_text_ends_before_a_stop_string(demo, place):
    model, tokenizer = demo
    tokens = tokenizer("Tell me a story about Ben and a kite.", return_tensors="pt")["input_ids"]
    sampling, longer = Sampling(temperature=0, max_tokens=40), {"suppress_tokens": [tokenizer.eos_token_id]}
    whole = generate(model, tokenizer, tokens, sampling, **longer).text
    stop = whole[place : place + 7]
    pieces = []
    told = generate(model, tokenizer, tokens, sampling, pieces.append, stop=["\n\n\n", stop], **longer).text
    assert told == "".join(pieces) == whole.partition(stop)[0]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("Hello!\n\nUser:", "Hello!"),
        ("Hello!\nUser: Hi", "Hello!"),
        ("Hello!\n\nUse it.\nUs", "Hello!\n\nUse it.\nUs"),
        ("\nUser:", ""),
        ("Hello!\n", "Hello!\n"),
    ],
)
def test_what_may_begin_a_stop_string_is_held_back(demo, text, told):
    _, tokenizer = demo
    pieces = []
    stop = ["\n\nUser:", "\nUser:"]
    answer = generate(
        Speaker(tokenizer, text), tokenizer, torch.tensor([[1]]), Sampling(), pieces.append, stop=stop
    )
    assert answer.text == "".join(pieces) == told


UNEVEN = ["What is the capital of France?", "Once there was", "Tell me a story about Ben and a kite."]


@pytest.mark.parametrize(
    ("settings", "stop"),
    [({}, ()), ({"repetition_penalty": 1.3}, ()), ({}, ("a", "the ")), ({"max_tokens": 3}, ())],
    ids=str,
)
def test_the_texts_of_a_batch_are_those_of_each_alone(demo, settings, stop):
    model, tokenizer = recipes.open("demo", dtype="float32"), demo[1]
    prompts = [tokenizer(text, return_tensors="pt")["input_ids"] for text in UNEVEN]
    sampling = Sampling(**{"temperature": 0, "max_tokens": 25} | settings)
    alone = [generate(model, tokenizer, prompt, sampling, stop=stop).text for prompt in prompts]
    assert generate_all(model, tokenizer, prompts, sampling, stop=stop) == alone
    assert len(set(alone)) > 1


def test_a_long_prompt_takes_no_room_from_a_short_one(demo):
    model, tokenizer = recipes.open("demo", dtype="float32"), demo[1]
    word = tokenizer("a")["input_ids"][-1]
    prompts = [torch.full((1, 1020), word), tokenizer("Once there was", return_tensors="pt")["input_ids"]]
    sampling, more = Sampling(temperature=0, max_tokens=12), {"suppress_tokens": [tokenizer.eos_token_id]}
    alone = [generate(model, tokenizer, prompt, sampling, **more).text for prompt in prompts]
    assert generate_all(model, tokenizer, prompts, sampling, **more) == alone
    assert len(tokenizer(alone[1])["input_ids"]) > 4
    with pytest.raises(ContextFull):
        generate_all(model, tokenizer, [prompts[1], prompts[0].repeat(1, 2)], sampling)
