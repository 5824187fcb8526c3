"""Options of vLLM with which it would run a plan wrongly, and say nothing."""

from typing import Any

from restack.llama.schedule import Schedule


def refuse_options(vllm_config: Any, schedule: Schedule) -> None:
    """Refuse what does not go with shared keys and values, or with visits that do not see their own token.

    Args:
        vllm_config: as a model of vLLM's is given it.
        schedule: of the plan.

    Raises:
        ValueError: naming the option.
    """
    cache, parallel = vllm_config.cache_config, vllm_config.parallel_config
    is_past = any(step.reading.strictly_past for step in schedule.steps)
    is_shared = is_past or any(step.owner != step.number for step in schedule.steps)
    wrong = {  # by the option: whether it is set, and does not go with the plan
        "--decode-context-parallel-size": is_shared and parallel.decode_context_parallel_size > 1,
        "--kv-sharing-fast-prefill": is_shared and cache.kv_sharing_fast_prefill,
        "--kv-transfer-config": is_past and vllm_config.kv_transfer_config is not None,
        "--speculative-config": is_past and vllm_config.speculative_config is not None,
    }
    for option, is_wrong in wrong.items():
        if is_wrong:
            raise ValueError(f"restack: with {option}, vLLM would not run this plan as it is; leave it out")
    if is_past and (not vllm_config.model_config.enforce_eager or cache.enable_prefix_caching):
        raise ValueError(
            "restack: visits that do not see their own token need --enforce-eager and "
            "--no-enable-prefix-caching"
        )
