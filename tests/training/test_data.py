"""From files to rows: what is read, what is refused with its line, and how it is packed."""

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from restack.errors import UsageError
from restack.training import Training
from restack.training.documents import Reading, documents
from restack.training.packing import Order, pack, split, tokens_of
from restack.training.preparing import read
from tests.training.tiny import demo_tokenizer

CHAT = [{"role": "user", "content": "What is 3 + 4?"}, {"role": "assistant", "content": "7"}]


@pytest.fixture(scope="module")
def tokenizer():
    return demo_tokenizer()


@pytest.fixture(scope="module")
def model():
    settings = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    return LlamaForCausalLM(LlamaConfig(vocab_size=1147, max_position_embeddings=32, **settings))


def lines(folder, *records, name="data.jsonl"):
    """A .jsonl file of records; bytes and strings stand there as they are."""
    raw = [
        r if isinstance(r, bytes) else (r if isinstance(r, str) else json.dumps(r)).encode() for r in records
    ]
    (folder / name).write_bytes(b"".join(line + b"\n" for line in raw))
    return folder / name


def contents(name, **options):
    reading = Reading(**options)
    return [document.content for document in documents([name], reading)], reading.skipped


def test_a_text_file_is_one_document(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffOne.\n\nTwo é.\n".encode())
    assert contents(tmp_path / "a.txt") == (["One.\n\nTwo é.\n"], 0)


def test_json_lines(tmp_path):
    path = lines(tmp_path, {"text": "One."}, {"messages": CHAT}, {"text": "Two\nlines.", "messages": CHAT})
    assert contents(path) == (["One.", CHAT, "Two\nlines."], 0)
    path = lines(tmp_path, {"text": "One.", "said": "Two."})
    assert contents(path, column="said") == (["Two."], 0)


BAD = {
    "empty": ("", "is empty"),
    "blank": ("  ", "is empty"),
    "torn": ('{"text": "On', "is not JSON (Unterminated string"),
    "no object": ('["One."]', "is no JSON object"),
    "no key": ({"content": "One."}, 'has no "text" or "messages" but content'),
    "empty text": ({"text": " \n"}, 'has an empty "text"'),
    "a number": ({"text": 3}, '"text" is neither text nor messages'),
    "null": ({"text": None}, '"text" is neither text nor messages'),
    "no message": ({"messages": []}, '"messages" is neither text nor messages'),
    "no role": ({"messages": [{"content": "x"}]}, '"messages" is neither text nor messages'),
    "half a pair": ('{"text": "\\ud800"}', "half a surrogate pair"),
    "no UTF-8": (b'{"text": "\xff"}', "byte 0xff at column 11 is not UTF-8"),
    "deep": ("[" * 100_000, "is not JSON"),
}


@pytest.mark.parametrize(("bad", "told"), BAD.values(), ids=BAD)
def test_a_bad_line_is_refused_by_its_number_or_skipped(tmp_path, bad, told):
    path = lines(tmp_path, {"text": "One."}, {"text": "Two."}, bad, {"text": "Four."})
    with pytest.raises(UsageError) as error:
        contents(path)
    assert f"{path} line 3" in str(error.value) and told in str(error.value)
    assert "--skip-bad-lines" in str(error.value) and "\n" not in str(error.value)
    assert contents(path, skip_bad_lines=True) == (["One.", "Two.", "Four."], 1)


def test_a_bad_line_of_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"One.\nTw\xe9.\nThree.\n")
    with pytest.raises(UsageError, match=r"a\.txt line 2: byte 0xe9 at column 3 is not UTF-8"):
        contents(tmp_path / "a.txt")
    assert contents(tmp_path / "a.txt", skip_bad_lines=True) == (["One.\nThree.\n"], 1)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_an_empty_file_is_refused_even_when_lines_are_skipped(tmp_path, name):
    (tmp_path / name).touch()
    for skip in (False, True):
        with pytest.raises(UsageError, match=f"{name} is empty"):
            contents(tmp_path / name, skip_bad_lines=skip)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("there/is/no.txt", "there is no file there/is/no.txt"),
        ("data.csv", "ends in neither .txt nor .jsonl"),
        ("no_such_dataset_here", "as a dataset it cannot be loaded"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, monkeypatch, name, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.csv").write_text("text\nOne.\n")
    with pytest.raises(UsageError, match=told) as error:
        contents(name)
    assert "\n" not in str(error.value)


def test_a_folder_that_datasets_reads(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set"
    folder.mkdir()
    lines(folder, {"text": "One.", "said": "x"}, {"text": "", "said": "y"}, name="train.jsonl")
    with pytest.raises(UsageError, match="set row 2 has an empty"):
        contents(folder)
    assert contents(folder, skip_bad_lines=True) == (["One."], 1)
    assert contents(folder, column="said") == (["x", "y"], 0)
    with pytest.raises(UsageError, match="has no column words; name one with --column: text, said"):
        contents(folder, column="words")
    with pytest.raises(UsageError, match=r"cannot be loaded.*validation"):
        contents(folder, split="validation")


def test_documents_have_the_end_token_between_them(tmp_path, tokenizer):
    texts = ["One apple.", "Two boats.", "Three cats."]
    path = lines(tmp_path, *({"text": text} for text in texts))
    end = tokenizer.eos_token_id
    by_hand = []
    for text in texts:
        by_hand += [end] * bool(by_hand) + tokenizer(text)["input_ids"]
    assert tokens_of(documents([path], Reading()), tokenizer, Reading()).tolist() == by_hand
    assert by_hand.count(end) == 2


def test_a_chat_is_written_by_the_template(tmp_path, tokenizer):
    path = lines(tmp_path, {"messages": CHAT})
    tokens = tokens_of(documents([path], Reading()), tokenizer, Reading())
    assert tokenizer.decode(tokens.tolist()) == tokenizer.apply_chat_template(CHAT, tokenize=False)
    plain = demo_tokenizer()
    plain.chat_template = None
    with pytest.raises(UsageError, match=r"line 1 is a chat, and the model's tokenizer has no chat template"):
        tokens_of(documents([path], Reading()), plain, Reading())


def test_a_chat_that_the_template_refuses(tmp_path):
    strict = demo_tokenizer()
    strict.chat_template = (
        "{{ raise_exception('no such role') if messages[0]['role'] != 'user' else 'hello' }}"
    )
    path = lines(tmp_path, {"messages": CHAT}, {"messages": [{"role": "tool", "content": "x"}]})
    with pytest.raises(UsageError, match=r"line 2: the chat template refuses it \(no such role\)"):
        tokens_of(documents([path], Reading()), strict, Reading())
    reading = Reading(skip_bad_lines=True)
    assert tokens_of(documents([path], reading), strict, reading).numel() > 0
    assert reading.skipped == 1


def test_rows_are_cut_and_the_rest_is_dropped():
    assert pack(torch.arange(11), 4).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert pack(torch.arange(3), 4).tolist() == [[0, 1, 2]]
    for count in (0, 1):
        with pytest.raises(UsageError, match=f"the data have {count} token.*2 at least"):
            pack(torch.arange(count), 4)


def test_rows_are_kept_for_evaluation():
    rows = torch.arange(100).view(100, 1)
    training, kept = split(rows, 0.05, seed=0)
    assert (len(training), len(kept)) == (95, 5)
    assert sorted(torch.cat([training, kept]).flatten().tolist()) == list(range(100))
    assert training.flatten().tolist() == sorted(training.flatten().tolist())
    assert torch.equal(split(rows, 0.05, seed=0)[1], kept)
    assert not torch.equal(split(rows, 0.05, seed=1)[1], kept)
    assert split(rows, 0.0, seed=0)[1] is None
    assert len(split(rows[:20], 0.001, seed=0)[1]) == 1
    assert split(rows[:5], 0.05, seed=0)[1] is None
    assert len(split(rows[:1], 0.9, seed=0)[0]) == 1


def test_the_order_is_one_for_each_reading_of_the_data():
    rows = torch.arange(6).view(6, 1)
    order = Order(rows, 20, seed=3)
    places = [int(order[place]["input_ids"]) for place in range(20)]
    assert [sorted(places[start : start + 6]) for start in (0, 6, 12)] == [list(range(6))] * 3
    assert places[:6] != places[6:12]
    assert [int(Order(rows, 20, seed=3)[place]["input_ids"]) for place in (13, 2, 19)] == [
        places[place] for place in (13, 2, 19)
    ]
    assert [int(Order(rows, 20, seed=4)[place]["input_ids"]) for place in range(20)] != places


def test_data_of_a_model(tmp_path, tokenizer, model):
    (tmp_path / "a.txt").write_text("One apple and two boats. " * 60)
    found = read(model, tokenizer, str(tmp_path / "a.txt"), None, Training())
    assert found.rows.shape[1] == 32  # the model's context is shorter than 1024
    assert len(found.evaluation) == 1
    whole = tokenizer((tmp_path / "a.txt").read_text())["input_ids"]
    assert len(found.rows) + 1 == len(whole) // 32
    given = read(model, tokenizer, [tmp_path / "a.txt"], [tmp_path / "a.txt"], Training(length=16))
    assert torch.equal(given.rows, given.evaluation)
    assert given.rows.flatten().tolist() == whole[: len(whole) // 16 * 16]


def test_data_that_do_not_fit_the_model(tmp_path, tokenizer, model):
    (tmp_path / "a.txt").write_text("One apple. " * 20)
    with pytest.raises(UsageError, match="--length is 33, and the model's context is 32"):
        read(model, tokenizer, str(tmp_path / "a.txt"), None, Training(length=33))
    with pytest.raises(UsageError, match=r"--batch is 9, and the data make 2 rows of 32 .*; write 8"):
        read(model, tokenizer, str(tmp_path / "a.txt"), None, Training(batch=9))
    with pytest.raises(UsageError, match="the model has no tokenizer"):
        read(model, None, str(tmp_path / "a.txt"), None, Training())
    model.resize_token_embeddings(20)
    with pytest.raises(UsageError, match=r"the data have token \d+, and the model knows 0 to 19"):
        read(model, tokenizer, str(tmp_path / "a.txt"), None, Training(batch=1))
