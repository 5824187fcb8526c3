"""Steps of a model over a static KV cache."""

import ctypes
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from transformers.cache_utils import Cache

from restack.runtime.decoding.structure import Structure, VisitStructure, eps_of
from restack.runtime.native import Kernel, Matrix, Model, Tokens, Visit
from restack.runtime.native.structures import place
from restack.runtime.packed.linear import PackedLinear

FEW = 16  # tokens that are run as new ones are
ROOM = 512  # tokens beside a prompt that there is room for at first; then it grows by half


class Recorder(Protocol):
    """Records what enters visits, as `views.recording.Recording` does."""

    @property
    def visits(self) -> Collection[int]:
        """Which."""

    def add(self, visit: int, hidden: torch.Tensor) -> None:
        """Take hidden states, (1, T, C)."""


class Stepper:
    """Runs new tokens through the visits of a model, or some of them, with their keys and values kept.

    Of each visit that makes them, keys lie in (B, nh_kv, hs, capacity), values in (B, nh_kv, capacity, hs), a
    token at its place in the text; what is before the first place of a text is padding.

    Attributes:
        lengths: how many places of each text are taken, padding included.
        kind: steps of one kind can run in one call of the kernel.
        reads: of each visit, which weights, and which of their products: with whom it can run in one pass.
        head_reads: which weights the final norm and the head are.
    """

    def __init__(
        self,
        kernel: Kernel,
        structure: Structure,
        firsts: Sequence[int],
        tokens: int,
        *,
        longest: int | None = None,
        beside: "Stepper | None" = None,
        common: int = 0,
    ) -> None:
        """A cache with nothing in it.

        Args:
            kernel: that runs the steps.
            structure: of the model.
            firsts: of each text, how much padding there is before it.
            tokens: that there is to be room for; more find room too.
            longest: that a text may become; None: any length.
            beside: of another view of the same weights, whose keys and values of the first visits are these.
            common: how many visits those are.
        """
        self.kernel, self.structure = kernel, structure
        self._longest, self._beside, self._common = longest, beside, common
        self.firsts, self.lengths = list(firsts), [0] * len(firsts)
        self._kept: list[Any] = []  # tensors whose places the structures hold
        self._keys: dict[int, torch.Tensor] = {}
        self._values: dict[int, torch.Tensor] = {}
        attention, mlp = structure.visits[0].layer.self_attn, structure.visits[0].layer.mlp
        norm, size = structure.norm, attention.head_dim
        owner = next(visit for visit in structure.visits if visit.slot is not None)
        settings = {
            "width": structure.head.in_features,
            "heads": attention.q_proj.out_features // size,
            "kv_heads": owner.layer.self_attn.k_proj.out_features // size,
            "head_size": size,
            "inner": mlp.down_proj.in_features,
            "is_narrow": structure.dtype == torch.bfloat16,
            "epsilon": eps_of(norm),
            "scaling": attention.scaling,
        }
        self._model = Model(**settings)
        self.kind = (id(kernel), *settings.values())
        self._topmost = max(number for number, visit in enumerate(structure.visits) if visit.slot is not None)
        # one more: of the topmost that makes keys and values, nothing but these
        self._described = *structure.visits, replace(structure.visits[self._topmost], damp=0.0)
        self._visits = (Visit * len(self._described))(*map(self._visit, self._described))
        self._norm, self._head = self._float(norm.weight), self._matrix(structure.head)
        self.reads = tuple(
            (visit.slot is None, visit.damp == 0, *_places(visit.layer)) for visit in structure.visits
        )
        self.head_reads = (*_places(norm), *_places(structure.head))
        self.make_room(tokens)

    @property
    def bits(self) -> int:
        """Of a weight."""
        return int(self._visits[0].down.bits)

    def take(self, cache: Cache, first: int = 0) -> None:
        """Take over what a cache of transformers holds after prefill, of visits from `first` on."""
        for visit in self.structure.visits[first:]:
            if visit.slot is None:
                continue
            slot: Any = cache.layers[visit.slot]
            length, number = slot.get_seq_length(), visit.slot
            if length == 0:
                continue
            self.make_room(length)
            kept = slice(length - slot.keys.shape[2], length)  # a window's slot has let the others go
            self._keys[number][..., kept] = slot.keys.transpose(2, 3)
            self._values[number][:, :, kept] = slot.values
            self.lengths = [length] * len(self.lengths)

    def give_back(self, cache: Cache) -> None:
        """Leave in a cache of transformers what it would hold, had it been used all the time."""
        for visit in self.structure.visits:
            number = visit.slot if visit.idle_slot is None else visit.idle_slot
            if number is None:
                continue
            slot: Any = cache.layers[number]
            length, first = self.lengths[0], 0
            if not slot.is_initialized:
                nothing = torch.empty(0, dtype=self.structure.dtype)
                slot.lazy_initialization(nothing, nothing)
            if slot.is_sliding:
                first = max(0, length - slot.sliding_window + 1)
                slot.cumulative_length = length
            if visit.slot is None:
                slot.keys = slot.values = torch.zeros(
                    len(self.lengths), 1, length - first, 1, dtype=self.structure.dtype
                )
                continue
            slot.keys = self._keys[visit.slot][..., first:length].transpose(2, 3).contiguous()
            slot.values = self._values[visit.slot][:, :, first:length].clone()

    @torch.no_grad()
    def step(
        self,
        tokens: Sequence[Sequence[int]],
        texts: Sequence[int],
        recordings: Sequence[Recorder] = (),
    ) -> torch.Tensor:
        """Run new tokens of some texts: their logits, float32, shape (rows, V), in the order of the tokens.

        Args:
            tokens: of each of these texts, one or more.
            texts: which texts.
            recordings: record what enters visits, of one text.
        """
        hidden = self.enter(tokens)
        self.run(range(len(self.structure.visits)), hidden, [len(row) for row in tokens], texts, recordings)
        for text, row in zip(texts, tokens, strict=True):
            self.lengths[text] += len(row)
        return self.logits(hidden)

    @torch.no_grad()
    def read(
        self,
        tokens: torch.Tensor,
        piece: int,
        recordings: Sequence[Recorder] = (),
        between: Callable[[], None] | None = None,
    ) -> torch.Tensor:
        """Run what is new of all texts, a piece at a time: the logits after them, float32, shape (B, V).

        Of the last visit that makes keys and values, and of those above it, nothing else is needed except for
        the last tokens (YOCO, arXiv 2405.05254, section 2.3, leaves a prompt early so).

        Args:
            tokens: of the texts, padding before them included, shape (B, T).
            piece: how many are run at a time.
            recordings: record what enters visits, of one text.
            between: called after each piece but the last.
        """
        texts, length, visits = range(len(tokens)), tokens.shape[1], len(self.structure.visits)
        until = visits if recordings else self._topmost
        rows, some = tokens.tolist(), max(1, piece // len(tokens))
        for start in range(max(self.lengths[0], min(self.firsts)), length, some):
            stop = min(start + some, length)
            starts = [max(start, min(first, stop)) for first in self.firsts]
            counts = [stop - each for each in starts]
            hidden = self.enter([row[each:stop] for row, each in zip(rows, starts, strict=True)])
            self.run(range(until), hidden, counts, texts, recordings, starts, is_prompt=True)
            if until < visits:
                self.run(range(visits, visits + 1), hidden, counts, texts, (), starts, is_prompt=True)
            self.lengths = [stop] * len(tokens)
            if between is not None and stop < length:
                between()
        last = hidden[torch.tensor(counts).cumsum(0) - 1]
        if until < visits:
            self.run(range(until, visits), last, [1] * len(tokens), texts, (), [length - 1] * len(tokens))
        return self.logits(last)

    def enter(self, tokens: Sequence[Sequence[int]]) -> torch.Tensor:
        """What enters the first visit: hidden states, float32, shape (rows, C)."""
        flat = torch.tensor([token for row in tokens for token in row])
        hidden: torch.Tensor = self.structure.embedding(flat)
        return hidden.float().contiguous()

    def run(
        self,
        visits: range,
        hidden: torch.Tensor,
        counts: Sequence[int],
        texts: Sequence[int],
        recordings: Sequence[Recorder] = (),
        places: Sequence[int] | None = None,
        *,
        is_prompt: bool = False,
    ) -> None:
        """Take hidden states, (rows, C), through visits, in place; lengths stay as they are.

        Args:
            visits: which.
            hidden: of new tokens, in the order of the texts.
            counts: how many there are of each text.
            texts: which texts.
            recordings: record what enters visits, of one text.
            places: of the first new token of each; without, they follow what is there.
            is_prompt: whether many are run as suits many: rounded otherwise than a few.
        """
        lengths = [self.lengths[text] for text in texts] if places is None else places
        self.make_room(max(length + count for length, count in zip(lengths, counts, strict=True)))
        described = Tokens.of(
            [
                self.row(text, length + offset)
                for text, length, count in zip(texts, lengths, counts, strict=True)
                for offset in range(count)
            ]
        )
        run = self.kernel.read if is_prompt and len(hidden) > FEW else self.kernel.step
        wanted = sorted({visit for each in recordings for visit in each.visits if visit in visits})
        for start, stop in zip((visits.start, *wanted), (*wanted, visits.stop), strict=True):
            run(range(start, stop), described, hidden)
            if stop in wanted:
                _record(recordings, stop, hidden, self.structure.dtype)
        if visits and visits.stop == len(self.structure.visits):
            _record(recordings, visits.stop, hidden, self.structure.dtype)

    def row(self, text: int, at: int, visit: int = 0) -> tuple[int, ...]:
        """What the kernel is told of a new token of a text, at a place, that begins with a visit."""
        visits = ctypes.addressof(self._visits) + visit * ctypes.sizeof(Visit)
        return ctypes.addressof(self._model), visits, text, at, self.firsts[text], at - self.firsts[text]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits, float32, shape (rows, V), of what leaves the last visit, shape (rows, C)."""
        return self.kernel.logits(self._model, self._norm, self._head, hidden)

    def make_room(self, tokens: int) -> None:
        """Have room for texts of so many places."""
        before: int = self._model.capacity
        if self._beside is not None:
            self._beside.make_room(tokens)
            tokens = self._beside._model.capacity
        if tokens <= before:
            return
        capacity = tokens
        if self._beside is None:  # RoPE may turn otherwise past the longest, so it is not asked there
            capacity = max(tokens, min(before * 3 // 2, self._longest or tokens))
        model, dtype = self._model, self.structure.dtype
        shape = len(self.lengths), model.kv_heads
        for number, visit in enumerate(self.structure.visits):
            if visit.slot is None:
                continue
            if self._beside is not None and number < self._common:
                self._keys[visit.slot] = self._beside._keys[visit.slot]
                self._values[visit.slot] = self._beside._values[visit.slot]
                continue
            keys = torch.zeros(*shape, model.head_size, capacity, dtype=dtype)
            values = torch.zeros(*shape, capacity, model.head_size, dtype=dtype)
            if before:
                keys[..., :before] = self._keys[visit.slot]
                values[:, :, :before] = self._values[visit.slot]
            self._keys[visit.slot], self._values[visit.slot] = keys, values
        for described, visit in zip(self._visits, self._described, strict=True):
            slot = self.structure.visits[visit.owner].slot
            if slot is not None:
                described.keys, described.values = place(self._keys[slot]), place(self._values[slot])
            if visit.slot is not None:
                described.own_keys = place(self._keys[visit.slot])
                described.own_values = place(self._values[visit.slot])
        positions = torch.arange(capacity)[None]
        turned = self.structure.rotary(torch.empty(1, dtype=dtype), positions)
        self._rope = [each[0].float().contiguous() for each in turned]
        model.cosines, model.sines = map(place, self._rope)
        model.capacity = capacity

    def _visit(self, visit: VisitStructure) -> Visit:
        layer, attention, mlp = visit.layer, visit.layer.self_attn, visit.layer.mlp
        has_own = visit.slot is not None
        nothing = Matrix()
        return Visit(
            attention_norm=place(self._float(layer.input_layernorm.weight)),
            mlp_norm=place(self._float(layer.post_attention_layernorm.weight)),
            query_norm=self._norm_of(attention, "q_norm"),
            key_norm=self._norm_of(attention, "k_norm"),
            q=self._matrix(attention.q_proj),
            k=self._matrix(attention.k_proj) if has_own else nothing,
            v=self._matrix(attention.v_proj) if has_own else nothing,
            o=self._matrix(attention.o_proj),
            gate=self._matrix(mlp.gate_proj),
            up=self._matrix(mlp.up_proj),
            down=self._matrix(mlp.down_proj),
            window=visit.window,
            is_strictly_past=visit.is_strictly_past,
            damp=visit.damp,
        )

    def _norm_of(self, attention: Any, name: str) -> Any:
        norm = getattr(attention, name, None)
        return None if norm is None else place(self._float(norm.weight))

    def _matrix(self, layer: Any) -> Matrix:
        bias = None if layer.bias is None else self._float(layer.bias)
        return layer.matrix(bias) if isinstance(layer, PackedLinear) else Matrix.of(layer.weight, bias=bias)

    def _float(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor in float32, kept."""
        self._kept.append(tensor.detach().float().contiguous())
        return self._kept[-1]  # type: ignore[no-any-return]


def _places(module: Any) -> tuple[int, ...]:
    """Where the weights of a module are."""
    return tuple(parameter.data_ptr() for parameter in module.parameters())


def _record(recordings: Sequence[Recorder], visit: int, hidden: torch.Tensor, dtype: torch.dtype) -> None:
    for each in recordings:
        each.add(visit, hidden[None].to(dtype))
