"""What tells a loaded model from others, in a few words."""

import hashlib
from typing import Any

from restack.plans import Plan
from restack.recipes.fingerprint import SAMPLE, InMemory


def described(model: Any) -> dict[str, str]:
    """What tells a loaded model from others: its kind, what it runs, its dtype and its weights."""
    from restack.views.cost import running
    from restack.views.planned import visit_count

    config = model.config.get_text_config(decoder=True)
    visits = visit_count(model)
    digest = hashlib.sha256()
    for tensor in model.parameters():
        digest.update(InMemory(tensor).sample(SAMPLE)[1])
    return {
        "kind": f"{config.model_type}, {config.hidden_size} wide, {config.vocab_size} tokens",
        "plan": str(running(model, Plan.of(range(visits), visits))),
        "dtype": str(model.dtype).removeprefix("torch."),
        "weights": digest.hexdigest()[:16],
    }
