"""The page at `/`: type a spec or pick a block of a scan, see the stack as it will run, and talk to it."""

from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi.responses import FileResponse
from starlette.exceptions import HTTPException

from restack.errors import PlanError
from restack.plans import Plan, write_mergekit
from restack.recipes import description
from restack.serving.catalogue import Catalogue, Served
from restack.views.cost import cost

FOLDER = Path(__file__).parent
SCRIPTS = ("page.js", "stack.js", "heat.js", "scan.js")
FILES = {"style.css": "text/css"} | dict.fromkeys(SCRIPTS, "text/javascript")
# Nothing but what the server itself sends: the page works offline, and no text of a model can load anything.
POLICY = "default-src 'self'; style-src 'self'; img-src 'self' data:; frame-ancestors 'none'"


def page() -> APIRouter:
    """The page and its parts, which need no key."""
    router = APIRouter()

    @router.get("/")
    async def index() -> FileResponse:
        return _sent("index.html", "text/html")

    @router.get("/playground/{name}")
    async def part(name: str) -> FileResponse:
        if name not in FILES:
            raise HTTPException(404)
        return _sent(name, FILES[name])

    return router


def described(catalogue: Catalogue, served: Served) -> dict[str, Any]:
    """A plan for a page to draw: its visits, what it costs, and how else it is written.

    Sizes are in bytes. `owner` is the visit whose keys and values a visit reads, its own number mostly.
    """
    plan = served.plan
    costs = cost(catalogue.base.base, plan)
    return {
        "plan": str(plan),
        "layers": plan.depths[0],
        "visits": [
            {"layer": visit.layer, "owner": owner, "damp": visit.damp, "sliding": visit.sliding}
            for visit, owner in zip(plan.visits, plan.owners, strict=True)
        ],
        "costs": {
            "effective_parameters": costs.effective_parameters,
            "unique_parameters": costs.unique_parameters,
            "base_bytes": costs.base_bytes,
            "kv_bytes_per_token": costs.kv_bytes_per_token,
            "materialised_bytes": costs.effective_bytes,
        },
        "mergekit": _mergekit(plan, catalogue.name),
    }


def bases(catalogue: Catalogue) -> list[dict[str, Any]]:
    """The named models, and what a page needs to know whether a scan is of one of them.

    A quantised model's identity is without its weights: a scan of the model as it was stored will do.
    """
    found = []
    for name in catalogue.names:
        served = catalogue.find(name)
        identity = description.described(served.model)
        if getattr(served.model.config, "quantization_config", None) is not None:
            del identity["weights"]
        found.append({"name": name, "depth": len(served.plan), "identity": identity})
    return found


def _mergekit(plan: Plan, base: str) -> str | None:
    """The plan as a recipe of mergekit; None where that cannot say it."""
    try:
        return write_mergekit(plan, [base])
    except PlanError:
        return None


def _sent(name: str, kind: str) -> FileResponse:
    return FileResponse(FOLDER / name, media_type=kind, headers={"content-security-policy": POLICY})
