"""How long an answer may become."""

import pytest
from transformers import LlamaConfig, MambaConfig

from restack.errors import UsageError
from restack.serving.tasks import USUAL, WITHOUT_CONTEXT, _limit


class Model:
    def __init__(self, context):
        self.config = MambaConfig() if context is None else LlamaConfig(max_position_embeddings=context)


@pytest.mark.parametrize(
    ("asked", "usual", "context", "limit"),
    [
        (7, None, 100, 7),
        (None, None, 100, 90),
        (None, USUAL, 100, USUAL),
        (None, USUAL, 14, 4),
        (7, USUAL, None, 7),
        (None, USUAL, None, USUAL),
        (None, None, None, WITHOUT_CONTEXT),
    ],
)
def test_an_answer_is_as_long_as_is_asked_for_or_usual_or_fits(asked, usual, context, limit):
    assert _limit(asked, usual, Model(context), [1] * 10) == limit


def test_more_than_there_is_room_for_is_refused():
    with pytest.raises(UsageError, match="10 tokens and max_tokens is 91, and the model's context is 100"):
        _limit(91, None, Model(100), [1] * 10)
