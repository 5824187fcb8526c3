"""The tokenizers of Meta's own checkpoints of Llama, as tokenizers of transformers.

`tokenizer.model` has one of two formats: a SentencePiece model (Llama 1 and 2, Code Llama), or the tokens of
a byte-level BPE in base64, one a line with its rank, as tiktoken writes them (Llama 3). transformers reads
both. What it leaves out is added here: the space that SentencePiece puts before a text, the special tokens
of Llama 3, which are not in its file, and the chat templates.

Sources: `llama/tokenizer.py` and `llama/generation.py` of github.com/meta-llama/llama; `tokenizer.py` and
`chat_format.py` in `models/llama3` of github.com/meta-llama/llama-models.
"""

import base64
import re
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

from restack.errors import ModelError

TOKENIZER = "tokenizer.model"
BOS, EOS, UNKNOWN = "<s>", "</s>", "<unk>"  # of Llama 1 and 2: the pieces 1, 2 and 0 of their tokenizers
BPE_MODEL = 2  # of SentencePiece's kinds of models
RANKED = re.compile(rb"[A-Za-z0-9+/]+=* \d+\s")  # how a file of Llama 3 begins; SentencePiece's: b"\n"
SPECIAL = 256  # special tokens of Llama 3; their numbers follow those of the file's tokens
NAMED = {  # by Llama 3.1; Llama 3 named only 0, 1, 6, 7 and 9 of them. The others are reserved.
    0: "begin_of_text",
    1: "end_of_text",
    4: "finetune_right_pad_id",
    6: "start_header_id",
    7: "end_header_id",
    8: "eom_id",  # the end of a message, after which a tool answers
    9: "eot_id",  # the end of a turn
    10: "python_tag",
}
LLAMA_2_TEMPLATE = (
    "{% if messages[0]['role'] == 'system' %}"
    "{% set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}"
    "{% set turns = messages[1:] %}"
    "{% else %}"
    "{% set system = '' %}"
    "{% set turns = messages %}"
    "{% endif %}"
    "{% for message in turns %}"
    "{% if message['role'] != ('user' if loop.index0 % 2 == 0 else 'assistant') %}"
    "{{ raise_exception('Llama 2 takes user and assistant in turns, user first; got ' + message['role']) }}"
    "{% elif message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + ((system if loop.first else '') + message['content']) | trim + ' [/INST]' }}"
    "{% else %}"
    "{{ ' ' + message['content'] | trim + ' ' + eos_token }}"
    "{% endif %}"
    "{% endfor %}"
)
LLAMA_3_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
    "{{ message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}"
    "{% endif %}"
)


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer of a checkpoint, a `PreTrainedTokenizerFast` that begins each text with the bos token.

    Raises:
        ModelError: there is no tokenizer.model in the folder or the one above, it is damaged, or the packages
            that read it are not installed.
    """
    file = tokenizer_file(folder)
    if file is None:
        raise ModelError(f"{folder} has no {TOKENIZER}, nor has the folder above it; copy it there")
    return _tokenizer_of_ranks(file) if _is_ranked(file) else _tokenizer_of_pieces(file)


def tokenizer_file(folder: Path) -> Path | None:
    """The tokenizer.model of a checkpoint; that of Llama 1 and 2 lies beside the folders of the models."""
    places = (folder, folder.resolve().parent)
    return next((place / TOKENIZER for place in places if (place / TOKENIZER).is_file()), None)


def token_ids(folder: Path) -> dict[str, Any]:
    """The numbers of the special tokens by their names in a config; None where they are not known.

    All tokens at which Meta's own code stops are eos tokens: one model may be a base or a chat model.
    """
    file = tokenizer_file(folder)
    if file is None:
        return {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    if not _is_ranked(file):
        return {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
    first = len(_ranks(file))
    place = {name: first + number for number, name in NAMED.items()}
    stops = [place["end_of_text"], place["eom_id"], place["eot_id"]]
    return {
        "bos_token_id": place["begin_of_text"],
        "eos_token_id": stops,
        "pad_token_id": place["finetune_right_pad_id"],
    }


def vocabulary_size(folder: Path) -> int | None:
    """How many tokens the tokenizer of a checkpoint has; None if it has no tokenizer.

    Raises:
        ModelError: as `read_tokenizer`.
    """
    file = tokenizer_file(folder)
    if file is None:
        return None
    return len(_ranks(file)) + SPECIAL if _is_ranked(file) else len(_extractor(file).proto.pieces)


def special_tokens() -> list[str]:
    """The special tokens of Llama 3 in their order."""
    reserved = count()
    names = (NAMED.get(place) or f"reserved_special_token_{next(reserved)}" for place in range(SPECIAL))
    return [f"<|{name}|>" for name in names]


def _tokenizer_of_pieces(file: Path) -> Any:
    from tokenizers import decoders, normalizers
    from tokenizers.models import BPE
    from transformers.convert_slow_tokenizer import SpmConverter

    extractor = _extractor(file)
    pieces = extractor.extract(BPE)
    backend = SpmConverter.build_tokenizer_from_spm_proto(extractor.proto, pieces["vocab"], pieces["merges"])
    # SentencePiece puts one space before each text, also before one that begins with spaces, and takes it off
    # when it decodes; "always" and "first" of tokenizers' Metaspace leave it out before spaces.
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), backend.normalizer])
    backend.decoder = decoders.Sequence([backend.decoder, decoders.Strip(content=" ", left=1)])
    return _wrapped(backend, LLAMA_2_TEMPLATE, bos_token=BOS, eos_token=EOS, unk_token=UNKNOWN)


def _tokenizer_of_ranks(file: Path) -> Any:
    from transformers.convert_slow_tokenizer import TikTokenConverter

    special = special_tokens()
    converter = TikTokenConverter(str(file), extra_special_tokens=special)
    # In place of tiktoken's loader, which keeps a copy of each file by its name in the temporary folder and
    # reads that ever after, whatever the file has become.
    converter.load_tiktoken_bpe = lambda path: _ranks(Path(path))
    return _wrapped(
        converter.converted(),
        LLAMA_3_TEMPLATE,
        bos_token=special[0],
        eos_token=special[1],
        pad_token=special[4],
    )


def _wrapped(backend: Any, template: str, **special: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=template,
        add_bos_token=True,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
        **special,
    )


def _extractor(file: Path) -> Any:
    """What transformers reads a SentencePiece model with; `proto` is the model."""
    lacking = [name for name in ("sentencepiece", "google.protobuf") if not _is_installed(name)]
    if lacking:
        raise ModelError(
            f"{file} needs packages that are not installed; install them: pip install sentencepiece protobuf"
        )
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from transformers.convert_slow_tokenizer import SentencePieceExtractor

    try:
        extractor = SentencePieceExtractor(str(file))
    except DecodeError:
        extractor = None
    if extractor is None or extractor.proto.trainer_spec.model_type != BPE_MODEL:
        raise ModelError(
            f"{file} is neither a BPE model of SentencePiece nor lines of tokens and ranks; get it again"
        )
    return extractor


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # of google.protobuf: there is no package google
        return False


def _is_ranked(file: Path) -> bool:
    with file.open("rb") as opened:
        return RANKED.match(opened.read(1024)) is not None


def _ranks(file: Path) -> dict[bytes, int]:
    """The tokens and their ranks, which are their numbers."""
    ranks = {}
    for number, line in enumerate(file.read_bytes().splitlines(), start=1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except ValueError:
            raise ModelError(
                f"{file} is damaged: line {number} is no token and its rank; get it again"
            ) from None
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise ModelError(f"{file} is damaged: its ranks are not 0 to {len(ranks) - 1}; get it again")
    return ranks
