"""Whether views of a loaded model are right: what the survey shows of architectures, shown of one model."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from restack.errors import ViewError
from restack.views.anatomy import anatomy, has_weights, input_device
from restack.views.build import view
from restack.views.planned import visit_count

PROMPT, NEW = 6, 3  # tokens: to prefill, and to decode one by one
SPECIAL = ("token_id", "token_index")  # endings of the names of tokens that stand for something else


@dataclass(frozen=True, slots=True)
class Verification:
    """What `verify` found to hold. It has no failures: they are raised."""

    model: str  # its class
    layers: int
    tokens: int  # that the logits compared are of
    shared_tensors: int  # parameters and buffers of a view, every one of them the model's own
    cache_difference: float  # of the logits with a cache from those without, relative; rounding alone


def verify(model: nn.Module) -> Verification:
    """Check that views of `model`, whose architecture may be unknown, are right; takes about a second.

    A few random tokens are run through the model and two views of it:
    1. the identity view's tensors are the model's own, and its logits are the model's, bitwise;
    2. a view that visits the first layer twice, so that every layer after it has another slot in the cache
       than in the model, gives the same logits decoding token by token as it gives without a cache.

    That each order of layers equals the materialised model is shown for whole architectures by the survey:
    docs/architectures.md. The model stays as it is: training mode and random state included.

    Args:
        model: a loaded decoder of transformers, or a view of one; on any device, in any dtype.

    Raises:
        ViewError: views of the model are refused, or something of the above does not hold; it says what.
    """
    name = type(model).__name__
    parts = anatomy(model)
    if not has_weights(model):
        raise ViewError(f"{name} has no weights to verify it with; load it")
    count = visit_count(model)
    identity, shifted = view(model, range(count)), view(model, [0, *range(count)])
    with _quiet(model), torch.no_grad():
        tokens = _random_tokens(model, parts.config)
        shared = _shared_tensors(identity, model)
        _check_identity(identity.eval(), model, tokens)
        try:
            difference = _cache_difference(shifted.eval(), parts.config, tokens)
        except (IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise ViewError(f"a view of {name} cannot decode with its cache: {reason}") from error
        if not difference <= _tolerance(model):
            of_the_model = _cache_difference(view(model, range(count)).eval(), parts.config, tokens)
            same = of_the_model > _tolerance(model)
            cause = "and so does the model without a view" if same else "unlike the model without a view"
            raise ViewError(
                f"a view of {name} decodes otherwise with its cache than without, {cause} "
                f"(logits differ by {difference:.1%})"
            )
    return Verification(name, count, tokens.numel(), shared, difference)


@contextmanager
def _quiet(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, and torch's random numbers kept, until the block ends."""
    training = [module for module in model.modules() if module.training]
    device = input_device(model)
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices, device_type="cuda" if device.type == "cpu" else device.type):
        try:
            for module in training:
                module.training = False
            yield
        finally:
            for module in training:
                module.training = True


def _random_tokens(model: Any, config: Any) -> torch.Tensor:
    """Tokens (1, PROMPT) that stand for nothing else, such as a picture or the padding of a batch."""
    special = _special_tokens(model, config)
    plain = torch.tensor([token for token in range(min(config.vocab_size, 1000)) if token not in special])
    chosen = torch.randint(len(plain), (1, PROMPT), generator=torch.Generator().manual_seed(0))
    return plain[chosen].to(input_device(model))


def _special_tokens(model: Any, config: Any) -> set[int]:
    settings = {**vars(model.config), **vars(config)}
    return {value for name, value in settings.items() if name.endswith(SPECIAL) and isinstance(value, int)}


def _logits(model: Any, tokens: torch.Tensor, **options: Any) -> torch.Tensor:
    """Logits (B, T, vocabulary); the last hidden states (B, T, hidden) of a model without a head."""
    output = model(tokens, **options)
    logits: torch.Tensor = output.logits if hasattr(output, "logits") else output[0]
    return logits


def _shared_tensors(made: nn.Module, model: nn.Module) -> int:
    owned = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    tensors = dict([*made.named_parameters(), *made.named_buffers()])
    own = [name for name, tensor in tensors.items() if id(tensor) not in owned]
    if own:
        raise ViewError(
            f"a view of {type(model).__name__} has {len(own)} tensors of its own, {own[0]} for one; views do "
            "not know how to share them"
        )
    return len(tensors)


def _check_identity(identity: nn.Module, model: nn.Module, tokens: torch.Tensor) -> None:
    expected, found = (_logits(each, tokens, use_cache=False) for each in (model, identity))
    if torch.equal(expected.nan_to_num(), found.nan_to_num()):
        return
    name, difference = type(model).__name__, (expected - found).abs().max().item()
    if not torch.equal(expected, _logits(model, tokens, use_cache=False)):
        raise ViewError(
            f"{name} gives other logits each time it runs; that its views are right cannot be seen"
        )
    raise ViewError(
        f"the identity view of {name} gives other logits than the model (by up to {difference:.2g}); views "
        "do not know something of this architecture"
    )


def _cache_difference(made: Any, config: Any, tokens: torch.Tensor) -> float:
    """How far the logits of tokens decoded one by one are from those without a cache, relative to these."""
    decoded, tokens = _decoded(made, config, tokens)
    whole = _logits(made, tokens, use_cache=False)[:, -decoded.shape[1] :].float()
    return float((decoded.float() - whole).norm() / whole.norm())


def _decoded(made: Any, config: Any, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (1, NEW, vocabulary) of the last tokens, decoded one by one, and all tokens they are of."""
    from transformers import DynamicCache, GenerationConfig  # takes long

    if hasattr(made, "generate") and made.can_generate():
        made.generation_config = GenerationConfig(pad_token_id=0)  # a view's is its own
        output = made.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            suppress_tokens=sorted(_special_tokens(made, config)),
            max_new_tokens=NEW,
            do_sample=False,
            use_cache=True,
            output_logits=True,
            return_dict_in_generate=True,
        )
        return torch.stack(output.logits, dim=1), output.sequences[:, :-1]
    cache = DynamicCache(config=made.config)
    steps = [tokens[:, : PROMPT - NEW + 1], *torch.split(tokens[:, PROMPT - NEW + 1 :], 1, dim=1)]
    logits = [_logits(made, step, past_key_values=cache, use_cache=True)[:, -1] for step in steps]
    return torch.stack(logits, dim=1), tokens


def _tolerance(model: Any) -> float:
    """What rounding may add up to, relative to the logits; a wrong cache is off by far more."""
    return max(1e-3, 8 * torch.finfo(model.dtype).eps)
