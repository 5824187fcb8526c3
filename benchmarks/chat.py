"""What a turn of a conversation costs: a Llama of 24 layers and a history of some 700 tokens.

The time to the first token that is heard, beside one bare forward over the same tokens; of a later turn, and
of the first one after a switch of view, beside a conversation that has read nothing before (what one has with
transformers' `generate` and no cache). And the memory that another plan of the model adds, mean of ten.

    python benchmarks/chat.py --json chat.json     two minutes, 1 GB of memory
"""

import ctypes
import gc
import time
from collections.abc import Callable
from pathlib import Path

import torch
from report import Claim, conditions, finish, interleaved, options
from transformers import LlamaConfig, LlamaForCausalLM

import restack
from restack import recipes
from restack.chat import Conversation
from restack.runtime import Sampling
from restack.views.cost import own_bytes

LAYERS = 24
DEEPER = "0:18,12:24"  # alike up to visit 18, which is one of those whose hidden states are kept
QUESTION = "What is the capital of France?"
HISTORY = [
    f"Tell me a story about Ben and kite number {number}, and where the wind took it." for number in range(12)
]
MB = 10**6


def base_model() -> LlamaForCausalLM:
    """76 M parameters, random, in float32."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1147,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=4096,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


def first_token(conversation: Conversation) -> float:
    """Seconds from the question until something that the model wrote is heard; the question is taken back."""
    heard = []
    start = time.perf_counter()
    conversation.ask(QUESTION, lambda piece: piece.given or heard.append(time.perf_counter()))
    conversation.undo()
    return heard[0] - start


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def main() -> None:
    arguments = options(__doc__).parse_args()
    base, tokenizer = base_model(), recipes.open_tokenizer("demo")
    sampling = Sampling(temperature=0, max_tokens=16)
    talk = Conversation(base, tokenizer, sampling=sampling)
    for text in HISTORY:
        talk.ask(text)
    deeper = restack.view(base, DEEPER)

    def fresh(model: torch.nn.Module) -> Conversation:
        result = Conversation(model, tokenizer, sampling=sampling)
        result.messages = list(talk.messages)
        return result

    def bare() -> dict[str, float]:
        conversation = fresh(base)
        conversation.hear(QUESTION)
        prompt = conversation.prompt()
        start = time.perf_counter()
        with torch.no_grad():
            base(prompt, logits_to_keep=1)
        return {"seconds": time.perf_counter() - start}

    def known() -> dict[str, float]:
        return {"seconds": first_token(talk.fork())}

    def switched() -> dict[str, float]:
        fork = talk.fork()
        fork.model = deeper
        return {"seconds": first_token(fork)}

    def timed(model: torch.nn.Module) -> Callable[[], dict[str, float]]:
        return lambda: {"seconds": first_token(fresh(model))}

    measures = {
        "bare forward": bare,
        "fresh": timed(base),
        "known": known,
        "fresh, deeper": timed(deeper),
        "switched": switched,
    }
    runs = 1 if arguments.quick else 15
    found = interleaved(measures, runs)
    seconds = {name: figures["seconds"] for name, figures in found.items()}
    talk.ask(QUESTION)
    new, history = talk.last.read, talk.last.reused
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = resident()
    others = [
        Conversation(restack.view(base, f"0:12,{n}:24"), tokenizer, sampling=sampling) for n in range(10)
    ]
    for other in others:
        other.ask(QUESTION)
    added = (resident() - before - sum(other.cache.bytes for other in others)) / len(others)
    claims = [
        Claim(
            "first token of a first turn",
            seconds["fresh"],
            seconds["bare forward"],
            "s",
            goal=1.2 * seconds["bare forward"],
        ),
        Claim("first token of a later turn", seconds["known"], seconds["fresh"], "s"),
        Claim("... tokens that are read for it", new, new + history, "tokens"),
        Claim(f"first token after /layers {DEEPER}", seconds["switched"], seconds["fresh, deeper"], "s"),
        Claim(
            "another plan: memory beyond its KV",
            added / MB,
            None,
            "MB",
            goal=5,
        ),
        Claim("... bytes of its own weights", own_bytes(others[0].model, base) / MB, None, "MB"),
    ]
    about = conditions(model=f"Llama, {LAYERS} layers, 512 wide, float32", history=history, runs=runs)
    finish(arguments.json, about, claims, "without")


if __name__ == "__main__":
    main()
