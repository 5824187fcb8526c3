"""Counts and sizes as a person reads them."""


def in_parameters(count: int) -> str:
    """13,264,949,248 (13.3B)."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count:,} ({count / size:.1f}{letter})"
    return str(count)


def in_bytes(count: int) -> str:
    """16.1 GB, in powers of 1000."""
    for size, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= size:
            return f"{count / size:.1f} {name}"
    return f"{count} B"
