"""Options that vLLM is given beside a plan; these need no vLLM."""

from types import SimpleNamespace

import pytest

import restack
from restack.engines.vllm.engine_options import refuse_options
from restack.llama.schedule import schedule

PLAIN, BELOW, ABOVE = "0:3,1:4", "all;kv=0_0_2_2", "all;kv=3x4"


def engine(**changed):
    """As much of vLLM's config as is looked at."""
    given = {
        "decode_context_parallel_size": 1, "kv_sharing_fast_prefill": False, "kv_transfer_config": None,
        "speculative_config": None, "enforce_eager": True, "enable_prefix_caching": False,
    } | changed  # fmt: skip
    part = SimpleNamespace(**given)
    return SimpleNamespace(cache_config=part, parallel_config=part, model_config=part, **given)


@pytest.mark.parametrize(
    ("option", "value", "refused"),
    [
        ("decode_context_parallel_size", 2, (BELOW, ABOVE)),
        ("kv_sharing_fast_prefill", True, (BELOW, ABOVE)),
        ("kv_transfer_config", object(), (ABOVE,)),
        ("speculative_config", object(), (ABOVE,)),
        ("enforce_eager", False, (ABOVE,)),
        ("enable_prefix_caching", True, (ABOVE,)),
    ],
)
@pytest.mark.parametrize("plan", [PLAIN, BELOW, ABOVE])
def test_options_that_do_not_go_with_a_plan(option, value, refused, plan):
    asked = schedule(restack.plan(plan, 4))
    refuse_options(engine(), asked)
    if plan not in refused:
        refuse_options(engine(**{option: value}), asked)
        return
    with pytest.raises(ValueError, match=f"restack: .*--.*{option.replace('_', '-')}"):
        refuse_options(engine(**{option: value}), asked)


def test_no_visit_sees_its_own_token_under_force_nodiag():
    asked = schedule(restack.plan(PLAIN, 4), force_nodiag=True)
    with pytest.raises(ValueError, match="need --enforce-eager and --no-enable-prefix-caching"):
        refuse_options(engine(enforce_eager=False), asked)
