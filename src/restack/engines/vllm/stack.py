"""The layers of one of vLLM's models as the visits of a plan, with one set of weights.

vLLM builds a layer for each visit, with a name, and so a slot of the KV cache, of its own. Each that is not
the first of its layer is then given the first one's modules, but for the attention that has the slot.
"""

import inspect
import re
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import nn
from vllm.distributed import get_pp_group
from vllm.distributed.utils import get_pp_indices
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.model_executor.offloader import get_offloader, set_offloader
from vllm.model_executor.offloader.base import BaseOffloader, NoopOffloader

from restack.engines.vllm.arguments import CONFIG_FORMAT, LAYERS, PLAN, STORED
from restack.engines.vllm.engine_options import refuse_options
from restack.engines.vllm.iteration import iterate
from restack.engines.vllm.relatives import NODIAG, PASSES
from restack.engines.vllm.strictly_past import hide_own_token
from restack.llama.schedule import Step, schedule
from restack.plans import parse

QKV = re.compile(r"(?<=\.self_attn\.)([qkv])_(proj|norm)(?=\.(?:weight|bias)$)")
NUMBER = re.compile(r"(?:^|(?<=\.))\d+(?=\.)")  # of a layer, in the name of a tensor of a checkpoint


class Stack:
    """The visits of a plan that run in this process: all, or those of its pipeline stage."""

    def __init__(self, vllm_config: Any) -> None:
        """Nothing built yet; the plan is in the model's config.

        Raises:
            ValueError: vLLM is to keep weights elsewhere than where they are used, or to do what else does
                not go with the plan.
        """
        config = vllm_config.model_config.hf_config
        self.plan = parse(getattr(config, PLAN), (getattr(config, LAYERS),))
        self.schedule = schedule(self.plan, getattr(config, NODIAG, False))
        self.passes = getattr(config, PASSES, None)
        group = get_pp_group()
        self.visits = range(*get_pp_indices(len(self.plan), group.rank_in_group, group.world_size))
        self.firsts: dict[int, int] = {}  # of each layer, its first visit here
        for visit in self.visits:
            self.firsts.setdefault(self.plan.visits[visit].layer, visit)
        # Layers of a restack-llama have no weights for keys and values that nobody reads.
        is_ours = vllm_config.model_config.config_format == CONFIG_FORMAT
        self.unread = self.firsts.keys() - self.schedule.layers_with_kv if is_ours else frozenset()
        self.kv_width = config.num_key_value_heads * config.head_dim if is_ours else 0
        self._by_name = vllm_config.compilation_config.static_forward_context
        refuse_options(vllm_config, self.schedule)
        if not isinstance(get_offloader(), NoopOffloader):
            raise ValueError("restack: layers that visits share cannot be offloaded; leave the option out")

    @contextmanager
    def building(self) -> Iterator[None]:
        """Inside, layers share their weights as soon as they are built: there is never a second set."""
        before = get_offloader()
        set_offloader(_Sharing(self))
        try:
            yield
        finally:
            set_offloader(before)

    def shared(self, layers: Iterable[nn.Module]) -> Iterator[nn.Module]:
        """Layers as they are built, one a visit here; each shares what it can with the first of its own."""
        first: dict[int, nn.Module] = {}
        for visit, layer in zip(self.visits, layers, strict=True):
            number = self.plan.visits[visit].layer
            if first.setdefault(number, layer) is not layer:
                self._share(layer, first[number], visit)
            yield layer

    def finish(self, model: nn.Module) -> None:
        """Put shared keys and values, and damping, into a model that has been built.

        Raises:
            ValueError: its layers are not to be found, or a visit cannot be as the plan says.
        """
        layers = self._layers(model)
        here = {visit: layers[visit] for visit in self.visits}
        for _ in self.shared(here.values()):  # those that vLLM has not built by its `make_layers`
            pass
        for visit, layer in here.items():
            owner = self.plan.owners[visit]
            if owner != visit:
                if owner not in here:
                    raise ValueError(
                        f"restack: visit {visit} reads the keys and values of visit {owner}, which is on "
                        "another pipeline stage; use another --pipeline-parallel-size, or 1"
                    )
                _read_from(layer, here[owner], visit, owner)
            if self.plan.visits[visit].damp != 1:
                _damp(layer, self.plan.visits[visit].damp)
        for step in self.schedule.steps:
            if step.number in here and step.reading.strictly_past:
                for attention in _attentions(here[step.number]):
                    hide_own_token(attention)
        for group in self.schedule.groups:
            if group.is_iterated and group.steps[0].number in here:
                self._iterate(group.steps, here)

    def _iterate(self, steps: Sequence[Step], here: dict[int, Any]) -> None:
        """Have the layers of a group run as often as what some of them read ahead of its time needs."""
        reader = next(step for step in steps if step.reads_ahead)
        iterate(
            [here[step.number] for step in steps],
            _attentions(here[reader.number])[0],
            [_attentions(here[step.number])[0] for step in steps if step.is_read_from_below],
            self.passes,
        )

    def renamed(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        """A checkpoint's tensors, those of a layer named by its first visit; without those of none."""
        for name, tensor in weights:
            number = NUMBER.search(name)
            if number is None:
                yield name, tensor
            elif (visit := self.firsts.get(int(number[0]))) is not None:
                name = f"{name[: number.start()]}{visit}{name[number.end() :]}"
                is_unread = int(number[0]) in self.unread
                yield from _with_unread(name, tensor, self.kv_width) if is_unread else [(name, tensor)]

    def _layers(self, model: nn.Module) -> nn.ModuleList:
        found = [
            module
            for module in model.modules()
            if isinstance(module, nn.ModuleList)
            and len(module) == len(self.plan)
            and all(_attends(module[visit]) for visit in self.visits)
        ]
        if len(found) != 1:
            raise ValueError(
                f"restack: it is not clear which layers of {type(model).__name__} the visits are; {STORED}"
            )
        return found[0]

    def _share(self, layer: nn.Module, first: nn.Module, visit: int) -> None:
        """Give a layer the modules and parameters of the first visit's, but for the attention itself."""
        own, others = dict(layer.named_modules()), dict(first.named_modules())
        names = {name for name, _ in layer.named_parameters()}
        if own.keys() != others.keys() or names != {name for name, _ in first.named_parameters()}:
            raise ValueError(f"restack: vLLM builds visit {visit} unlike its layer; {STORED}")
        instead: dict[int, Any] = {}  # by the identity of what it takes the place of
        for name, module in own.items():
            if not _attends(module):
                instead[id(module)] = others[name]
            else:
                for key, parameter in module._parameters.items():
                    if parameter is not None:
                        instead[id(parameter)] = others[name]._parameters[key]
        for module in filter(_attends, own.values()):
            _replace(module._modules, instead)
            _replace(module._parameters, instead)
            _replace(vars(module), instead)
            _replace(vars(getattr(module, "impl", module)), instead)
        _replace(self._by_name, instead)  # where vLLM's own operations look experts up


class _Sharing(BaseOffloader):  # type: ignore[misc]
    """In the place of an offloader, vLLM's `make_layers` hands it the layers as they are built."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack

    def wrap_modules(
        self, modules_generator: Generator[nn.Module, None, None], prefix: str = ""
    ) -> list[nn.Module]:
        return list(self._stack.shared(modules_generator))


def _attentions(module: nn.Module) -> list[Any]:
    return [each for each in module.modules() if isinstance(each, AttentionLayerBase)]


def _attends(module: nn.Module) -> bool:
    """Whether a slot of the KV cache, or another state, is a module's or of one in it."""
    return bool(_attentions(module))


def _replace(held: Any, instead: dict[int, Any]) -> None:
    """Replace values of a dict, by what is to be there instead of them, by their identity."""
    for name, value in held.items():
        if id(value) in instead:
            held[name] = instead[id(value)]


def _read_from(layer: nn.Module, owner: nn.Module, visit: int, number: int) -> None:
    """Have the attention of a visit read the keys and values of another's."""
    for reader, source in zip(_attentions(layer), _attentions(owner), strict=True):
        windows = [getattr(each, "sliding_window", None) for each in (reader, source)]
        if not hasattr(reader, "kv_sharing_target_layer_name") or windows[0] != windows[1]:
            raise ValueError(
                f"restack: visit {visit} reads the keys and values of visit {number}, and their attention is "
                "not of one kind; leave that out of the KV map"
            )
        reader.kv_sharing_target_layer_name = source.layer_name
        reader.impl.kv_sharing_target_layer_name = source.layer_name


def _with_unread(name: str, tensor: torch.Tensor, kv_width: int) -> Iterator[tuple[str, torch.Tensor]]:
    """A tensor of a layer whose keys and values nobody reads; zeros for them follow upon that for queries."""
    found = QKV.search(name)
    if found is None or found[1] == "q":
        yield name, tensor
    if found is not None and found[1] == "q":
        rows, letters = (kv_width, "kv") if found[2] == "proj" else (len(tensor), "k")
        for letter in letters:
            yield QKV.sub(rf"{letter}_\2", name), tensor.new_zeros(rows, *tensor.shape[1:])


def _damp(layer: nn.Module, factor: float) -> None:
    """Scale what a layer adds to the hidden states: h + factor * (layer(h) - h)."""
    original: Any = type(layer)
    signature = inspect.signature(original.forward)
    if "hidden_states" not in signature.parameters:
        raise ValueError(
            f"restack: {original.__name__} does not say what its hidden states are, so @ cannot be"
        )
    has_residual = "residual" in signature.parameters

    @wraps(original.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        given = signature.bind(self, *args, **kwargs).arguments
        hidden, residual = given["hidden_states"], given.get("residual")
        # A copy in any case: vLLM's norms may write into the residual stream, which begins as this.
        entered = hidden.clone() if residual is None else hidden + residual
        output = original.forward(self, *args, **kwargs)
        if has_residual:  # the next layer adds the two
            left, beside = output
            return factor * (left + beside - entered), entered
        first = output[0] if isinstance(output, tuple) else output
        damped = entered + factor * (first - entered)
        return (damped, *output[1:]) if isinstance(output, tuple) else damped

    layer.__class__ = type(original.__name__, (original,), {"forward": forward})
