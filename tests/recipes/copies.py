"""Copies of the demo model, to be spoilt."""

import json

from restack import demo


def copy_of_demo(folder, **settings):
    """The demo model in another folder, with other settings in its config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in demo.FOLDER.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))
    return str(folder)
