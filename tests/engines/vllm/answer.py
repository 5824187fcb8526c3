"""Has vLLM answer, in a process of its own: arguments come as JSON, and so do tokens and figures go out."""

import json
import os
import sys
from functools import partial

from vllm import LLM, SamplingParams

from tests.engines.vllm.counting import modules_with_weights


def main() -> None:
    asked = json.loads(sys.argv[1])
    llm = LLM(
        **asked["arguments"], dtype="float32", max_model_len=64, seed=0, skip_tokenizer_init=True,
        disable_log_stats=True,
    )  # fmt: skip
    sampling = SamplingParams(
        temperature=0, max_tokens=asked["tokens"], logprobs=0, ignore_eos=True, detokenize=False
    )
    prompts = [{"prompt_token_ids": prompt} for prompt in asked["prompts"]]
    answers = llm.generate(prompts, sampling, use_tqdm=False)
    os.write(
        int(asked["to"]),
        json.dumps(
            {
                "tokens": [list(answer.outputs[0].token_ids) for answer in answers],
                "log_probability": [answer.outputs[0].cumulative_logprob for answer in answers],
                "kv_tokens": llm.llm_engine.vllm_config.cache_config.num_gpu_blocks
                * llm.llm_engine.vllm_config.cache_config.block_size,
                "modules": llm.apply_model(partial(modules_with_weights, depth=asked["depth"]))[0],
            }
        ).encode(),
    )


if __name__ == "__main__":
    main()
