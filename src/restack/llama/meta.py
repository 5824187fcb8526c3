"""Meta's own checkpoints of Llama: `params.json`, and shards `consolidated.00.pth`, `consolidated.01.pth`...

Meta splits a model over the devices that run it: each shard holds some of the heads and of the feed-forward
width of every layer, and some of the vocabulary. Here the shards are joined, the tensors named as in
transformers' `LlamaForCausalLM`, and the rows of queries and keys put in the order of its rotary embedding.

Sources: `llama/model.py` of github.com/meta-llama/llama and `models/llama3/model.py` of
github.com/meta-llama/llama-models; `convert_llama_weights_to_hf.py` of transformers.
"""

import json
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from restack.errors import ModelError
from restack.llama.meta_layout import PARAMS, shard_files
from restack.llama.meta_tokenizer import token_ids, vocabulary_size

KEYS = {"dim", "n_layers", "n_heads", "n_kv_heads", "multiple_of", "ffn_dim_multiplier", "norm_eps"}
KEYS |= {"vocab_size", "rope_theta", "use_scaled_rope"}
RUNNING = {"max_batch_size", "max_seq_len", "model_parallel_size"}  # how Meta's code runs it, not what it is
TABLE = "rope.freqs"  # what the tables of rotary embeddings are named; they follow from params.json

QUERIES = "layers.0.attention.wq.weight"

Shards = dict[Path, dict[str, torch.Tensor]]


@dataclass(frozen=True, slots=True)
class Params:
    """The entries of a params.json, checked one by one."""

    file: Path
    values: dict[str, Any]

    def count(self, key: str, default: int | None = None) -> int:
        """A whole number above 0."""
        value = self._value(key, default)
        if type(value) is not int or value <= 0:
            raise self.error(f"{key} is {value!r}; it must be a whole number above 0")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A number above 0."""
        value = self._value(key, default)
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise self.error(f"{key} is {value!r}; it must be a number above 0")
        return float(value)

    def flag(self, key: str) -> bool:
        """True or false; false where it is missing."""
        value = self._value(key, False)
        if type(value) is not bool:
            raise self.error(f"{key} is {value!r}; it must be true or false")
        return value

    def error(self, problem: str) -> ModelError:
        """The error of a wrong entry."""
        return ModelError(f"{self.file}: {problem}")

    def _value(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is None and default is None:
            raise self.error(f"{key} is missing")
        return default if value is None else value


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor of the model, and how the shards hold it."""

    name: str  # in transformers
    shape: tuple[int, ...]  # of the whole
    split: tuple[int, ...] = ()  # the dimensions along which it may be split; none: each shard has the whole
    heads: int = 0  # whose rows are in the order of Meta's rotary embedding; 0: they are not rotated

    def parts(self, shards: int) -> dict[int, tuple[int, ...]]:
        """The shape of a shard's part by the dimension along which it is split; 0 stands for the whole."""
        shapes = {}
        for dimension in self.split:
            size, rest = divmod(self.shape[dimension], shards)
            if not rest:
                shapes[dimension] = (*self.shape[:dimension], size, *self.shape[dimension + 1 :])
        return shapes if self.split else {0: self.shape}


@dataclass(frozen=True, slots=True)
class Weight:
    """A whole tensor that is not read yet, and its bytes."""

    size: int
    read: Callable[[], torch.Tensor]


def read_settings(folder: Path) -> dict[str, Any]:
    """What params.json says, as keyword arguments of transformers' `LlamaConfig`.

    The size of the vocabulary and the type of the weights come from the shards where params.json is silent;
    the numbers of the special tokens come from the tokenizer, and are None if it is not there.

    Raises:
        ModelError: params.json is missing, no JSON, or has a missing, wrong or unknown entry; or a shard or
            the tokenizer cannot be read.
    """
    params = _read_params(folder)
    dim, heads = params.count("dim"), params.count("n_heads")
    kv_heads = params.count("n_kv_heads", heads)
    if dim % (2 * heads):
        raise params.error(
            f"dim {dim} is no multiple of 2 * n_heads {heads}; each head rotates pairs of numbers"
        )
    if heads % kv_heads:
        raise params.error(f"n_heads {heads} is no multiple of n_kv_heads {kv_heads}")
    shards = open_shards(folder)
    _check_count(shards, dim)
    output = next(iter(shards.values()), {}).get("output.weight")
    return {
        "hidden_size": dim,
        "num_hidden_layers": params.count("n_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": _feed_forward_width(params),
        "rms_norm_eps": params.number("norm_eps", 1e-5),
        "vocab_size": _vocabulary_size(params, folder, shards),
        "max_position_embeddings": _context(params),
        "rope_parameters": _rotary(params),
        "tie_word_embeddings": False,  # Llama 3.2 1B and 3B are tied; their files hold both all the same
        **({} if output is None else {"dtype": output.dtype}),
        **token_ids(folder),
    }


def read_weights(folder: Path, settings: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint by their names in transformers' `LlamaForCausalLM`.

    Args, Raises: as `stored_weights`.
    """
    return {name: weight.read() for name, weight in stored_weights(folder, settings).items()}


def stored_weights(folder: Path, settings: dict[str, Any]) -> dict[str, Weight]:
    """The weights of a checkpoint by their names in transformers' `LlamaForCausalLM`, not yet read.

    Shards are mapped, not read: what a single shard holds in the right order stays on disk until it is used,
    and beside what has been read there is at most one joined tensor in memory.

    Args:
        folder: of the checkpoint.
        settings: what `read_settings` says of it.

    Raises:
        ModelError: a shard is missing, cut short, or holds something other than tensors; or a tensor is
            missing, unknown, or does not fit the settings or the other shards.
    """
    shards = open_shards(folder)
    if not shards:
        raise ModelError(f"{folder} has no consolidated.00.pth; get the weights")
    layout = _layout(settings)
    _check_names(shards, layout)
    _check_count(shards, settings["hidden_size"])
    itemsize = {name: tensor.element_size() for name, tensor in next(iter(shards.values())).items()}
    return {
        stored.name: Weight(math.prod(stored.shape) * itemsize[name], partial(_joined, shards, name, stored))
        for name, stored in layout.items()
    }


def first_rows(folder: Path, settings: dict[str, Any]) -> dict[str, torch.Tensor]:
    """How the first row of each tensor begins, as the first shard holds it; by the names of `stored_weights`.

    A row is the first in both orders of rows. Hardly anything is read of the file.

    Raises:
        ModelError: as `read_weights`.
    """
    shards = open_shards(folder)
    layout = _layout(settings)
    _check_names(shards, layout)
    first = next(iter(shards.values()))
    return {stored.name: first[name].reshape(-1, first[name].shape[-1])[0] for name, stored in layout.items()}


def half_split(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of queries or keys, from Meta's order to that of transformers.

    Meta rotates the numbers 2i and 2i + 1 of a head, transformers the numbers i and i + half. The scores of
    attention are the same when both queries and keys are reordered.

    Args:
        weight: `(heads * size, ...)`, each head's rows one after another; `size` is even.
        heads: of queries or of keys.
    """
    pairs = weight.reshape(heads, -1, 2, *weight.shape[1:])  # (heads, half, 2, ...)
    return pairs.transpose(1, 2).reshape(weight.shape)


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of queries or keys, from transformers' order to Meta's: the inverse of `half_split`."""
    halves = weight.reshape(heads, 2, -1, *weight.shape[1:])  # (heads, 2, half, ...)
    return halves.transpose(1, 2).reshape(weight.shape)


def _read_params(folder: Path) -> Params:
    file = folder / PARAMS
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{folder} has no {PARAMS}; get it again") from None
    except (OSError, ValueError):
        values = None
    if not isinstance(values, dict):
        raise ModelError(f"{file} is not a JSON object; get it again")
    unknown = {key for key, value in values.items() if value is not None} - KEYS - RUNNING
    if unknown:
        raise ModelError(
            f"{file} has {', '.join(sorted(unknown))}, which no Llama 1 to 3 of text has; "
            "models with images, experts or quantised weights cannot be read"
        )
    return Params(file, values)


def _feed_forward_width(params: Params) -> int:
    width = int(2 * 4 * params.count("dim") / 3)
    width = int(params.number("ffn_dim_multiplier", 1.0) * width)
    multiple = params.count("multiple_of", 256)
    return -(-width // multiple) * multiple


def _vocabulary_size(params: Params, folder: Path, shards: Shards) -> int:
    if params.values.get("vocab_size", -1) != -1:
        return params.count("vocab_size")
    parts = [tensors["output.weight"] for tensors in shards.values() if "output.weight" in tensors]
    size = sum(part.shape[0] for part in parts if part.ndim) or vocabulary_size(folder)
    if not size:
        raise params.error(
            "vocab_size is -1, and there is no output.weight and no tokenizer.model to tell it"
        )
    return size


def _rotary(params: Params) -> dict[str, Any]:
    theta = params.number("rope_theta", 10_000.0)
    if not params.flag("use_scaled_rope"):
        return {"rope_type": "default", "rope_theta": theta}
    # Meta's code has 8 for all models. The 32 of Llama 3.2 1B and 3B stands only in the configs that Meta
    # published for transformers, and is right (github.com/meta-llama/llama-models, issues 166 and 241).
    factor = 8.0 if params.count("dim") >= 4096 else 32.0
    return {
        "rope_type": "llama3",
        "rope_theta": theta,
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def _context(params: Params) -> int:
    """The tokens that the model was trained on at once, as far as params.json tells the families apart.

    Llama 1 65B has the epsilon of Llama 2, and is taken for one.
    """
    theta = params.number("rope_theta", 10_000.0)
    if params.flag("use_scaled_rope"):  # Llama 3.1 and later
        return 131_072
    if theta == 500_000:  # Llama 3
        return 8192
    if theta > 10_000:  # Code Llama
        return 16_384
    return 2048 if params.number("norm_eps", 1e-5) < 1e-5 else 4096  # Llama 1, Llama 2


def open_shards(folder: Path) -> Shards:
    """The tensors of each shard by Meta's names, mapped and not read.

    Raises:
        ModelError: one is missing, cut short, or holds something other than tensors.
    """
    files = shard_files(folder)
    for number in range(max(files, default=-1)):
        if number not in files:
            last = files[max(files)].name
            raise ModelError(
                f"{folder} lacks consolidated.{number:02}.pth, and has {last}; get the missing one"
            )
    return {file: _open_shard(file) for file in files.values()}


def _open_shard(file: Path) -> dict[str, torch.Tensor]:
    try:
        tensors = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError:
        raise ModelError(
            f"{file} holds something other than tensors, and is not run; get it from Meta"
        ) from None
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror}") from None
    except Exception:  # of many kinds, by where in the file torch stumbles
        raise ModelError(
            f"{file} is no checkpoint of torch, or is cut short: {file.stat().st_size} bytes; get it again"
        ) from None
    if not isinstance(tensors, dict):
        raise ModelError(f"{file} holds a {type(tensors).__name__}; expected tensors by their names")
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            raise ModelError(f"{file}: {name} is a {type(tensor).__name__}; expected a tensor")
    return tensors


def _layout(settings: dict[str, Any]) -> dict[str, Stored]:
    """The tensors of the model by Meta's names."""
    dim, vocabulary, width = (settings[key] for key in ("hidden_size", "vocab_size", "intermediate_size"))
    heads, kv_heads = settings["num_attention_heads"], settings["num_key_value_heads"]
    keys = dim // heads * kv_heads
    layout = {
        # Llama 1 and 2 split the embeddings along their width, Llama 3 along the vocabulary.
        "tok_embeddings.weight": Stored("model.embed_tokens.weight", (vocabulary, dim), (0, 1)),
        "norm.weight": Stored("model.norm.weight", (dim,)),
        "output.weight": Stored("lm_head.weight", (vocabulary, dim), (0,)),
    }
    block = {
        "attention.wq": Stored("self_attn.q_proj", (dim, dim), (0,), heads),
        "attention.wk": Stored("self_attn.k_proj", (keys, dim), (0,), kv_heads),
        "attention.wv": Stored("self_attn.v_proj", (keys, dim), (0,)),
        "attention.wo": Stored("self_attn.o_proj", (dim, dim), (1,)),
        "feed_forward.w1": Stored("mlp.gate_proj", (width, dim), (0,)),
        "feed_forward.w2": Stored("mlp.down_proj", (dim, width), (1,)),
        "feed_forward.w3": Stored("mlp.up_proj", (width, dim), (0,)),
        "attention_norm": Stored("input_layernorm", (dim,)),
        "ffn_norm": Stored("post_attention_layernorm", (dim,)),
    }
    for layer in range(settings["num_hidden_layers"]):
        for name, stored in block.items():
            full = f"model.layers.{layer}.{stored.name}.weight"
            layout[f"layers.{layer}.{name}.weight"] = Stored(full, stored.shape, stored.split, stored.heads)
    return layout


def _check_names(shards: Shards, layout: dict[str, Stored]) -> None:
    for file, tensors in shards.items():
        names = {name for name in tensors if not str(name).endswith(TABLE)}
        for name in layout:
            if name not in names:
                raise ModelError(f"{file} lacks {name}, which {PARAMS} calls for; get both again")
        extra = sorted(map(str, names - layout.keys()))
        if extra:
            raise ModelError(
                f"{file} has {extra[0]}, which the Llama of {PARAMS} has not ({len(extra)} such)"
            )


def _check_count(shards: Shards, dim: int) -> None:
    """That none of the last shards are missing: the queries of a layer are split evenly over all."""
    for file, tensors in shards.items():
        shape = tuple(tensors[QUERIES].shape) if QUERIES in tensors else ()
        if len(shape) == 2 and shape[1] == dim and shape[0] and dim % shape[0] == 0:
            count = dim // shape[0]
            if count != len(shards):
                raise ModelError(
                    f"{file} is one of {count} shards, and {len(shards)} are here; get all of them"
                )


def _joined(shards: Shards, name: str, stored: Stored) -> torch.Tensor:
    """The whole tensor, its rows in transformers' order."""
    dimension = _checked_split(shards, name, stored)
    parts = [tensors[name] for tensors in shards.values()]
    if not stored.split:
        for file, part in zip(shards, parts, strict=True):
            if not torch.equal(part, parts[0]):
                raise ModelError(f"{file}: {name} differs from that of the first shard; they must be equal")
        return parts[0].clone()  # in some files it is a small part of the memory of another tensor
    whole = parts[0].contiguous() if len(parts) == 1 else torch.cat(parts, dimension)
    return half_split(whole, stored.heads) if stored.heads else whole


def _checked_split(shards: Shards, name: str, stored: Stored) -> int:
    """The dimension along which a tensor is split, when the parts have been checked."""
    first = next(iter(shards.values()))[name]
    possible = stored.parts(len(shards))
    fitting = [dimension for dimension, shape in possible.items() if shape == first.shape]
    dimension = fitting[0] if fitting else max(possible, default=0)
    shape = possible.get(dimension)
    part_shape = shape or "which does not divide"
    share = "" if len(shards) == 1 else f", {part_shape} in each of {len(shards)} shards"
    for file, tensors in shards.items():
        part = tensors[name]
        if part.shape != shape:
            raise ModelError(
                f"{file}: {name} is {tuple(part.shape)}; {PARAMS} makes it {stored.shape}{share}"
            )
        if not part.is_floating_point() or part.dtype != first.dtype:
            wanted = first.dtype if first.is_floating_point() else "floating-point numbers"
            raise ModelError(f"{file}: {name} is {part.dtype}; expected {wanted}")
    return dimension
