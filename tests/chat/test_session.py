"""Conversations in files."""

import json

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, MistralConfig, Qwen3NextConfig

from restack import recipes, view
from restack.chat import Conversation, Tags, load_session, save_session
from restack.errors import UsageError
from restack.runtime import Sampling
from tests.chat.test_reuse import KINDS, STORY, tiny

GREEDY = Sampling(temperature=0, max_tokens=12)


def had(demo, **options):
    talk = Conversation(*demo, **{"sampling": GREEDY, **options})
    talk.ask("Hello!")
    talk.ask(STORY)
    return talk


def test_all_that_matters_comes_back(demo, tmp_path):
    talk = had(
        demo,
        system="You are Demo.",
        ai_prefix="Well,",
        sampling=Sampling(temperature=0.5, top_k=3, max_tokens=9),
        tags=Tags("((", "))"),
        overflow="drop",
    )
    talk.continue_(" naïve – \n")
    loaded = load_session(save_session(talk, tmp_path / "talk.json"), *demo)
    for name in ("messages", "system", "ai_prefix", "sampling", "tags", "speaks", "window"):
        assert getattr(loaded, name) == getattr(talk, name)
    loaded.sampling = talk.sampling = GREEDY
    assert loaded.ask("What is 3 + 4?").content == talk.ask("What is 3 + 4?").content


@pytest.mark.parametrize("with_cache", [False, True])
def test_with_its_cache_nothing_is_read_again(demo, tmp_path, counter, with_cache):
    talk = had(demo)
    path = save_session(talk, tmp_path / "talk", with_cache=with_cache)
    counter.watch(demo[0])
    loaded = load_session(path, *demo)
    assert counter.take() == with_cache  # one token, to see what the model keeps of it
    assert loaded.ask("What is 3 + 4?").content == talk.ask("What is 3 + 4?").content
    assert loaded.last.reused == (talk.last.reused if with_cache else 0)


def test_a_session_is_a_file_that_others_can_read(demo, tmp_path):
    talk = had(demo)
    text = json.loads(save_session(talk, tmp_path / "talk").read_text())
    assert text["restack_session"] == 1
    assert text["messages"][0] == {
        "role": "user",
        "pieces": [{"text": "Hello!", "kind": "answer", "given": True}],
        "finish": "stop",
    }
    with safe_open(save_session(talk, tmp_path / "kv", with_cache=True), framework="pt") as stored:
        assert json.loads(stored.metadata()["restack_session"])["messages"] == text["messages"]
        assert len(stored.keys()) == 1 + 2 * 12 + 3


@pytest.mark.parametrize("kind", ["gpt2", "house", "house shared", "house cyclic"])
def test_caches_of_other_kinds_come_back(demo, tmp_path, kind):
    talk = had((tiny(kind), demo[1]))
    loaded = load_session(save_session(talk, tmp_path / "talk", with_cache=True), talk.model, demo[1])
    assert loaded.ask("Bye!").content == talk.ask("Bye!").content
    assert loaded.last.reused == talk.last.reused > 0


def test_a_recurrent_state_is_not_stored(demo, tmp_path):
    assert KINDS["hybrid"]().__class__ is Qwen3NextConfig and KINDS["sliding"]().__class__ is MistralConfig
    talk = had((tiny("hybrid"), demo[1]))
    with pytest.raises(UsageError, match="more than keys and values; store the text alone"):
        save_session(talk, tmp_path / "talk", with_cache=True)
    assert list(tmp_path.iterdir()) == []
    assert load_session(save_session(talk, tmp_path / "talk"), talk.model, demo[1]).messages == talk.messages


def other_weights(demo):
    result = recipes.open("demo", dtype="float32")
    with torch.no_grad():
        result.model.layers[7].mlp.up_proj.weight.mul_(1.5)
    return result


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (
            lambda demo: view(demo[0], "0:8,4:12"),
            "plan 0:12, and this model's is 0:8,4:12; .*--layers '0:12'",
        ),
        (lambda demo: view(demo[0], "0:11,10"), "and this model's is 0:11,10"),
        (
            lambda demo: recipes.open("demo", dtype="bfloat16"),
            "dtype float32, and .* bfloat16; .*--dtype float32",
        ),
        (lambda demo: tiny("llama"), "kind llama, .* wide, .* tokens, and this model's is llama, 32 wide"),
        (other_weights, "other weights; open it with the model it was had with"),
    ],
)
def test_another_model_is_refused_and_the_difference_named(demo, tmp_path, other, told):
    path = save_session(had(demo), tmp_path / "talk")
    with pytest.raises(UsageError, match=f"^{path} is a session of a model with .*{told}"):
        load_session(path, other(demo), demo[1])


def test_a_session_of_a_view_opens_with_that_view(demo, tmp_path):
    base, tokenizer = demo
    talk = had((view(base, "0:8,4:12"), tokenizer))
    path = save_session(talk, tmp_path / "talk", with_cache=True)
    opened = recipes.open("demo@0:8,4:12", dtype="float32")
    assert load_session(path, opened, tokenizer).ask("Bye!").content == talk.ask("Bye!").content


def broken(path, how):
    text = json.loads(path.read_text())
    how(text)
    path.write_text(json.dumps(text))


@pytest.mark.parametrize(
    ("how", "told"),
    [
        (lambda s: s.update(restack_session=2), "of version 2, and this Restack reads version 1; update"),
        (lambda s: s.pop("messages"), "broken session: KeyError 'messages'"),
        (lambda s: s["messages"][0].pop("role"), "broken session"),
        (lambda s: s["messages"][0]["pieces"].append({"words": "x"}), "broken session"),
        (lambda s: s.update(sampling={"temperature": "hot"}), "broken session"),
        (lambda s: s.update(sampling={"temperature": -1, "max_tokens": 3}), "broken session"),
        (lambda s: s["sampling"].update(top_k=1.5), "broken session: TypeError 1.5 is of the wrong kind"),
        (lambda s: s["sampling"].update(max_tokens=float("inf")), "broken session"),
        (lambda s: s.update(ai_prefix=None), "broken session"),
        (lambda s: s.update(system=["x"]), "broken session"),
        (lambda s: s.update(speaks="narrator"), "broken session"),
        (lambda s: s.update(tags={"begin": "x", "end": "x"}), "broken session"),
        (lambda s: s["window"].update(overflow="forget"), "broken session"),
        (lambda s: s["window"].update(dropped="2"), "broken session"),
        (lambda s: s["messages"][0].update(role="narrator"), "'narrator' is none of system, user, assistant"),
        (lambda s: s["messages"][0]["pieces"][0].update(text=5), "broken session"),
        (lambda s: s["messages"][0]["pieces"][0].update(kind="bogus"), "broken session"),
        (lambda s: s.update(restack_session=True), "of version True, and"),
        (lambda s: s.update(restack_session="1"), "of version '1', and"),
        (lambda s: s.pop("model"), "broken session"),
        (lambda s: s.pop("restack_session"), "is no session of Restack"),
    ],
)
def test_a_broken_or_newer_session_is_refused(demo, tmp_path, how, told):
    path = save_session(had(demo), tmp_path / "talk")
    broken(path, how)
    with pytest.raises(UsageError, match=told) as caught:
        load_session(path, *demo)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": 1}', b"hello", b"\x00" * 100, b"{\xff}", b"[1]"])
def test_a_file_that_is_no_session(demo, tmp_path, content):
    path = tmp_path / "talk"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="is no session of Restack"):
        load_session(path, *demo)
    with pytest.raises(UsageError, match="is no session of Restack"):
        save_session(had(demo), path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("with_cache", [False, True])
def test_a_session_cut_short_is_refused(demo, tmp_path, with_cache):
    path = save_session(had(demo), tmp_path / "talk", with_cache=with_cache)
    whole = path.read_bytes()
    for length in (1, len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:length])
        with pytest.raises(UsageError, match="session"):
            load_session(path, *demo)


def test_keys_of_another_length_are_refused(demo, tmp_path):
    talk = had(demo)
    talk.cache.tokens.append(5)
    path = save_session(talk, tmp_path / "talk", with_cache=True)
    with pytest.raises(UsageError, match=r"broken session: ValueError 0\.keys is not what"):
        load_session(path, *demo)


def test_a_place_that_cannot_be_written_to(demo, tmp_path):
    talk = had(demo)
    for path in (tmp_path / "no" / "talk", tmp_path, tmp_path / ("x" * 300), "~nobody/x", "a\0b"):
        for with_cache in (False, True):
            with pytest.raises(UsageError):
                save_session(talk, path, with_cache=with_cache)
    for path in ("~nobody/x", "a\0b", tmp_path / ("x" * 300)):
        with pytest.raises(UsageError):
            load_session(path, *demo)
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        load_session(tmp_path / "talk", *demo)
    assert list(tmp_path.iterdir()) == []


def test_a_session_is_replaced_by_the_next(demo, tmp_path):
    talk = had(demo)
    save_session(talk, tmp_path / "talk", with_cache=True)
    talk.undo()
    save_session(talk, tmp_path / "talk")
    assert load_session(tmp_path / "talk", *demo).messages == talk.messages
    assert [path.name for path in tmp_path.iterdir()] == ["talk"]


def test_models_are_told_apart_by_all_of_their_layers():
    from restack.chat.session import described

    model = AutoModelForCausalLM.from_config(KINDS["llama"]())
    before = described(model)
    with torch.no_grad():
        model.model.layers[3].self_attn.k_proj.weight.add_(1e-3)
    assert described(model)["weights"] != before["weights"]
