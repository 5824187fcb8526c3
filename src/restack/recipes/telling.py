"""What transformers says in paragraphs, in one line."""

from collections.abc import Iterator
from contextlib import contextmanager

from restack.errors import ModelError, RestackError


@contextmanager
def told_in_one_line(name: str, is_local: bool, part: str = "model") -> Iterator[None]:
    """Turn what transformers says in paragraphs into one line."""
    try:
        yield
    except RestackError as error:  # ours are in one line, but for those that point at a place in a text
        reason = str(error).splitlines()[-1].lstrip(" ^")
        raise ModelError(f"cannot open the {part} of {name}: {reason}") from error
    except Exception as error:  # whatever a broken model makes of a loader: each library has its own
        if _was_interrupted(
            error
        ):  # while a module was imported, which transformers tells as if it lacked one
            raise KeyboardInterrupt from None
        reason = " ".join(str(error).split())
        if "model type" in reason or "Unrecognized" in reason:
            reason = f"its architecture is not known to the installed transformers ({reason:.120}...)"
        elif "ignore_mismatched_sizes" in reason:
            reason = "its weights do not have the shapes that its config.json says"
        elif "trust_remote_code" in reason:
            reason = "it comes with code of its own; if you trust that, run it with --trust-remote-code"
        elif isinstance(error, OSError) and not is_local:
            reason = "no such folder, and the hub has no such model or cannot be reached"
        raise ModelError(f"cannot open the {part} of {name}: {reason:.300}") from error


def _was_interrupted(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None
