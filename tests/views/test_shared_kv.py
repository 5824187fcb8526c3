"""Shared keys and values equal two references of this test: Llama written out in plain torch, and, for any
architecture, a twin whose attention function this test replaces. Neither has a cache."""

import copy
import dataclasses
import pickle
import sys
import threading
from collections.abc import Iterator

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

import restack
from restack.views.cost import cost
from tests.views.architectures import BY_NAME, COMMON, LLAMA, VOCABULARY, WINDOW, Architecture
from tests.views.pairs import gradients

PROMPT = torch.randint(3, VOCABULARY, (2, WINDOW + 3), generator=torch.Generator().manual_seed(9))
NEW_TOKENS = 10
CLOSE = {"atol": 1e-5, "rtol": 1e-4}
MAPS = {
    "cla2": ([0, 1, 2, 3], [0, 0, 2, 2]),
    "one owner": ([0, 1, 2, 3], [0, 0, 0, 0]),
    "two repeats": ([0, 1, 2, 1, 2, 3], [0, 1, 2, 1, 2, 5]),
    "chain": ([0, 1, 2, 3, 3], [0, 0, 1, 1, 4]),
    "upper half": ([0, 1, 2, 3, 2, 3], [0, 1, 2, 2, 2, 2]),
}
FAMILIES = {  # of each: a map whose owners and readers attend alike
    "llama": MAPS["chain"],
    "mistral": MAPS["upper half"],
    "qwen2": ([0, 1, 2, 3], [0, 1, 1, 0]),
    "qwen3": MAPS["cla2"],
    "gemma2": ([0, 1, 2, 3], [0, 1, 1, 0]),
    "gemma3": ([0, 1, 2, 3, 3], [0, 1, 1, 0, 3]),
    "gpt2": MAPS["cla2"],
    "phi": MAPS["one owner"],
    "mixtral": MAPS["two repeats"],
    "qwen3_moe": MAPS["cla2"],
    "lfm2": ([0, 1, 2, 3, 3], [0, 1, 2, 1, 1]),
    "jamba": ([0, 1, 2, 1, 3], [0, 1, 2, 1, 4]),
}
every_map = pytest.mark.parametrize(("order", "owners"), MAPS.values(), ids=MAPS)


def plan_of(order: list[int], owners: list[int], depth: int = 4) -> restack.Plan:
    visits = zip(order, owners, strict=True)
    return restack.Plan(tuple(restack.Visit(layer, kv=owner) for layer, owner in visits), (depth,))


@torch.no_grad()
def logits(model: nn.Module, ids: torch.Tensor = PROMPT, **options: object) -> torch.Tensor:
    return model(ids, **options).logits


def greedy(model: nn.Module, ids: torch.Tensor = PROMPT, **options: object) -> tuple:
    """The tokens, and the logits each new one was chosen by (B, NEW_TOKENS, V)."""
    model.generation_config.disable_compile = True
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False} | options
    out = model.generate(ids, return_dict_in_generate=True, output_logits=True, **options)
    return out.sequences, torch.stack(out.logits, dim=1)


def llama_by_hand(weights: dict, order: list[int], owners: list[int], ids: torch.Tensor) -> torch.Tensor:
    """Llama of 4 heads, 2 of keys and values, each 8 wide; logits (B, T, V)."""
    batch, tokens = ids.shape
    frequencies = 10000.0 ** (-torch.arange(0, 8, 2) / 8)
    angles = torch.arange(tokens)[:, None] * frequencies
    cos, sin = torch.cat([angles.cos()] * 2, -1), torch.cat([angles.sin()] * 2, -1)
    mask = torch.full((tokens, tokens), -torch.inf).triu(1)

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return weights[name] * x * (x.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt()

    def heads(x: torch.Tensor, name: str, count: int) -> torch.Tensor:
        return (x @ weights[name].T).view(batch, tokens, count, 8).transpose(1, 2)

    def rotated(x: torch.Tensor) -> torch.Tensor:
        return x * cos + torch.cat([-x[..., 4:], x[..., :4]], -1) * sin

    hidden = weights["model.embed_tokens.weight"][ids]
    own = []  # keys and values of each visit, whether they are read or not
    for layer, owner in zip(order, owners, strict=True):
        at = f"model.layers.{layer}."
        x = norm(hidden, f"{at}input_layernorm.weight")
        keys, values = (heads(x, f"{at}self_attn.{name}_proj.weight", 2) for name in "kv")
        own.append((rotated(keys), values))
        keys, values = (states.repeat_interleave(2, 1) for states in own[owner])
        scores = rotated(heads(x, f"{at}self_attn.q_proj.weight", 4)) @ keys.transpose(2, 3) / 8**0.5
        attended = (scores + mask).softmax(-1) @ values
        hidden = hidden + attended.transpose(1, 2).flatten(2) @ weights[f"{at}self_attn.o_proj.weight"].T
        x = norm(hidden, f"{at}post_attention_layernorm.weight")
        gate, up = (x @ weights[f"{at}mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        hidden = hidden + (F.silu(gate) * up) @ weights[f"{at}mlp.down_proj.weight"].T
    return norm(hidden, "model.norm.weight") @ weights["lm_head.weight"].T


class Recorded:
    """An attention function that gives each module what its owner's was given."""

    def __init__(self, owners: list[int]) -> None:
        self.owners = owners
        self.seen: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __call__(self, module, query, key, value, mask, **options):
        self.seen[module.layer_idx] = (key, value)
        attend = sys.modules[type(module).__module__].eager_attention_forward
        return attend(module, query, *self.seen[self.owners[module.layer_idx]], mask, **options)


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> Iterator:
    """Makes the twin of an order whose attention shares; to be run without a cache."""
    AttentionMaskInterface.register("recorded", eager_mask)

    def made(architecture: Architecture, base: nn.Module, order: list[int], owners: list[int]) -> nn.Module:
        twin = architecture.twin(base, order)
        AttentionInterface.register("recorded", Recorded(owners))
        twin.set_attn_implementation("recorded")
        return twin

    yield made
    AttentionInterface._global_mapping.pop("recorded", None)
    AttentionMaskInterface._global_mapping.pop("recorded", None)


@every_map
def test_equals_llama_by_hand(order, owners):
    base = LLAMA.model()
    view = restack.view(base, plan_of(order, owners))
    weights = base.state_dict()
    expected = llama_by_hand(weights, order, owners, PROMPT)
    assert not torch.allclose(expected, logits(restack.view(base, order)), atol=1e-2)
    torch.testing.assert_close(logits(view), expected, **CLOSE)
    torch.testing.assert_close(logits(view, use_cache=False), expected, **CLOSE)
    tokens, chosen_by = greedy(view)
    expected = llama_by_hand(weights, order, owners, tokens)[:, PROMPT.shape[1] - 1 : -1]
    torch.testing.assert_close(chosen_by, expected, **CLOSE)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", FAMILIES)
def test_equals_a_twin_that_shares(name, attention, reference):
    order, owners = FAMILIES[name]
    base = BY_NAME[name].model()
    if attention == "sdpa":
        if name == "gemma2":
            pytest.skip("its soft cap has no sdpa")
        base.set_attn_implementation("sdpa")
    view, twin = restack.view(base, plan_of(order, owners)), reference(BY_NAME[name], base, order, owners)
    for options in ({}, {"use_cache": False}):
        torch.testing.assert_close(logits(view, **options), logits(twin, use_cache=False), **CLOSE)
    tokens, chosen_by = greedy(view)
    expected = logits(twin, tokens, use_cache=False)[:, PROMPT.shape[1] - 1 : -1]
    torch.testing.assert_close(chosen_by, expected, atol=2e-4, rtol=1e-4)
    assert not torch.allclose(
        expected, logits(BY_NAME[name].twin(base, order), tokens)[:, -NEW_TOKENS - 1 : -1]
    )


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_left_padding(name, reference):
    order, owners = FAMILIES[name]
    base = BY_NAME[name].model()
    view = restack.view(base, plan_of(order, owners))
    padded = PROMPT.clone()
    padded[0, :4] = 0
    tokens, chosen_by = greedy(view, padded, attention_mask=(padded != 0).long())
    alone = greedy(view, PROMPT[:1, 4:])
    assert torch.equal(tokens[:1, PROMPT.shape[1] :], alone[0][:, -NEW_TOKENS:])
    torch.testing.assert_close(chosen_by[:1], alone[1], atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2"])
@pytest.mark.parametrize(
    "options",
    [{"num_beams": 3}, {"cache_implementation": "static"}, {"num_beams": 2, "num_return_sequences": 2}],
    ids=["beams", "static", "returned beams"],
)
def test_other_ways_to_generate(name, options):
    order, owners = FAMILIES[name]
    view = restack.view(BY_NAME[name].model(), plan_of(order, owners))
    view.generation_config.disable_compile = True
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False} | options
    expected = view.generate(PROMPT, **(options | {"use_cache": False, "cache_implementation": None}))
    assert torch.equal(view.generate(PROMPT, **options), expected)


def test_drafts_by_itself():
    base = LLAMA.model()
    view, draft = restack.view(base, "0:4;kv=0_0_2_2"), restack.view(base, "0:2;kv=0_0")
    one = PROMPT[:1]
    alone = view.generate(one, max_new_tokens=12, do_sample=False)
    assert torch.equal(view.generate(one, max_new_tokens=12, do_sample=False, assistant_model=draft), alone)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2"])
def test_gradients(name, checkpointing, reference):
    order, owners = FAMILIES[name]
    architecture, base = BY_NAME[name], BY_NAME[name].model()
    view, twin = restack.view(base, plan_of(order, owners)), reference(architecture, base, order, owners)
    expected = gradients(twin, architecture.layers, order, PROMPT, use_cache=False)
    if checkpointing:
        view.gradient_checkpointing_enable()
    for options in ({}, {"use_cache": False}):
        base.zero_grad()
        gradients(view, architecture.layers, order, PROMPT, **options)
        for key, parameter in base.named_parameters():
            if parameter.grad is None:  # computed by the twin, and read by nobody
                assert "k_" in key or "v_" in key
                assert not expected[key].any()
            else:
                torch.testing.assert_close(parameter.grad, expected[key], atol=1e-5, rtol=1e-3, msg=key)


def test_reentrant_checkpointing_is_refused():
    view = restack.view(LLAMA.model(), "cla2").train()
    view.gradient_checkpointing_enable({"use_reentrant": True})
    view.enable_input_require_grads()
    with pytest.raises(restack.ViewError, match=r"would lose the gradients .*use_reentrant"):
        view(PROMPT, labels=PROMPT)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_readers_neither_compute_nor_cache(name):
    base = BY_NAME[name].model()
    order, owners = [0, 1, 2, 3, 0, 1], [0, 1, 1, 0, 0, 1]
    view, plain = restack.view(base, plan_of(order, owners)), restack.view(base, order)
    ours, theirs = (model(PROMPT, use_cache=True).past_key_values for model in (view, plain))
    for visit, (slot, other) in enumerate(zip(ours.layers, theirs.layers, strict=True)):
        if visit == owners[visit]:
            assert slot.keys.shape == other.keys.shape and slot.values.nbytes == other.values.nbytes
            assert slot.lent is None
        else:
            assert slot.keys is None and slot.values is None

    def multiplied(model: nn.Module) -> int:
        """Floating point operations of the projections."""
        with profile(activities=[ProfilerActivity.CPU], with_flops=True) as profiler:
            logits(model)
        return sum(event.flops for event in profiler.events() if event.name in ("aten::mm", "aten::addmm"))

    attention = next(m for m in base.modules() if type(m).__name__.endswith("Attention"))
    if name == "gpt2":
        width = 2 * attention.embed_dim
    else:
        width = attention.k_proj.out_features + attention.v_proj.out_features
    readers = sum(visit != owner for visit, owner in enumerate(owners))
    saved = 2 * PROMPT.numel() * base.config.hidden_size * width * readers
    assert multiplied(plain) - multiplied(view) == saved


def test_projections_of_readers_are_not_called():
    base = LLAMA.model()
    called = []
    for name, module in base.named_modules():
        if name.endswith(("k_proj", "v_proj")):
            module.old, module.number = module.weight, int(name.split(".")[2])
    view = restack.view(base, "cla2")
    original = F.linear

    def linear(x, weight, bias=None):
        called.append(id(weight))
        return original(x, weight, bias)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "linear", linear)
        logits(view)
    for layer, is_read in zip(base.model.layers, [True, False, True, False], strict=True):
        for projection in (layer.self_attn.k_proj, layer.self_attn.v_proj):
            assert (id(projection.weight) in called) == is_read
        assert id(layer.self_attn.q_proj.weight) in called


def test_what_nobody_reads_any_more_is_let_go():
    """After a step no slot holds on to what the cache itself has replaced."""
    view = restack.view(BY_NAME["gemma2"].model(), plan_of(*FAMILIES["gemma2"]))
    kv_cache = view(PROMPT, use_cache=True).past_key_values
    kv_cache.reorder_cache(torch.tensor([1, 0]))
    assert all(getattr(slot, "lent", None) is None for slot in kv_cache.layers)


def test_a_cache_can_be_copied_and_continued():
    view = restack.view(LLAMA.model(), plan_of(*MAPS["chain"]))
    whole = logits(view)
    for make in (
        lambda: None,
        lambda: transformers.DynamicCache(),
        lambda: transformers.DynamicCache(config=view.config),
    ):
        with torch.no_grad():
            kept = view(PROMPT[:, :6], past_key_values=make(), use_cache=True).past_key_values
            for kv_cache in (copy.deepcopy(kept), pickle.loads(pickle.dumps(kept)), kept):
                rest = view(PROMPT[:, 6:], past_key_values=kv_cache, use_cache=True).logits
                torch.testing.assert_close(rest, whole[:, 6:], **CLOSE)


def test_a_cache_of_another_view_is_refused():
    base = LLAMA.model()
    kv_cache = base(PROMPT, use_cache=True).past_key_values
    with pytest.raises(restack.ViewError, match=r"visit 1 reads .* this cache holds its own"):
        restack.view(base, "cla2")(PROMPT, past_key_values=kv_cache)


def test_packed_sequences():
    """Without a cache transformers tells sequences of one row apart by their positions."""
    view = restack.view(LLAMA.model(), "cla2").train()
    view.model.config.use_cache = False
    first, second = PROMPT[:1, :5], PROMPT[:1, 5:]
    positions = torch.cat([torch.arange(5), torch.arange(second.shape[1])])[None]
    packed = logits(view, torch.cat([first, second], 1), position_ids=positions)
    torch.testing.assert_close(packed[:, :5], logits(view, first), **CLOSE)
    torch.testing.assert_close(packed[:, 5:], logits(view, second), **CLOSE)


def test_many_views_in_many_threads():
    base = LLAMA.model()
    views = [restack.view(base, plan_of(*MAPS[name])) for name in MAPS]
    expected = [logits(view, use_cache=False) for view in views]
    wrong = []

    def run(number: int) -> None:
        for _ in range(5):
            if not torch.equal(logits(views[number], use_cache=False), expected[number]):
                wrong.append(number)

    threads = [threading.Thread(target=run, args=(n % len(views),)) for n in range(2 * len(views))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_copied_pickled_and_slung():
    model = LLAMA.model()
    plain = logits(model)
    view = restack.view(model, plan_of(*MAPS["chain"]))
    expected = logits(view)
    for other in (copy.deepcopy(view), pickle.loads(pickle.dumps(view))):
        for options in ({}, {"use_cache": False}):
            assert torch.equal(logits(other, **options), logits(view, **options))
    with restack.slung(model, plan_of(*MAPS["chain"])):
        assert torch.equal(logits(model), expected)
    assert torch.equal(logits(model), plain)


def test_plans_compose():
    base = LLAMA.model()
    view = restack.view(base, "cla2")
    for order in ([0, 1, 2, 3, 2, 3], [0, 1], [2, 3, 3], [0, 2]):
        again = restack.view(view, order)
        assert torch.equal(logits(again), logits(restack.view(base, again.restack_plan)))
        torch.testing.assert_close(
            logits(again),
            llama_by_hand(
                base.state_dict(), list(again.restack_plan.order), list(again.restack_plan.owners), PROMPT
            ),
            **CLOSE,
        )
    assert {type(module) for module in again.modules()} == {type(module) for module in base.modules()}
    revived = restack.view(view, "0:4;kv=0_1_1_1")  # visit 1, which read, is read now
    assert revived.restack_plan.owners == (0, 0, 1, 1)
    expected = llama_by_hand(base.state_dict(), [0, 1, 2, 3], [0, 0, 1, 1], PROMPT)
    torch.testing.assert_close(logits(revived), expected, **CLOSE)
    with pytest.raises(restack.PlanError, match="reads the keys and values of layer 0, not visited before"):
        restack.view(view, [1])


def test_damped_owners_and_readers():
    base = LLAMA.model()
    plan = restack.plan("0@0,1@0,2@0.5,3;kv=0_0_0_3", 4)
    for options in ({}, {"use_cache": False}):
        view = restack.view(base, plan)
        assert not view.model.layers[0].restack_damping.is_skipped
        ours = logits(view, **options)
        alone = restack.view(base, restack.plan("0@0,2@0.5,3;kv=0_0_2", 4))
        assert torch.equal(ours, logits(alone, **options))
    assert torch.equal(greedy(view)[0], greedy(alone)[0])


def test_compiles_as_one_graph():
    view = restack.view(LLAMA.model(), "cla2")
    compiled = torch.compile(view, backend="eager", fullgraph=True)
    assert torch.equal(logits(compiled, use_cache=False), logits(view, use_cache=False))
    assert torch.equal(logits(compiled), logits(view))


def test_costs_nothing_where_it_is_not_used():
    base = LLAMA.model()
    view = restack.view(base, "0:4;kv=0_0_2_3")
    assert type(view.model.layers[2]) is type(base.model.layers[2])


def phi3() -> nn.Module:
    config = transformers.Phi3Config(**COMMON, original_max_position_embeddings=128)
    torch.manual_seed(0)
    return transformers.Phi3ForCausalLM(config).eval()


def test_phi3_computes_queries_alone():
    base = phi3()
    view = restack.view(base, "cla2")
    kv_cache = view(PROMPT, use_cache=True).past_key_values
    assert kv_cache.layers[1].keys is None and kv_cache.layers[0].keys is not None
    tokens, chosen_by = greedy(view)
    uncached = logits(view, tokens, use_cache=False)[:, PROMPT.shape[1] - 1 : -1]
    torch.testing.assert_close(chosen_by, uncached, **CLOSE)


WINDOWED = {"layer_types": ["full_attention"] * 4, "use_sliding_window": True, "sliding_window": WINDOW}


@pytest.mark.parametrize(
    "kinds",
    [["full_attention"] * 4, ["full_attention", "sliding_attention"] * 2],
    ids=["no layer slid", "some slid"],
)
def test_yoco(kinds, reference):
    """The lower half slides, which a twin can be built to do; the upper reads its own first visit."""
    base = BY_NAME["qwen2"].model(**WINDOWED | {"layer_types": [*kinds[:2], *["full_attention"] * 2]})
    sliding = ["sliding_attention"] * 2 + ["full_attention"] * 2
    architecture = dataclasses.replace(BY_NAME["qwen2"], own=WINDOWED | {"layer_types": sliding})
    order, owners = [0, 1, 2, 3], [0, 1, 2, 2]
    view, twin = restack.view(base, "yoco"), reference(architecture, base, order, owners)
    assert view.config.layer_types == sliding and base.config.layer_types[0] == "full_attention"
    tokens, chosen_by = greedy(view)
    assert tokens.shape[1] > 2 * WINDOW
    for options in ({}, {"use_cache": False}):
        torch.testing.assert_close(
            logits(view, tokens, **options), logits(twin, tokens, use_cache=False), **CLOSE
        )
    expected = logits(twin, tokens, use_cache=False)[:, PROMPT.shape[1] - 1 : -1]
    torch.testing.assert_close(chosen_by, expected, atol=2e-4, rtol=1e-4)
    full = restack.view(base, plan_of(order, owners))
    assert torch.allclose(logits(full), logits(view), atol=1e-3) == (
        view.config.layer_types == full.config.layer_types
    )
    kv_cache = view(tokens, use_cache=True).past_key_values
    assert kv_cache.layers[0].keys.shape[2] == WINDOW - 1 < kv_cache.layers[2].keys.shape[2]
    assert torch.equal(logits(restack.view(view, "all")), logits(view))


def test_a_window_that_every_layer_has():
    base = BY_NAME["mistral"].model()
    assert torch.equal(logits(restack.view(base, "yoco")), logits(restack.view(base, "0:4;kv=0_1_2_2")))


def test_in_place_with_a_window():
    some = BY_NAME["qwen2"].model()  # layers 0 and 3 slide
    plan = "0:4;kv=0s_1s_2_2"
    with pytest.raises(restack.ViewError, match=r"visit 3 cannot read .* its layer_types is sliding"):
        restack.sling(some, plan=plan)
    before = list(some.config.layer_types), logits(some)
    expected = logits(restack.view(some, "0:3;kv=0_1s_2"))
    assert not torch.equal(expected, logits(restack.view(some, "0:3")))
    with restack.slung(some, "0:3;kv=0_1s_2"):
        assert torch.equal(logits(some), expected)
    assert before[0] == some.config.layer_types and torch.equal(before[1], logits(some))
    with pytest.raises(restack.ViewError, match="built without sliding layers; make a view"):
        restack.sling(BY_NAME["qwen2"].model(**WINDOWED), plan="yoco")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("llama", r"visit 0 asks for a sliding window \(s\), and llama's config sets none"),
        ("gemma3", "gemma3_text attends by other rules where it slides"),
    ],
)
def test_windows_that_are_refused(name, told):
    plan = "0:4;kv=0s_1_2_3" if name == "llama" else "0:4;kv=0_1s_2_3"
    with pytest.raises(restack.ViewError, match=told):
        restack.view(BY_NAME[name].model(), plan)


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3_moe"])
def test_cost_says_what_the_cache_holds(name):
    base = BY_NAME[name].model()
    plan = restack.plan("0:4;kv=0_0_2_0", 4)
    view = restack.view(base, plan)
    kv_cache = view(PROMPT, use_cache=True).past_key_values
    held = sum(slot.keys.nbytes + slot.values.nbytes for slot in kv_cache.layers if slot.keys is not None)
    said = cost(base, plan)
    assert said.kv_bytes_per_token == cost(view, restack.plan("all", 4)).kv_bytes_per_token
    assert said.kv_bytes_per_token * PROMPT.numel() == held
    assert said.materialised_kv_bytes_per_token == 2 * said.kv_bytes_per_token


@pytest.mark.parametrize("call", [restack.view, lambda model, plan: restack.sling(model, plan=plan)])
@pytest.mark.parametrize(
    ("name", "plan", "told"),
    [
        ("llama", "0:4;kv=0_3_2_3", r"visit 1 reads .* visit 3, which runs after it; .*restack-llama"),
        ("deepseek_v3", "cla2", "visit 1 runs a DeepseekV3DecoderLayer with multi-head latent attention"),
        ("mamba", "cla2", "visit 1 runs linear_attention, whose keys and values views cannot share"),
        ("lfm2", "cla2", "visit 1 cannot read|visit 0 runs conv"),
        ("falcon", "cla2", "FalconAttention computes its queries, keys and values in one projection"),
        ("gpt_neox", "cla2", "GPTNeoXAttention computes its queries, keys and values in one projection"),
        ("gemma2", "cla2", "visit 1 cannot read the keys and values of visit 0: its layer_types is full"),
    ],
)
def test_refusals(call, name, plan, told):
    with pytest.raises(restack.ViewError, match=told):
        call(BY_NAME[name].model(), plan)


def test_no_checkpoint_says_it(tmp_path):
    base = LLAMA.model()
    with pytest.raises(restack.ViewError, match="visit 1 reads keys and values as no plain checkpoint can"):
        restack.materialise(base, "cla2")
    view = restack.view(base, "cla2")
    with pytest.raises(restack.ViewError, match="visit 1 runs otherwise"):
        view.save_pretrained(tmp_path)
