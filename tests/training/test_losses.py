"""What training computes, beside a loop of plain PyTorch."""

import copy

import pytest
import torch

import restack
from restack.errors import RestackError, UsageError
from restack.llama import RestackLlamaForCausalLM
from restack.training import Training, read_log, train
from tests.llama.tiny import model as house
from tests.training.tiny import by_hand, llama, rows

SETTINGS = {"steps": 8, "batch": 12, "lr": 0.01, "warmup": 0.3, "weight_decay": 0.1, "eval_share": 0.0}


def trained(model, folder, data=None, **settings):
    return train(model, None, rows() if data is None else data, folder, Training(**SETTINGS | settings))


def expected(model, **options):
    return by_hand(model, [rows()], **{"lr": 0.01, "steps": 8, "warmup": 0.3, "decay": 0.1} | options)


@pytest.mark.parametrize("batches", [1, 3])
def test_losses_are_those_of_a_loop_by_hand(tmp_path, batches):
    losses = expected(llama())
    result = trained(llama(), tmp_path / "run", batch=12 // batches, accumulate=batches)
    assert result.finished and result.steps == 8
    assert result.losses == pytest.approx(losses, abs=1e-5)
    assert losses[-1] < losses[0] - 0.5  # it learns, so mistakes would show
    assert result.losses != pytest.approx(expected(llama(), decay=0.0), abs=1e-5)
    assert result.losses != pytest.approx(expected(llama(), clip=100.0), abs=1e-5)


def test_a_view_trains_its_shared_layers(tmp_path):
    by_hand_view = restack.view(llama(), "0:3,1:4")
    losses = expected(by_hand_view)
    base = llama()
    result = trained(restack.view(base, "0:3,1:4"), tmp_path / "run")
    assert result.losses == pytest.approx(losses, abs=1e-5)
    again = restack.open(str(tmp_path / "run"))
    assert len(again.model.layers) == 6
    assert sum(p.numel() for p in again.parameters()) == sum(p.numel() for p in base.parameters())
    with torch.no_grad():
        assert torch.equal(again(rows()).logits, result.model(rows()).logits)
        torch.testing.assert_close(
            again(rows()).logits, by_hand_view.eval()(rows()).logits, atol=1e-4, rtol=0
        )


@pytest.mark.parametrize("kv_map", [None, "0_4x4_5"], ids=["plain", "lckv"])
def test_the_house_model(tmp_path, kv_map):
    data = rows(vocabulary=50)
    reference = house(kv_map)
    losses = by_hand(reference, [data], lr=0.01, steps=8, warmup=0.3, decay=0.1)
    result = trained(house(kv_map), tmp_path / "run", data=data)
    assert result.losses == pytest.approx(losses, abs=1e-5)
    again = RestackLlamaForCausalLM.from_pretrained(tmp_path / "run", attn_implementation="eager").eval()
    assert again.config.use_cache is True
    with torch.no_grad():
        assert torch.equal(again(data).logits, result.model(data).logits)


@pytest.mark.parametrize("kind", ["llama", "view", "house", "lora"])
def test_gradient_checkpointing_changes_nothing(tmp_path, kind):
    def made():
        if kind == "house":
            return house("0_4x4_5")
        return llama() if kind == "llama" else restack.view(llama(), "0:3,1:4")

    lora = {"lora": 2} if kind == "lora" else {}
    plain = trained(made(), tmp_path / "plain", **lora)
    model = made()
    recomputed = trained(model, tmp_path / "recomputed", gradient_checkpointing=True, **lora)
    assert recomputed.losses == pytest.approx(plain.losses, abs=1e-6)
    assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def test_recomputing_is_really_done(tmp_path):
    model, calls = llama(), []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    trained(model, tmp_path / "run", gradient_checkpointing=True, steps=2)
    assert len(calls) == 4


def test_bfloat16_is_near_and_not_the_same(tmp_path):
    exact = trained(llama(), tmp_path / "exact").losses
    short = trained(llama(), tmp_path / "short", bf16=True)
    assert short.losses == pytest.approx(exact, abs=0.1)
    assert short.losses != pytest.approx(exact, abs=1e-6)
    assert short.model.dtype == torch.float32


def test_the_same_call_gives_the_same_log(tmp_path):
    logs = []
    for name in ("first", "second"):
        trained(llama(attention_dropout=0.3), tmp_path / name, batch=3, eval_share=0.2)
        logs.append([{**entry, "seconds": None} for entry in read_log(tmp_path / name)])
    assert logs[0] == logs[1]
    other = trained(llama(attention_dropout=0.3), tmp_path / "third", batch=3, eval_share=0.2, seed=1)
    assert other.losses != [entry["loss"] for entry in logs[0] if "loss" in entry]


def test_evaluation_is_the_mean_over_its_rows(tmp_path):
    kept = rows(count=7, length=6, seed=5)
    model = llama()
    with torch.no_grad():
        logits = model(kept).logits[:, :-1]
    before = torch.nn.functional.cross_entropy(logits.flatten(0, 1), kept[:, 1:].flatten()).item()
    settings = Training(**SETTINGS | {"batch": 3, "eval_every": 3})  # batches of 3, 3 and 1 rows
    result = train(model, None, rows(), tmp_path / "run", settings, evaluation=kept)
    assert list(result.evaluations) == [0, 3, 6, 8]
    assert result.evaluations[0] == pytest.approx(before, abs=1e-6)
    with torch.no_grad():
        logits = result.model(kept).logits[:, :-1]
    after = torch.nn.functional.cross_entropy(logits.flatten(0, 1), kept[:, 1:].flatten()).item()
    assert result.evaluations[8] == pytest.approx(after, abs=1e-6)
    [last] = [entry for entry in result.log if entry["step"] == 8 and "eval_loss" in entry]
    assert last["perplexity"] == pytest.approx(2.718281828**after, rel=1e-5)


def test_every_row_is_read_once_an_epoch(tmp_path):
    data, seen = rows(count=10), []
    model = llama()
    model.register_forward_pre_hook(lambda _, __, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True)
    result = trained(model, tmp_path / "run", data=data, steps=None, epochs=2, batch=2, accumulate=1)
    assert result.steps == 10
    for epoch in (seen[:5], seen[5:]):
        assert sorted(torch.cat(epoch).tolist()) == sorted(data.tolist())
    assert torch.cat(seen[:5]).tolist() != torch.cat(seen[5:]).tolist()
    assert torch.cat(seen[:5]).tolist() != data.tolist()


def test_a_constant_rate_after_the_rise(tmp_path):
    result = trained(llama(), tmp_path / "run", schedule="constant", steps=5, warmup=0.4)
    assert [entry["lr"] for entry in result.log] == pytest.approx([0.005, 0.01, 0.01, 0.01, 0.01])


def test_a_loss_that_is_no_number_ends_the_run(tmp_path):
    model = llama()
    with torch.no_grad():
        model.lm_head.weight[0, 0] = float("nan")
    with pytest.raises(RestackError, match=r"the loss is nan at step 1; begin anew with a lower --lr"):
        trained(model, tmp_path / "run")


def test_too_little_memory_is_one_line(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", full)
    with pytest.raises(RestackError, match="cpu has too little memory for this; write a smaller --batch"):
        trained(llama(), tmp_path / "run")


def test_bfloat16_where_there_is_none(tmp_path, monkeypatch):
    def refuse(**options):
        raise ValueError("Your setup doesn't support bf16/gpu.")

    monkeypatch.setattr("restack.training.engine.TrainingArguments", refuse)
    with pytest.raises(UsageError, match="cpu cannot compute in bfloat16; leave out --bf16"):
        trained(llama(), tmp_path / "run", bf16=True)
    with pytest.raises(ValueError, match="Your setup"):
        trained(llama(), tmp_path / "other")


def test_the_model_is_left_as_one_that_can_be_used(tmp_path):
    model = llama()
    result = trained(model, tmp_path / "run", steps=2)
    assert result.model is model and not model.training and model.config.use_cache
    opened = restack.open(str(tmp_path / "run"))
    assert all(map(torch.equal, opened.state_dict().values(), model.state_dict().values()))


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ([[1, 2], [3]], "equally long"),
        ([], "one row of token ids at least"),
        ([[1]], "of two or more"),
        ([[1.5, 2.0]], "row of token ids"),
        ([[1, 40]], "token 40, and the model knows 0 to 39"),
        ([[1, -1]], "token -1"),
        ([[1] * 65], "context is 64"),
    ],
)
def test_wrong_rows(tmp_path, data, told):
    with pytest.raises(UsageError, match=told):
        trained(llama(), tmp_path / "run", data=data)
    assert not (tmp_path / "run").exists()


def test_what_was_trained_before_is_not_shared(tmp_path):
    """Guard: the models of these tests are made anew, so that none learns from another."""
    first, second = llama(), copy.deepcopy(llama())
    trained(first, tmp_path / "run", steps=1)
    assert not torch.equal(first.lm_head.weight, second.lm_head.weight)
