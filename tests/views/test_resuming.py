"""A resumed cache equals the one that its model fills by reading everything itself, whoever read before."""

import copy
import threading
from collections import Counter
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace

import pytest
import torch
import transformers
from torch import nn
from transformers import DynamicCache, StaticCache

import restack
from restack.views.leading import leading_visits
from restack.views.recording import recording
from restack.views.resuming import resumable, resume
from tests.llama import tiny
from tests.llama.plans_run import house_of
from tests.views import survey_models
from tests.views.architectures import BY_NAME, COMMON, LLAMA, SLIDING_FULL, VOCABULARY, WINDOW, Architecture

PROMPT = torch.randint(3, 50, (1, WINDOW + 3), generator=torch.Generator().manual_seed(8))
NEW_TOKENS = 5
CLOSE = {"atol": 1e-5, "rtol": 1e-4}
ROUGH = {"atol": 2e-4, "rtol": 1e-3}  # of what is computed otherwise token by token than of all at once
HYBRID = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention", "full_attention"],
    "head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
}
MORE = [
    Architecture("phi3", "Phi3Config", {"original_max_position_embeddings": 128}),
    Architecture("qwen3_next", "Qwen3NextConfig", HYBRID),
    Architecture(
        "qwen2, all sliding", "Qwen2Config", BY_NAME["qwen2"].own | {"layer_types": SLIDING_FULL[:1] * 4}
    ),
]
ARCHITECTURES = BY_NAME | {architecture.name: architecture for architecture in MORE}
FORGETFUL = ("jamba", "bamba")  # in transformers they go on from a cache otherwise than from the start
REPEATS, OTHER = "0:3,1:4", "0:2,1:3"


def greedy(model, ids=PROMPT, **options):
    model.generation_config.disable_compile = True
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "return_dict_in_generate": True} | options
    options["attention_mask"] = torch.ones_like(ids)  # or tokens that were generated may be taken for padding
    return model.generate(ids, **options)


@torch.no_grad()
def logits(model, ids=PROMPT, **options):
    return model(ids, **options).logits


def view_of(base, plan):
    return base if plan is None else restack.view(base, plan)


def read(model, visits, length=NEW_TOKENS):
    """A cache that a model filled, in prefill and decoding; what it read; what entered visits meanwhile."""
    with recording(model, visits) as seen:
        out = greedy(model, max_new_tokens=length)
    return SimpleNamespace(cache=out.past_key_values, tokens=out.sequences[:, :-1], seen=seen)


@torch.no_grad()
def filled(model, tokens):
    """The cache of a model that has read tokens."""
    return model(tokens, use_cache=True).past_key_values


def held(slot):
    """The tensors and counts that a slot of a cache holds, by name."""
    found = {name: value for name, value in vars(slot).items() if name not in ("lent", "source", "releases")}
    for name, value in list(found.items()):
        if isinstance(value, dict):
            found |= {f"{name}.{key}": item for key, item in found.pop(name).items()}
    return {name: v for name, v in found.items() if isinstance(v, torch.Tensor | int)}


def assert_same_cache(ours, theirs, **near):
    assert len(ours.layers) == len(theirs.layers)
    for number, (slot, other) in enumerate(zip(ours.layers, theirs.layers, strict=True)):
        held_here, held_there = held(slot), held(other)
        if not getattr(other, "is_initialized", True) or getattr(other, "keys", 0) is None:
            assert getattr(slot, "keys", None) is None  # another's keys and values are read
            continue
        assert held_here.keys() == held_there.keys()
        for name, value in held_here.items():
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(value, held_there[name], **near, msg=f"slot {number} {name}")
            else:
                assert value == held_there[name], (number, name)


def assert_resumes(one, other, visit):
    """`other` goes on from a visit after `one` has read; then both are as if the other did not exist."""
    expected_here, expected_there = greedy(one, max_new_tokens=NEW_TOKENS + 3).sequences, logits(other)
    done = read(one, [visit], length=1)  # read in one forward: then nothing is rounded otherwise
    cache = resume(other, visit, done.seen.get(visit), done.tokens, done.cache)
    assert_same_cache(cache, filled(other, done.tokens), atol=0, rtol=0)
    done = read(one, [visit])
    cache = resume(other, visit, done.seen.get(visit), done.tokens, done.cache)
    is_recurrent = any("LinearAttention" in type(slot).__name__ for slot in cache.layers)
    assert_same_cache(cache, filled(other, done.tokens), **(ROUGH if is_recurrent else CLOSE))
    whole = torch.cat([done.tokens, PROMPT[:, :3]], dim=1)
    ours = greedy(other, whole, past_key_values=cache, output_logits=True)
    own = None if other.config.model_type not in FORGETFUL else filled(other, done.tokens)
    theirs = greedy(other, whole, past_key_values=own, output_logits=True)
    assert torch.equal(ours.sequences, theirs.sequences)
    torch.testing.assert_close(torch.stack(ours.logits), torch.stack(theirs.logits), **ROUGH)
    # the first one's cache is as it was
    begun = expected_here[:, : done.tokens.shape[1] + 1]
    again = greedy(one, begun, past_key_values=done.cache, max_new_tokens=3)
    assert torch.equal(again.sequences, expected_here)
    assert torch.equal(logits(other), expected_there)


def layers_of(model):
    return restack.views.anatomy.anatomy(model).layers


# ---- Views of any architecture ----


@pytest.mark.parametrize(
    ("one", "other", "common"),
    [(None, REPEATS, 3), (REPEATS, OTHER, 2), (REPEATS, None, 3)],
    ids=["to a view", "between views", "to the base"],
)
@pytest.mark.parametrize("name", sorted(ARCHITECTURES.keys() - {"mamba"}))
def test_architectures(name, one, other, common):
    base = ARCHITECTURES[name].model()
    one, other = view_of(base, one), view_of(base, other)
    assert leading_visits(one, other) == leading_visits(other, one) == common
    if (name, other) == ("jamba", base):  # whose last layer is Mamba's
        assert not resumable(other, common)
        return
    assert resumable(other, common)
    assert_resumes(one, other, common)


PLANS = {
    "damped after": (None, "0:2,1:4@0.5", 2),
    "skipped after": (None, "0:2,1@0,2:4", 2),
    "damped before": ("0@0.5,1@0,2:4", "0@0.5,1@0,1:4", 2),
    "damped from the first": ("0@0.5,1:4", "0@0.25,1:4", 0),
    "scaled after": (None, "0:2,1{o_proj:0.5},2:4", 2),
    "scaled before": ("0,1{o_proj:0.5},2:4", "0,1{o_proj:0.5},1:4", 2),
    "shares before": ("0:4;kv=0_0_2_3", "0:4,3;kv=0_0_2_3_4", 4),
    "shares after": (None, "0:2,1:4;kv=0_1_2_2_2", 2),
    "shares before and after": ("0:2,0:4;kv=0_0_2_3_4_5", "0:2,1:4;kv=0_0_2_2_2", 2),
    "shares in a chain": ("0:3,2:4;kv=0_0_1_3_4", "0:4;kv=0_0_1_3", 3),
    "a prefix": ("0:4,2:4", None, 4),
    "goes on where all ended": ("0:2", "0:2,1:4", 2),
    "nothing": ("1:4", None, 0),
}


@pytest.mark.parametrize(("one", "other", "common"), PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("name", ["qwen3", "mistral"])
def test_plans(name, one, other, common):
    base = BY_NAME[name].model()
    one, other = view_of(base, one), view_of(base, other)
    assert leading_visits(one, other) == common
    for visit in {0, 1, common}:
        if visit <= common and resumable(other, visit):
            assert_resumes(one, other, visit)
    assert resumable(other, common)


def test_windows_of_some_visits():
    base = BY_NAME["qwen2"].model()
    one, other = restack.view(base, "0:4;kv=0_1s_2_3"), restack.view(base, "0:3,2:4;kv=0_1s_2_3_4")
    assert leading_visits(one, base) == 1
    assert leading_visits(one, other) == 3
    assert_resumes(one, other, 3)


def test_views_of_views_and_slung_models():
    base = LLAMA.model()
    view = restack.view(base, REPEATS)
    again = restack.view(view, "0:2,3:6")  # layers 0, 1, 1, 2, 3
    assert leading_visits(again, restack.view(base, "0:2,1:3")) == 4
    assert leading_visits(again, view) == 2
    assert_resumes(view, again, 2)
    with restack.slung(base, "0:2,3"):
        assert leading_visits(base, view) == 2
        assert_resumes(view, base, 2)
        assert_resumes(base, view, 2)
    assert leading_visits(base, view) == 3


@pytest.mark.parametrize("visit", range(5))
def test_runs_the_later_visits_once(visit):
    base = LLAMA.model()
    view = restack.view(base, "0:4,3:4")
    ran = Counter()
    for number, layer in enumerate(layers_of(view)):
        layer.register_forward_pre_hook(lambda *_, number=number: ran.update([number]))
    done = read(base, [visit])
    resume(view, visit, done.seen[visit], done.tokens, done.cache)
    assert ran == Counter(range(visit, 5))


def test_nothing_runs_where_all_is_read():
    base = LLAMA.model()
    view = restack.view(base, "0:3")
    done = read(base, [])
    with never_run(base), never_run(view):
        cache = resume(view, 3, None, done.tokens, done.cache)
    assert [slot.keys.data_ptr() for slot in cache.layers] == [
        slot.keys.data_ptr() for slot in done.cache.layers[:3]
    ]


@contextmanager
def never_run(model):
    def fail(*_):
        raise AssertionError("a layer ran")

    with ExitStack() as stack:
        for layer in layers_of(model):
            stack.enter_context(layer.register_forward_pre_hook(fail))
        yield


def test_everything_is_left_as_it_was():
    base = LLAMA.model()
    view = restack.view(base, REPEATS)
    before = [(logits(model), copy.deepcopy(model.state_dict()), hooks_of(model)) for model in (base, view)]
    done = read(base, range(4))
    kept = [(slot.keys, slot.keys.clone()) for slot in done.cache.layers]
    cache = resume(view, 3, done.seen[3], done.tokens, done.cache)
    greedy(view, torch.cat([done.tokens, PROMPT], dim=1), past_key_values=cache)
    for slot, (keys, values) in zip(done.cache.layers, kept, strict=True):
        assert slot.keys is keys and torch.equal(keys, values)
    for model, (out, state, hooks) in zip((base, view), before, strict=True):
        assert torch.equal(logits(model), out)
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
        assert hooks_of(model) == hooks
    assert not any(tensor.requires_grad for tensor in done.seen.values())


def hooks_of(model):
    return [len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules()]


def test_recurrent_states_are_copied():
    base = ARCHITECTURES["qwen3_next"].model()
    view = restack.view(base, REPEATS)
    done = read(base, [3])
    before = copy.deepcopy(held(done.cache.layers[0]))
    cache = resume(view, 3, done.seen[3], done.tokens, done.cache)
    greedy(view, torch.cat([done.tokens, PROMPT], dim=1), past_key_values=cache)
    after = held(done.cache.layers[0])
    assert "recurrent_states.0" in before
    assert all(torch.equal(torch.as_tensor(after[name]), torch.as_tensor(before[name])) for name in before)


def test_from_view_to_view_to_view():
    """What a resumed model runs is recorded as well, so that the next can go on from it."""
    base = LLAMA.model()
    first, second, third = base, restack.view(base, "0:3,2:4"), restack.view(base, "0:3,2,2:4")
    done = read(first, [3])
    with recording(first, range(5)) as idle, recording(second, [2, 3, 4, 5]) as seen:
        cache = resume(second, 3, done.seen[3], done.tokens, done.cache)
        restack.view(second, "all")(PROMPT)  # another model, though it copied the hooks
        out = greedy(second, torch.cat([done.tokens, PROMPT], dim=1), past_key_values=cache)
    tokens = out.sequences[:, :-1]
    assert list(seen) == [2, 3, 4, 5] and not idle
    assert seen[2].shape[1] == tokens.shape[1] - done.tokens.shape[1]  # visit 2 was not run over the history
    for visit in (3, 4, 5):
        assert seen[visit].shape == (*tokens.shape, 32)
    last = second(tokens, output_hidden_states=True).hidden_states
    for visit in (3, 4):
        torch.testing.assert_close(seen[visit], last[visit], **CLOSE)
    torch.testing.assert_close(second.model.norm(seen[5]), last[5], **CLOSE)
    assert leading_visits(second, third) == 4
    resumed = resume(third, 4, seen[4], tokens, out.past_key_values)
    assert_same_cache(resumed, filled(third, tokens), **CLOSE)


# ---- What is alike ----


def test_what_is_not_alike():
    base = LLAMA.model()
    view = restack.view(base, REPEATS)
    assert leading_visits(base, base) == leading_visits(base, restack.view(base, "all")) == 4
    assert leading_visits(base, LLAMA.model()) == 0  # equal, and not the same
    assert leading_visits(base, LLAMA.model(seed=1)) == 0
    assert leading_visits(base, restack.views.materialise(base, "all")) == 0
    assert leading_visits(base, tiny.model()) == leading_visits(base, BY_NAME["gpt2"].model()) == 0
    assert leading_visits(base, nn.Linear(2, 2)) == 0
    assert leading_visits(view, restack.view(base, "0:3,1:2")) == 4
    assert leading_visits(base, restack.view(base, "0:4;kv=0_1_1_3")) == 1  # somebody reads visit 1
    shared = [restack.view(base, f"0:4,3;kv=0_1_{owners}") for owners in ("0_1_0", "1_0_0")]
    assert leading_visits(*shared) == 2  # both visits are read in both, and read by others
    layers_of(view)[1].self_attn.q_proj.weight = nn.Parameter(torch.zeros(32, 32))
    assert leading_visits(base, view) == 1
    view.set_input_embeddings(nn.Embedding(VOCABULARY, 32))
    assert leading_visits(base, view) == 0


def test_heads_do_not_matter():
    base = LLAMA.model(tie_word_embeddings=True)
    view = restack.view(base, REPEATS)
    assert leading_visits(base, view) == 3
    assert_resumes(base, view, 3)
    view.lm_head = nn.Linear(32, VOCABULARY)
    assert leading_visits(base, view) == 3


def test_the_text_part_of_a_composite_model():
    settings = COMMON | BY_NAME["gemma3"].own
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}
    config = transformers.Gemma3Config(text_config=settings, vision_config=vision | {"image_size": 28})
    base = transformers.Gemma3ForConditionalGeneration(config).eval()
    base.generation_config.eos_token_id = None
    view = restack.view(base, REPEATS)
    assert leading_visits(base, view) == 3
    assert_resumes(base, view, 3)


def test_donors():
    first, second = LLAMA.model(), LLAMA.model(seed=1)
    both = [first, second]
    view, other = (restack.view(both, restack.plan(p, (4, 4))) for p in ("0/0:2,1/2:4", "0/0:2,1/1:4"))
    assert leading_visits(view, other) == leading_visits(first, view) == 2
    assert leading_visits(second, view) == 0
    assert_resumes(first, other, 2)


def test_a_model_without_its_head():
    base = LLAMA.model()
    view = restack.view(base, REPEATS)
    assert leading_visits(base.model, view.model) == leading_visits(base.model, view) == 3


def test_embeddings_for_each_layer():
    """Gemma 3n hands on several streams: it has visits in common, and nothing to resume from is recorded."""
    config = transformers.Gemma3nTextConfig(
        **COMMON | {"layer_types": SLIDING_FULL, "sliding_window": WINDOW, "head_dim": 8},
        hidden_size_per_layer_input=4, vocab_size_per_layer_input=VOCABULARY, num_kv_shared_layers=0,
        laurel_rank=4, activation_sparsity_pattern=[0.0] * 4,
    )  # fmt: skip
    base = transformers.Gemma3nForCausalLM(config).eval()
    view = restack.view(base, REPEATS)
    assert leading_visits(base, view) == 3
    assert leading_visits(view, restack.view(view, "0:2,3:6")) == 2
    with recording(base, range(5)) as seen:
        logits(base)
    assert not seen


# ---- What is recorded ----


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "falcon", "lfm2"])
def test_records_what_enters(name):
    base = BY_NAME[name].model()
    view = restack.view(base, REPEATS)
    hooks = hooks_of(view)
    with recording(view, range(7)) as seen:
        tokens = greedy(view).sequences[:, :-1]
    assert hooks_of(view) == hooks
    expected = view(tokens, output_hidden_states=True).hidden_states
    assert list(seen) == list(range(7)) and len(seen) == 7
    for visit in range(6):
        torch.testing.assert_close(seen[visit], expected[visit], **CLOSE)
    assert seen[6].shape == expected[6].shape and 7 not in seen
    length = seen[2].shape[1]
    logits(view)
    assert seen[2].shape[1] == length


def test_threads_record_for_themselves():
    house = house_of("repeated and shared")
    for model in (LLAMA.model(), house):
        prompts = [PROMPT % 40 + number for number in range(4)]
        alone = [recorded(model, prompt) for prompt in prompts]
        found = [None] * 4
        barrier = threading.Barrier(4)

        def run(number, model=model, prompts=prompts, found=found, barrier=barrier):
            barrier.wait()
            found[number] = recorded(model, prompts[number])

        threads = [threading.Thread(target=run, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        barrier.wait()
        found[3] = recorded(model, prompts[3])
        for thread in threads:
            thread.join()
        for ours, theirs in zip(found, alone, strict=True):
            assert ours.keys() == theirs.keys() != set()
            for visit in ours:
                torch.testing.assert_close(ours[visit], theirs[visit], **CLOSE)


def recorded(model, prompt):
    with recording(model, [0, 2, 3, 4]) as seen:
        greedy(model, prompt, max_new_tokens=20)
    return dict(seen)


def test_another_thread_is_not_recorded():
    base = LLAMA.model()
    with recording(base, [1]) as seen:
        thread = threading.Thread(target=logits, args=(base,))
        thread.start()
        thread.join()
    assert 1 not in seen
    with pytest.raises(restack.ViewError, match="no visit 5; record some of 0 to 4"), recording(base, [5]):
        pass


# ---- What cannot be resumed ----


def test_owners_below():
    base = LLAMA.model()
    one, other = restack.view(base, "0:3;kv=0_1_1"), restack.view(base, "0:4;kv=0_1_1_1")
    assert leading_visits(one, other) == 3
    assert [resumable(other, visit) for visit in range(5)] == [True, True, False, False, True]
    assert_resumes(one, other, 1)
    done = read(one, [3])
    with pytest.raises(restack.PlanError, match="not visited before"):
        resume(other, 3, done.seen[3], done.tokens, done.cache)


def test_what_is_not_resumable():
    assert not resumable(BY_NAME["mamba"].model(), 1)
    assert not resumable(LLAMA.model(), 5)
    assert not resumable(survey_models.tiny("recurrent_gemma"), 1)  # its layers keep their states themselves
    streams = survey_models.tiny("zaya")
    assert resumable(streams, 0) and not resumable(streams, 1)
    base = BY_NAME["jamba"].model()
    assert [resumable(base, visit) for visit in range(5)] == [True, True, False, False, True]


def test_what_does_not_go_together():
    base = LLAMA.model()
    view = restack.view(base, REPEATS)
    done = read(base, [3])
    static = StaticCache(config=base.config, max_cache_len=64)
    logits(base, done.tokens, past_key_values=static)
    for given, told in [
        ((3, None, done.tokens, done.cache), "visit 3 needs the hidden states of .* is given none"),
        ((3, done.seen[3][:, 1:], done.tokens, done.cache), "visit 3 needs the hidden states"),
        (
            (3, done.seen[3], done.tokens[:, 1:], done.cache),
            "the cache holds 15 tokens and is to be of .1, 14.",
        ),
        ((3, done.seen[3], done.tokens, static), "a StaticCache cannot be gone on with"),
        ((7, done.seen[3], done.tokens, done.cache), "the model has 6 visits, and no 7"),
    ]:
        with pytest.raises(restack.ViewError, match=told):
            resume(view, *given)
    mixed = BY_NAME["gemma3"].model()
    plain = DynamicCache()  # keeps all that its sliding layers let go
    logits(mixed, done.tokens, past_key_values=plain)
    with pytest.raises(restack.ViewError, match="has not the slots of this model"):
        resume(restack.view(mixed, REPEATS), 3, done.seen[3], done.tokens, plain)


# ---- The house model ----

HOUSE = {  # one, other, visits in common, where it can be resumed
    "plain": ("all", "0:4,2:6", 4, [0, 1, 2, 3, 4]),
    "to the base": ("0:4,2:6", "all", 4, [0, 1, 2, 3, 4]),
    "damped": ("0@0.5,1@0,2:6", "0@0.5,1@0,2,2:6", 3, [0, 1, 2, 3]),
    "scaled after": ("all", "0:3,2{o_proj:0.5},3:6", 3, [0, 1, 2, 3]),
    "scaled before": ("0,1{o_proj:0.5},2:6", "0,1{o_proj:0.5},1:6", 2, [0, 1, 2]),
    "owner below": ("0:6;kv=0_1_1_3_4_5", "0:6;kv=0_1_1_3_3_3", 4, [0, 1, 3]),
    "owner right below": ("0:6;kv=0_1_1_3_4_5", "0:6;kv=0_1_1_1_4_5", 3, [0, 1]),
    "a slot that only one has": ("0:6;kv=0_0_1_3_4_5", "0:6;kv=0_0_2_3_4_5", 1, [0]),
    "windows": ("0:6;kv=0_1s_2s_3_4_5", "0:6;kv=0_1s_2_3_4_5", 2, [0, 1, 2]),
    "a window that only one keeps": ("0:6;kv=0_1_1s_3_4_5", "0:6;kv=0_2s_2s_3_4_5", 1, [0, 1]),
    "cyclic before": ("0:6;kv=0_2_2_3_4_5", "0:6,4:6;kv=0_2_2_3_4_5_6_7", 6, [0, 1, 3, 4, 5, 6]),
    "cyclic after": ("all", "0:6;kv=0_1_4_4_4_5", 2, [0, 1, 2]),
    "cyclic across": ("0:6;kv=0_4_4_4_4_5", "0:4,3:6;kv=0_4_4_4_4_5_6", 1, [0, 1]),
    "a prefix": ("0:6,3:6", "all", 6, range(7)),
}  # fmt: skip


@pytest.mark.parametrize(("one", "other", "common", "places"), HOUSE.values(), ids=HOUSE)
def test_house_models(one, other, common, places):
    settings = {"initializer_range": 0.2, "forward_passes": 16, "sliding_window": 4}
    base = tiny.model(**settings)
    one, other = restack.view(base, one), restack.view(base, other)
    assert leading_visits(one, other) == leading_visits(other, one) == common
    assert [visit for visit in range(common + 1) if resumable(other, visit)] == list(places)
    for visit in places:
        assert_resumes(one, other, visit)


def test_the_house_itself():
    house = house_of("repeated and cyclic")  # visits 1 to 6 are iterated
    assert leading_visits(house, restack.view(house, "all")) == 8
    assert leading_visits(house, house_of("repeated and cyclic")) == 0
    assert [visit for visit in range(9) if resumable(house, visit)] == [0, 1, 7, 8]
    with recording(house, range(9)) as seen:
        logits(house)
    assert list(seen) == [0, 1, 7, 8] and {states.shape for states in seen.values()} == {(1, 11, 32)}
    expected = house(PROMPT, output_hidden_states=True).hidden_states
    for visit in (0, 1, 7):
        assert torch.equal(seen[visit], expected[visit])
    assert torch.equal(house.model.norm(seen[8]), expected[8])


def test_house_visits_run_once():
    house = tiny.model(plan="0:6")
    other = restack.view(house, "0:4,2:6")
    done = read(house, [4])
    with recording(other, range(9)) as seen:
        resume(other, 4, done.seen[4], done.tokens, done.cache)
    assert list(seen) == [4, 5, 6, 7, 8]
    assert {states.shape[1] for states in seen.values()} == {done.tokens.shape[1]}
    assert torch.equal(seen[4], done.seen[4])
