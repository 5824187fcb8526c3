"""Training a view: the gradient of a repeated layer is the sum over its copies in the twin."""

import copy

import pytest
import torch
import transformers

import restack
from tests.views.architectures import BY_NAME, COMMON
from tests.views.pairs import ORDER, PROMPT, logits, pair, state, unchanged

CHECKPOINTING = {
    "plain": None,
    "checkpointed": {"use_reentrant": False},
    "checkpointed, reentrant": {"use_reentrant": True},
}


def sums_over_copies(architecture, base, twin) -> dict[str, torch.Tensor]:
    """What the gradient of each base parameter must be, by its name: computed from the twin's gradients."""
    sums: dict[str, torch.Tensor] = {}
    for name, parameter in twin.named_parameters():
        if name.startswith(f"{architecture.layers}."):
            number, rest = name.removeprefix(f"{architecture.layers}.").split(".", 1)
            name = f"{architecture.layers}.{ORDER[int(number)]}.{rest}"
        if parameter.grad is not None:
            sums[name] = sums.get(name, 0) + parameter.grad
    assert sums.keys() <= dict(base.named_parameters()).keys()
    return sums


@pytest.mark.parametrize("how", CHECKPOINTING.values(), ids=CHECKPOINTING)
@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "mixtral", "lfm2", "mamba"])
def test_gradients_are_sums_over_copies(name, how):
    architecture = BY_NAME[name]
    base, view, twin = pair(architecture)
    losses = []
    for model in (view, twin):
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        if how is not None:
            model.gradient_checkpointing_enable(how)
        torch.manual_seed(0)
        loss = model(PROMPT, labels=PROMPT, use_cache=False).loss
        loss.backward()
        losses.append(loss)
    assert torch.equal(*losses)
    assert not any(getattr(module, "gradient_checkpointing", False) for module in base.modules())
    expected = sums_over_copies(architecture, base, twin)
    parameters = dict(base.named_parameters())
    assert len(expected) > len(parameters) // 2
    for name, parameter in parameters.items():
        if name in expected:
            torch.testing.assert_close(parameter.grad, expected[name], atol=1e-6, rtol=1e-4, msg=name)
        else:
            assert parameter.grad is None, name


@pytest.mark.parametrize("first", ["view", "checkpointing"])
def test_every_visit_is_recomputed(first):
    """Also where the base was set to checkpointing before the view was made."""
    base, view, _ = pair()
    if first == "checkpointing":
        base.gradient_checkpointing_enable()
        view = restack.view(base, ORDER)
    else:
        view.gradient_checkpointing_enable()
    view.train()
    calls = []
    for number, layer in enumerate(view.model.layers):
        layer.mlp.register_forward_pre_hook(lambda *_, number=number: calls.append(number))
    view(PROMPT, labels=PROMPT, use_cache=False).loss.backward()
    visits = list(range(len(ORDER)))
    assert calls == visits + visits[::-1]


def test_layers_left_out_get_no_gradient():
    base, _, _ = pair()
    view = restack.view(base, [0, 3])
    view(PROMPT, labels=PROMPT).loss.backward()
    assert all(p.grad is None for layer in base.model.layers[1:3] for p in layer.parameters())
    assert all(p.grad is not None for layer in view.model.layers for p in layer.parameters())


def test_dropout_of_each_visit_is_drawn_anew():
    """GPT-2's residual dropout, from the same generator: visits of one layer are not the same draw."""
    architecture = BY_NAME["gpt2"]
    _, view, twin = pair(architecture, resid_pdrop=0.5, embd_pdrop=0.0, attn_pdrop=0.0)
    outcomes = []
    for model in (view, twin):
        model.train()
        torch.manual_seed(3)
        outcomes.append(logits(model))
    assert torch.equal(*outcomes)


def test_weights_of_two_views_trained_in_turn():
    """One optimizer over the base serves them both."""
    base, first, _ = pair()
    second = restack.view(base, [3, 0])
    optimizer = torch.optim.SGD(base.parameters(), lr=0.1)
    before = logits(base)
    for view in (first, second):
        view(PROMPT, labels=PROMPT).loss.backward()
    together = {name: p.grad.clone() for name, p in base.named_parameters()}
    base.zero_grad()
    alone = []
    for view in (first, second):
        view(PROMPT, labels=PROMPT).loss.backward()
        alone.append({name: copy.copy(p.grad) for name, p in base.named_parameters()})
        base.zero_grad()
    for name, grad in together.items():
        total = sum(one[name] for one in alone if one[name] is not None)
        torch.testing.assert_close(grad, total, atol=1e-6, rtol=1e-4)
    first(PROMPT, labels=PROMPT).loss.backward()
    optimizer.step()
    assert not torch.equal(logits(base), before)


def trainer(model, folder, **options):
    pytest.importorskip("accelerate")
    rows = [{"input_ids": row.tolist(), "labels": row.tolist()} for row in PROMPT]
    settings = {
        "output_dir": str(folder),
        "max_steps": 1,
        "per_device_train_batch_size": len(rows),
        "optim": "sgd",
        "learning_rate": 0.1,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 0,
    }
    arguments = transformers.TrainingArguments(**(settings | options))
    return transformers.Trainer(model=model, args=arguments, train_dataset=rows)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
def test_a_step_of_the_trainer(tmp_path, checkpointing):
    """Plain gradient descent: each base weight moves by the summed gradients of its copies."""
    architecture = BY_NAME["llama"]
    base, view, twin = pair()
    before = state(base)
    twin(PROMPT, labels=PROMPT, use_cache=False).loss.backward()
    sums = sums_over_copies(architecture, base, twin)
    trainer(view, tmp_path, gradient_checkpointing=checkpointing).train()
    assert not unchanged(base, before)
    for name, parameter in base.named_parameters():
        torch.testing.assert_close(
            parameter.detach(), before[name] - 0.1 * sums[name], atol=1e-6, rtol=1e-4, msg=name
        )
        assert parameter is dict(base.named_parameters())[name]
    owned = {id(parameter) for parameter in base.parameters()}
    assert {id(parameter) for parameter in view.parameters()} == owned  # nothing came loose


def test_the_trainer_saves_and_goes_on(tmp_path):
    """A checkpoint is a plain self-merge; training resumes from it as if it had not been interrupted."""
    options = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    base, view, _ = pair()
    trainer(view, tmp_path / "whole", **options).train()
    saved = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "whole" / "checkpoint-2", attn_implementation="eager"
    )
    assert saved.config.num_hidden_layers == len(ORDER)
    assert torch.equal(logits(saved), logits(view.eval()))

    other_base, other, _ = pair()
    trainer(other, tmp_path / "resumed", **options).train(str(tmp_path / "whole" / "checkpoint-1"))
    assert unchanged(other_base, state(base))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    """The cache of autocast's casts holds a repeated layer's weight once; gradients still add up."""
    architecture = BY_NAME["llama"]
    base, view, twin = pair()
    losses = []
    for model in (view, twin):
        with torch.autocast("cpu", dtype=dtype):
            loss = model(PROMPT, labels=PROMPT, use_cache=False).loss
        loss.backward()
        losses.append(loss)
    assert torch.equal(*losses)
    sums = sums_over_copies(architecture, base, twin)
    rounding = torch.finfo(dtype).eps * len(ORDER)
    for name, parameter in base.named_parameters():
        difference = (parameter.grad - sums[name]).norm()
        assert difference <= rounding * sums[name].norm(), name


def test_a_larger_vocabulary_than_the_tests():
    """Guard against a loss that does not depend on the layers: the numbers above would be of nothing."""
    base, view, _ = pair(vocab_size=COMMON["vocab_size"] * 2)
    view(PROMPT, labels=PROMPT).loss.backward()
    assert all(layer.mlp.up_proj.weight.grad.abs().max() > 1e-6 for layer in base.model.layers)
