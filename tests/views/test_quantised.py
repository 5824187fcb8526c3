"""Views of quantised bases, beside the twin, saved plain and quantised when it is loaded as the base is."""

import numpy
import pytest
import torch
import transformers

import restack
from restack.runtime.packed import PackedConfig
from tests.views.architectures import LLAMA
from tests.views.pairs import ORDER, PROMPT, greedy, logits, pair

SIZES = {"hidden_size": 64, "intermediate_size": 128}  # block-wise methods want whole blocks


def torchao_int8():
    pytest.importorskip("torchao")
    from torchao.quantization import Int8WeightOnlyConfig

    return transformers.TorchAoConfig(Int8WeightOnlyConfig())


def torchao_int8_dynamic():
    pytest.importorskip("torchao")
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig

    return transformers.TorchAoConfig(Int8DynamicActivationInt8WeightConfig())


def bitsandbytes_int8():
    pytest.importorskip("bitsandbytes")
    return transformers.BitsAndBytesConfig(load_in_8bit=True)


def bitsandbytes_nf4():
    pytest.importorskip("bitsandbytes")
    return transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")


def quanto_int8():
    pytest.importorskip("optimum.quanto")
    return transformers.QuantoConfig(weights="int8")


def ours_int8():
    return PackedConfig("int8")


def ours_int4():
    return PackedConfig("int4")


METHODS = [
    ours_int8,
    ours_int4,
    torchao_int8,
    torchao_int8_dynamic,
    bitsandbytes_int8,
    bitsandbytes_nf4,
    quanto_int8,
]


def loaded(model, folder, quantisation):
    model.save_pretrained(folder)
    result = transformers.AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=quantisation, attn_implementation="eager", device_map="cpu"
    )
    result.generation_config.eos_token_id = None
    return result


@pytest.fixture(params=METHODS, ids=lambda method: method.__name__)
def quantised(request, tmp_path):
    """The base, its view and the twin, all quantised alike; and the logits of the twin that is not."""
    plain = pair(**SIZES)
    base = loaded(plain.base, tmp_path / "base", request.param())
    twin = loaded(plain.twin, tmp_path / "twin", request.param())
    return base, restack.view(base, ORDER), twin, logits(plain.twin)


def tensors(model):
    return [*model.parameters(), *model.buffers()]


def test_equals_the_quantised_twin(quantised):
    _, view, twin, exact = quantised
    assert torch.equal(logits(view), logits(twin))
    assert torch.equal(greedy(view), greedy(twin))
    assert not torch.equal(logits(twin), exact)  # it is quantised


def test_shares_the_quantised_weights(quantised):
    base, view, _, _ = quantised
    owned = {id(tensor) for tensor in tensors(base)}
    assert all(id(tensor) in owned for tensor in tensors(view))
    assert view.is_quantized == base.is_quantized


def test_saving_is_refused(quantised, tmp_path):
    _, view, _, _ = quantised
    with pytest.raises(restack.ViewError, match="save the base and the plan instead"):
        view.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_adapters_on_a_quantised_view(quantised):
    peft = pytest.importorskip("peft")
    _, view, twin, _ = quantised
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    on_view, on_twin = peft.get_peft_model(view, config), peft.get_peft_model(twin, config)
    theirs = dict(on_view.named_parameters())
    with torch.no_grad():
        for name, parameter in on_twin.named_parameters():
            if "lora_" in name:
                parameter.copy_(theirs[name])
    assert torch.equal(logits(on_view), logits(on_twin))
    losses = [model(PROMPT, labels=PROMPT).loss for model in (on_view, on_twin)]
    assert losses[0].requires_grad == losses[1].requires_grad  # torchao's dynamic kernels have no backward
    if losses[0].requires_grad:
        for loss in losses:
            loss.backward()
        for name, parameter in on_twin.named_parameters():
            if "lora_" in name:
                assert (parameter.grad is None) == (theirs[name].grad is None), name
                torch.testing.assert_close(theirs[name].grad, parameter.grad, atol=1e-5, rtol=1e-3)


def test_torch_dynamic_int8():
    """torch's own, of every linear layer of a model in memory."""
    base, _, twin = pair()
    quantise = torch.ao.quantization.quantize_dynamic
    base, twin = (quantise(model, {torch.nn.Linear}, torch.qint8) for model in (base, twin))
    view = restack.view(base, ORDER)
    assert torch.equal(logits(view), logits(twin))
    assert torch.equal(greedy(view), greedy(twin))


class TestGGUF:
    """A file written with the gguf package, in blocks of 8 bits, and loaded by transformers."""

    @pytest.fixture
    def gguf(self):
        return pytest.importorskip("gguf")

    def write(self, gguf, model, path):
        config = model.config
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_block_count(config.num_hidden_layers)
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_vocab_size(config.vocab_size)
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
        for name, tensor in model.state_dict().items():
            data = tensor.numpy().astype(numpy.float32)
            for part, heads in (
                ("q_proj", config.num_attention_heads),
                ("k_proj", config.num_key_value_heads),
            ):
                if part in name:  # llama.cpp pairs the halves of a rotation side by side
                    data = data.reshape(heads, 2, -1, data.shape[1]).swapaxes(1, 2).reshape(data.shape)
            target = names.get_name(name, try_suffixes=(".weight", ".bias"))
            if data.ndim > 1:
                kind = gguf.GGMLQuantizationType.Q8_0
                writer.add_tensor(target, gguf.quants.quantize(data, kind), raw_dtype=kind)
            else:
                writer.add_tensor(target, data)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    def load(self, path):
        model = transformers.AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, attn_implementation="eager"
        )
        model.generation_config.eos_token_id = None
        return model

    def test_a_base_from_a_file(self, gguf, tmp_path):
        plain = pair(**SIZES)
        for name, model in (("base", plain.base), ("twin", plain.twin)):
            (tmp_path / name).mkdir()
            self.write(gguf, model, tmp_path / name / "model.gguf")
        base, twin = (self.load(tmp_path / name / "model.gguf") for name in ("base", "twin"))
        for name, weight in plain.base.named_parameters():  # read rightly, and quantised
            step = weight.detach().abs().max() / 127 if weight.ndim > 1 else 0.0
            torch.testing.assert_close(base.get_parameter(name), weight, atol=float(step), rtol=0)
        view = restack.view(base, ORDER)
        assert torch.equal(logits(view), logits(twin))
        assert torch.equal(greedy(view), greedy(twin))
        assert {id(parameter) for parameter in view.parameters()} == {id(p) for p in base.parameters()}
        assert type(base).__name__ == LLAMA.config_class.__name__.replace("Config", "ForCausalLM")

    @pytest.mark.parametrize("format", ["int8", "int4"])
    def test_what_was_read_from_a_file_is_packed(self, gguf, tmp_path, format):
        self.write(gguf, pair(**SIZES).base, tmp_path / "model.gguf")
        plain, packed = self.load(tmp_path / "model.gguf"), self.load(tmp_path / "model.gguf")
        restack.quantize(packed, format)
        for path, layer in packed.named_modules():
            if hasattr(layer, "packed"):  # the weights that its own stand for
                plain.get_submodule(path).weight.data = layer.packed.unpacked()
        ours, theirs = (logits(restack.view(model, ORDER)) for model in (packed, plain))
        assert (ours - theirs).norm() < 1e-3 * theirs.norm()
