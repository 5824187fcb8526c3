"""restack-llama: X-Llama and LCKV as one readable model. Choose attention, rotary embedding and plan.

Layers are stored once. A plan says which layer each visit runs and whose keys and values it reads, so that
repeated and shared layers are trained, saved, sharded and compiled without a copy.

Notation, as in shape comments:
    B     batch
    T     tokens of this forward
    S     tokens whose keys and values are attended to: the past, then these
    C     hidden width
    hs    width of a head
    nh_q  query heads
    nh_kv key and value heads; nh_q is a multiple of it
    V     vocabulary

             MHA: nh_kv = nh_q            GQA: groups of queries           MQA: nh_kv = 1
        v  v  v  v  v  v  v  v          v     v     v     v                      v
        k  k  k  k  k  k  k  k          k     k     k     k                      k
        q  q  q  q  q  q  q  q          q  q  q  q  q  q  q  q        q  q  q  q  q  q  q  q

Sources: Llama 2307.09288; GQA 2305.13245; RoPE 2104.09864; LCKV 2405.10637 (the iteration: section 2.3, its
algorithm: `iteration_plan` of whyNLP/LCKV); CLA 2405.12981; YOCO 2405.05254; MixAttention 2409.15012.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.utils.generic import can_return_tuple

from restack.errors import RestackError, ViewError
from restack.llama.cache import KeysValues, grow, past, with_estimate
from restack.llama.config import LCKVLlamaConfig, RestackLlamaConfig, require_config
from restack.llama.loading import load, unneeded
from restack.llama.registries import ATTENTIONS, ROTARIES, register_attention
from restack.llama.rotary import Rope, RotaryEmbedding, rotary_of, rotated
from restack.llama.schedule import Group, Schedule, Step
from restack.llama.sight import Sight, masks, sights, with_zeros
from restack.llama.sinks import SinkCache
from restack.plans import Plan


class RMSNorm(nn.Module):
    """Root mean square norm (1910.07467), computed in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., width) to (..., width)."""
        wide = x.to(torch.float32)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


# ---- Attention ----


class LlamaAttention(nn.Module):
    """Attention of query heads in groups that share one key and value head: MHA, GQA and MQA."""

    is_causal = True

    def __init__(self, config: RestackLlamaConfig, has_kv: bool) -> None:
        super().__init__()
        self.config = config
        self.head_dim, kv_heads = config.head_dim, config.num_key_value_heads
        self.num_key_value_groups = config.num_attention_heads // kv_heads
        self.scaling = self.head_dim**-0.5
        heads, bias = config.num_attention_heads, config.attention_bias
        out_bias = bias if config.attention_out_bias is None else config.attention_out_bias
        self.q_proj = nn.Linear(config.hidden_size, heads * self.head_dim, bias=bias)
        if has_kv:  # a layer whose keys and values nobody reads has no weights for them
            self.k_proj = nn.Linear(config.hidden_size, kv_heads * self.head_dim, bias=bias)
            self.v_proj = nn.Linear(config.hidden_size, kv_heads * self.head_dim, bias=bias)
        self.o_proj = nn.Linear(heads * self.head_dim, config.hidden_size, bias=out_bias)
        if config.qk_norm:
            self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps)
            if has_kv:
                self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps)

    def keys_values(self, x: torch.Tensor, rope: Rope) -> KeysValues:
        """Keys and values (B, nh_kv, T, hs) of x (B, T, C), the keys turned."""
        k = self.k_proj(x).view(*x.shape[:-1], -1, self.head_dim)  # (B, T, nh_kv, hs)
        v = self.v_proj(x).view(*x.shape[:-1], -1, self.head_dim).transpose(1, 2)  # (B, nh_kv, T, hs)
        k = (self.k_norm(k) if self.config.qk_norm else k).transpose(1, 2)  # (B, nh_kv, T, hs)
        return rotated(k, rope), v

    def forward(
        self, x: torch.Tensor, read: KeysValues | None, rope: Rope, sight: Sight, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, T, C) to (B, T, C), and the weights (B, nh_q, T, S) if the implementation gives them.

        Args:
            x: the normed hidden states.
            read: the keys and values (B, nh_kv, S, hs) to attend to; None: there are none, and the result
                is that of heads which are all zero.
            rope: of the positions of x.
            sight: what of them is seen.
        """
        q = self.q_proj(x).view(*x.shape[:-1], -1, self.head_dim)  # (B, T, nh_q, hs)
        q = (self.q_norm(q) if self.config.qk_norm else q).transpose(1, 2)  # (B, nh_q, T, hs)
        q = rotated(q, rope)
        weights = None
        if read is None:
            heads = torch.zeros_like(q).transpose(1, 2)  # (B, T, nh_q, hs)
        else:
            heads, weights = self.attend(q, *read, sight, **kwargs)  # (B, T, nh_q, hs)
        return self.o_proj(heads.reshape(*x.shape[:-1], -1).contiguous()), weights

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sight: Sight, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Heads (B, T, nh_q, hs) of queries (B, nh_q, T, hs) over keys and values (B, nh_kv, S, hs)."""
        attention = partial(
            ALL_ATTENTION_FUNCTIONS.get_interface(sight.implementation, eager_attention),
            self,
            dropout=self.config.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        if not (sight.strictly_past and "flash" in sight.implementation):
            k, v, mask = sight.fitted(k, v)
            heads, weights = attention(q, k, v, mask, sliding_window=sight.window)
            return heads if sight.blind is None else torch.where(sight.blind, 0.0, heads), weights
        # Flash attention takes no mask; without the last key, each query stands before its own.
        window = sight.window and sight.window - 1
        if q.shape[2] == 1:
            return attention(q, k, v, sight.mask, sliding_window=window)  # type: ignore[no-any-return]
        mask = None if sight.mask is None else sight.mask[:, :-1]
        first = int(k.shape[2] == q.shape[2])  # without a past, the first query sees nothing
        heads, weights = attention(q[:, :, first:], k[:, :, :-1], v[:, :, :-1], mask, sliding_window=window)
        return F.pad(heads, (0, 0, 0, 0, first, 0)), weights  # (B, T, nh_q, hs)


def eager_attention(
    module: Any,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """softmax(q k' / sqrt(hs) + mask) v: heads (B, T, nh_q, hs) and weights (B, nh_q, T, S)."""
    k = k.repeat_interleave(module.num_key_value_groups, dim=1)  # (B, nh_q, S, hs)
    v = v.repeat_interleave(module.num_key_value_groups, dim=1)  # (B, nh_q, S, hs)
    weights = torch.matmul(q, k.transpose(2, 3)) * scaling  # (B, nh_q, T, S)
    if mask is not None:
        weights = weights.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else weights + mask
    weights = F.softmax(weights, dim=-1, dtype=torch.promote_types(q.dtype, torch.float32)).to(q.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, v).transpose(1, 2).contiguous(), weights


for name in ("mha", "gqa", "mqa"):
    register_attention(name, LlamaAttention)

LLAMA_ATTENTIONS_CLASSES = ATTENTIONS  # X-Llama's names
LLAMA_ROTARY_EMBEDDINGS_CLASSES = ROTARIES


# ---- Layers ----


class MLP(nn.Module):
    """down(act(gate(x)) * up(x)): SwiGLU (2002.05202) with Llama's activation."""

    def __init__(self, config: RestackLlamaConfig) -> None:
        super().__init__()
        width, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = nn.Linear(width, inner, bias=bias)
        self.up_proj = nn.Linear(width, inner, bias=bias)
        self.down_proj = nn.Linear(inner, width, bias=bias)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, C) to (B, T, C)."""
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]


class RestackLlamaDecoderLayer(GradientCheckpointingLayer):  # type: ignore[misc]
    """Attention and MLP, each behind a norm and added to what came in."""

    def __init__(self, config: RestackLlamaConfig, has_kv: bool) -> None:
        super().__init__()
        self.has_kv = has_kv
        self.self_attn = ATTENTIONS.require(config.attention or "gqa")(config, has_kv)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def drop_kv(self) -> None:
        """Drop the weights for keys and values."""
        self.has_kv = False
        for name in ("k_proj", "v_proj", "k_norm"):
            if hasattr(self.self_attn, name):
                delattr(self.self_attn, name)

    def forward(
        self,
        h: torch.Tensor,
        keys: torch.Tensor | None,
        values: torch.Tensor | None,
        step: Step,
        rope: Rope,
        sight: Sight,
        hand_over: Callable[..., KeysValues] | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Hidden states (B, T, C) to the same; and keys, values (B, nh_kv, T, hs) and weights.

        Args:
            h: the hidden states.
            keys, values: those of another step that it reads, (B, nh_kv, S, hs); None: there are none.
            step: what this visit of the layer does.
            rope, sight: as the attention has them.
            hand_over: takes the keys and values that are computed, and gives those to attend to. It is called
                in here, where the layer's weights are gathered if they are sharded.
        """
        x = self.input_layernorm(h)
        own = self.self_attn.keys_values(x, rope) if step.slot is not None else (None, None)
        handed = own if hand_over is None else hand_over(*own)
        if step.damp == 0:
            return h, *own, None
        read: Any = None if keys is None else (keys, values)
        if step.owner == step.number:
            read = handed
        if read is not None and sight.is_cut and not step.reads_ahead:
            read = read[0][:, :, :-1], read[1][:, :, :-1]  # without the token's own
        if read is not None and not read[0].shape[2]:
            read = None
        attention, weights = self.self_attn(x, read, rope, sight, **kwargs)
        out = h + attention
        out = out + self.mlp(self.post_attention_layernorm(out))
        return out if step.damp == 1 else h + step.damp * (out - h), *own, weights


class RestackLlamaPreTrainedModel(PreTrainedModel):  # type: ignore[misc]
    """What transformers asks of all models of a kind."""

    config_class = RestackLlamaConfig
    config: RestackLlamaConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ("RestackLlamaDecoderLayer",)
    _skip_keys_device_placement = ("past_key_values",)
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    def __init__(self, config: RestackLlamaConfig) -> None:
        require_config(config)
        super().__init__(config)
        self._keys_to_ignore_on_load_unexpected = unneeded(config)

    @classmethod
    def from_pretrained(cls, name: Any, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """The model in a folder or a repository: ours, LCKV's, a relative's, or in Meta's own files.

        Takes all that transformers' `from_pretrained` does, and settings of the config: `kv_map="lckv-w2"`.

        Raises:
            ModelError: a tensor is missing, is not the model's, or has another shape.
        """
        model, told = load(super().from_pretrained, cls.config_class, name, *args, **kwargs)
        return (model, told) if output_loading_info else model

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, RMSNorm):
            init.ones_(module.weight)
        if isinstance(module, RotaryEmbedding):  # not stored: computed again after loading
            init.copy_(module.inv_freq, module.frequencies()[0])


# ---- The model ----


@dataclass(slots=True)
class Forward:
    """What the steps of one forward share."""

    rope: Rope
    sights: dict[str, Sight]
    cache: Cache | None
    tokens: int
    options: dict[str, Any]
    hidden_states: list[torch.Tensor] | None  # that each step is given, if they are asked for
    attentions: list[torch.Tensor | None] | None
    # By step: what later steps may read, the past included; and, of this forward's tokens alone, what the
    # last pass over an iterated group made.
    readable: dict[int, KeysValues] = field(default_factory=dict)
    estimates: dict[int, KeysValues] = field(default_factory=dict)


class RestackLlamaModel(RestackLlamaPreTrainedModel):
    """Embedding, layers as the plan visits them, final norm.

    Raises:
        ModelError, PlanError: the config is impossible.
    """

    def __init__(self, config: RestackLlamaConfig) -> None:
        super().__init__(config)
        with_kv = config.schedule.layers_with_kv
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(
            RestackLlamaDecoderLayer(config, layer in with_kv) for layer in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = rotary_of(config)
        self.gradient_checkpointing = False
        self.schedule, self.scheduled = config.schedule, config.structure
        self.post_init()

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: Any = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Tokens (B, T) to hidden states (B, T, C). The arguments are those of transformers' Llama.

        Hidden states and attentions are one a visit; of visits that are iterated, those of the last pass.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        h = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds  # (B, T, C)
        if kwargs.get("cache") is not None:
            raise ViewError("restack-llama does not run in continuous batching; use generate")
        schedule = self.checked_schedule()
        cache = past_key_values
        if self.gradient_checkpointing and self.training:
            cache = None
        elif cache is None and (self.config.use_cache if use_cache is None else use_cache):
            cache = DynamicCache(config=self.config)
        if cache is not None:
            grow(cache, len(schedule.slots))
        tokens = h.shape[1]
        if isinstance(cache, SinkCache):  # which counts positions, and what may be seen, by what it keeps
            position_ids, attention_mask = None, cache.columns(attention_mask)
            cache.seen += tokens
        if position_ids is None:
            seen = 0 if cache is None else cache.get_query_offset()
            position_ids = (torch.arange(tokens, device=h.device) + seen).unsqueeze(0)  # (1, T)
        found = attention_mask  # a dictionary: from `create_masks_for_generate`
        if not isinstance(found, dict):
            found = masks(self.config, schedule, h, attention_mask, cache, position_ids)
        now = Forward(
            rope=self.rotary_emb(h, position_ids),
            sights=sights(self.config, schedule, found, tokens, cache),
            cache=cache,
            tokens=tokens,
            # which tells flash attention of sequences that are packed in one row
            options=kwargs
            | ({"position_ids": position_ids} if "flash" in self.config._attn_implementation else {}),
            hidden_states=[] if self._is_asked_for("hidden_states", output_hidden_states) else None,
            attentions=[] if self._is_asked_for("attentions", output_attentions) else None,
        )
        for group in schedule.groups:
            h = self.iterate(group, h, now) if group.is_iterated else self.walk(group, h, now)
        h = self.norm(h)
        return BaseModelOutputWithPast(
            last_hidden_state=h,
            past_key_values=cache,
            hidden_states=None if now.hidden_states is None else (*now.hidden_states, h),
            attentions=None if now.attentions is None else tuple(now.attentions),
        )

    def iterate(self, group: Group, h: torch.Tensor, now: Forward) -> torch.Tensor:
        """Run steps that read keys and values from above until what they read is near what is computed.

        Every pass starts from the same hidden states (B, T, C); what the passes hand on are keys and values.
        Of n tokens, the first p are exact after p passes (LCKV, Lemma 1), so no more than n are made: one
        token, as in decoding, is exact after one. Gradients flow through the last `backward_passes`.
        """
        backward = now.tokens if self.config.use_sequential else min(self.config.backward_passes, now.tokens)
        passes = backward + min(self.config.forward_passes, now.tokens - backward)
        asked = now.hidden_states, now.attentions
        now.hidden_states = now.attentions = None
        with torch.no_grad():
            for _ in range(passes - backward):
                self.walk(group, h, now, is_final=False)
        for _ in range(backward - 1):
            self.walk(group, h, now, is_final=False)
        now.hidden_states, now.attentions = asked
        return self.walk(group, h, now)

    def walk(self, group: Group, h: torch.Tensor, now: Forward, *, is_final: bool = True) -> torch.Tensor:
        """Run the steps of a group once: hidden states (B, T, C) to the same. Only a final pass is cached."""
        before, now.estimates = now.estimates, {}
        ahead: dict[int, KeysValues | None] = {}
        for step in group.steps:
            sight = now.sights[step.reading.kind]
            read = None
            if step.reads_ahead:
                if step.owner not in ahead:
                    ahead[step.owner] = _ahead(step, before.get(step.owner), sight, now)
                read = ahead[step.owner]
            elif step.owner != step.number and step.damp != 0:
                read = now.readable[step.owner]
            caches = now.cache is not None and step.slot is not None
            if now.hidden_states is not None:
                now.hidden_states.append(h)
            h, k, v, weights = self.layers[step.layer](
                h,
                *(read or (None, None)),
                step=step,
                rope=now.rope,
                sight=sight,
                hand_over=partial(_hand_over, now, step, is_final) if caches else None,
                **now.options,
            )
            if k is not None and v is not None:
                if step.is_read_from_below:
                    now.estimates[step.number] = k, v
                if step.is_read_from_above and not caches:
                    now.readable[step.number] = k, v
            if is_final:
                for owner in step.last_of:
                    del now.readable[owner]
            if now.attentions is not None:
                now.attentions.append(weights)
        return h

    def checked_schedule(self) -> Schedule:
        """The schedule of the config's plan, found anew when the config has changed.

        Raises:
            ViewError: it needs the keys and values of a layer that has no weights for them.
            ModelError, PlanError: the config is impossible.
        """
        if self.scheduled != self.config.structure:
            self.config.check()
            schedule = self.config.schedule
            for step in schedule.steps:
                if step.slot is not None and not self.layers[step.layer].has_kv:
                    needs = f"visit {step.number} needs keys and values of layer {step.layer}"
                    raise ViewError(
                        f"{needs}, which has no weights for them; let it read those of another visit"
                    )
            self.schedule, self.scheduled = schedule, self.config.structure
        return self.schedule

    def run(self, plan: Plan) -> None:
        """Run another plan over the same layers, from the next forward on.

        Raises:
            ViewError, ModelError, PlanError: as `checked_schedule`; then the model runs what it ran.
        """
        before = self.config.plan
        self.config.plan = None if plan.is_identity else str(plan)
        try:
            self.checked_schedule()
        except RestackError:
            self.config.plan = before
            raise

    def drop_unread(self) -> None:
        """Drop the weights for keys and values that no visit reads."""
        for number in set(range(len(self.layers))) - self.config.schedule.layers_with_kv:
            cast(RestackLlamaDecoderLayer, self.layers[number]).drop_kv()

    def _is_asked_for(self, what: str, asked: bool | None) -> bool:
        return bool(getattr(self.config, f"output_{what}") if asked is None else asked)


def _hand_over(now: Forward, step: Step, is_final: bool, k: torch.Tensor, v: torch.Tensor) -> KeysValues:
    """Cache what a step has computed for this forward's tokens, if final; all that may be seen of it."""
    assert now.cache is not None and step.slot is not None
    handed = now.cache.update(k, v, step.slot) if is_final else with_estimate(now.cache, step.slot, k, v)
    if step.is_read_from_above:
        now.readable[step.number] = handed
    return handed


def _ahead(step: Step, estimate: KeysValues | None, sight: Sight, now: Forward) -> KeysValues | None:
    """What is known of the keys and values (B, nh_kv, S, hs) of a step above; None: nothing yet."""
    if estimate is not None:
        return estimate if now.cache is None else with_estimate(now.cache, step.source, *estimate)
    kept = None if now.cache is None else past(now.cache, step.source, now.tokens)
    if kept is None or sight.is_cut:
        return kept
    # The first of several passes: of this forward's tokens nothing is known, and zeros stand for it.
    missing = sight.width(kept[0].shape[2], now.tokens) - kept[0].shape[2]
    if missing <= 0:
        return kept
    return with_zeros(*kept, missing)


class RestackLlamaForCausalLM(RestackLlamaPreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """The model with a head that gives the logits of the next token."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012  # transformers' own
    _tp_plan = {"lm_head": "colwise_gather_output"}  # noqa: RUF012

    def __init__(self, config: RestackLlamaConfig) -> None:
        super().__init__(config)
        self.model = RestackLlamaModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: Any = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Tokens (B, T) to logits (B, T, V), and the loss if there are labels (B, T).

        The arguments are those of transformers' Llama.
        """
        output = self.model(
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache, **kwargs
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(output.last_hidden_state[:, kept])  # (B, T, V)
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs
            )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=output.past_key_values,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )

    def run(self, plan: Plan) -> None:
        """Run another plan over the same layers; see `RestackLlamaModel.run`."""
        self.model.run(plan)

    def drop_unread(self) -> None:
        """Drop the weights for keys and values that no visit reads."""
        self.model.drop_unread()

    def create_masks_for_generate(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: Any,
        past_key_values: Cache,
        position_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """The masks of a forward, by the kind of reading: made beforehand where the forward is compiled."""
        if "flex" in self.config._attn_implementation:
            return attention_mask
        return masks(
            self.config,
            self.model.checked_schedule(),
            inputs_embeds,
            attention_mask,
            past_key_values,
            position_ids,
        )


class LCKVLlamaModel(RestackLlamaModel):
    """The model of LCKV's checkpoints."""

    config_class = LCKVLlamaConfig


class LCKVLlamaForCausalLM(RestackLlamaForCausalLM):
    """The model of LCKV's checkpoints, with a head."""

    config_class = LCKVLlamaConfig
