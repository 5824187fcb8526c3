"""`torch.compile` of a view: one graph, the twin's numbers, and nothing of the base in it."""

import pytest
import torch
import transformers

import restack
from tests.views.architectures import BY_NAME
from tests.views.pairs import ORDER, PROMPT, greedy, logits, pair

SLOWER = [pytest.param(name, marks=pytest.mark.slow) for name in ("gemma3", "gpt2")]


@pytest.mark.parametrize("name", ["llama", *SLOWER])
def test_one_graph(name):
    """`fullgraph=True` allows no break; the graph reads the base's weights where they are."""
    base, view, twin = pair(BY_NAME[name], attention="sdpa")
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(view, fullgraph=True, backend=backend)
    assert torch.equal(logits(compiled, use_cache=False), logits(twin, use_cache=False))
    assert len(graphs) == 1
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.mul_(0.5)
        for parameter in twin.parameters():
            parameter.mul_(0.5)
    assert torch.equal(logits(compiled, use_cache=False), logits(twin, use_cache=False))
    assert len(graphs) == 1


@pytest.mark.slow
def test_two_views_at_once():
    base, first, first_twin = pair(attention="sdpa")
    second = restack.view(base, [3, 1, 1])
    compiled = [torch.compile(model, fullgraph=True, backend="aot_eager") for model in (first, second, base)]
    ours = [logits(model, use_cache=False) for model in compiled]
    assert torch.equal(ours[0], logits(first_twin, use_cache=False))
    assert torch.equal(ours[1], logits(second, use_cache=False))
    assert torch.equal(ours[2], logits(base, use_cache=False))


@pytest.mark.slow
def test_gradients():
    base, view, twin = pair(attention="sdpa")
    grads = []
    for model in (view, twin):
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        compiled(PROMPT, labels=PROMPT, use_cache=False).loss.backward()
        grads.append([layer.self_attn.q_proj.weight.grad for layer in model.model.layers])
    ours, of_copies = grads
    for layer in range(4):
        total = sum(grad for grad, source in zip(of_copies, ORDER, strict=True) if source == layer)
        torch.testing.assert_close(base.model.layers[layer].self_attn.q_proj.weight.grad, total)
        assert ours[ORDER.index(layer)] is base.model.layers[layer].self_attn.q_proj.weight.grad


@pytest.mark.parametrize("name", ["llama", *SLOWER[:1]])
def test_generation_with_a_static_cache(name):
    """What transformers compiles by itself on a GPU."""
    _, view, twin = pair(BY_NAME[name], attention="sdpa")
    expected = greedy(twin)
    compiling = transformers.CompileConfig(backend="aot_eager", fullgraph=True)
    compiling._compile_all_devices = True
    ours = greedy(view, cache_implementation="static", compile_config=compiling)
    assert hasattr(view, "_compiled_call") and not hasattr(twin, "_compiled_call")
    assert torch.equal(ours, expected)


@pytest.mark.slow
def test_by_inductor():
    """Machine code is shared by visits of one shape, and rounds its own way; the twin's does it alike."""
    _, view, twin = pair(attention="sdpa")
    ours, theirs = (logits(torch.compile(m, fullgraph=True), use_cache=False) for m in (view, twin))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours, logits(twin, use_cache=False), atol=1e-4, rtol=1e-4)
