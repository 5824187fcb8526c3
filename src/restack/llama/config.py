"""The config of restack-llama: a Llama whose attention, rotary embedding and order of layers are chosen."""

from collections.abc import Hashable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from transformers.configuration_utils import PreTrainedConfig

from restack import plans
from restack.errors import ModelError, PlanError
from restack.llama import checks
from restack.llama.schedule import Schedule, schedule
from restack.plans import Plan
from restack.plans.pointing import shown

MODEL_TYPE, LCKV = "restack-llama", "lckv-llama"
OF_THE_HUB = {  # options of `from_pretrained` that say where files are
    "_commit_hash", "_from_auto", "_from_pipeline", "cache_dir", "force_download", "gguf_file",
    "local_files_only", "proxies", "revision", "subfolder", "token", "trust_remote_code",
}  # fmt: skip
SLIDING = {True: "sliding_attention", False: "full_attention"}


class RestackLlamaConfig(PreTrainedConfig):  # type: ignore[misc]
    """The config of a restack-llama model: Llama's own settings, and those below.

    Attributes:
        num_hidden_layers: how many layers have weights. How they are visited is the plan's affair.
        num_key_value_heads: None: as many as heads (MHA), or one if `attention` is "mqa".
        attention: a name in the attention registry: "mha", "gqa", "mqa", or one that was registered. None:
            what the number of key and value heads says.
        rope_parameters: `{"rope_type": ..., "rope_theta": ...}` and what the type needs; the types are the
            names in the rotary registry: "rotary" (or "default"), "linear", "dynamic", "yarn", "longrope",
            "llama3", or one that was registered. transformers 4's `rope_scaling`, `rope_theta` are read.
        attention_bias: whether the projections to queries, keys and values have a bias (Qwen2).
        attention_out_bias: whether the output projection has one; None: as the others (Llama).
        qk_norm: whether queries and keys are normed, a head at a time, before they are rotated (Qwen3).
        sliding_window: how many tokens, itself included, a visit sees that slides; None: none can.
        plan: how the layers are visited, as anything that `restack.plan` reads; None: each once. A KV map
            (`kv_map="lckv-w2"`) can be given beside it, and for both Hugging Face's list `layer_types`.
        forward_passes, backward_passes: how often a group of visits that read keys and values from above is
            iterated in training and prefill, without gradient and then with (LCKV 2405.10637, section 2.3).
        use_sequential: such groups are iterated once for each token, always with gradient: exact, and slow.
        force_nodiag: no visit sees the keys and values of its own token. This and the one above are LCKV's.

    Raises:
        ModelError: a setting is impossible, or does not go with another one.
        PlanError: the plan or the KV map is not one for so many layers.
    """

    model_type = MODEL_TYPE
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    base_model_tp_plan: ClassVar[dict[str, Any]] = {
        **{f"layers.*.self_attn.{name}_proj": "colwise" for name in "qkv"},
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.mlp.gate_proj": "colwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = None  # type: ignore[assignment]  # until it is made
    head_dim: int = None  # type: ignore[assignment]
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = False
    attention: str | None = None
    rope_parameters: dict[str, Any] = None  # type: ignore[assignment]
    attention_bias: bool = False
    attention_out_bias: bool | None = None
    attention_dropout: float = 0.0
    mlp_bias: bool = False
    qk_norm: bool = False
    sliding_window: int | None = None
    plan: Any = None
    forward_passes: int = 7
    backward_passes: int = 2
    use_sequential: bool = False
    force_nodiag: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        kv_map, layer_types = kwargs.pop("kv_map", None), kwargs.pop("layer_types", None)
        if isinstance(layer_types, str):  # LCKV's
            if kv_map is not None:
                raise PlanError("layer_types is a KV map and there is a kv_map too; give one of them")
            kv_map, layer_types = layer_types, None
        self._lower_names()
        if self.num_key_value_heads is None:
            self.num_key_value_heads = 1 if self.attention == "mqa" else self.num_attention_heads
        if self.head_dim is None:
            checks.whole("hidden_size", self.hidden_size, 1)
            checks.whole("num_attention_heads", self.num_attention_heads, 1)
            self.head_dim = self.hidden_size // self.num_attention_heads
        checks.refuse_wrong_values(self)
        for name, given in (
            ("rope_parameters", self.rope_parameters),
            ("rope_scaling", kwargs.get("rope_scaling")),
        ):
            checks.refuse_no_parameters(name, given)
        if kv_map is not None:
            self.plan = str(plans.plan(self.whole_plan, kv=kv_map))
        if layer_types is not None:
            self._slide(layer_types)
        super().__post_init__(**kwargs)
        self._lower_names()
        if self.plan is not None:
            self.plan = str(self.whole_plan)
        self.check()

    @classmethod
    def get_config_dict(cls, name: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The settings that a folder or a repository holds: ours, a relative's, or those of Meta's own files.

        A plan or a KV map given beside them is one over that model's layers; what slides there slides still.
        """
        # transformers is in the middle of its own import when it first asks for this module
        from restack.llama.families import settings
        from restack.llama.meta import read_settings
        from restack.llama.meta_layout import is_meta_folder

        if is_meta_folder(Path(name)):
            found = read_settings(Path(name))
            kwargs = {option: value for option, value in kwargs.items() if option not in OF_THE_HUB}
        else:
            found, kwargs = super().get_config_dict(name, **kwargs)
            kind = found.get("model_type")
            if kind not in (None, MODEL_TYPE, LCKV):
                found = settings(found)
                if "plan" in kwargs:
                    own = cls(**found).whole_plan
                    found.pop("layer_types", None)
                    found["plan"] = own.then(plans.plan(kwargs.pop("plan"), len(own)))
        found["model_type"] = cls.model_type
        return found, kwargs

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As `PreTrainedConfig.from_dict`; what is given beside the dictionary is put in place of its own."""
        structure = {name: kwargs.pop(name) for name in ("plan", "layer_types", "kv_map") if name in kwargs}
        found = super().from_dict(config_dict, **kwargs)
        config = found[0] if isinstance(found, tuple) else found
        for name, value in structure.items():
            setattr(config, name, value)
        config._lower_names()
        config.check()
        return found

    def _lower_names(self) -> None:
        """Have names of attentions and rotary embeddings as they are looked up."""
        if self.attention is not None:
            self.attention = str(self.attention).lower()
        if isinstance(self.rope_parameters, dict) and "rope_type" in self.rope_parameters:
            kind = str(self.rope_parameters["rope_type"]).lower()
            self.rope_parameters["rope_type"] = "default" if kind == "rotary" else kind

    @property
    def whole_plan(self) -> Plan:
        """The visits of a forward pass, over the layers that have weights."""
        return _read(self.plan, self.num_hidden_layers)

    @property
    def structure(self) -> tuple[Any, ...]:
        """What a schedule depends on, and what is checked with it: another one means another schedule."""
        passes = (self.forward_passes, self.backward_passes, self.use_sequential)
        return self.plan, self.num_hidden_layers, self.force_nodiag, self.sliding_window, *passes

    @property
    def schedule(self) -> Schedule:
        """What the plan asks of a forward pass."""
        return schedule(self.whole_plan, self.force_nodiag)

    @property
    def kv_map(self) -> str:
        """Whose keys and values each visit reads, as LCKV writes it: "0_20_20..._21"."""
        return plans.write_kv_map(self.whole_plan, abbreviate=False)

    @kv_map.setter
    def kv_map(self, value: Any) -> None:
        """In place of the one there is. Under a named map without windows, what slides slides still."""
        before = self.whole_plan
        plain = Plan(tuple(replace(visit, kv=None, sliding=False) for visit in before.visits), before.depths)
        shared = plans.plan(plain, kv=value)
        if not value[:1].isdigit() and not any(visit.sliding for visit in shared.visits):
            kept = zip(shared.visits, before.visits, strict=True)
            shared = Plan(tuple(replace(new, sliding=old.sliding) for new, old in kept), before.depths)
        self.plan = str(shared)

    @property
    def layer_types(self) -> list[str]:
        """The kind of each cache slot; there is one for each visit whose keys and values are read."""
        return [SLIDING[is_window] for is_window in self.schedule.slots]

    @layer_types.setter
    def layer_types(self, value: Any) -> None:
        """It follows from the plan; a KV map in its place, as LCKV has it, is one."""
        if isinstance(value, str):
            self.kv_map = value
        elif list(value) != self.layer_types:  # transformers sets what it has read
            raise ModelError("layer_types follows from the plan; write a KV map: config.kv_map = '0_1s_1s_3'")

    @property
    def per_layer_config(self) -> list[Any]:
        """This config, once for each cache slot: transformers' caches look it up by slot."""
        return [self] * len(self.schedule.slots)

    def validate(self) -> None:
        """What transformers calls before it saves; its own check wants as many layer types as layers."""
        self.check()

    def check(self) -> None:
        """Check the settings, one by one and against each other.

        Raises:
            ModelError: naming key, value and constraint.
            PlanError: the plan is none for so many layers.
        """
        checks.refuse_wrong_values(self)
        checks.refuse_wrong_rotary(self.rope_parameters, self.head_dim)
        checks.refuse_contradictions(self)

    def _slide(self, layer_types: Any) -> None:
        """Read Hugging Face's list of the kinds of layers."""
        if not isinstance(layer_types, list | tuple):
            raise ModelError(f"layer_types is {shown(layer_types)}; write a list with a kind for each layer")
        for kind in layer_types:
            if kind not in SLIDING.values():
                raise ModelError(f"layer_types has {shown(kind)}; write one of {', '.join(SLIDING.values())}")
        visits = self.whole_plan.visits
        if len(layer_types) != len(visits):
            raise ModelError(
                f"layer_types has {len(layer_types)} entries for {len(visits)} visits; write one for each"
            )
        kinds = zip(visits, layer_types, strict=True)
        slid = (replace(visit, sliding=visit.sliding or kind == SLIDING[True]) for visit, kind in kinds)
        self.plan = str(Plan(tuple(slid), (self.num_hidden_layers,)))


def require_config(config: Any) -> None:
    """Check a config that a model is made with.

    Raises:
        ModelError, PlanError: it is of another model, or impossible.
    """
    if not isinstance(config, RestackLlamaConfig):
        raise ModelError(f"a {type(config).__name__} is no config of restack-llama; load it: from_pretrained")
    config.check()


class LCKVLlamaConfig(RestackLlamaConfig):
    """The config of LCKV's own checkpoints (whyNLP/LCKV, the layout of December 2024), read and written.

    Its `layer_types` is a KV map.
    """

    model_type = LCKV

    sliding_window: int | None = 4096

    def to_dict(self) -> dict[str, Any]:
        """The settings under LCKV's names; a plan beside them only if layers do not run once, in order."""
        found: dict[str, Any] = super().to_dict()
        plan = self.whole_plan
        if plan.order == tuple(range(self.num_hidden_layers)) and all(
            visit.damp == 1 for visit in plan.visits
        ):
            found["layer_types"] = plans.write_kv_map(self.whole_plan, abbreviate=False)
            del found["plan"]
        return found


def _read(plan: Any, layers: int) -> Plan:
    """The plan that any notation writes, for a model of so many layers."""
    return _read_once(plan, layers) if isinstance(plan, Hashable) else plans.plan(plan, layers)


@lru_cache(maxsize=256)
def _read_once(plan: Any, layers: int) -> Plan:
    return plans.plan("all" if plan is None else plan, layers)
