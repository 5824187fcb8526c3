"""What versions of transformers before the one that is pinned cannot do, whoever asks them."""

import pytest
import transformers
from packaging.version import Version

IS_OLD = Version(transformers.__version__) < Version("5.23")


def skip_where_old(reason: str) -> None:
    """Skip a test on older versions, for what plain models cannot do there either."""
    if IS_OLD:
        pytest.skip(f"transformers {transformers.__version__}: {reason}")
