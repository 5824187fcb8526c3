"""What would reach the base through a view: resizing, converting, moving, saving. Done to the view alone."""

import copy
import gc
import pickle
import warnings
import weakref

import pytest
import torch
import transformers

import restack
from restack.views.cost import own_bytes
from tests.views.architectures import BY_NAME, COMMON, LLAMA
from tests.views.pairs import ORDER, PROMPT, greedy, logits, pair, state, unchanged

VOCABULARY = COMMON["vocab_size"]
moved = pytest.mark.filterwarnings("ignore:the view was moved or converted")


def is_shared(view, base):
    return {id(parameter) for parameter in view.parameters()} <= {id(p) for p in base.parameters()}


class TestResizing:
    @pytest.mark.parametrize("size", [VOCABULARY + 13, VOCABULARY - 9])
    @pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
    def test_the_view_alone(self, tied, size):
        base, view, twin = pair(tie_word_embeddings=tied)
        before, plain = state(base), logits(base)
        for model in (view, twin):
            torch.manual_seed(0)  # new rows are drawn
            model.resize_token_embeddings(size)
        assert unchanged(base, before) and torch.equal(logits(base), plain)
        assert base.config.vocab_size == base.get_input_embeddings().num_embeddings == VOCABULARY
        assert view.config.vocab_size == view.get_input_embeddings().num_embeddings == size
        tokens = PROMPT % (VOCABULARY - 9)
        assert torch.equal(logits(view, tokens), logits(twin, tokens))
        assert logits(view, tokens).shape[-1] == size
        assert (view.lm_head.weight is view.model.embed_tokens.weight) == tied

        tables = {id(view.lm_head.weight), id(view.model.embed_tokens.weight)}
        own = {id(p) for p in view.parameters()} - {id(p) for p in base.parameters()}
        assert own == tables  # the layers are still the base's
        assert own_bytes(view, base) == len(tables) * size * COMMON["hidden_size"] * 4

    def test_new_rows_are_trained_in_the_view(self):
        base, view, _ = pair()
        view.resize_token_embeddings(VOCABULARY + 4)
        tokens = torch.full((1, 5), VOCABULARY + 1)
        view(tokens, labels=tokens).loss.backward()
        assert view.model.embed_tokens.weight.grad[VOCABULARY + 1].abs().sum() > 0
        assert base.model.embed_tokens.weight.grad is None
        assert base.model.layers[1].mlp.up_proj.weight.grad is not None

    @pytest.mark.parametrize("how", [{"new_num_tokens": VOCABULARY}, {"pad_to_multiple_of": 8}, {}], ids=str)
    def test_to_the_size_that_it_has(self, how):
        base, view, _ = pair()
        assert view.resize_token_embeddings(**how) is view.get_input_embeddings()
        assert is_shared(view, base)

    def test_a_failure_changes_nothing(self):
        base, view, twin = pair()
        with pytest.raises(ValueError, match="multiple"):
            view.resize_token_embeddings(VOCABULARY + 1, pad_to_multiple_of=2.5)
        assert is_shared(view, base) and torch.equal(logits(view), logits(twin))

    def test_a_view_of_a_resized_view(self):
        _, view, twin = pair()
        view.resize_token_embeddings(VOCABULARY - 8)
        again = restack.view(view, "all")
        assert is_shared(again, view)
        tokens = PROMPT % (VOCABULARY - 8)
        assert torch.equal(logits(again, tokens), logits(twin, tokens)[..., : VOCABULARY - 8])


class TestConverting:
    @moved
    @pytest.mark.parametrize(
        "convert",
        [
            lambda model: model.to(torch.bfloat16),
            lambda model: model.bfloat16(),
            lambda model: model.to(dtype=torch.bfloat16, device="cpu"),
            lambda model: model.to(torch.bfloat16).to(torch.bfloat16),
        ],
        ids=["to", "bfloat16", "to by name", "twice"],
    )
    @pytest.mark.parametrize("name", ["llama", "gemma3", "lfm2"])
    def test_the_view_alone(self, name, convert):
        base, view, twin = pair(BY_NAME[name])
        before, plain = state(base), logits(base)
        assert convert(view) is view
        convert(twin)
        assert unchanged(base, before) and torch.equal(logits(base), plain)
        assert {p.dtype for p in view.parameters()} == {torch.bfloat16}
        assert torch.equal(logits(view), logits(twin))
        assert torch.equal(greedy(view), greedy(twin))

    @moved
    def test_visits_still_share(self):
        """What was converted is one set of weights: of the layers that are visited, once."""
        base, view, _ = pair(tie_word_embeddings=True)
        count = len(list(view.parameters()))
        view.to(torch.bfloat16)
        assert len(list(view.parameters())) == count == len(list(base.parameters()))
        assert view.model.layers[1].mlp.up_proj.weight is view.model.layers[3].mlp.up_proj.weight
        assert view.lm_head.weight is view.model.embed_tokens.weight
        assert own_bytes(view, base) < sum(p.nbytes for p in base.parameters()) * 0.52
        view(PROMPT, labels=PROMPT).loss.backward()
        assert all(p.grad is None for p in base.parameters())

    def test_says_so(self):
        base, view, _ = pair()
        with pytest.warns(UserWarning, match=r"moved or converted.* MB of weights of its own now.*the base"):
            view.half()
        assert not is_shared(view, base)

    @pytest.mark.parametrize(
        "harmless",
        [
            lambda view: view.to("cpu"),
            lambda view: view.to(torch.float32),
            lambda view: view.float().cpu(),
            lambda view: view.eval().requires_grad_(True),
        ],
        ids=["to the device", "to the dtype", "float and cpu", "modes"],
    )
    def test_what_changes_nothing_keeps_the_weights_shared(self, harmless):
        base, view, twin = pair()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            harmless(view)
        assert is_shared(view, base) and torch.equal(logits(view), logits(twin))

    @moved
    def test_layers_left_out_stay_like_the_others(self):
        base, _, _ = pair()
        restack.view(base, [0, 3]).to(torch.bfloat16)
        assert {p.dtype for p in base.parameters()} == {torch.float32}

    @moved
    def test_to_another_device(self):
        """The meta device stands for any other."""
        base, view, _ = pair()
        before = state(base)
        view.to("meta")
        assert {t.device.type for t in [*view.parameters(), *view.buffers()]} == {"meta"}
        assert unchanged(base, before)
        assert {t.device.type for t in [*base.parameters(), *base.buffers()]} == {"cpu"}

    @moved
    def test_emptied(self):
        base, view, _ = pair()
        before = state(base)
        view.to_empty(device="cpu")
        assert unchanged(base, before)
        assert view.model.layers[1].mlp.up_proj.weight is view.model.layers[3].mlp.up_proj.weight

    def test_a_base_that_is_converted_first(self):
        base, _, twin = pair()
        base.to(torch.bfloat16)
        view = restack.view(base, ORDER)
        assert is_shared(view, base)
        assert torch.equal(logits(view), logits(twin.to(torch.bfloat16)))


class TestSaving:
    @pytest.mark.parametrize(
        "name", ["llama", "gemma3", "gpt2", "mixtral", "lfm2", "bamba", "falcon", "mamba"]
    )
    def test_loads_without_restack(self, name, tmp_path):
        """A checkpoint of all visits: the self-merge."""
        base, view, twin = pair(BY_NAME[name])
        before = state(base)
        view.save_pretrained(tmp_path)
        loaded, info = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path, attn_implementation="eager", output_loading_info=True
        )
        assert not any(info.values()), info
        assert not hasattr(loaded, "restack_plan") and type(loaded) is type(base)
        assert torch.equal(logits(loaded), logits(twin))
        assert unchanged(base, before) and is_shared(view, base)

    @pytest.mark.parametrize("order", [[0, 3], [2, 2, 2], [3, 2, 1, 0]], ids=str)
    def test_any_order(self, order, tmp_path):
        _, view, twin = pair(order=order, tie_word_embeddings=True)
        view.save_pretrained(tmp_path, max_shard_size="20KB")
        assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
        loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
        assert torch.equal(logits(loaded), logits(twin))

    def test_a_state_that_is_given(self, tmp_path):
        _, view, twin = pair()
        view.save_pretrained(tmp_path / "by name", state_dict=view.state_dict())
        view.save_pretrained(tmp_path / "by place", True, view.state_dict())
        twin.save_pretrained(tmp_path / "twin")
        expected = (tmp_path / "twin" / "model.safetensors").read_bytes()
        for folder in ("by name", "by place"):
            assert (tmp_path / folder / "model.safetensors").read_bytes() == expected

    @pytest.mark.parametrize("name", ["jamba", "qwen2_moe"])
    def test_what_no_config_can_say(self, name, tmp_path):
        """Its layers follow from their number by a rule, and this order breaks it."""
        _, view, _ = pair(BY_NAME[name])
        with pytest.raises(restack.ViewError, match="save the base and the plan instead"):
            view.save_pretrained(tmp_path / "new")
        assert not (tmp_path / "new").exists()

    def test_constants_of_the_layers_place(self, tmp_path):
        """GPT-2 may scale by a layer's number; a view keeps the base's, and no config says so."""
        base = BY_NAME["gpt2"].model(scale_attn_by_inverse_layer_idx=True)
        view = restack.view(base, ORDER)
        with pytest.raises(restack.ViewError, match=r"attn\.scal.* would be .*save the base and the plan"):
            view.save_pretrained(tmp_path / "new")
        assert not (tmp_path / "new").exists()

    def test_per_layer_embeddings(self, tmp_path):
        """Gemma 3n's table of them is as wide as the base has layers, and a checkpoint's as it has visits."""
        config = transformers.Gemma3nTextConfig(
            **COMMON
            | {
                "head_dim": 8,
                "num_kv_shared_layers": 0,
                "layer_types": ["sliding_attention", "full_attention"] * 2,
                "hidden_size_per_layer_input": 8,
                "vocab_size_per_layer_input": VOCABULARY,
                "activation_sparsity_pattern": [0.0] * 4,
                "laurel_rank": 4,
            }
        )
        view = restack.view(transformers.Gemma3nForCausalLM(config), [0, 1, 2, 1, 3])
        with pytest.raises(restack.ViewError, match=r"per_layer.* would be .*save the base and the plan"):
            view.save_pretrained(tmp_path / "new")
        assert not (tmp_path / "new").exists()

    def test_of_a_slung_model(self, tmp_path):
        base, _, twin = pair()
        with restack.slung(base, ORDER):
            base.save_pretrained(tmp_path / "slung")
        loaded = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path / "slung", attn_implementation="eager"
        )
        assert torch.equal(logits(loaded), logits(twin))
        base.save_pretrained(tmp_path / "base")  # and the base as ever
        loaded = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path / "base", attn_implementation="eager"
        )
        assert loaded.config.num_hidden_layers == 4 and torch.equal(logits(loaded), logits(base))

    @pytest.mark.parametrize("spec", ["0:4,1:3@0.5", "0:3,1{o_proj:0.5}"])
    def test_what_no_weights_can_say(self, spec, tmp_path):
        base, _, _ = pair()
        with pytest.raises(restack.ViewError, match="save the base and the plan instead"):
            restack.view(base, spec).save_pretrained(tmp_path / "new")
        assert not (tmp_path / "new").exists()


@moved
def test_copies_have_guards_of_their_own():
    base, view, _ = pair()
    expected = logits(view)
    for other in (copy.deepcopy(view), pickle.loads(pickle.dumps(view)), restack.view(view, "all")):
        other.to(torch.bfloat16)
        assert {p.dtype for p in other.parameters()} == {torch.bfloat16}
        assert torch.equal(logits(view), expected) and is_shared(view, base)
        other.resize_token_embeddings(50)
        assert view.config.vocab_size == VOCABULARY


def test_a_materialised_model_has_none():
    """It owns its weights: `to` converts them in place, as any model's."""
    base, view, _ = pair()
    own = restack.materialise(view, "all")
    before = dict(own.named_parameters())
    own.to(torch.bfloat16)
    assert all(parameter is before[name] for name, parameter in own.named_parameters())
    assert vars(own).keys() <= vars(base).keys()


def test_no_cycle():
    _, view, _ = pair()
    gone = weakref.ref(view)
    gc.collect()
    gc.disable()
    try:
        del view
        assert gone() is None
    finally:
        gc.enable()


def test_methods_that_were_replaced_are_kept():
    """As trainers and patchers do, on the model that the view is made of."""
    calls = []

    class Patched:
        def __call__(self, *args):
            calls.append(args)

    base = LLAMA.model()
    base.save_pretrained = Patched()
    restack.view(base, ORDER).save_pretrained("somewhere")
    assert calls == [("somewhere",)]
