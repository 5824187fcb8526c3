"""mergekit itself makes the checkpoint of a recipe; our view runs it, and `materialise` writes the same."""

import json
from pathlib import Path

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file

import restack
from tests.views.architectures import COMMON

mergekit = pytest.importorskip("mergekit.merge")

RECIPES = Path(__file__).parents[1] / "plans" / "recipes"
EXPECTED = json.loads((RECIPES / "expected.json").read_text())
PUBLISHED = (
    "goliath-120b",
    "orcamini-platy-44layer",
    "meta-llama-3-120b-instruct",
    "mistral-7b-sliced-24-layer",
    "solar-10.7b-dus",
    "vinallama-12.5b-chat-franken",
)
# After jukofyork's experiments (mergekit issue 198): the second copy reads with softer queries and keys, and
# adds less; one list is a gradient over its slice.
SCALED = """
slices:
  - sources: [{model: one, layer_range: [0, 3]}]
  - sources:
      - model: two
        layer_range: [1, 4]
        parameters:
          scale:
            - {filter: q_proj, value: 0.8}
            - {filter: k_proj, value: 0.8}
            - {filter: down_proj, value: [1.0, 0.4]}
  - sources: [{model: one, layer_range: [2, 4]}]
merge_method: passthrough
dtype: float32
"""
PROMPT = torch.arange(3, 19)[None]


def donor(depth: int, seed: int, dtype: torch.dtype, folder: Path) -> transformers.LlamaForCausalLM:
    """A random Llama of a published depth, loaded from the folder; mergekit does not care for widths."""
    torch.manual_seed(seed)
    settings = COMMON | {"num_hidden_layers": depth, "initializer_range": 0.1}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.mul_(1 + 0.1 * torch.randn_like(parameter))
    model.to(dtype).save_pretrained(folder)
    return transformers.AutoModelForCausalLM.from_pretrained(folder)


def merged(config: dict, folder: Path) -> Path:
    """What mergekit makes of a config, in a folder."""
    from mergekit.config import MergeConfiguration
    from mergekit.options import MergeOptions

    options = MergeOptions(quiet=True, write_model_card=False, copy_tokenizer=False)  # a card asks the hub
    mergekit.run_merge(MergeConfiguration.model_validate(config), str(folder), options)
    return folder


def compared(config: dict, depths: dict[str, int], folder: Path):
    """The view by a config's YAML, the same materialised and saved, and what mergekit made of it."""
    dtype = getattr(torch, config["dtype"])
    models = {}
    for seed, depth in enumerate(depths.values()):
        place = folder / f"donor{seed}"
        models[str(place)] = donor(depth, seed, dtype, place)
    places = dict(zip(depths, models, strict=True))
    for piece in config["slices"]:
        for source in piece["sources"]:
            source["model"] = places[source["model"]]
    (folder / "merge.yaml").write_text(yaml.safe_dump(config))
    restack.materialise(models, folder / "merge.yaml").save_pretrained(folder / "ours")
    return restack.view(models, folder / "merge.yaml"), folder / "ours", merged(config, folder / "theirs")


def same_tensors(ours: Path, theirs: Path) -> bool:
    first, second = (load_file(folder / "model.safetensors") for folder in (ours, theirs))
    return first.keys() == second.keys() and all(
        tensor.dtype == second[name].dtype and torch.equal(tensor, second[name])
        for name, tensor in first.items()
    )


@torch.no_grad()
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_recipe(name, tmp_path):
    config = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    view, ours, theirs = compared(config, EXPECTED[name]["source_layers"], tmp_path)
    peer = transformers.AutoModelForCausalLM.from_pretrained(theirs)
    assert peer.dtype == view.dtype
    assert peer.config.num_hidden_layers == len(EXPECTED[name]["layers"])
    assert torch.equal(view(PROMPT).logits, peer(PROMPT).logits)
    assert same_tensors(ours, theirs)


@torch.no_grad()
def test_a_scaled_recipe(tmp_path):
    view, ours, theirs = compared(yaml.safe_load(SCALED), {"one": 4, "two": 4}, tmp_path)
    assert same_tensors(ours, theirs)
    peer = transformers.AutoModelForCausalLM.from_pretrained(theirs)
    torch.testing.assert_close(view(PROMPT).logits, peer(PROMPT).logits)  # s(Wx) for (sW)x
