"""`restack serve`: the server, from its options to its end."""

import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from restack.cli import loading
from restack.errors import UsageError
from restack.scanning.results import read_summary

LOCAL = ("127.0.0.1", "localhost", "::1")


def named_plans(plans: Sequence[str]) -> dict[str, str]:
    """Specs by name, of NAME=SPEC.

    Raises:
        UsageError: one of them is not that, or two have one name.
    """
    named: dict[str, str] = {}
    for each in plans:
        name, equals, spec = each.partition("=")
        if not (name and equals and spec):
            raise UsageError(f"--plan {each!r:.80} is no NAME=SPEC; write --plan deeper=0:8,4:12")
        if name in named:
            raise UsageError(f"--plan {name}=... is given twice; give the second another name")
        named[name] = spec
    return named


def run(
    model: str,
    named: Mapping[str, str],
    *,
    scan_folder: Path | None,
    has_fixed_plans: bool,
    api_key: str | None,
    host: str,
    port: int,
    slots: int,
    queue: int,
    kept_bytes: int,
    quantize: str | None,
    is_compiled: bool,
    **place: Any,
) -> None:
    """Serve until it is interrupted; `place` are the arguments of `Shelf`."""
    try:
        import uvicorn

        from restack.serving import Catalogue, KeptPrompts, Writers, make_app
    except ImportError as error:
        raise UsageError(f"serving needs {error.name}; pip install 'restack[serve]'") from None

    if api_key is not None and not (api_key.isascii() and api_key.isprintable() and api_key.strip()):
        raise UsageError("--api-key is empty, or has other characters than printable ASCII; write another")
    scan = None if scan_folder is None else read_summary(scan_folder)
    listening = _bound(host, port)  # before seconds are spent on weights
    shelf = loading.shelf(quantize, is_compiled, **place)
    with listening:
        with loading.warnings_in_one_line():
            catalogue = Catalogue(shelf, model, named, has_fixed_plans=has_fixed_plans)
        if scan is not None:
            _refuse_another_model(scan, catalogue)
        writers = Writers(slots, queue, KeptPrompts(kept_bytes))
        app = make_app(catalogue, writers, api_key=api_key, scan=scan)
        held = shelf.held
        plans = len(catalogue.names)
        print(
            f"{plans} {'model' if plans == 1 else 'models'} on {held.bytes / 1e6:,.1f} MB of weights: "
            f"{', '.join(catalogue.names)}" + ("" if has_fixed_plans else f"; any other as {model}@SPEC")
        )
        listening.listen()
        settings = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1, lifespan="on")

        class Server(uvicorn.Server):
            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets)  # before it is said: from here on, Ctrl-C ends it well
                shown = f"[{host}]" if ":" in host else host
                print(f"http://{shown}:{listening.getsockname()[1]}/v1", flush=True)
                if host not in LOCAL and api_key is None:
                    print(
                        "restack: others can reach this address, and no key is asked for (--api-key)",
                        file=sys.stderr,
                    )

            def handle_exit(self, *signal: Any) -> None:
                writers.close()  # or it would wait for the answers, and then cut them off
                super().handle_exit(*signal)

        Server(settings).run(sockets=[listening])


def _refuse_another_model(scan: Mapping[str, Any], catalogue: Any) -> None:
    """Refuse a scan of a model that has another number of layers; the page looks closer."""
    depths = {name: len(catalogue.find(name).plan) for name in catalogue.names}
    if scan["depth"] not in depths.values():
        served = ", ".join(f"{name} has {depth}" for name, depth in depths.items())
        raise UsageError(
            f"--scan is of {scan.get('model')!s:.100}, with {scan['depth']} layers, and {served}; "
            "serve the model that was scanned"
        )


def _bound(host: str, port: int) -> socket.socket:
    """A socket that can listen there."""
    try:
        [family, kind, protocol, _, address], *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(f"cannot listen on {host}, port {port}: {reason}; choose another (--port)") from None
    return listening
