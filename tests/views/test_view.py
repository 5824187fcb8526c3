"""A view equals the model that its own constructor builds in the new order: the oracle."""

import copy

import pytest
import torch
from torch import nn

import restack
from tests.views.architectures import ARCHITECTURES, VOCABULARY, WINDOW, Architecture

ORDERS = {
    "identity": [0, 1, 2, 3],
    "repeat": [0, 1, 2, 1, 2, 3, 3],
    "skip": [0, 1, 3],
    "swap": [0, 2, 1, 3],
    "reverse": [3, 2, 1, 0],
}
NEW_TOKENS = 14


@pytest.fixture(scope="module", params=ARCHITECTURES, ids=lambda architecture: architecture.name)
def architecture(request: pytest.FixtureRequest) -> Architecture:
    return request.param


@pytest.fixture(scope="module")
def base(architecture: Architecture) -> nn.Module:
    return architecture.model()


@pytest.fixture(scope="module")
def prompt() -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (2, WINDOW + 3), generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def logits(model: nn.Module, ids: torch.Tensor, **options: object) -> torch.Tensor:
    return model(ids, **options).logits


def greedy(model: nn.Module, ids: torch.Tensor, **options: object) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens (B, T + NEW_TOKENS) and the logits each new one was chosen by (B, NEW_TOKENS, V)."""
    out = model.generate(
        ids,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
        **options,
    )
    return out.sequences, torch.stack(out.logits, dim=1)


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_equals_the_twin(architecture, base, prompt, order):
    view = restack.view(base, order)
    twin = architecture.twin(base, order)

    assert torch.equal(logits(view, prompt), logits(twin, prompt))
    tokens, chosen_by = greedy(view, prompt)
    twin_tokens, twin_chosen_by = greedy(twin, prompt)
    assert tokens.shape[1] == prompt.shape[1] + NEW_TOKENS > WINDOW
    assert torch.equal(tokens, twin_tokens)
    assert torch.equal(chosen_by, twin_chosen_by)


@pytest.mark.parametrize("order", [ORDERS["repeat"], ORDERS["reverse"]], ids=["repeat", "reverse"])
def test_cached_equals_uncached(base, prompt, order):
    view = restack.view(base, order)
    tokens, chosen_by = greedy(view, prompt)
    uncached = logits(view, tokens, use_cache=False)[:, prompt.shape[1] - 1 : -1]
    torch.testing.assert_close(chosen_by, uncached, atol=2e-4, rtol=1e-4)


def test_equals_the_twin_with_sdpa(architecture, prompt):
    base = architecture.model()
    if not base._supports_sdpa:
        pytest.skip(f"{architecture.name} has no sdpa in transformers")
    base.set_attn_implementation("sdpa")
    if base.config._attn_implementation != "sdpa":
        pytest.skip(f"{architecture.name} takes its attention at construction only")
    view = restack.view(base, ORDERS["repeat"])
    twin = architecture.twin(base, ORDERS["repeat"])
    assert view.config._attn_implementation == twin.config._attn_implementation == "sdpa"
    assert torch.equal(logits(view, prompt), logits(twin, prompt))
    assert torch.equal(greedy(view, prompt)[0], greedy(twin, prompt)[0])


def test_left_padding(architecture, base, prompt):
    view = restack.view(base, ORDERS["repeat"])
    twin = architecture.twin(base, ORDERS["repeat"])
    mask = torch.ones_like(prompt)
    mask[1, :4] = 0
    padded = prompt.masked_fill(mask == 0, 0)
    tokens, chosen_by = greedy(view, padded, attention_mask=mask)
    twin_tokens, twin_chosen_by = greedy(twin, padded, attention_mask=mask)
    assert torch.equal(tokens, twin_tokens)
    assert torch.equal(chosen_by, twin_chosen_by)


def test_the_order_matters(architecture, base, prompt):
    """Without this, a view that ignored its plan would pass for models whose layers hardly differ."""
    plain = logits(base, prompt)
    for name, order in ORDERS.items():
        same = torch.allclose(logits(restack.view(base, order), prompt), plain, atol=1e-3)
        assert same == (name == "identity"), name


def test_shares_every_tensor(base):
    view = restack.view(base, ORDERS["repeat"])
    for kind in ("named_parameters", "named_buffers"):
        owned = {id(tensor) for _, tensor in getattr(base, kind)()}
        assert all(id(tensor) in owned for _, tensor in getattr(view, kind)(remove_duplicate=False))
    assert type(view) is type(base)
    assert not {id(module) for module in view.modules()} & {id(module) for module in base.modules()}


def test_leaves_the_base_alone(base, prompt):
    def state() -> tuple:
        layers = [module for module in base.modules() if isinstance(module, nn.ModuleList)]
        return (
            copy.deepcopy(vars(base.config)),
            type(base.config),
            base.generation_config.to_dict(),
            [[id(member) for member in members] for members in layers],
            [getattr(module, "layer_idx", None) for module in base.modules()],
            sorted(vars(base)),
        )

    before, plain = state(), logits(base, prompt)
    view = restack.view(base, ORDERS["repeat"])
    greedy(view, prompt)
    view.config.use_cache = False
    view.generation_config.max_length = 3
    assert state() == before
    assert torch.equal(logits(base, prompt), plain)


def test_the_config_says_what_the_twins_says(architecture, base):
    for order in ORDERS.values():
        config, twin = restack.view(base, order).config, architecture.twin(base, order).config
        assert config.num_hidden_layers == len(order)
        for name in ("layer_types", "layers_block_type", "layers_num_experts", "attn_layer_indices"):
            assert getattr(config, name, None) == getattr(twin, name, None), name


def test_hidden_states_of_every_visit(architecture, base, prompt):
    base(prompt, output_hidden_states=True)  # transformers puts its recording hooks on the base first
    view = restack.view(base, ORDERS["repeat"])
    twin = architecture.twin(base, ORDERS["repeat"])
    seen = view(prompt, output_hidden_states=True).hidden_states
    expected = twin(prompt, output_hidden_states=True).hidden_states
    assert len(seen) == len(expected) == len(ORDERS["repeat"]) + 1
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(seen, expected, strict=True))
