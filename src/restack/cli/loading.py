"""From what was typed to a plan, a loaded model and its view."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import transformers

from restack import plans, recipes, views
from restack.cli.options import depth_ranges
from restack.errors import UsageError

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


@dataclass
class Source:
    """MODEL[@SPEC] and the options that say which view of it is meant, and how to load it."""

    model: str
    layers: str | None
    ratio: str | None
    kv: str | None
    dtype: str
    device: str
    revision: str | None
    trust_remote_code: bool

    @cached_property
    def reference(self) -> recipes.Reference:
        """The model without its spec."""
        return recipes.Reference(recipes.parse_reference(self.model).model)

    @cached_property
    def config(self) -> Any:
        return recipes.open_config(self.reference, **self._hub)

    @cached_property
    def plan(self) -> plans.Plan:
        """The plan that is asked for; without any, every layer once.

        Raises:
            UsageError: a plan is asked for in two ways.
            PlanError: it is not one for this model.
        """
        spec = recipes.parse_reference(self.model).spec
        asked = [text for text in (spec, self.layers, self.ratio) if text is not None]
        if len(asked) > 1:
            raise UsageError("the layers are given twice; use one of MODEL@SPEC, --layers and --ratio")
        if self.ratio is not None:
            return plans.plan(None, self.config, ratio_repeat=depth_ranges(self.ratio), kv=self.kv)
        return plans.plan(asked[0] if asked else "all", self.config, kv=self.kv)

    def load(self) -> tuple[Any, Any, Any]:
        """The base model, the view of it that is asked for (or the base itself), and the tokenizer."""
        plan = self.plan
        tokenizer = recipes.open_tokenizer(self.reference, **self._hub)
        base = recipes.open(self.reference, dtype=self.dtype, device=self.device, **self._hub)
        return base, base if plan.is_identity else views.view(base, plan), tokenizer

    def load_empty(self) -> Any:
        """The base model without weights."""
        return recipes.open_empty(self.reference, dtype=self.dtype, **self._hub)

    @property
    def _hub(self) -> dict[str, Any]:
        return {"revision": self.revision, "trust_remote_code": self.trust_remote_code}
