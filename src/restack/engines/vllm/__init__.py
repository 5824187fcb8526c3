"""Plans on vLLM: a KV cache slot a visit, and one set of weights for all visits of a layer."""

from restack.engines.vllm.arguments import vllm_arguments

__all__ = ["vllm_arguments"]
