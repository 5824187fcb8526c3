import pytest
import torch

from restack import recipes, view
from restack.errors import UsageError
from restack.runtime import ContextFull, option_log_probabilities

OPTIONS = [" Paris", " Madrid, the capital", " a", "."]


@pytest.fixture(scope="module")
def demo():
    return recipes.open("demo", dtype="float32"), recipes.open_tokenizer("demo")


def by_hand(model, tokenizer, prompt, option):
    """By one forward pass over prompt and option."""
    added = tokenizer(option, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logs = model(torch.cat([prompt[0], torch.tensor(added)])[None]).logits[0].double().log_softmax(-1)
    return sum(logs[prompt.shape[1] - 1 + at, token].item() for at, token in enumerate(added))


@pytest.mark.parametrize("plan", ["0:12", "0:8,4:12", "0:12;kv=0_0_2_2_4_4_6_6_8_8_10_10"])
@pytest.mark.parametrize("prompt", ["The capital of France is", "a"])
def test_they_are_those_of_transformers_logits(demo, plan, prompt):
    model, tokenizer = view(demo[0], plan), demo[1]
    tokens = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
    found = option_log_probabilities(model, tokenizer, tokens, OPTIONS)
    assert found == pytest.approx([by_hand(model, tokenizer, tokens, option) for option in OPTIONS], abs=1e-4)


def test_what_is_likely_is_likely(demo):
    model, tokenizer = demo
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    tokens = tokenizer(text + "The capital of France is", add_special_tokens=False, return_tensors="pt")[
        "input_ids"
    ]
    found = option_log_probabilities(model, tokenizer, tokens, [" Madrid", " Paris", " Rome"])
    assert max(found) == found[1] > -0.1


def test_a_text_is_at_least_as_likely_as_one_that_it_begins(demo):
    model, tokenizer = demo
    tokens = torch.tensor([[5, 9, 2]])
    short, long = option_log_probabilities(model, tokenizer, tokens, ["The cat", "The cat sat"])
    assert short > long


def test_a_model_that_gives_all_logits(demo):
    """As one in a wrapper that hides the arguments of `forward`."""
    model, tokenizer = demo

    class Wrapper(torch.nn.Module):
        config = model.config

        def forward(self, *arguments, **options):
            return model(*arguments, **options)

    tokens = torch.tensor([[5, 9, 2]])
    expected = option_log_probabilities(model, tokenizer, tokens, OPTIONS)
    assert option_log_probabilities(Wrapper(), tokenizer, tokens, OPTIONS) == pytest.approx(
        expected, abs=1e-5
    )


@pytest.mark.parametrize(
    ("options", "told"), [([], "there is no option"), (["a", ""], "the option '' has no tokens")]
)
def test_options_that_are_none(demo, options, told):
    with pytest.raises(UsageError, match=told):
        option_log_probabilities(*demo, torch.tensor([[5]]), options)


def test_they_must_fit_into_the_context(demo):
    model, tokenizer = demo
    one, several = "a", "The cat sat"
    assert len(tokenizer(one, add_special_tokens=False)["input_ids"]) == 1
    full = torch.ones(1, 1023, dtype=torch.int64)
    assert len(option_log_probabilities(model, tokenizer, full, [one])) == 1
    with pytest.raises(ContextFull):
        option_log_probabilities(model, tokenizer, full, [one, several])
