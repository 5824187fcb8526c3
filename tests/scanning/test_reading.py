"""What candidates make of texts, with visits shared, is what models of their own make of them alone."""

from collections import Counter
from contextlib import suppress

import pytest
import torch
import transformers
from torch.nn import functional as F

import restack
from restack.errors import RestackError, UsageError
from restack.plans import Plan
from restack.scanning.candidates import base, grid
from restack.scanning.probe import Row
from restack.scanning.reading import LayerRuns, read
from tests.llama.plans_run import house_of
from tests.training import tiny
from tests.views import survey_models

HYBRID = {
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}


def rows_of(vocabulary=tiny.VOCABULARY, seed=3):
    """Rows of several lengths, in no order, of which not all tokens are targets."""
    generator = torch.Generator().manual_seed(seed)
    lengths = [(9, 8), (5, 2), (12, 1), (9, 3), (2, 1)]
    return [
        Row(tuple(torch.randint(3, vocabulary, (length,), generator=generator).tolist()), targets)
        for length, targets in lengths
    ]


@torch.no_grad()
def by_itself(model, row):
    """What a model makes of one row, alone: log-probabilities, and whether each target is the likeliest."""
    tokens = torch.tensor([row.tokens])
    logits = model(tokens).logits[0, :-1].float()
    likely = -F.cross_entropy(logits, tokens[0, 1:], reduction="none")
    return likely[-row.targets :], (logits.argmax(-1) == tokens[0, 1:])[-row.targets :]


def own_llama(model, plan):
    """A model of its own constructor with copied weights, that runs a plain plan."""
    settings = model.config.to_dict() | {"num_hidden_layers": len(plan)}
    made = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings)).eval()
    weights = {n: t for n, t in model.state_dict().items() if ".layers." not in n}
    for visit, layer in enumerate(plan.order):
        old, new = f"model.layers.{layer}.", f"model.layers.{visit}."
        weights |= {new + n.removeprefix(old): t for n, t in model.state_dict().items() if n.startswith(old)}
    made.load_state_dict(weights)
    return made


def assert_same(found, models, rows, **near):
    for number, model in models.items():
        assert not isinstance(found[number], Exception), found[number]
        for outcome, row in zip(found[number], rows, strict=True):
            likely, top = by_itself(model, row)
            torch.testing.assert_close(outcome.log_probabilities, likely, **near)
            assert torch.equal(outcome.is_top, top)


def test_every_block_and_skip_is_the_model_of_its_own_constructor():
    model, rows = tiny.llama(), rows_of()
    plans = [candidate.plan for candidate in grid(4, skips=True)]
    models = {number: own_llama(model, plan) for number, plan in enumerate(plans)}
    assert_same(dict(read(model, plans, rows)), models, rows, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("memory", [None, 1, 4000])
def test_memory_changes_nothing_but_what_is_kept(memory, monkeypatch):
    monkeypatch.setattr("restack.scanning.reading.BATCH", 12)  # so that there are several
    monkeypatch.setattr("restack.scanning.reading.TOGETHER", 3)
    model, rows = tiny.llama(), rows_of()
    plans = [candidate.plan for candidate in (base(4), *grid(4))]
    found = dict(read(model, plans, rows, memory=memory))
    for number, plan in enumerate(plans):
        ((_, alone),) = read(model, [plan], rows)
        for ours, theirs in zip(found[number], alone, strict=True):
            assert torch.equal(ours.log_probabilities, theirs.log_probabilities)


def test_layers_are_run_as_often_as_it_says():
    model, rows = tiny.llama(), rows_of()
    plans = [candidate.plan for candidate in (base(4), *grid(4, repeats=(2, 3), skips=True))]
    list(
        read(model, plans[:1], rows)
    )  # what is run to see whether the model can be entered midway is not counted
    ran = Counter()
    run = transformers.models.llama.modeling_llama.LlamaDecoderLayer.forward

    def counted(self, *args, **kwargs):
        ran["layers"] += 1
        return run(self, *args, **kwargs)

    runs = LayerRuns()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformers.models.llama.modeling_llama.LlamaDecoderLayer, "forward", counted)
        list(read(model, plans, rows, runs=runs))
    assert ran["layers"] == runs.run
    assert runs.alone == sum(map(len, plans))  # one batch
    assert runs.run < 0.5 * runs.alone


DAMPED = ["0:4", "0:2@0.5,2:4", "0:3,1:4", "0:3,1:3@0.7,3:4", "0:3,1:3@0,3:4", "0:3,1:4{o_proj:0.5}"]
SHARED = ["0:4;kv=0_0_2_2", "0:4", "0:2,0:4;kv=0_1_2_2_4_4", "0:3,1:4;kv=0_1_2_1_4_5"]


@pytest.mark.parametrize("specs", [DAMPED, SHARED], ids=["damped", "shared"])
def test_visits_that_are_damped_or_share_keys_and_values(specs):
    model, rows = tiny.llama(), rows_of()
    plans = [restack.plan(spec, 4) for spec in specs]
    models = {number: restack.view(model, plan) for number, plan in enumerate(plans)}
    assert_same(dict(read(model, plans, rows)), models, rows, atol=1e-5, rtol=1e-5)


def test_a_view_and_a_model_that_runs_plans():
    rows = rows_of()
    shared = restack.view(tiny.llama(), "0:4;kv=0_0_2_2")
    # the visits of a view that share keep their owners, and a plan that leaves out an owner is refused
    plans = [restack.plan(spec, 4) for spec in ("0:4", "0:4,2:4", "2:4,0:2")]
    models = {number: restack.view(shared, plan) for number, plan in enumerate(plans)}
    assert_same(dict(read(shared, plans, rows)), models, rows, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["identity", "repeated and shared", "lckv-w2", "chain"])
def test_a_model_that_runs_plans(kind):
    house = house_of(kind)
    depth = len(house.config.whole_plan)
    rows = rows_of(house.config.vocab_size)
    plans = []
    for candidate in (base(depth), *grid(depth, skips=True, widest=2)):
        with suppress(RestackError):  # a plan that leaves out an owner
            restack.view(house, candidate.plan)
            plans.append(candidate.plan)
    models = {number: restack.view(house, plan) for number, plan in enumerate(plans)}
    assert_same(dict(read(house, plans, rows)), models, rows, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "kind", ["gpt2", "gemma2", "gemma3_text", "mixtral", "falcon", "qwen3_next", "mamba"]
)
def test_other_architectures(kind):
    model = survey_models.tiny(kind) if kind != "qwen3_next" else hybrid()
    rows, depth = rows_of(survey_models.VOCABULARY), 4
    plans = [candidate.plan for candidate in (base(depth), *grid(depth, skips=True))]
    runs = LayerRuns()
    found = dict(read(model, plans, rows, runs=runs))
    models = {}
    for number, plan in enumerate(plans):
        try:
            models[number] = restack.view(model, plan).eval()
        except RestackError as error:
            assert str(found[number]) == str(error)  # of a hybrid without attention
    assert len(models) > len(plans) // 2
    assert runs.run < runs.alone
    assert_same(found, models, rows, atol=1e-4, rtol=1e-4)


def test_rotary_embeddings_that_stretch_with_the_text():
    """Each row is rotated by its own length, not by that of the longest beside it."""
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    model = tiny.llama(rope_parameters=rope, max_position_embeddings=8)
    rows = [Row(tuple(range(3, 3 + length)), length - 1) for length in (5, 9, 12, 9, 15)]
    plans = [candidate.plan for candidate in (base(4), *grid(4))]
    found = dict(read(model, plans, rows))
    for number, plan in enumerate(plans):
        for outcome, row in zip(found[number], rows, strict=True):
            fresh = restack.view(model, plan)  # a model that has read longer texts rotates otherwise
            logits = fresh(torch.tensor([row.tokens[:-1]])).logits[0]
            likely = -F.cross_entropy(logits, torch.tensor(row.tokens[1:]), reduction="none")
            torch.testing.assert_close(outcome.log_probabilities, likely, atol=1e-5, rtol=1e-5)


def hybrid():
    torch.manual_seed(0)
    config = transformers.Qwen3NextConfig(
        vocab_size=survey_models.VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_experts=4, num_experts_per_tok=2,
        moe_intermediate_size=24, shared_expert_intermediate_size=24, **HYBRID,
    )  # fmt: skip
    return transformers.Qwen3NextForCausalLM(config).eval()


def test_a_candidate_that_fails_is_told_and_the_others_go_on():
    model, rows = tiny.llama(), rows_of()
    plans = [restack.plan("0:4", 4), restack.plan("0:4;kv=0_3_2_3", 4), restack.plan("0:3,1:4", 4)]
    found = dict(read(model, plans, rows))
    assert isinstance(found[1], RestackError)  # an owner above its reader
    assert len(found[0]) == len(found[2]) == len(rows)


def test_one_failure_in_a_visit_that_is_shared_takes_no_other_candidate_with_it():
    model, rows = tiny.llama(), rows_of()
    plans = [candidate.plan for candidate in (base(4), *grid(4))]
    expected = dict(read(model, plans, rows))
    calls = Counter()
    original = transformers.LlamaForCausalLM.forward

    def failing(self, *args, **kwargs):
        calls["forward"] += 1
        if calls["forward"] == 2:
            raise RuntimeError("no room")
        return original(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformers.LlamaForCausalLM, "forward", failing)
        found = dict(read(model, plans, rows))
    failed = [number for number, result in found.items() if isinstance(result, Exception)]
    assert len(failed) == 1
    for number in set(found) - set(failed):
        for ours, theirs in zip(found[number], expected[number], strict=True):
            torch.testing.assert_close(ours.log_probabilities, theirs.log_probabilities, atol=0, rtol=0)


@pytest.mark.parametrize("kind", ["reformer", "xlnet"])
def test_what_cannot_be_entered_midway_is_seen(kind):
    """Reformer's layers hand on two streams in one; XLNet reads both ways."""
    model, rows = survey_models.tiny(kind).eval(), rows_of(survey_models.VOCABULARY)
    plans = [candidate.plan for candidate in (base(4), *grid(4, widest=2))]
    if kind == "xlnet":
        with pytest.raises(UsageError, match="would see the answers"):
            list(read(model, plans, rows))
        return
    runs = LayerRuns()
    found = dict(read(model, plans, rows, runs=runs))
    assert runs.run == runs.alone  # nothing is shared
    models = {number: restack.view(model, plan).eval() for number, plan in enumerate(plans)}
    assert_same(found, models, rows, atol=1e-4, rtol=1e-4)


def test_the_model_is_as_it_was():
    model = tiny.llama()
    before = [(name, id(tensor)) for name, tensor in model.named_parameters()]
    list(read(model, [Plan.of([0, 1, 1, 2, 3], 4)], rows_of()))
    assert [(name, id(tensor)) for name, tensor in model.named_parameters()] == before
    assert not any(module._forward_pre_hooks for module in model.modules())
