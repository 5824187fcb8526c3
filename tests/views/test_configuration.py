"""The config of a view: mapped, computed and frozen settings; and that it is a config like any other."""

import copy
import json
import pickle

import pytest

import restack
from tests.views.architectures import ARCHITECTURES, BY_NAME, LLAMA

ORDER = [0, 1, 2, 1, 2, 3, 3]


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: architecture.name)
def test_is_a_valid_config_of_its_class(architecture):
    base = architecture.model()
    config = restack.view(base, ORDER).config
    config.validate()
    assert isinstance(config, type(base.config))
    assert type(config).__name__ == type(base.config).__name__
    said = config.to_dict()
    assert "restack" not in json.dumps(said, default=str)
    assert said[architecture.depth] == len(ORDER)


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: architecture.name)
def test_says_all_it_can_when_saved(architecture, tmp_path):
    base = architecture.model()
    view = restack.view(base, ORDER)
    if architecture.name == "jamba":  # Qwen2-MoE's config says what it can, but not which layers have experts
        with pytest.raises(restack.ViewError, match="by a rule that this order of layers does not follow"):
            view.config.save_pretrained(tmp_path)
        return
    view.config.save_pretrained(tmp_path)
    loaded = type(base.config).from_pretrained(tmp_path)
    for name in ("num_hidden_layers", "layer_types", "layers_block_type"):
        assert getattr(loaded, name, None) == getattr(view.config, name, None), name


def test_an_order_that_follows_the_rule_is_not_frozen(tmp_path):
    """Jamba attends in layers 1, 4, 7... and has experts in 1, 3, 5..."""
    base = BY_NAME["jamba"].model(num_hidden_layers=8)
    view = restack.view(base, [0, 1, 2, 3, 4, 5, 0, 1, 2])
    assert type(view.config) is type(base.config)
    view.config.save_pretrained(tmp_path)


def test_a_frozen_config_copies_and_pickles():
    base = BY_NAME["jamba"].model()
    config = restack.view(base, ORDER).config
    attends = ["linear_attention" if layer % 3 != 1 else "full_attention" for layer in ORDER]
    for other in (config, copy.copy(config), copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert other.layer_types == attends
        assert other.layers_num_experts == [4 if layer % 2 else 1 for layer in ORDER]
        assert type(other) is type(config)
        assert other == config
    assert type(config)(num_hidden_layers=2).layer_types == type(base.config)(num_hidden_layers=2).layer_types


def test_lists_are_the_views_own():
    for name in ("gemma3", "bamba", "qwen3_moe"):
        base = BY_NAME[name].model()
        config = restack.view(base, [0, 1, 2, 3]).config
        for key, value in vars(base.config).items():
            assert not isinstance(value, list) or vars(config)[key] is not value, (name, key)


def test_lists_of_other_things_are_left_alone():
    base = LLAMA.model(eos_token_id=[2, 3, 4, 5])
    assert restack.view(base, [0, 1]).config.eos_token_id == [2, 3, 4, 5]


def test_a_list_of_another_length():
    base = BY_NAME["qwen2"].model()
    vars(base.config)["layer_types"] = ["full_attention"] * 6
    with pytest.raises(restack.ViewError, match="layer_types has 6 entries for 4 layers"):
        restack.view(base, [3, 2, 1])


@pytest.mark.parametrize("name", ["swiglu_limits", "swiglu_limits_shared"])
def test_limits_of_each_layer_follow(name):
    base = LLAMA.model()
    setattr(base.config, name, [0.0, 1.0, 2.0, 3.0])
    assert getattr(restack.view(base, [3, 1, 1]).config, name) == [3.0, 1.0, 1.0]


def test_mlp_only_layers_follow():
    base = BY_NAME["qwen3_moe"].model(mlp_only_layers=[1])
    assert restack.view(base, [1, 0, 1, 2]).config.mlp_only_layers == [0, 2]
    assert base.config.mlp_only_layers == [1]


def test_generation_config_is_the_views_own():
    base = LLAMA.model()
    view = restack.view(base, [0, 1])
    view.generation_config.max_new_tokens = 3
    assert base.generation_config.max_new_tokens != 3
