"""--draft changes how soon a text is there, and nothing else."""

from io import BytesIO, TextIOWrapper

import pytest
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from restack import recipes, view
from restack.cli import main
from restack.runtime import Sampling, generate
from tests.cli.test_quantize import ASK
from tests.runtime.decoding.test_speculation import drafter as always

GREEDY = [*ASK, "--temperature", "0", "--dtype", "float32"]


def said(capsys, *arguments):
    assert main([*arguments]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_the_text_is_the_same(capsys, monkeypatch, command):
    options = GREEDY if command == "generate" else ["--temperature", "0", "--dtype", "float32"]
    texts = []
    for draft in ([], ["--draft", "@0:6,9:"], ["--draft", "demo@0:6,9:"], ["--draft", "demo"]):
        if command == "chat":
            typed = BytesIO(b"What is 3 + 4?\nTell me a story.\n")
            monkeypatch.setattr("sys.stdin", TextIOWrapper(typed))
        texts.append(said(capsys, command, "demo@0:6,4:12", *options, *draft))
    assert len(set(texts)) == 1 and texts[0].strip()


def test_another_model_with_the_same_tokenizer_drafts(capsys, tmp_path):
    tokenizer = recipes.open_tokenizer("demo")
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert said(capsys, "generate", "demo", *GREEDY, "--draft", str(tmp_path)) == said(
        capsys, "generate", "demo", *GREEDY
    )
    other = AutoTokenizer.from_pretrained(tmp_path)
    other.add_tokens(["<other>"])
    other.save_pretrained(tmp_path)
    assert main(["generate", "demo", *GREEDY, "--draft", str(tmp_path)]) == 2
    assert "has another tokenizer than demo, so it cannot draft for it" in capsys.readouterr().err


@pytest.mark.parametrize(("draft", "told"), [("@0:99", "past the model"), ("@", "names no model")])
def test_wrong_input_is_told(capsys, draft, told):
    assert main(["generate", "demo", *GREEDY, "--draft", draft]) == 2
    assert told in capsys.readouterr().err


def test_what_our_loop_does_not_know_is_drafted_for_by_transformers():
    base, tokenizer = recipes.open("demo", dtype="float32"), recipes.open_tokenizer("demo")
    tokens = tokenizer("Once there was", return_tensors="pt")["input_ids"]
    sampling, drafter = Sampling(temperature=0, max_tokens=30), always(view(base, "0:6,9:"), 2)
    alone = generate(base, tokenizer, tokens, sampling).text
    assert generate(base, tokenizer, tokens, sampling, drafter=drafter).text == alone and drafter.pace.drafted
    handle = base.model.layers[3].mlp.register_forward_hook(lambda *given: None)
    drafted = drafter.pace.drafted
    assert generate(base, tokenizer, tokens, sampling, drafter=drafter).text == alone
    assert drafter.pace.drafted == drafted
    handle.remove()
