"""What to run: plans as values, the spec language, a reader for each notation. Imports no torch."""

from restack.plans.blocks import write as write_blocks
from restack.plans.depth_ranges import write as write_depth_ranges
from restack.plans.kv_map import write as write_kv_map
from restack.plans.mergekit import load as load_mergekit
from restack.plans.mergekit import write as write_mergekit
from restack.plans.notations import donors, own_plan, plan
from restack.plans.paths import write as write_path
from restack.plans.spec import parse
from restack.plans.value import Plan, Visit

__all__ = [
    "Plan",
    "Visit",
    "donors",
    "load_mergekit",
    "own_plan",
    "parse",
    "plan",
    "write_blocks",
    "write_depth_ranges",
    "write_kv_map",
    "write_mergekit",
    "write_path",
]
