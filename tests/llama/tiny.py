"""Tiny random house models, and what the reference needs to compute the same."""

import torch

from restack.llama import RestackLlamaConfig, RestackLlamaForCausalLM
from tests.llama.reference import Settings, Visit

VOCABULARY = 50
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.05,
    "bos_token_id": None,
    "eos_token_id": None,
}
ACYCLIC = {
    "identity": "0_1_2_3_4_5",
    "cla2": "0_0_2_2_4_4",
    "yoco": "0s_1s_2s_3_3_3",
    "mix": "0_1s_1s_0_4s_4s",
    "window over a full owner": "0_0s_2_2s_4_4",
}
CYCLIC = {
    "lckv-w2": "0_4x4_5",
    "all top": "5x6",
    "lasagna-top": "2_2_2_5_5_5",
    "sandwich-middle": "0_3x4_5",
    "two groups": "1_1_4_4_4_5",
    "chain": "1_2s_0_3_4_5",
    "sliding group": "0_4sx3_4_5",
    "owner slides": "0_4sx4_5",
}


def config(kv_map: str | None = None, **settings) -> RestackLlamaConfig:
    window = {"sliding_window": 4} if kv_map and "s" in kv_map.replace("lckv", "") else {}
    return RestackLlamaConfig(**(SIZES | window | {"kv_map": kv_map} | settings))


def model(kv_map: str | None = None, seed: int = 0, dtype=torch.float32, attention="eager", **settings):
    """A random model in evaluation mode; norms and biases are random too, for mistakes in them to show."""
    made = config(kv_map, attn_implementation=attention, **settings)
    torch.manual_seed(seed)
    result = RestackLlamaForCausalLM(made)
    with torch.no_grad():
        for name, parameter in result.named_parameters():
            if parameter.dim() == 1:
                parameter.normal_(0 if name.endswith("bias") else 1, 0.1)
    return result.to(dtype).eval()


def tokens(length: int = 12, batch: int = 1, seed: int = 1) -> torch.Tensor:
    return torch.randint(VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def settings_of(made: RestackLlamaConfig) -> Settings:
    """The same model, as the reference says it."""
    plan = made.whole_plan
    visits = tuple(
        Visit(visit.layer, owner, visit.sliding, visit.damp)
        for visit, owner in zip(plan.visits, plan.owners, strict=True)
    )
    return Settings(
        heads=made.num_attention_heads,
        kv_heads=made.num_key_value_heads,
        head_dim=made.head_dim,
        visits=visits,
        theta=made.rope_parameters["rope_theta"],
        eps=made.rms_norm_eps,
        window=made.sliding_window,
        force_nodiag=made.force_nodiag,
    )


def weights_of(house) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().double() for name, tensor in house.state_dict().items()}
