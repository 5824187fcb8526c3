"""Training: the same weights however interrupted and by however many workers, and a model that loads."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from restack.demo import corpus, train
from restack.demo.curriculum import EVERYTHING, MATCHING, TYPICAL, Stage
from restack.demo.families.depth import TRAINED_HOPS, Hops
from restack.errors import UsageError

os.environ["TOKENIZERS_PARALLELISM"] = "false"
TINY = train.Recipe(
    stages=(
        Stage(0, Hops(0, 1), MATCHING, rows=3, length=32, looped=False),
        Stage(0.5, Hops(0, 4), EVERYTHING, rows=2, length=48),
    ),
    steps=6, hidden=16, layers=4, heads=2, ffn=32, block=(1, 3), tokenizer_samples=300,
)  # fmt: skip


def weights(trainer: train.Trainer) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in trainer.model.parameters()]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> train.Trainer:
    trainer = train.Trainer(TINY, tmp_path_factory.mktemp("straight"), workers=1)
    assert trainer.run()
    return trainer


def test_a_resumed_run_gives_the_same_weights_to_the_bit(straight: train.Trainer, tmp_path: Path) -> None:
    first = train.Trainer(TINY, tmp_path, workers=1)
    assert first.run(until=3)
    second = train.Trainer(TINY, tmp_path, workers=1)
    assert second.step == 3
    assert second.run()
    assert all(map(torch.equal, weights(straight), weights(second)))
    assert second.seconds_before > 0
    assert not list(tmp_path.glob("*.partial"))


def test_two_workers_give_the_same_weights_to_the_bit(straight: train.Trainer, tmp_path: Path) -> None:
    trainer = train.Trainer(TINY, tmp_path, workers=2)
    assert trainer.run()
    assert all(map(torch.equal, weights(straight), weights(trainer)))
    assert trainer.child_seconds > 0


def test_training_changes_every_weight_and_the_log_says_what_was_done(straight: train.Trainer) -> None:
    fresh = train.new_model(TINY, straight.tokenizer)
    changed = [not torch.equal(a, b) for a, b in zip(fresh.parameters(), weights(straight), strict=True)]
    assert all(changed)
    last = json.loads((straight.out / "log.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 6
    assert last["tokens"] == 2 * (3 * 3 * 32 + 3 * 2 * 48)


def test_an_interrupt_saves_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(worker: train.Worker, step: int, part: int) -> float:
        if (step, part) == (2, 0):
            signal.raise_signal(signal.SIGINT)
        return backward(worker, step, part)

    backward = train.Worker.backward
    monkeypatch.setattr(train.Worker, "backward", interrupted)
    monkeypatch.setattr(train, "Recipe", lambda steps=6: replace(TINY, steps=steps))
    arguments = ["--out", str(tmp_path), "--workers", "1"]
    assert train.main(arguments) == 130
    assert "stopped at step 3; the same command goes on" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert train.main(arguments) == 0
    assert train.main([*arguments, "--steps", "7"]) == 2
    assert "another recipe" in capsys.readouterr().err


def test_another_recipe_is_refused(straight: train.Trainer) -> None:
    with pytest.raises(UsageError, match="another recipe"):
        train.Trainer(replace(TINY, seed=1), straight.out)


def test_the_exported_model_loads_and_answers_as_the_trained_one(straight: train.Trainer) -> None:
    folder = straight.export()
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.dtype is torch.bfloat16
    assert model.config.use_cache is True
    trained = dict(straight.model.named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, trained[name].to(torch.bfloat16))
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id


def test_schedules() -> None:
    recipe = train.Recipe()
    first, last = (train.stage_at(recipe, step) for step in (0, recipe.steps - 1))
    assert (first.drills, first.looped) == (True, False)
    assert (last.drills, last.looped, last.mix, last.hops.most) == (False, True, EVERYTHING, TRAINED_HOPS)
    assert all(stage.hops.most <= TRAINED_HOPS for stage in recipe.stages)
    assert {train.repeats_at(recipe, step) for step in range(100)} == {1}
    drawn = [train.repeats_at(recipe, step) for step in range(3400, 5400)]
    for times, likely in zip((1, 2, 3), recipe.repeats, strict=True):
        assert abs(drawn.count(times) / 2000 - likely) < 0.05
    rates = [train.rate_at(recipe, step) for step in range(recipe.steps)]
    assert max(rates) == 1.0
    assert 0 < rates[0] < 0.05
    assert 0 < rates[-1] < 0.001
    assert train.rate_at(recipe, recipe.steps) == 0.0


def test_a_loss_counts_answers_and_ignores_what_was_given(straight: train.Trainer) -> None:
    import random

    for seed in range(30):
        ids, row_weights = corpus.row(straight.tokenizer, random.Random(seed), TYPICAL)
        assert len(ids) == len(row_weights) == TYPICAL.length + 1
        assert set(row_weights) <= {0.0, corpus.USER_WEIGHT, 1.0, 2.0, 3.0}
