"""The lean loop draws the tokens that transformers' own `generate` draws, whatever the view."""

import pytest
import torch
from scipy import stats
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.cache_utils import DynamicCache

from restack import materialise, quantize, view
from restack.runtime.decoding import decode, structure
from restack.runtime.native import Kernel, kernel
from restack.views.recording import recording
from restack.views.shared_kv import Borrowed
from tests.llama.tiny import ACYCLIC, CYCLIC
from tests.llama.tiny import model as house

SMALL = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
    "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 128,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None, "initializer_range": 0.3,
}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 2.0}
LLAMA3 |= {"original_max_position_embeddings": 32, "rope_theta": 10000.0}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "llama with biases": (LlamaForCausalLM, LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
    "llama with one head each": (LlamaForCausalLM, LlamaConfig, {"num_key_value_heads": 8}),
    "llama with three heads for a group": (
        LlamaForCausalLM,
        LlamaConfig,
        {"hidden_size": 72, "num_attention_heads": 6},
    ),
    "llama with a tied head": (LlamaForCausalLM, LlamaConfig, {"tie_word_embeddings": True}),
    "llama with llama3's rope": (LlamaForCausalLM, LlamaConfig, {"rope_parameters": LLAMA3}),
    "llama with linear rope": (
        LlamaForCausalLM,
        LlamaConfig,
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}},
    ),
    "mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": 8}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "qwen2 with windows": (
        Qwen2ForCausalLM,
        Qwen2Config,
        {
            "sliding_window": 8,
            "use_sliding_window": True,
            "layer_types": ["full_attention", "sliding_attention"] * 2,
        },
    ),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 24}),
}
PLANS = [
    "0:4",
    "0:3,1:4",
    "3,0,0",
    "0:2,1@0.5,2@0,3@1.5",
    "0:4;kv=0_0_2_2",
    "0:4;kv=0_0_1_3",
    "0:3,1:4;kv=0_1_1_1_1_1",
]
MAPS = [*ACYCLIC.values(), *CYCLIC.values()]
PROMPT = torch.tensor([[1, 17, 5, 80, 33, 2, 61, 44, 9, 9, 71, 23, 50]])


@pytest.fixture(autouse=True, params=["forward", "kernel"])
def reader(request, monkeypatch):
    """Who reads prompts: the model's own forward, or the kernel, in pieces."""
    if kernel() is None:
        pytest.skip("no C++ compiler")
    monkeypatch.setattr(kernel(), "is_quick_with_many", request.param == "kernel")
    monkeypatch.setattr("restack.runtime.decoding.loop.QUICK", (4, 8, 16, 32))
    monkeypatch.setattr("restack.runtime.decoding.loop.FEW", 0)
    monkeypatch.setattr("restack.runtime.decoding.loop.PIECE", 5)
    monkeypatch.setattr("restack.runtime.decoding.stepper.FEW", 0)
    return request.param


def made(name, **settings):
    model_class, config_class, own = FAMILIES[name]
    torch.manual_seed(0)
    model = model_class(config_class(**(SMALL | own | settings))).eval()
    for norm in (module for path, module in model.named_modules() if path.endswith("norm")):
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    for layer in (module for module in model.modules() if isinstance(module, torch.nn.Linear)):
        if layer.bias is not None:
            torch.nn.init.normal_(layer.bias)
    return model


def both(model, tokens, *, new=24, lean=True, **options):
    """The tokens that transformers draws, and those that the lean loop draws."""
    if lean:
        assert structure(model) is not None
    options = {"max_new_tokens": new, "do_sample": False, "attention_mask": torch.ones_like(tokens)} | options
    found = []
    for loop in ({}, {"custom_generate": decode}):
        torch.manual_seed(5)
        found.append(model.generate(tokens, **options, **loop))
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_says_what_it_says_with_transformers(name):
    theirs, ours = both(made(name), PROMPT)
    assert torch.equal(ours, theirs) and len(set(ours[0].tolist())) > 8


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2 with windows", "qwen3"])
def test_so_does_a_view(name, plan):
    if name == "qwen2 with windows":  # a window's keys are not those that others see
        plan = (
            plan.replace("0_0_2_2", "0_1_0_1")
            .replace("0_0_1_3", "0_1_0_1")
            .replace("0_1_1_1_1_1", "0_1_0_1_0_1")
        )
    theirs, ours = both(view(made(name), plan), PROMPT)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_a_self_merge_says_what_the_materialised_model_says(name):
    base, plan = made(name), "0:3,1:4,2"
    _, ours = both(view(base, plan), PROMPT)
    theirs = materialise(base, plan).generate(PROMPT, do_sample=False, max_new_tokens=24)
    assert torch.equal(ours, theirs)


def test_a_visit_that_slides_though_its_layer_does_not():
    model = made("qwen2", sliding_window=8, use_sliding_window=True, layer_types=["full_attention"] * 4)
    theirs, ours = both(view(model, "0:4;kv=0_1s_1s_3"), PROMPT)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("kv_map", MAPS)
@pytest.mark.parametrize("settings", [{}, {"qk_norm": True}, {"attention_bias": True}])
def test_the_house_model_with_any_kv_map(kv_map, settings):
    model = house(kv_map, initializer_range=0.3, **settings)
    theirs, ours = both(model, PROMPT % model.config.vocab_size)
    assert torch.equal(ours, theirs)


def test_the_house_model_sees_no_token_of_its_own():
    model = house(force_nodiag=True, initializer_range=0.3)
    for prompt in (PROMPT[:, :1], PROMPT):
        theirs, ours = both(model, prompt % model.config.vocab_size)
        assert torch.equal(ours, theirs)


def test_a_plan_of_the_house_model():
    model = view(house(initializer_range=0.3), "0:3,1@0.5,2@0,3;kv=0_0_2_3_4_5")
    theirs, ours = both(model, PROMPT % model.config.vocab_size)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("bits", ["int8", "int4"])
@pytest.mark.parametrize("name", ["llama", "llama with biases", "qwen3"])
def test_packed_weights(name, bits):
    model = quantize(made(name), bits)
    for plan in ("0:4", "0:3,1:4"):
        theirs, ours = both(view(model, plan), PROMPT)
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("bits", [None, "int4"])
def test_bfloat16_rounds_where_transformers_does(bits):
    """Not to the same token always: sums are added up in another order."""
    model = made("qwen3").to(torch.bfloat16)
    model = model if bits is None else quantize(model, bits)
    exact = made("qwen3") if bits is None else quantize(made("qwen3"), bits)
    compiled, found = kernel(), structure(model)
    from restack.runtime.decoding.stepper import Stepper

    stepper = Stepper(compiled, found, [0], 32)
    ours = stepper.step(PROMPT.tolist(), [0])
    with torch.no_grad():
        theirs, wide = model(PROMPT).logits[0].float(), exact(PROMPT).logits[0]
    error = (theirs - wide).norm()
    assert 0 < (ours - theirs).norm() < error and (ours - wide).norm() < 1.3 * error


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2 with windows"])
def test_a_batch_with_padding_and_early_ends(name):
    model = made(name)
    rows = [PROMPT[0, :length].tolist() for length in (13, 4, 1, 9)]
    tokens = torch.tensor([[0] * (13 - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (13 - len(row)) + [1] * len(row) for row in rows])
    ends = both(model, tokens, attention_mask=mask)[0][:, 13:]
    ending = [int(ends[0, 3]), int(ends[1, 7])]
    theirs, ours = both(model, tokens, attention_mask=mask, eos_token_id=ending)
    assert torch.equal(ours, theirs) and (ours[:, -1] == 0).any() and (ours[:, 17] != 0).any()


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.7, "top_k": 0},
        {"top_k": 5},
        {"top_p": 0.8, "top_k": 0},
        {"min_p": 0.1},
        {"repetition_penalty": 1.3},
        {"do_sample": False, "repetition_penalty": 1.3},
        {"do_sample": False, "no_repeat_ngram_size": 2},
        {"do_sample": False, "suppress_tokens": [3, 50]},
    ],
)
def test_with_the_same_seed_it_draws_what_transformers_draws(settings):
    for tokens in (PROMPT, torch.cat([PROMPT, PROMPT.flip(1)])):
        theirs, ours = both(made("llama"), tokens, **({"do_sample": True} | settings))
        assert torch.equal(ours, theirs)


def test_samples_are_distributed_as_the_model_says():
    """Chi-square of the second token drawn, against softmax of transformers' logits."""
    model, count = made("llama", initializer_range=0.1), 4000
    prompt = PROMPT.expand(count, -1)
    torch.manual_seed(0)
    options = {"do_sample": True, "top_k": 0, "temperature": 1.5, "attention_mask": torch.ones_like(prompt)}
    drawn = model.generate(prompt, max_new_tokens=2, custom_generate=decode, **options)[:, -2:]
    with torch.no_grad():
        first = torch.softmax(model(PROMPT).logits[0, -1].double() / 1.5, 0)
        after = torch.cat([PROMPT.expand(96, -1), torch.arange(96)[:, None]], dim=1)
        second = torch.softmax(model(after).logits[:, -1].double() / 1.5, 1)
    expected = count * (first @ second).numpy()
    seen = torch.bincount(drawn[:, 1], minlength=96).numpy()
    assert stats.chisquare(seen, expected).pvalue > 1e-3
    wrong = stats.chisquare(seen, count * first.numpy())
    assert wrong.pvalue < 1e-9  # it would be noticed


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen3"])
@pytest.mark.parametrize("plan", ["0:4", "0:4;kv=0_0_1_3", "0:2,2@0,3"])
def test_the_cache_is_left_as_transformers_leaves_it(name, plan):
    model, caches, texts = view(made(name), plan), [], []
    for loop in ({}, {"custom_generate": decode}):
        cache, told = DynamicCache(config=model.config), PROMPT
        for more in (6, 9):  # the second time, it holds the beginning already
            told = model.generate(
                told, attention_mask=torch.ones_like(told), do_sample=False, max_new_tokens=more,
                past_key_values=cache, **loop,
            )  # fmt: skip
        caches.append(cache)
        texts.append(told)
    assert torch.equal(*texts)
    for theirs, ours in zip(*(cache.layers for cache in caches), strict=True):
        assert type(ours) is type(theirs)
        if not isinstance(ours, Borrowed):
            assert ours.get_seq_length() == theirs.get_seq_length()
            torch.testing.assert_close(ours.keys, theirs.keys, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(ours.values, theirs.values, atol=1e-4, rtol=1e-4)


def test_what_enters_visits_is_recorded():
    model, found = made("llama"), []
    for loop in ({}, {"custom_generate": decode}):
        with recording(model, (0, 2, 4)) as hidden:
            model.generate(PROMPT, do_sample=False, max_new_tokens=8, **loop)
        found.append({visit: hidden[visit] for visit in hidden})
    assert found[0].keys() == found[1].keys() == {0, 2, 4}
    for visit, theirs in found[0].items():
        assert theirs.shape[1] == 13 + 7
        torch.testing.assert_close(found[1][visit], theirs, atol=1e-3, rtol=1e-4)


def test_the_kernel_reads_a_prompt(reader, monkeypatch):
    """In pieces; above the visit that makes the last keys and values, the last token is enough."""
    rows, read = [], Kernel.read

    def counted(kernel, visits, tokens, hidden):
        rows.extend((visit, tokens.rows) for visit in visits)
        read(kernel, visits, tokens, hidden)

    monkeypatch.setattr(Kernel, "read", counted)
    both(house(ACYCLIC["yoco"]), PROMPT % 50, new=1)
    if reader == "forward":
        assert not rows
    else:  # visits 0 to 2, and 6, which stands for the keys and values of 3
        assert rows == [(visit, count) for count in (5, 5, 3) for visit in (0, 1, 2, 6)]


@pytest.mark.parametrize("settings", [{}, {"rope_parameters": DYNAMIC, "max_position_embeddings": 73}])
def test_room_is_made_for_a_long_text(monkeypatch, settings):
    """Never past the length up to which RoPE turns alike."""
    monkeypatch.setattr("restack.runtime.decoding.loop.ROOM", 2)
    theirs, ours = both(made("llama", **settings), PROMPT, new=60)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("threads", [2, 3, 5])
def test_any_number_of_threads_says_the_same(threads):
    torch.set_num_threads(threads)
    for name, bits in (("qwen3", None), ("llama with biases", "int4")):
        model = made(name) if bits is None else quantize(made(name), bits)
        batch = torch.cat([PROMPT, PROMPT.flip(1), PROMPT.roll(3)])
        for tokens in (PROMPT, batch):
            theirs, ours = both(view(model, "0:3,1:4"), tokens)
            assert torch.equal(ours, theirs)


def test_several_tokens_at_once_are_those_one_by_one():
    from restack.runtime.decoding.stepper import Stepper

    model = view(made("qwen2 with windows"), "0:3,1:4")
    for counts in ([13], [5, 8], [1] * 13):
        stepper, logits = Stepper(kernel(), structure(model), [0], 8), []
        for count in counts:
            start = stepper.lengths[0]
            logits.append(stepper.step(PROMPT[:, start : start + count].tolist(), [0]))
        with torch.no_grad():
            torch.testing.assert_close(torch.cat(logits), model(PROMPT).logits[0], atol=1e-4, rtol=1e-4)


class Watched(torch.nn.Linear):
    """A class that nobody knows."""


def hooked(model):
    model.model.layers[1].mlp.register_forward_hook(lambda module, given, output: output * 0.5)
    return model


def of_another_class(model):
    model.lm_head.__class__ = Watched
    return model


def cut_by_config(model):
    model.config.num_hidden_layers = 3
    return model


def patched(model):
    own = model.model.layers[2].mlp.forward
    model.model.layers[2].mlp.forward = lambda x: own(x) * 2
    return model


@pytest.mark.parametrize(
    "changed",
    [
        hooked,
        cut_by_config,
        of_another_class,
        patched,
        lambda model: model.half(),
        lambda model: model.train(),
        lambda model: view(model, "0:2,1{o_proj:0.5},2:4"),
        lambda model: made("llama", hidden_act="gelu"),
        lambda model: made("llama", rope_parameters=DYNAMIC, max_position_embeddings=20),
        lambda model: GPT2LMHeadModel(GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4)).eval(),
    ],
)
def test_what_the_step_does_not_know_is_left_to_transformers(changed):
    model = changed(made("llama"))
    assert structure(model) is None or not structure(model).turns_alike(13 + 24)
    theirs, ours = both(model, PROMPT, lean=False)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    "options",
    [
        {"return_dict_in_generate": True, "output_scores": True},
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"attention_mask": torch.tensor([[1] * 12 + [0]])},
        {"attention_mask": torch.tensor([[1] * 6 + [0] + [1] * 6])},
        {"position_ids": torch.arange(5, 18)[None]},
        {"prefill_chunk_size": 4},
        {"guidance_scale": 1.5},
    ],
)
def test_what_is_asked_for_besides_is_done_by_transformers(options):
    theirs, ours = both(made("llama"), PROMPT, new=8, **options)
    if isinstance(theirs, dict):
        assert all(torch.equal(a, b) for a, b in zip(theirs["scores"], ours["scores"], strict=True))
        theirs, ours = theirs["sequences"], ours["sequences"]
    assert torch.equal(ours, theirs)
