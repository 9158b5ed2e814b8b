"""Names of the Hugging Face hub: wrong ones are told at once, and what was downloaded needs no network."""

import pytest

import deformscope
from deformscope.errors import DeformscopeError


@pytest.fixture
def hub(monkeypatch):
    """What the Hugging Face hub answers, and what of it has been downloaded; transformers does not ask it."""
    pytest.importorskip("transformers")
    import huggingface_hub
    import transformers

    def answers(error=None, kept=None):
        def asked(url, **_):
            assert url.endswith("/config.json")
            if error is not None:
                raise error

        monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", asked)
        monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda name, file: kept)
        if kept is None:
            monkeypatch.setattr(
                transformers.AutoImageProcessor, "from_pretrained", lambda *a, **k: pytest.fail("asked")
            )

    return answers


def not_found(kind):
    """The hub's error of this kind, whose arguments changed with its versions."""
    from huggingface_hub import errors

    return getattr(errors, kind).__new__(getattr(errors, kind))


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("nobody/nothing", lambda: not_found("RepositoryNotFoundError"), "no such model on the Hugging Face hub"),
        ("nobody/data", lambda: not_found("EntryNotFoundError"), "has no config.json"),
        ("nobody/nothing", lambda: OSError("no\nnetwork"), r"cannot be reached \(OSError: no network\)"),
        ("no body", lambda: None, "no name of the Hugging Face hub"),
    ],
)
def test_a_wrong_name_is_told_before_transformers_asks_for_it(name, error, said, hub):
    pytest.importorskip("transformers")
    hub(error())
    with pytest.raises(DeformscopeError, match=said) as told:
        deformscope.load(f"hf:{name}")
    assert str(told.value).startswith(f"detector='hf:{name}': ") and "\n" not in str(told.value)


def test_what_was_downloaded_is_loaded_without_the_hub(hub, tmp_path, monkeypatch):
    import transformers

    asked = []
    hub(OSError("no network"), kept=str(tmp_path / "config.json"))

    def loaded(place, **where):
        asked.append((place, where["local_files_only"]))
        raise OSError("damaged")

    monkeypatch.setattr(transformers.AutoImageProcessor, "from_pretrained", loaded)
    with pytest.raises(DeformscopeError, match=r"hf:owner/name': not loaded \(OSError: damaged"):
        deformscope.load("hf:owner/name")
    hub(None, kept=str(tmp_path / "config.json"))
    with pytest.raises(DeformscopeError, match="not loaded"):
        deformscope.load("hf:owner/name")
    assert asked == [(str(tmp_path), True), ("owner/name", False)]
