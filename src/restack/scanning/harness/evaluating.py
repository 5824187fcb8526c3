"""Whole evaluations by lm-eval, quietly."""

import json
import os
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from restack.errors import RestackError, UsageError
from restack.scanning.harness.quiet import LOUD, quiet
from restack.scanning.harness.tasks import SEED, prepare

DRAWS = 1000  # of bootstrapped standard errors, which know them to 2%; lm-eval's 100,000 take minutes
KEPT = ("results", "groups", "versions", "n-shot", "higher_is_better", "n-samples", "configs")


def evaluate(
    lm: Any,
    tasks: Mapping[str, Any],
    *,
    num_fewshot: int | None = None,
    limit: float | None = None,
    apply_chat_template: bool = False,
    seed: int | None = None,
    confirm_run_unsafe_code: bool = False,
) -> dict[str, Any]:
    """What lm-eval's `simple_evaluate` finds of tasks, without what it finds of the machine.

    Args:
        lm: a `RestackLM`.
        tasks: as `Asked.load` gives them; changed.
        num_fewshot: examples before each question; None as each task has it.
        limit: questions of each task, or a share of them below 1; None for all.
        apply_chat_template: put questions as a user would in a chat.
        seed: of all random numbers; None for lm-eval's own seeds.
        confirm_run_unsafe_code: run code that the model writes, where a task does so.

    Returns:
        lm-eval's results, as it gives them.

    Raises:
        UsageError: a task runs code, and that is not confirmed; the tokenizer has no chat template; or
            something went wrong in lm-eval or in a task's own code.
    """
    from lm_eval import evaluator  # type: ignore[import-untyped]

    runs_code = [name for name, task in tasks["tasks"].items() if getattr(task, "UNSAFE_CODE", False)]
    if runs_code and not confirm_run_unsafe_code:
        raise UsageError(
            f"task {runs_code[0]} runs code that the model writes, with your rights; to have that, say "
            "--confirm-run-unsafe-code"
        )
    if apply_chat_template and not lm.tokenizer.chat_template:
        raise UsageError("the model's tokenizer has no chat template; leave out --apply-chat-template")
    try:
        with quiet():
            _set_seeds(seed)
            for task in tasks["tasks"].values():
                prepare(task, num_fewshot, SEED if seed is None else seed)
            results: dict[str, Any] = evaluator.evaluate(
                lm,
                tasks,
                limit=limit,
                bootstrap_iters=DRAWS,
                log_samples=False,
                apply_chat_template=apply_chat_template,
                fewshot_as_multiturn=True,
                confirm_run_unsafe_code=confirm_run_unsafe_code,
            )
    except RestackError:
        raise
    except Exception as error:  # lm-eval's, datasets', jinja's, or of a function in a task's folder
        if LOUD in os.environ:
            raise
        reason = " ".join(str(error).split()) or "no reason given"
        raise UsageError(
            f"lm-eval stopped: {type(error).__name__}: {reason:.240}; with {LOUD}=INFO it says where"
        ) from error
    return results


def table(results: Mapping[str, Any]) -> str:
    """lm-eval's tables of tasks and, if there are any, of groups."""
    from lm_eval.utils import make_table  # type: ignore[import-untyped]

    tables = [make_table(results)]
    if "groups" in results:
        tables.append(make_table(results, "groups"))
    return "\n".join(text.rstrip() for text in tables)


def kept(results: Mapping[str, Any]) -> dict[str, Any]:
    """What is of the tasks in lm-eval's results, in JSON's types; not what is of the machine."""
    from lm_eval.utils import handle_non_serializable

    chosen = {name: results[name] for name in KEPT if name in results}
    found: dict[str, Any] = json.loads(json.dumps(chosen, default=handle_non_serializable))
    return found


def _set_seeds(seed: int | None) -> None:
    random.seed(0 if seed is None else seed)
    np.random.seed(SEED if seed is None else seed)
    torch.manual_seed(SEED if seed is None else seed)
