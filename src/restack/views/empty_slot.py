"""A slot of a KV cache that keeps nothing: transformers' own, or before it had one, the like of it."""

from typing import Any

try:
    from transformers.cache_utils import DummyLayer as EmptySlot
except ImportError:  # 5.17

    class EmptySlot:  # type: ignore[no-redef]
        """Answers what a cache asks all of its slots."""

        supports_early_init = False
        is_compileable = True
        is_croppable = True
        is_sliding = False

        def __init__(self) -> None:
            self.is_initialized = True
            self.keys = None
            self.values = None

        def nothing(self, *args: Any) -> None:
            """There is nothing to move, crop or reorder."""

        offload = prefetch = reset = crop = reorder_cache = nothing
        batch_repeat_interleave = batch_select_indices = nothing

        def get_seq_length(self) -> int:
            """No tokens."""
            return 0

        def get_max_length(self) -> int:
            """No limit."""
            return -1


__all__ = ["EmptySlot"]
