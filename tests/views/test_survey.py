"""Views of every decoder architecture equal their twins, and docs/architectures.md says so."""

from dataclasses import replace

import pytest
import transformers

import restack
from tests.views import survey
from tests.views.survey import OWN_CACHE, PLANS, PROMPT, Differs, compare, logits, page, table
from tests.views.survey_models import decoders, tiny
from tests.views.survey_twins import BAKED, twin

# Dense, MoE, sliding and full attention, latent attention, linear attention, convolutions and state spaces.
QUICK = (
    "bamba", "bart", "beam", "deepseek_v3", "falcon_h1", "gemma3_text", "gpt2", "gpt_neo", "gpt_oss", "jamba",
    "lfm2_moe", "llama", "mamba2", "qwen3_moe", "qwen3_next",
)  # fmt: skip
VERSION, ROWS = table()
each_decoder = pytest.mark.parametrize(
    "model_type", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in decoders()]
)


def without_own_cache(row):
    return replace(row, notes=row.notes.replace(OWN_CACHE, "").strip("; "))


@each_decoder
def test_a_view_equals_its_twin_as_the_table_says(model_type):
    if model_type not in ROWS and transformers.__version__ != VERSION:
        pytest.skip(f"not surveyed yet: new in transformers {transformers.__version__}")
    found = survey.survey(model_type)
    if transformers.__version__ == VERSION:
        row = ROWS[model_type]
        # Whether such a model decodes otherwise with its cache varies by process; its view and twin do alike.
        assert without_own_cache(found) == without_own_cache(row)
    else:
        assert found.verdict == ROWS[model_type].verdict


def test_the_table_is_of_all_decoders():
    if transformers.__version__ != VERSION:
        pytest.skip(f"the table is of transformers {VERSION}")
    assert list(ROWS) == decoders()


def test_the_page_is_as_the_survey_writes_it():
    if transformers.__version__ != VERSION:
        pytest.skip(f"the page is of transformers {VERSION}")
    assert survey.TABLE.read_text() == page(list(ROWS.values()))


def test_at_least_110_are_equal_with_a_cache_and_without():
    equal = [row for row in ROWS.values() if row.verdict == "equal" and survey.OWN_CACHE not in row.notes]
    assert len(equal) >= 110
    assert all("refused" not in row.notes for row in equal if row.model_type in QUICK)


@pytest.mark.parametrize("model_type", [name for name in BAKED if name in decoders()])
def test_what_stays_the_layers_is_otherwise_by_place(model_type):
    """Were a constant in `BAKED` without effect, or no longer there, the table would be wrong."""
    base = tiny(model_type)
    same = []
    for order in PLANS.values():
        try:
            by_place = twin(model_type, base, order, baked=False)
        except KeyError:  # it has other weights
            same.append(False)
        else:
            expected = logits(twin(model_type, base, order), PROMPT)
            same.append(bool((logits(by_place, PROMPT) == expected).all()))
    assert not all(same)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda model, order: restack.view(model, sorted(order)),
        lambda model, order: restack.view(model, order[:-1]),
        lambda model, order: model,
    ],
    ids=["in another order", "a layer short", "the base"],
)
def test_the_survey_sees_wrong_views(wrong):
    base, order = tiny("llama"), [3, 2, 0]
    with pytest.raises(Differs, match="prefill differs"):
        compare("llama", wrong(base, order), twin("llama", base, order))


def test_the_survey_sees_a_wrong_slot_in_the_cache():
    base, order = tiny("llama"), [0, 1, 1, 2]
    view = restack.view(base, order)
    view.model.layers[2].self_attn.layer_idx = 1
    with pytest.raises((Differs, RuntimeError)):
        compare("llama", view, twin("llama", base, order))
