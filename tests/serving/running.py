"""A server in a thread of the test, and what asks it."""

import json
import socket
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

import uvicorn
from openai import OpenAI

from restack.recipes.shelf import Shelf
from restack.serving import Catalogue, KeptPrompts, Writers, make_app

DEEPER = "0:8,4:12"


class Running:
    """A server that runs, at its address."""

    def __init__(self, url, writers):
        self.url, self.writers = url, writers
        self.openai = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120)

    def post(self, path, body, headers=(), timeout=60):
        """The status and the JSON that a body, bytes or anything for JSON, is answered with."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data, {"content-type": "application/json", **dict(headers)}
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def get(self, path):
        """The text at a path."""
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return answer.read().decode()

    def is_idle(self, seconds=30):
        """Whether no answer is being written any more, within so many seconds."""
        end = time.monotonic() + seconds
        while self.writers.running or self.writers.waiting:
            if time.monotonic() > end:
                return False
            time.sleep(0.02)
        return True


@contextmanager
def running(model="demo", named=None, *, slots=4, queue=64, kept=10**8, fixed=False, **options):
    """A server of a model, until the end of the block."""
    catalogue = Catalogue(Shelf(dtype="float32"), model, named or {}, has_fixed_plans=fixed)
    writers = Writers(slots, queue, KeptPrompts(kept))
    server = uvicorn.Server(uvicorn.Config(make_app(catalogue, writers, **options), log_level="error"))
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield Running(f"http://127.0.0.1:{listening.getsockname()[1]}", writers)
    finally:
        server.should_exit = True
        thread.join(10)
        listening.close()
