"""The models that are served: a base, its named plans, and any other plan as MODEL@SPEC."""

import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Any

from restack import plans
from restack.errors import UsageError
from restack.recipes.shelf import Shelf
from restack.views import view

MOST_VIEWS = 32  # that were made for requests, and are kept
MOST_RUNS = 8  # times the base's layers, that a request's plan may have as visits


class NoSuchModel(UsageError):
    """A request names a model that is not served."""


@dataclass(frozen=True, slots=True)
class Served:
    """A model with a name.

    Attributes:
        name: as requests give it.
        model: the base or a view of it.
        tokenizer: of the base.
        plan: what it runs of the base.
    """

    name: str
    model: Any
    tokenizer: Any
    plan: plans.Plan


class Catalogue:
    """Models by name; all of them on the base's weights.

    Attributes:
        name: of the base.
        base: as it was opened.
        created: when, in seconds since 1970.
        has_fixed_plans: whether requests can name no plan but the named ones.
    """

    def __init__(
        self, shelf: Shelf, model: str, named: Mapping[str, str], *, has_fixed_plans: bool = False
    ) -> None:
        """Open the base and the views of the named plans.

        Args:
            shelf: that opens them.
            model: MODEL[@SPEC]; without its spec it is the base's name.
            named: specs by name.
            has_fixed_plans: whether requests can name no other plan.

        Raises:
            RestackError: one of them cannot be opened, or two have one name.
        """
        self.name = model
        names = {name: f"{model}@{spec}" for name, spec in named.items()}
        if model in names:
            raise UsageError(f"--plan {model}=... has the name of the model; give it another")
        shelf.check(model, *names.values())
        opened = {name: shelf.open(full) for name, full in {model: model, **names}.items()}
        self.created = int(time.time())
        self.has_fixed_plans = has_fixed_plans
        self.base = opened[model]
        self._named = {
            name: Served(name, each.model, each.tokenizer, each.plan) for name, each in opened.items()
        }
        self._made: OrderedDict[str, Served] = OrderedDict()
        self._lock = Lock()

    @property
    def names(self) -> list[str]:
        """Of the base and the named plans."""
        return list(self._named)

    def find(self, name: str) -> Served:
        """The model of this name; a view is made for MODEL@SPEC, of a named plan's visits too.

        Raises:
            NoSuchModel: there is none.
            PlanError, ViewError: the spec is not one for this model.
        """
        if name in self._named:
            return self._named[name]
        base = next((known for known in self._named if name.startswith(f"{known}@")), None)
        if base is None:
            raise NoSuchModel(f"there is no model {name!r:.200}; there are {self._told()}")
        if self.has_fixed_plans:
            raise NoSuchModel(f"only named plans are served; there are {', '.join(self._named)}")
        with self._lock:
            found = self._made.get(name)
        found = found or self._view(name, self._named[base], name.removeprefix(f"{base}@"))
        with self._lock:
            self._made[name] = found
            self._made.move_to_end(name)
            while len(self._made) > MOST_VIEWS:
                self._made.popitem(last=False)
        return found

    def _view(self, name: str, of: Served, spec: str) -> Served:
        plan = of.plan.then(plans.plan(spec, len(of.plan)))
        most = MOST_RUNS * max(self.base.plan.depths)
        if len(plan) > most:
            raise UsageError(
                f"the plan has {len(plan)} visits and a request's may have {most}; name it (--plan)"
            )
        model = self.base.base if plan.is_identity else view(self.base.base, plan)
        return Served(name, model, of.tokenizer, plan)

    def _told(self) -> str:
        free = "" if self.has_fixed_plans else f", and {self.name}@SPEC for any other plan"
        return f"{', '.join(self._named)}{free}"
