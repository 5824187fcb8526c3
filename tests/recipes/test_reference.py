import pytest

from restack.errors import ModelError
from restack.recipes import Reference, parse_reference


@pytest.mark.parametrize(
    ("text", "model", "spec"),
    [
        ("demo", "demo", None),
        ("demo@0:8,4:12", "demo", "0:8,4:12"),
        ("meta-llama/Llama-3-8B@0:8@0.5,8:", "meta-llama/Llama-3-8B", "0:8@0.5,8:"),
    ],
)
def test_a_reference_splits_at_the_first_at(text, model, spec):
    assert parse_reference(text) == Reference(model, spec)
    assert str(Reference(model, spec)) == text


def test_a_path_with_an_at_is_a_path(tmp_path):
    folder = tmp_path / "me@home"
    folder.mkdir()
    assert parse_reference(str(folder)) == Reference(str(folder))


def test_a_spec_longer_than_a_file_name_is_a_spec():
    spec = ",".join(map(str, range(12))) * 20
    assert parse_reference(f"demo@{spec}") == Reference("demo", spec)


def test_home_and_a_slash_at_the_end(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "me@home").mkdir()
    (tmp_path / "model").mkdir()
    assert parse_reference("~/me@home") == Reference("~/me@home")
    assert parse_reference("~/model/@0:4") == Reference("~/model/", "0:4")
    assert Reference("~/model/").location == f"{tmp_path}/model/"
    assert Reference("~/model/").is_local
    assert not Reference("~/other").is_local


@pytest.mark.parametrize("text", ["", "@0:4", "demo@", "demo@ "])
def test_half_a_reference_is_refused(text):
    with pytest.raises(ModelError):
        parse_reference(text)
