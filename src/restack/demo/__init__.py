"""The embedded model, `demo`: a small Llama that this repository trained, from data that it makes itself.

`FOLDER` is the model: open it like any other. `world` and `families` make the data, `corpus` turns it into
tokens, `train` trains, `probes` scores. The model card is `model/README.md`.
"""

from pathlib import Path

FOLDER = Path(__file__).parent / "model"
