import time

import pytest

from twcli.errors import UserError
from twcli.storage import hub


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    hub.has.cache_clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield
    hub.has.cache_clear()


def answer(monkeypatch, error):
    def asked(self, name, timeout):
        assert timeout == hub.SECONDS
        if error is not None:
            raise error

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", asked)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", asked)


def refusal(kind):
    """An error of the hub's client without the answer that it was made from."""
    return kind.__new__(kind)


def test_a_name_that_the_hub_has(monkeypatch):
    answer(monkeypatch, None)
    assert hub.has("someone/model", "model") and hub.has("gsm8k", "dataset")
    hub.look_for_model("someone/model")


def test_a_name_that_the_hub_does_not_have(monkeypatch):
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    answer(monkeypatch, refusal(RepositoryNotFoundError))
    with pytest.raises(UserError, match=r"no/data: no such file or folder .* no such dataset"):
        hub.has("no/data", "dataset")
    answer(monkeypatch, refusal(GatedRepoError))
    with pytest.raises(UserError, match="someone/gated: the hub gives it only to those"):
        hub.look_for_model("someone/gated")


def test_without_a_network_nobody_waits(monkeypatch):
    import huggingface_hub.constants

    answer(monkeypatch, OSError("Name or service not known"))
    start = time.monotonic()
    assert not hub.has("someone/model", "model")
    assert huggingface_hub.constants.HF_HUB_OFFLINE
    with pytest.raises(UserError, match="someone/model: no such folder here; the hub cannot be"):
        hub.look_for_model("someone/model")
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("source", ["./model", "/no/model", "a/b/c", "a b", "a/b@main"])
def test_what_is_no_name_is_not_asked_for(monkeypatch, source):
    answer(monkeypatch, AssertionError("asked"))
    assert not hub.is_name(source)
    with pytest.raises(UserError, match="no such folder here, and it cannot be a name on the hub"):
        hub.look_for_model(source)


def test_files_and_folders_are_not_asked_for(monkeypatch, tmp_path):
    answer(monkeypatch, AssertionError("asked"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    for source in ("model.gguf", "owner/name", ""):  # the last is this folder
        hub.look_for_model(source)


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("https://huggingface.co/a/b", "a/b"),
        ("huggingface.co/datasets/a/b-1.5/", "a/b-1.5"),
        ("https://hf.co/a/b/tree/main?x=1", "a/b"),
        ("https://huggingface.co/a/b/resolve/main/model.gguf", None),
        ("https://example.com/a/b", None),
        ("a/b", None),
    ],
)
def test_the_page_of_a_name(address, name):
    assert hub.name_on_page(address) == name
