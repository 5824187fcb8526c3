"""House models under Trainer, peft, fully_shard and torch.compile: repeated layers need nothing more."""

import os

import pytest
import torch
import transformers
from torch import distributed as dist
from transformers import StaticCache

from restack.llama import RestackLlamaForCausalLM
from tests.llama.plans_run import (
    PASSES,
    PLAIN,
    PLANS,
    PROMPT,
    expected_logits,
    house_of,
    logits,
    re_layered,
    unrolled_llama,
)
from tests.llama.tiny import tokens

ROWS = tokens(12, batch=4, seed=7)
TRAINED = ["repeated", "damped", "yoco", "lckv-w2", "chain", "repeated and cyclic"]
SOME_TRAINED = [name if name == "chain" else pytest.param(name, marks=pytest.mark.slow) for name in TRAINED]
STEPS = 6


def trainer(model, folder, **options):
    pytest.importorskip("accelerate")
    rows = [{"input_ids": row.tolist(), "labels": row.tolist()} for row in ROWS]
    defaults = {
        "output_dir": str(folder),
        "max_steps": STEPS,
        "per_device_train_batch_size": len(rows),
        "learning_rate": 0.01,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 0,
    }
    arguments = transformers.TrainingArguments(**defaults | options)
    return transformers.Trainer(model=model, args=arguments, train_dataset=rows)


def losses(made) -> list[float]:
    return [entry["loss"] for entry in made.state.log_history if "loss" in entry]


def trained_house(name, **settings):
    return house_of(name, **{"initializer_range": 0.05, "forward_passes": 2} | settings)


@pytest.mark.parametrize("name", SOME_TRAINED)
def test_the_trainer_with_and_without_checkpointing(name, tmp_path):
    plain, checkpointed = (
        trainer(trained_house(name), tmp_path / str(each), gradient_checkpointing=each)
        for each in (False, True)
    )
    for each in (plain, checkpointed):
        each.train()
    assert losses(plain)[-1] < losses(plain)[0] - 0.3
    assert losses(checkpointed) == pytest.approx(losses(plain), abs=1e-4)


@pytest.mark.parametrize("name", PLAIN)
def test_the_trainers_losses_are_llamas(name, tmp_path):
    """Only identity trains alike: an optimizer steps a repeated layer once, and copies apart."""
    house = trained_house(name)
    llama = unrolled_llama(house)
    ours, theirs = (trainer(model, tmp_path, max_steps=3) for model in (house, llama))
    for each in (ours, theirs):
        each.train()
    same = len(losses(ours)) if name == "identity" else 1
    assert losses(ours)[:same] == pytest.approx(losses(theirs)[:same], abs=1e-5)


@pytest.mark.parametrize("name", ["repeated and cyclic"])
def test_training_that_is_resumed(name, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    whole = trained_house(name)
    trainer(whole, tmp_path / "whole", **options).train()
    again = trained_house(name)
    trainer(again, tmp_path / "again", **options).train(str(tmp_path / "whole" / "checkpoint-2"))
    assert all(map(torch.equal, again.state_dict().values(), whole.state_dict().values()))
    saved = RestackLlamaForCausalLM.from_pretrained(
        tmp_path / "whole" / "checkpoint-4", attn_implementation="eager"
    )
    assert torch.equal(logits(saved), logits(whole.eval()))


@pytest.mark.parametrize("name", ["repeated", "chain"])
def test_low_rank_adapters(name, tmp_path):
    peft = pytest.importorskip("peft")
    wanted = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    torch.manual_seed(0)
    adapted = peft.get_peft_model(trained_house(name), wanted)
    made = trainer(adapted, tmp_path / "run", learning_rate=0.1)
    made.train()
    assert losses(made)[-1] < losses(made)[0]
    adapted.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(trained_house(name), tmp_path / "adapter")
    adapted.eval()
    assert torch.equal(logits(again), logits(adapted))
    assert not torch.allclose(logits(again), logits(trained_house(name)), atol=1e-3)
    torch.testing.assert_close(logits(again.merge_and_unload()), logits(adapted), atol=1e-5, rtol=0)
    adapted.config.forward_passes = PASSES
    assert torch.equal(
        adapted.generate(input_ids=PROMPT, max_new_tokens=4, do_sample=False),
        adapted.generate(input_ids=PROMPT, max_new_tokens=4, do_sample=False, use_cache=False),
    )


def test_gradients_of_a_repeated_layer_are_the_sums_of_its_copies():
    house = house_of("repeated", initializer_range=0.05)
    llama = unrolled_llama(house)
    order = house.config.whole_plan.order
    assert len(order) > len(set(order))
    for model in (house, llama):
        model.train()
        model(ROWS, labels=ROWS).loss.backward()
    sums = {name: torch.zeros_like(parameter) for name, parameter in house.named_parameters()}
    for name, parameter in llama.named_parameters():
        sums[re_layered(name, order)] += parameter.grad
    for name, parameter in house.named_parameters():
        torch.testing.assert_close(parameter.grad, sums[name], atol=1e-6, rtol=1e-4)


@pytest.fixture
def one_process():
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "RANK": "0", "WORLD_SIZE": "1"}
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.device_mesh.init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize("name", ["repeated", "chain", "repeated and cyclic"])
def test_fully_sharded(name, one_process):
    from torch.distributed.fsdp import fully_shard

    plain, sharded = trained_house(name), trained_house(name)
    for layer in sharded.model.layers:
        fully_shard(layer, mesh=one_process)
    fully_shard(sharded, mesh=one_process)
    for model in (plain, sharded):
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        found = []
        for _ in range(2):
            loss = model(ROWS, labels=ROWS, use_cache=False).loss
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        if model is plain:
            expected = found
    assert found == pytest.approx(expected, abs=1e-6)
    for (label, parameter), other in zip(plain.named_parameters(), sharded.parameters(), strict=True):
        assert isinstance(other, torch.distributed.tensor.DTensor), label
        if parameter.grad is not None:
            torch.testing.assert_close(other.grad.full_tensor(), parameter.grad, atol=1e-6, rtol=1e-4)


def compiled(model, backend="aot_eager"):
    torch._dynamo.reset()
    return torch.compile(model, fullgraph=True, dynamic=False, backend=backend)


ALL = [name if name == "lckv-w2" else pytest.param(name, marks=pytest.mark.slow) for name in PLANS]


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANS)
def test_compiled_without_a_break(name):
    house = house_of(name, attention="sdpa", forward_passes=2)
    expected = logits(house, use_cache=False)
    found = logits(compiled(house), use_cache=False)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANS)
def test_compiled_by_inductor(name):
    house = house_of(name, attention="sdpa", forward_passes=2)
    found = logits(compiled(house, "inductor"), use_cache=False)
    torch.testing.assert_close(found, logits(house, use_cache=False), atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", PLANS)
def test_decoding_compiled_with_a_static_cache(name, attention):
    house = house_of(name, attention=attention)
    row = PROMPT[:1]
    cache = StaticCache(house.config, max_cache_len=20)
    logits(house, row[:, :-2], past_key_values=cache)
    step = compiled(house)
    for place in (4, 5):
        one, positions = row[:, place : place + 1], torch.tensor([[place]])
        masks = house.create_masks_for_generate(
            house.get_input_embeddings()(one), None, cache, position_ids=positions
        )
        found = logits(
            step, one, attention_mask=masks, position_ids=positions, past_key_values=cache, use_cache=True
        )
        torch.testing.assert_close(
            found[:, 0].double(), expected_logits(house, row)[:, place], atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("name", ALL)
def test_generate_compiles_by_itself(name):
    """As transformers does on an accelerator, for static caches."""
    house = house_of(name, attention="sdpa")
    torch._dynamo.reset()
    compiling = transformers.CompileConfig(backend="aot_eager", fullgraph=True)
    compiling._compile_all_devices = True
    greedy = {"max_new_tokens": 6, "do_sample": False}
    expected = house.generate(PROMPT, use_cache=False, **greedy)
    found = house.generate(PROMPT, cache_implementation="static", compile_config=compiling, **greedy)
    assert hasattr(house, "_compiled_call")
    assert torch.equal(found, expected)
