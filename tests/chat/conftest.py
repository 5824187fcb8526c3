import pytest
import torch

from restack import recipes


@pytest.fixture(scope="session")
def demo():
    return recipes.open("demo", dtype="float32"), recipes.open_tokenizer("demo")


class Counter:
    """Counts the tokens that pass through a model."""

    def __init__(self):
        self.tokens = 0
        self.handle = None

    def watch(self, model):
        def count(module, arguments, options):
            ids = options.get("input_ids", arguments[0] if arguments else None)
            self.tokens += ids.shape[1]

        if self.handle is not None:
            self.handle.remove()
        self.handle = model.register_forward_pre_hook(count, with_kwargs=True)

    def take(self):
        count, self.tokens = self.tokens, 0
        return count


@pytest.fixture
def counter():
    result = Counter()
    yield result
    if result.handle is not None:
        result.handle.remove()


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
