"""What a chat with quantised weights takes in memory at its most, beside the packed weights.

`restack chat MODEL --quantize int4` on a random Llama of 303 M parameters (the shape of decode.py), stored in
bfloat16: a question of 600 words is read and 64 tokens are written. The peak of the process is what Linux
calls VmHWM, mapped pages of files included, less that of the same chat with a model of almost no weights: the
interpreter and the libraries. It is to stay under the packed weights, the largest tensor before it is packed,
and the keys and values of the text. The peer is the same chat with the weights as they are stored.

    python benchmarks/memory.py --json memory.json      two minutes, 2 GB of memory
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from decode import SHAPE
from report import Claim, conditions, finish, options
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import restack
from restack import recipes
from restack.runtime.packed import PackedConfig
from restack.views.cost import cost

TINY = {"hidden_size": 64, "num_hidden_layers": 1, "intermediate_size": 64}
WORDS, WRITTEN = 600, 64
TEMPLATE = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
CHAT = """
import sys
from pathlib import Path

from restack.cli import main

try:
    main(sys.argv[1:])
finally:
    peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
    print("peak", peak, file=sys.stderr)
"""


def stored(folder: Path, **changed: int) -> Path:
    """A random model in bfloat16, with a tokenizer of one token a word."""
    torch.manual_seed(0)
    config = LlamaConfig(**(SHAPE | changed))
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    model.save_pretrained(folder)
    vocabulary = {f"w{number}": number for number in range(config.vocab_size)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0", chat_template=TEMPLATE).save_pretrained(
        folder
    )
    return folder


def peak(model: Path, *arguments: str) -> int:
    """Bytes that a chat with the model takes at its most."""
    question = " ".join(f"w{number}" for number in range(1, WORDS + 1))
    command = [
        sys.executable,
        "-c",
        CHAT,
        "chat",
        str(model),
        "--temperature",
        "0",
        "--max-tokens",
        str(WRITTEN),
    ]
    done = subprocess.run(
        [*command, *arguments], input=question + "\n", capture_output=True, text=True, env=os.environ
    )
    told = done.stderr.splitlines()
    if done.returncode or not told or not told[-1].startswith("peak "):
        raise SystemExit(f"the chat failed: {done.stderr[-1000:]}")
    return int(told[-1].split()[1])


def main() -> None:
    asked = options(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        large, tiny = stored(Path(scratch) / "large"), stored(Path(scratch) / "tiny", **TINY)
        plain = recipes.open(str(large))
        largest = max(tensor.nbytes for tensor in plain.parameters())
        kept = cost(plain, restack.plan("all", plain)).kv_bytes_per_token * (WORDS + WRITTEN)
        as_stored = peak(large) - peak(tiny)
        claims, told = [], {}
        for format in ("int4",) if asked.quick else ("int4", "int8"):
            packed = recipes.open(str(large), quantization_config=PackedConfig(format))
            size = sum(tensor.nbytes for tensor in packed.parameters())
            del packed
            found = peak(large, "--quantize", format) - peak(tiny, "--quantize", format)
            told[f"{format}, MB"] = (
                f"packed {size / 1e6:.1f}, largest {largest / 1e6:.1f}, KV {kept / 1e6:.1f}"
            )
            goal = (size + largest + kept) / 1e6
            claims.append(Claim(f"peak of a chat, {format}", found / 1e6, as_stored / 1e6, "MB", goal))
    finish(asked.json, conditions(prompt=WORDS, tokens=WRITTEN, **told), claims, peer="bfloat16, as stored")


if __name__ == "__main__":
    main()
