"""mergekit's YAML: published recipes, and scales worked out by hand from mergekit's own rules."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import restack
from restack import Plan, PlanError, Visit
from restack.plans import mergekit, parse, write_mergekit

RECIPES = Path(__file__).parent / "recipes"
EXPECTED = json.loads((RECIPES / "expected.json").read_text())
VALID = [name for name, recipe in EXPECTED.items() if recipe["valid"]]


def config(*slices: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"slices": list(slices), "merge_method": "passthrough", **more}


def piece(start: int, stop: int, scale: Any = None, model: str = "m", **more: Any) -> dict[str, Any]:
    source: dict[str, Any] = {"model": model, "layer_range": [start, stop]}
    if scale is not None:
        source["parameters"] = {"scale": scale}
    return {"sources": [source], **more}


def refusal(value: Any, depths: Any = 8) -> str:
    with pytest.raises(PlanError) as caught:
        restack.plan(value, depths)
    return str(caught.value)


@pytest.mark.parametrize("name", VALID)
def test_published_recipes(name: str) -> None:
    recipe = EXPECTED[name]
    path = RECIPES / f"{name}.yaml"
    for notation in (path, str(path), yaml.safe_load(path.read_text())):
        plan = restack.plan(notation, recipe["source_layers"])
        assert list(plan.order) == recipe["layers"]
        assert [visit.donor for visit in plan.visits] == recipe["donors"]
        assert plan.depths == tuple(recipe["source_layers"].values())


@pytest.mark.parametrize("name", VALID)
def test_published_recipes_written_and_read_back(name: str, tmp_path: Path) -> None:
    recipe = EXPECTED[name]
    plan = restack.plan(RECIPES / f"{name}.yaml", recipe["source_layers"])
    (tmp_path / "again.yaml").write_text(write_mergekit(plan, list(recipe["source_layers"])))
    assert restack.plan(tmp_path / "again.yaml", recipe["source_layers"]) == plan
    assert parse(str(plan), plan.depths) == plan


def test_the_recipe_that_passes_its_model() -> None:
    message = refusal(RECIPES / "NEGATIVE-yi-55b.yaml", EXPECTED["NEGATIVE-yi-55b"]["source_layers"])
    assert "slice 6: layer_range [49, 64] is past the model's 60 layers (0..59)" in message


def test_the_copies_are_those_of_the_shared_folder() -> None:
    shared = Path(__file__).parents[3] / "shared" / "recipes"
    if not shared.is_dir():
        pytest.skip("no shared recipes beside this checkout")
    for path in RECIPES.iterdir():
        assert path.read_bytes() == (shared / path.name).read_bytes(), path.name


def test_one_model_needs_no_name() -> None:
    plan = restack.plan(RECIPES / "rys-xlarge.yaml", 80)
    assert plan == restack.plan((45, 52), 80)
    assert plan == restack.plan("0:52,45:", 80)


def test_donors_are_numbered_by_first_appearance() -> None:
    merge = config(piece(0, 2, model="b"), piece(1, 3, model="a"), piece(2, 4, model="b"))
    plan = restack.plan(merge, {"a": 3, "unused": 9, "b": 4})
    assert plan.depths == (4, 3)
    assert str(plan) == "0/0:2,1/1:3,0/2:4"


def test_each_model_has_its_own_layers() -> None:
    merge = config(piece(0, 6, model="b"), piece(0, 6, model="a"))
    assert restack.plan(merge, {"a": 6, "b": 8}).depths == (8, 6)
    assert "slice 1: layer_range [0, 6] is past the model's 5 layers" in refusal(merge, {"a": 5, "b": 8})


def test_a_scale_with_filters() -> None:
    scale = [{"filter": "o_proj", "value": 0.5}, {"filter": "down_proj", "value": 0.25}, {"value": 1.0}]
    plan = restack.plan(config(piece(0, 2), piece(1, 3, scale)), 3)
    assert [visit.scale for visit in plan.visits] == [
        (),
        (),
        (("o_proj", 0.5), ("down_proj", 0.25)),
        (("o_proj", 0.5), ("down_proj", 0.25)),
    ]


def test_gradients_run_over_the_slice() -> None:
    # five layers: t = 0, 1/4, 1/2, 3/4, 1
    scale = [{"filter": "o_proj", "value": [0, 1]}, {"filter": "up", "value": [0, 3, 0.5]}]
    plan = restack.plan(config(piece(0, 1), piece(3, 8, scale)), 8)
    assert [dict(visit.scale) for visit in plan.visits[1:]] == [
        {"o_proj": 0.0, "up": 0.0},
        {"o_proj": 0.25, "up": 1.5},
        {"o_proj": 0.5, "up": 3.0},
        {"o_proj": 0.75, "up": 1.75},
        {"o_proj": 1.0, "up": 0.5},
    ]


def test_a_gradient_over_one_layer_is_its_end() -> None:
    plan = restack.plan(config(piece(0, 1), piece(3, 4, [{"filter": "o_", "value": [0.25, 0.5, 0.75]}])), 8)
    assert plan.visits[1].scale == (("o_", 0.75),)


def test_an_unfiltered_scale_is_for_every_tensor() -> None:
    plan = restack.plan(config(piece(0, 4), piece(2, 6, 0.5), piece(6, 8)), 8)
    assert {visit.scale for visit in plan.visits[4:8]} == {(("*", 0.5),)}
    assert {visit.scale for visit in plan.visits[:4] + plan.visits[8:]} == {()}
    gradient = restack.plan(config(piece(0, 4), piece(2, 4, [0.5, 0.25]), piece(6, 8)), 8)
    assert [visit.scale for visit in gradient.visits[4:6]] == [(("*", 0.5),), (("*", 0.25),)]


def test_a_source_comes_before_its_slice_and_that_before_the_config() -> None:
    inner = [{"filter": "a", "value": 2}]
    middle = {"scale": [{"filter": "b", "value": 3}, {"filter": "a", "value": 4}]}
    outer = {"scale": [{"filter": "c", "value": 5}]}
    plan = restack.plan(
        config(piece(0, 1), piece(1, 2, inner, parameters=middle), piece(2, 3), parameters=outer), 3
    )
    assert plan.visits[0].scale == (("c", 5.0),)
    assert plan.visits[1].scale == (("a", 2.0), ("b", 3.0), ("a", 4.0), ("c", 5.0))


def test_nothing_is_looked_at_after_an_unfiltered_scale() -> None:
    plan = restack.plan(
        config(
            piece(0, 1),
            piece(1, 2, [{"filter": "up", "value": 2}, {"value": 3}, {"filter": "o_", "value": 4}]),
            piece(2, 3, [{"filter": "o_", "value": 2}, {"filter": "*", "value": 1}]),
            parameters={"scale": [{"filter": "up_proj", "value": 7}]},
        ),
        3,
    )
    assert [visit.scale for visit in plan.visits] == [
        (("up_proj", 7.0),),
        (("up", 2.0), ("*", 3.0)),
        (("o_", 2.0),),  # the 7 of the config is out of reach
    ]


@pytest.mark.parametrize(
    ("merge", "tensor"),
    [  # the first slice's settings hold for the embeddings, the last one's for the norm and the head
        (config(piece(0, 4, 0.5), piece(4, 8)), "model.embed_tokens.weight"),
        (config(piece(0, 4, [0.5, 1]), piece(4, 8)), "model.embed_tokens.weight"),
        (config(piece(0, 4, [{"filter": "embed", "value": 2}]), piece(4, 8)), "model.embed_tokens.weight"),
        (config(piece(0, 4), piece(4, 8, 0.5)), "model.norm.weight"),
        (config(piece(0, 4), piece(4, 8, [1, 0.5])), "model.norm.weight"),
        (config(piece(0, 4), piece(4, 8, [{"filter": "norm", "value": 2}])), "model.norm.weight"),
        (config(piece(0, 4), piece(4, 8, [{"filter": "head", "value": 2}])), "lm_head.weight"),
        (config(piece(0, 8), parameters={"scale": 0.5}), "model.embed_tokens.weight"),
    ],
)
def test_a_scale_that_reaches_more_than_layers_is_refused(merge: dict[str, Any], tensor: str) -> None:
    assert f"would multiply {tensor} too" in refusal(merge)


@pytest.mark.parametrize(
    "merge",
    [
        config(piece(0, 4, [1, 0.5]), piece(4, 8)),  # 1 where the embeddings are
        config(piece(0, 4), piece(4, 8, [0.5, 1])),
        config(piece(0, 4, [{"filter": "norm", "value": 2}]), piece(4, 8)),
        config(piece(0, 4), piece(4, 8, [{"filter": "embed", "value": 2}])),
        config(piece(0, 4, [{"filter": "embed", "value": 1}, {"value": 2}]), piece(4, 8)),
    ],
)
def test_a_scale_that_stays_in_the_layers_is_not(merge: dict[str, Any]) -> None:
    assert any(visit.scale for visit in restack.plan(merge, 8).visits)


GOOD = config(piece(0, 4, [{"filter": "o_proj", "value": 0.5}]), piece(4, 8), dtype="float16")


def changed(path: str, value: Any) -> Any:
    """GOOD with something else at a place such as slices/0/sources; a value `...` removes it."""
    result = copy.deepcopy(GOOD)
    *way, last = [int(key) if key.isdigit() else key for key in path.split("/")]
    at: Any = result
    for key in way:
        at = at[key]
    if value is ...:
        del at[last]
    else:
        at[last] = value
    return result


def test_good_is_good() -> None:
    assert restack.plan(GOOD, 8).order == tuple(range(8))


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("merge_method", "linear", "merge_method is 'linear'; a plan can only be a passthrough merge"),
        ("merge_method", ..., "merge_method is None"),
        ("models", [], "'models' is not understood; the keys are base_model, "),
        ("modules", {}, "'modules' is not understood"),
        ("slices", ..., "slices must be a list"),
        ("slices", [], "slices must be a list with at least one entry"),
        ("slices", {}, "slices must be a list"),
        ("slices/1", 5, "slice 1 must be a mapping with parameters, sources"),
        ("slices/1/residual_weight", 0.5, "slice 1: 'residual_weight' is not understood"),
        ("slices/1/sources", [], "slice 1: sources must be a list"),
        ("slices/1/sources", [{}, {}], "slice 1 has 2 sources; passthrough takes exactly one"),
        ("slices/1/sources/0", "m", "slice 1: source must be a mapping"),
        ("slices/1/sources/0/layers", [0, 1], "slice 1: source: 'layers' is not understood"),
        ("slices/1/sources/0/5", [0, 1], "slice 1: source: 5 is not understood"),
        ("slices/1/sources/0/model", ..., "slice 1: model is None; write a model's name"),
        ("slices/1/sources/0/model", "", "slice 1: model is ''"),
        ("slices/1/sources/0/model", 70, "slice 1: model is 70"),
        ("slices/1/sources/0/model", "other", "the config has 2 models; give the layers of each"),
        ("slices/1/sources/0/layer_range", ..., "slice 1: layer_range is None; write [start, stop]"),
        ("slices/1/sources/0/layer_range", 5, "slice 1: layer_range is 5"),
        ("slices/1/sources/0/layer_range", [0, 1, 2], "layer_range is [0, 1, 2]"),
        ("slices/1/sources/0/layer_range", [0.0, 1], "layer_range is [0.0, 1]"),
        ("slices/1/sources/0/layer_range", [False, True], "layer_range is [False, True]"),
        ("slices/1/sources/0/layer_range", ["0", "4"], "layer_range is ['0', '4']"),
        ("slices/1/sources/0/layer_range", [4, 4], "layer_range [4, 4] holds no layer"),
        ("slices/1/sources/0/layer_range", [5, 4], "layer_range [5, 4] holds no layer"),
        ("slices/1/sources/0/layer_range", [-1, 4], "layer_range [-1, 4] holds no layer"),
        ("slices/1/sources/0/layer_range", [4, 9], "layer_range [4, 9] is past the model's 8 layers (0..7)"),
        ("slices/1/sources/0/layer_range", [0, 10**5000], "is past the model's 8 layers"),
        ("parameters", 5, "parameters must be a mapping with scale"),
        ("parameters", {"weight": 1}, "parameters: 'weight' is not understood; the keys are scale"),
        ("parameters", {}, "parameters: scale None is neither a number nor a list of numbers"),
        ("slices/0/parameters", {"scale": "big"}, "slice 0: parameters: scale 'big' is neither"),
        ("slices/0/parameters", {"scale": True}, "scale True is neither"),
        ("slices/0/parameters", {"scale": []}, "scale [] is neither"),
        ("slices/0/parameters", {"scale": [1, "2"]}, "scale [1, '2'] is neither"),
        ("slices/0/parameters", {"scale": 10**400}, "is neither a number"),
        ("slices/0/parameters", {"scale": {"filter": "a", "value": 1}}, "is neither a number"),
        ("slices/0/sources/0/parameters/scale/0/value", ..., "scale None is neither"),
        ("slices/0/sources/0/parameters/scale/0/value", float("nan"), "must be a finite number, not nan"),
        ("slices/0/sources/0/parameters/scale/0/value", float("inf"), "must be a finite number"),
        ("slices/0/sources/0/parameters/scale/0/name", "a", "'name' is not understood"),
        ("slices/0/sources/0/parameters/scale/0/filter", "", "'' is no filter"),
        ("slices/0/sources/0/parameters/scale/0/filter", "a b", "'a b' is no filter"),
        ("slices/0/sources/0/parameters/scale/0/filter", 5, "5 is no filter"),
        ("slices/0/parameters", {"scale": [{"value": 1}, 5]}, "scale must be a mapping with filter, value"),
        ("slices/0/parameters", {"scale": [{"filter": "a", "value": 2}] * 16}, "17 scale filters"),
    ],
)
def test_refused_configs(path: str, value: Any, said: str) -> None:
    assert said in refusal(changed(path, value))


def test_a_model_whose_layers_are_not_given() -> None:
    message = refusal(RECIPES / "goliath-120b.yaml", {"Xwin-LM/Xwin-LM-70B-V0.1": 80})
    assert "slice 1: how many layers has 'Sao10K/Euryale-1.3-L2-70B'?" in message
    assert "given: 'Xwin-LM/Xwin-LM-70B-V0.1'" in message
    assert "2 models; give the layers of each by name" in refusal(RECIPES / "goliath-120b.yaml", 80)
    assert "of one model, and there are 2" in refusal(RECIPES / "goliath-120b.yaml", [80, 80])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "5",
        "{",
        "\t",
        "a: b: c",
        "&a [*a]",
        "!!python/object:os.system x",
        "!!int ''",
        "!!bool x",
        "!!timestamp x",
        "[" * 5000,
        "? [a]\n: b",
        "a: 1\n---\nb: 2",
        "2024-99-99",
        "\x00",
        "'" + "9" * 9 + "'",
    ],
)
def test_files_that_are_no_config(text: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(text)
    refusal(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "none.yaml")
    assert "cannot read" in refusal("none\0.yaml")
    assert "cannot read" in refusal("\ud800.yaml")
    assert "cannot read" in refusal(tmp_path)
    assert "cannot read" in refusal("x" * 5000 + ".yaml")
    (tmp_path / "latin.yaml").write_bytes(b"slices: \xff\xfe")
    assert "UTF-8" in refusal(tmp_path / "latin.yaml")


def test_aliases_that_unfold_without_end(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 10)}]" for n in range(12)]
    (tmp_path / "laughs.yaml").write_text("\n".join([*lines, "merge_method: *a12"]))
    refusal(tmp_path / "laughs.yaml")
    laughs = yaml.safe_load((tmp_path / "laughs.yaml").read_text())["a12"]
    for path in ("merge_method", "slices/0/sources/0/layer_range", "slices/0/parameters"):
        assert len(refusal(changed(path, laughs))) < 2000
    assert len(refusal(changed("slices/0/parameters", {"scale": laughs}))) < 2000


def test_a_slice_without_end_is_refused() -> None:
    assert "16384 visits" in refusal(config(*[piece(0, 1000)] * 20), 1000)


def test_written_yaml_is_what_mergekit_reads() -> None:
    plan = parse("0/0:4,1/2:4{o_proj:0.5,*:2},0/3:5", (5, 6))
    assert yaml.safe_load(write_mergekit(plan, ["org/a", "b"], dtype="float16")) == {
        "slices": [
            {"sources": [{"model": "org/a", "layer_range": [0, 4]}]},
            {
                "sources": [
                    {
                        "model": "b",
                        "layer_range": [2, 4],
                        "parameters": {
                            "scale": [{"filter": "o_proj", "value": 0.5}, {"filter": "*", "value": 2.0}]
                        },
                    }
                ]
            },
            {"sources": [{"model": "org/a", "layer_range": [3, 5]}]},
        ],
        "merge_method": "passthrough",
        "dtype": "float16",
    }


def test_steps_and_repeats_are_written_as_slices() -> None:
    plan = parse("0:5:2,3x2,4::-2", (5,))
    merge = yaml.safe_load(write_mergekit(plan, ["m"]))
    assert [piece["sources"][0]["layer_range"] for piece in merge["slices"]] == [
        [0, 1], [2, 3], [4, 5], [3, 4], [3, 5], [2, 3], [0, 1]
    ]  # fmt: skip
    assert restack.plan(merge, 5) == plan


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0:4@0.5", "no damping"),
        ("0:4;kv=0_0_2_2", "no shared keys and values"),
        ("0:4;kv=0s_1_2_3", "no shared keys and values"),
        ("0:4{*:2},0:4", "would multiply model.embed_tokens.weight too"),
        ("0:4,0:4{*:2}", "would multiply model.norm.weight too"),
    ],
)
def test_plans_that_mergekit_cannot_say(text: str, said: str) -> None:
    with pytest.raises(PlanError, match=said):
        write_mergekit(parse(text, (4,)), ["m"])


@pytest.mark.parametrize(
    "models", [[], ["a"], ["a", "b", "c"], "ab", ["a", "a"], ["a", ""], ["a", 5], 5, None]
)
def test_names_that_do_not_fit_the_donors(models: Any) -> None:
    with pytest.raises(PlanError, match="does not name 2 donors"):
        write_mergekit(parse("0/:,1/:", (4, 4)), models)


def test_read_checks_visits_like_any_plan() -> None:
    assert mergekit.read(GOOD, {"m": 8}) == mergekit.read(GOOD, 8)
    scaled = tuple(Visit(layer, scale=(("o_proj", 0.5),)) for layer in range(4))
    assert mergekit.read(GOOD, 8) == Plan((*scaled, *map(Visit, range(4, 8))), (8,))
