"""Scaled visits equal models of their own whose weights this test multiplies.

Tolerance: a view computes s(Wx) where the twin computes (sW)x, which differ by the rounding of each product:
some units in the last place of float32. Powers of two round nothing, and must be exact.
"""

import collections
import copy
import pickle

import pytest
import torch
import transformers
from torch import nn
from torch.profiler import ProfilerActivity, profile

import restack
from tests.views.architectures import ARCHITECTURES, BY_NAME, LLAMA, VOCABULARY, Architecture

PROMPT = torch.randint(3, VOCABULARY, (2, 11), generator=torch.Generator().manual_seed(8))
ORDER = [0, 1, 2, 1, 2, 3]
ROUNDED = {"atol": 2e-5, "rtol": 1e-4}
Filters = list[tuple[str, float]]


@pytest.fixture(scope="module", params=ARCHITECTURES, ids=lambda architecture: architecture.name)
def architecture(request: pytest.FixtureRequest) -> Architecture:
    return request.param


def plan_of(filters: dict[int, Filters]) -> restack.Plan:
    """The order above, with these scales at some visits."""
    return restack.Plan(
        tuple(restack.Visit(layer, scale=tuple(filters.get(n, ()))) for n, layer in enumerate(ORDER)), (4,)
    )


def scaled_by_hand(architecture: Architecture, base: nn.Module, filters: dict[int, Filters]) -> nn.Module:
    """The twin with multiplied weights, by mergekit's rule: the first filter that is part of the name."""
    twin = architecture.twin(base, ORDER)
    with torch.no_grad():
        for name, tensor in twin.state_dict().items():
            visit = name.removeprefix(f"{architecture.layers}.").partition(".")[0]
            if name.startswith(f"{architecture.layers}.") and tensor.is_floating_point():
                for part, factor in filters.get(int(visit), []):
                    if part == "*" or part in name:
                        tensor.mul_(factor)
                        break
    return twin


@torch.no_grad()
def logits(model: nn.Module, **options: object) -> torch.Tensor:
    return model(PROMPT, **options).logits


def greedy(model: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    out = model.generate(
        PROMPT, max_new_tokens=10, do_sample=False, return_dict_in_generate=True, output_logits=True
    )
    return out.sequences, torch.stack(out.logits, dim=1)


def names_of(architecture: Architecture, base: nn.Module) -> list[str]:
    """The last parts of the names of what a layer holds: some of it in one layer, some in another."""
    names = {name for layer in base.get_submodule(architecture.layers) for name in layer.state_dict()}
    return sorted({name.removesuffix(".weight").rpartition(".")[2] for name in names})


@pytest.mark.parametrize("factor", [0.5, -2.0, 0.0], ids=str)
def test_powers_of_two_are_exact(architecture, factor):
    """Each tensor of the layers, and all of them."""
    base = architecture.model()
    for part in [*names_of(architecture, base), "*"]:
        filters = {1: [(part, factor)], 3: [(part, factor)], 4: [(part, factor)]}
        twin = scaled_by_hand(architecture, base, filters)
        view = restack.view(base, plan_of(filters))
        # With gradients, by which torch chooses how to multiply a weight and a batch, as Mamba does itself.
        assert torch.equal(view(PROMPT).logits, twin(PROMPT).logits), part
    assert not torch.equal(logits(twin), logits(base))
    ours, theirs = greedy(view), greedy(twin)
    assert torch.equal(ours[0], theirs[0])
    if architecture.name in ("mamba", "jamba"):
        torch.testing.assert_close(ours[1], theirs[1], **ROUNDED)
    else:
        assert torch.equal(ours[1], theirs[1])


def test_other_factors_are_rounded(architecture):
    base = architecture.model()
    first, second, *_ = names_of(architecture, base)
    filters = {1: [(first, 0.7), (second, 1.3)], 3: [("o_proj", 0.7), ("*", 0.9)]}
    if not any("o_proj" in name for name in names_of(architecture, base)):
        filters[3] = [(second, 1.0), ("*", 0.9)]
    twin, view = scaled_by_hand(architecture, base, filters), restack.view(base, plan_of(filters))
    torch.testing.assert_close(logits(view), logits(twin), **ROUNDED)
    torch.testing.assert_close(greedy(view)[1], greedy(twin)[1], **ROUNDED)


def test_materialised_bit_by_bit(architecture):
    base = architecture.model()
    filters = {1: [(names_of(architecture, base)[0], 0.7)], 3: [("*", 0.9)]}
    twin = scaled_by_hand(architecture, base, filters)
    for own in (
        restack.materialise(base, plan_of(filters)),
        restack.materialise(restack.view(base, plan_of(filters)), "all"),
    ):
        expected = twin.state_dict()
        assert own.state_dict().keys() == expected.keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in own.state_dict().items())
        assert {type(module) for module in own.modules()} == {type(module) for module in twin.modules()}
        assert torch.equal(logits(own), logits(twin))


def test_a_materialised_scale_is_saved_and_loaded(tmp_path):
    base = LLAMA.model()
    own = restack.materialise(base, "0:2,1{o_proj:0.7},2:")
    own.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    assert torch.equal(logits(loaded), logits(own))
    view = restack.view(base, "0,1{o_proj:0.7}")
    with pytest.raises(restack.ViewError, match="visit 1 runs otherwise"):
        view.save_pretrained(tmp_path / "scaled")
    assert not (tmp_path / "scaled" / "model.safetensors").exists()


def test_shares_every_tensor():
    base = LLAMA.model()
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    view = restack.view(base, "0:2,1{o_proj:0.7,norm:1.2},2:")
    owned = {id(tensor) for tensor in [*base.parameters(), *base.buffers()]}
    assert {id(tensor) for tensor in [*view.parameters(), *view.buffers()]} == owned
    logits(view)
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["llama", "gpt_neox", "mixtral"])
def test_gradients(name, checkpointing):
    """Of a shared tensor: the sum over its visits, each multiplied by the visit's factor."""
    architecture = BY_NAME[name]
    filters = {3: [("dense", 0.5), ("proj", 0.5), ("norm", 2.0)]}
    filters[3] = [
        (part, f) for part, f in filters[3] if any(part in n for n in architecture.model().state_dict())
    ]
    factors = dict(filters[3])
    base = architecture.model()
    twin, view = scaled_by_hand(architecture, base, filters), restack.view(base, plan_of(filters))
    if checkpointing:
        view.gradient_checkpointing_enable()
    for model in (twin, view):
        model.train()
        model(PROMPT, labels=PROMPT).loss.backward()
    expected: dict[str, torch.Tensor] = collections.defaultdict(lambda: torch.zeros(()))
    for key, parameter in twin.named_parameters():
        factor = 1.0
        if key.startswith(f"{architecture.layers}."):
            visit, _, rest = key.removeprefix(f"{architecture.layers}.").partition(".")
            if int(visit) == 3:
                factor = next((f for part, f in factors.items() if part in key), 1.0)
            key = f"{architecture.layers}.{ORDER[int(visit)]}.{rest}"
        expected[key] = expected[key] + factor * parameter.grad
    for key, parameter in base.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[key], atol=1e-5, rtol=1e-3, msg=key)


def kernels(model: nn.Module) -> collections.Counter:
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        logits(model)
    return collections.Counter(event.name for event in profiler.events() if event.name.startswith("aten::"))


def test_costs_one_product_a_projection():
    base = LLAMA.model()
    plain = kernels(LLAMA.twin(base, ORDER))
    scaled = kernels(restack.view(base, plan_of({3: [("o_proj", 0.7), ("down_proj", 0.5)]})))
    assert kernels(restack.view(base, plan_of({}))) == plain
    assert plain - scaled == {}
    assert (scaled - plain)["aten::mul"] == 2
    conversions = {"aten::to", "aten::_to_copy", "aten::copy_", "aten::empty_strided"}  # of the factor
    assert set(scaled - plain) <= {"aten::mul", *conversions}


def test_experts_are_scaled_at_their_output():
    """No product as large as their weights is made for the last of them."""
    base = BY_NAME["mixtral"].model()
    size = base.model.layers[1].mlp.experts.down_proj.numel()
    view = restack.view(base, "0:2,1{down_proj:0.7},2:")
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        logits(view)
    shapes = [shape for e in profiler.events() if e.name == "aten::mul" for shape in e.input_shapes if shape]
    assert shapes and all(torch.Size(shape).numel() < size for shape in shapes)


def test_in_place():
    model = LLAMA.model()
    plain, twin = logits(model), scaled_by_hand(LLAMA, model, {3: [("o_proj", 0.5)]})
    with restack.slung(model, "0:3,1{o_proj:0.5},2:"):
        assert torch.equal(logits(model), logits(twin))
    assert torch.equal(logits(model), plain)


def test_plans_compose():
    base = LLAMA.model()
    view = restack.view(base, "0:2,1{o_proj:0.5},2:")
    again = restack.view(view, [2, 1, 2])
    assert again.restack_plan == restack.plan("1{o_proj:0.5},1,1{o_proj:0.5}", 4)
    assert torch.equal(logits(again), logits(restack.view(base, again.restack_plan)))
    with pytest.raises(restack.PlanError, match="scaled by both plans"):
        restack.view(view, "0:2,2{down_proj:0.5}")


def test_can_be_copied_and_pickled_and_compiled():
    view = restack.view(LLAMA.model(), "0:2,1{o_proj:0.7,norm:1.2},2:")
    others = (copy.deepcopy(view), pickle.loads(pickle.dumps(view)))
    compiled = torch.compile(view, backend="eager", fullgraph=True)
    assert all(torch.equal(logits(other), logits(view)) for other in (*others, compiled))


def test_weights_that_are_read_past_the_module_are_multiplied_too():
    """As kernels of Mamba read `out_proj.weight`, which never call the module."""
    view = restack.view(LLAMA.model(), "0:2{o_proj:0.5}")
    projection = view.model.layers[1].self_attn.o_proj
    assert torch.equal(projection.weight, 0.5 * dict(projection.named_parameters())["weight"])


def test_quantised_weights():
    """What bitsandbytes packs into bytes is multiplied where it comes out."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    base = LLAMA.model(num_hidden_layers=1, hidden_size=64)
    old = base.model.layers[0].self_attn.o_proj
    new = bitsandbytes.nn.Linear4bit(64, 64, bias=False, compute_dtype=torch.float32)
    new.weight = bitsandbytes.nn.Params4bit(old.weight.data, requires_grad=False).to("cpu")
    base.model.layers[0].self_attn.o_proj = new
    x = torch.randn(3, 64)
    view = restack.view(base, "0{o_proj:0.5}")
    assert torch.equal(view.model.layers[0].self_attn.o_proj(x), 0.5 * new(x))
    with pytest.raises(restack.ViewError, match=r"o_proj\.weight is quantised"):
        restack.materialise(base, "0{o_proj:0.5}")


@pytest.mark.parametrize("call", [restack.view, restack.materialise, lambda m, p: restack.sling(m, plan=p)])
def test_a_filter_that_names_nothing_is_refused(call):
    with pytest.raises(restack.ViewError, match=r"no tensor of a layer has o_prj .* self_attn\.o_proj"):
        call(LLAMA.model(), "0:2,1{o_prj:0.7}")


def test_an_adapter_is_refused():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["o_proj"], task_type="CAUSAL_LM")
    base = peft.get_peft_model(LLAMA.model(), config)
    with pytest.raises(restack.ViewError, match=r"lora_A.* would count twice; merge the adapter first"):
        restack.view(base, "0:2{o_proj:0.5}")
