"""What is put around a model, or read out of it: accelerate, `pipeline`, hidden states, attentions, hooks."""

import pytest
import tokenizers
import torch
import transformers
from tokenizers import models, pre_tokenizers

import restack
from tests.views.architectures import BY_NAME, LLAMA, VOCABULARY
from tests.views.pairs import NEW_TOKENS, ORDER, PROMPT, greedy, logits, pair, state, unchanged

LAYERS = len(ORDER)


def places(layers: int) -> dict[str, str]:
    """A device map of accelerate: every second layer and the head on the disk."""
    outside = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "cpu", "lm_head": "disk"}
    return outside | {f"model.layers.{i}": "disk" if i % 2 else "cpu" for i in range(layers)}


def on_disk(model) -> int:
    return sum(parameter.device.type == "meta" for parameter in model.parameters())


class TestAccelerate:
    @pytest.fixture(autouse=True)
    def accelerate(self):
        return pytest.importorskip("accelerate")

    def test_a_view_of_an_offloaded_model(self, accelerate, tmp_path):
        base, _, twin = pair()
        accelerate.disk_offload(base, tmp_path, execution_device="cpu")
        assert on_disk(base) == len(list(base.parameters()))
        view = restack.view(base, ORDER)
        assert torch.equal(greedy(view), greedy(twin))
        assert torch.equal(greedy(base), greedy(LLAMA.twin(twin_of_identity(twin), range(4))))

    def test_an_offloaded_view(self, accelerate, tmp_path):
        base, view, twin = pair()
        before = state(base)
        accelerate.disk_offload(view, tmp_path, execution_device="cpu")
        assert on_disk(view) > 0 and on_disk(base) == 0
        assert torch.equal(greedy(view), greedy(twin))
        assert unchanged(base, before)

    def test_a_view_of_a_dispatched_model(self, accelerate, tmp_path):
        """As `device_map=` dispatches; what warns of moving the base is not taken into the view."""
        base, _, twin = pair()
        accelerate.dispatch_model(base, places(4), main_device="cpu", offload_dir=tmp_path)
        moving = base.to
        view = restack.view(base, ORDER)
        assert "to" not in vars(view) and base.to is moving
        assert torch.equal(greedy(view), greedy(twin))

    def test_a_dispatched_view(self, accelerate, tmp_path):
        base, view, twin = pair()
        before = state(base)
        accelerate.dispatch_model(view, places(LAYERS), main_device="cpu", offload_dir=tmp_path)
        assert torch.equal(greedy(view), greedy(twin))
        assert unchanged(base, before)
        again = restack.view(view, [0, 1, 1])
        assert torch.equal(greedy(again), greedy(LLAMA.twin(base, [0, 1, 1])))

    @pytest.mark.parametrize("name", ["llama", "gemma3"])
    def test_a_model_loaded_with_a_device_map(self, name, tmp_path):
        base, _, twin = pair(BY_NAME[name], tie_word_embeddings=False)
        base.save_pretrained(tmp_path / "saved")
        loaded = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path / "saved",
            device_map=places(4),
            offload_folder=tmp_path / "offloaded",
            attn_implementation="eager",
        )
        loaded.generation_config.eos_token_id = None
        assert on_disk(loaded) > 0
        assert torch.equal(greedy(restack.view(loaded, ORDER)), greedy(twin))

    def test_slung_while_dispatched(self, accelerate, tmp_path):
        base, _, twin = pair()
        plain = greedy(base)
        accelerate.dispatch_model(base, places(4), main_device="cpu", offload_dir=tmp_path)
        with restack.slung(base, ORDER):
            assert torch.equal(greedy(base), greedy(twin))
        assert torch.equal(greedy(base), plain)

    def test_prepared(self, accelerate):
        base, view, twin = pair()
        prepared = accelerate.Accelerator(cpu=True).prepare(view)
        assert torch.equal(logits(prepared), logits(twin))
        owned = {id(parameter) for parameter in base.parameters()}
        assert {id(parameter) for parameter in prepared.parameters()} == owned


def twin_of_identity(twin):
    """The base again, from its twin in ORDER: layer i is that of the first visit of i."""
    return LLAMA.twin(twin, [ORDER.index(layer) for layer in range(4)])


@pytest.fixture(scope="module")
def tokenizer():
    words = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, VOCABULARY)}
    made = tokenizers.Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>", padding_side="left"
    )


def test_pipeline(tokenizer):
    base, view, twin = pair()
    owned = {id(parameter) for parameter in base.parameters()}
    texts = ["w5 w6 w7", "w8 w9 w10 w11 w12 w13 w14"]
    said = []
    for model in (view, twin):
        pipeline = transformers.pipeline("text-generation", model=model, tokenizer=tokenizer, device="cpu")
        said.append(pipeline(texts, max_new_tokens=NEW_TOKENS, do_sample=False, batch_size=2))
    assert said[0] == said[1]
    assert all(len(answer[0]["generated_text"].split()) > NEW_TOKENS for answer in said[0])
    assert {id(parameter) for parameter in view.parameters()} == owned  # it moved nothing


def test_streaming(tokenizer):
    _, view, twin = pair()
    streamer = transformers.TextIteratorStreamer(tokenizer, skip_prompt=True)
    one = PROMPT[:1]
    tokens = greedy(view, one, streamer=streamer)
    assert torch.equal(tokens, greedy(twin, one))
    assert "".join(streamer) == tokenizer.decode(tokens[0, one.shape[1] :])


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "mixtral", "deepseek_v3"])
def test_hidden_states_and_attentions_of_every_visit(name):
    _, view, twin = pair(BY_NAME[name])
    wanted = {"output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        ours, theirs = view(PROMPT, **wanted), twin(PROMPT, **wanted)
    assert len(ours.hidden_states) == LAYERS + 1 and len(ours.attentions) == LAYERS
    for kind in ("hidden_states", "attentions"):
        pairs = zip(ours[kind], theirs[kind], strict=True)
        assert all(torch.equal(a, b) for a, b in pairs), kind


@pytest.mark.parametrize("name", ["lfm2", "jamba", "mamba"])
def test_hidden_states_of_hybrids(name):
    _, view, twin = pair(BY_NAME[name])
    with torch.no_grad():
        ours, theirs = (model(PROMPT, output_hidden_states=True).hidden_states for model in (view, twin))
    assert len(ours) == len(theirs) == LAYERS + 1
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_router_logits_of_every_visit():
    _, view, twin = pair(BY_NAME["mixtral"])
    with torch.no_grad():
        ours, theirs = (model(PROMPT, output_router_logits=True) for model in (view, twin))
    assert len(ours.router_logits) == LAYERS
    assert all(torch.equal(a, b) for a, b in zip(ours.router_logits, theirs.router_logits, strict=True))
    assert torch.equal(ours.aux_loss, theirs.aux_loss)


def test_hidden_states_while_generating():
    _, view, twin = pair()
    wanted = {"output_hidden_states": True, "output_attentions": True, "return_dict_in_generate": True}
    ours, theirs = (greedy(model, **wanted) for model in (view, twin))
    assert len(ours.hidden_states) == NEW_TOKENS
    for kind in ("hidden_states", "attentions"):
        for step, expected in zip(ours[kind], theirs[kind], strict=True):
            assert len(step) == LAYERS + (kind == "hidden_states")
            assert all(torch.equal(a, b) for a, b in zip(step, expected, strict=True))


def test_hooks_on_a_visit_see_that_visit_alone():
    """Steering: add to one visit of a layer that is visited twice."""
    base, view, twin = pair()

    def steer(module, args, output):
        return output + 1.0

    for model in (view, twin):
        model.model.layers[3].register_forward_hook(steer)  # the second visit of layer 1
    assert torch.equal(logits(view), logits(twin))
    assert torch.equal(logits(base), logits(LLAMA.twin(base, range(4))))


def test_embeddings_instead_of_tokens():
    _, view, twin = pair()
    embedded = [model.get_input_embeddings()(PROMPT).detach() for model in (view, twin)]
    ours, theirs = (
        model(inputs_embeds=given).logits for model, given in zip((view, twin), embedded, strict=True)
    )
    assert torch.equal(ours, theirs)


def test_the_last_logits_alone():
    _, view, twin = pair()
    assert torch.equal(logits(view, logits_to_keep=1), logits(twin, logits_to_keep=1))


@pytest.mark.parametrize("head", ["ForSequenceClassification", "ForTokenClassification", "Model"])
def test_other_heads(head):
    """A view of what is no language model: the body alone, or with another head."""
    config = LLAMA.config_class(**LLAMA.settings, num_labels=3)
    config._attn_implementation = "eager"
    made = getattr(transformers, f"Llama{head}")
    torch.manual_seed(0)
    base = made(config).eval()
    deeper = LLAMA.config_of(LLAMA, ORDER)
    deeper.num_labels, deeper._attn_implementation = 3, "eager"
    twin = made(deeper).eval()
    prefix = "layers." if head == "Model" else "model.layers."
    source = base.state_dict()

    def name_in_base(name):
        if not name.startswith(prefix):
            return name
        number, rest = name.removeprefix(prefix).split(".", 1)
        return f"{prefix}{ORDER[int(number)]}.{rest}"

    twin.load_state_dict({name: source[name_in_base(name)].clone() for name in twin.state_dict()})
    with torch.no_grad():
        ours, theirs = restack.view(base, ORDER)(PROMPT)[0], twin(PROMPT)[0]
    assert torch.equal(ours, theirs)
