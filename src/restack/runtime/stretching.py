"""RoPE that depends on how long the text is."""

from typing import Any

# Types whose frequencies change with the length: keys that were turned before do not fit any more.
STRETCHING = ("dynamic", "longrope")


def stretches(config: Any, length: int) -> bool:
    """Whether a text of this length turns its keys otherwise than its beginning alone did."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    settings = [rope, *(each for each in rope.values() if isinstance(each, dict))]
    if not any(each.get("rope_type") in STRETCHING for each in settings):
        return False
    lengths = [each.get("original_max_position_embeddings") for each in settings]
    lengths.append(getattr(config, "original_max_position_embeddings", None))
    known = [each for each in lengths if each]
    return length > min(known, default=getattr(config, "max_position_embeddings", length))
