"""House models by their plans, for the tests of what transformers does with them, and what they equal."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.llama.reference import unrolled
from tests.llama.tiny import SIZES, model, settings_of, tokens, weights_of

PASSES = 40  # more than there are tokens in any of these tests: converged, whatever the weights
PLAIN = {"identity": {}, "repeated": {"plan": "0:4,2:6"}}
ACYCLIC = {
    **PLAIN,
    "repeated and shared": {"plan": "0:4,2:6;kv=0_1_1_3_4_4_1_7"},
    "cla2": {"kv_map": "cla2"},
    "yoco": {"kv_map": "yoco", "sliding_window": 4},
    "damped": {"plan": "0:6,2:4@0.5,4:"},
    "skipped": {"plan": "0:3,3@0,4:6,1@0,2@-0.5;kv=0_1_2_3_3_5_6_7"},
}
CYCLIC = {
    "lckv-w2": {"kv_map": "lckv-w2"},
    "chain": {"kv_map": "1_2s_0_3_4_5", "sliding_window": 4},
    "repeated and cyclic": {"plan": "0:4,2:6;kv=0_6_6_6_6_6_6_7"},
}
PLANS = ACYCLIC | CYCLIC
FEW = ["repeated and shared", "yoco", "chain"]
EACH = [name if name in FEW else pytest.param(name, marks=pytest.mark.slow) for name in PLANS]
PROMPT, NEW = tokens(6, batch=2), 7
GREEDY = {"max_new_tokens": NEW, "do_sample": False}


def house_of(plan: str, **settings):
    """A random model of one of the plans; its weights are large, for tokens to differ clearly."""
    return model(**{"initializer_range": 0.2, "forward_passes": PASSES} | PLANS[plan] | settings)


def unrolled_llama(house, attention: str = "eager") -> LlamaForCausalLM:
    """Transformers' Llama with a copy of a layer for each visit."""
    made, order = house.config, house.config.whole_plan.order
    own = {name: getattr(made, name) for name in (*SIZES, "head_dim", "tie_word_embeddings")}
    llama = LlamaForCausalLM(
        LlamaConfig(**own | {"num_hidden_layers": len(order)}, attn_implementation=attention)
    )
    ours = house.state_dict()
    copied = {name: ours[re_layered(name, order)].clone() for name in llama.state_dict()}
    llama.load_state_dict(copied)
    return llama.eval()


def re_layered(name: str, order) -> str:
    """The name in the house of a tensor of the unrolled Llama."""
    start, _, rest = name.partition("model.layers.")
    if start or not rest:
        return name
    visit, _, rest = rest.partition(".")
    return f"model.layers.{order[int(visit)]}.{rest}"


@torch.no_grad()
def logits(house, ids=PROMPT, **options) -> torch.Tensor:
    return house(ids, **options).logits


@torch.no_grad()
def expected_logits(house, ids=PROMPT) -> torch.Tensor:
    """Of the reference, converged."""
    settings = settings_of(house.config)
    visits = (visit if visit.damp else replace(visit, owner=0) for visit in settings.visits)  # reads nothing
    return unrolled(weights_of(house), replace(settings, visits=tuple(visits)), ids, PASSES, 1)


def expected_tokens(house, ids=PROMPT, new: int = NEW) -> torch.Tensor:
    """The prompt and the greedy tokens of the reference, which has no cache."""
    for _ in range(new):
        ids = torch.cat([ids, expected_logits(house, ids)[:, -1:].argmax(-1)], dim=1)
    return ids


@cache
def continuation(plan: str) -> torch.Tensor:
    """What the house model of a plan generates greedily."""
    return expected_tokens(house_of(plan))
