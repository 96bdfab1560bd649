"""A checkpoint is whole or is not there, and one that was changed is not believed."""

import pytest
import torch

from tests.storage.test_run_folder import flip
from twcli.errors import UserError
from twcli.storage.checkpoints import Checkpoints

MADE = {"weights": "aa", "template": {"ids": [1, 2]}}


@pytest.fixture
def checkpoints(tmp_path):
    """Those of steps 2 and 4."""
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step in (2, 4):
        save(checkpoints, step)
    return checkpoints


def save(checkpoints, step, keep=2):
    tensors = {"model.weight": torch.full((3,), float(step)), "latents": torch.arange(step)}
    checkpoints.save(step, tensors, keep, provenance=MADE, said=step)


def folder(checkpoints, step):
    return checkpoints.path / f"step-{step:08d}"


def steps(checkpoints):
    return sorted(int(f.name.removeprefix("step-")) for f in checkpoints.path.iterdir())


def test_the_newest_comes_back(checkpoints, tmp_path):
    step, found, notes = checkpoints.newest(MADE)
    assert (step, notes) == (4, [])
    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        "model.weight": [4.0] * 3,
        "latents": [0, 1, 2, 3],
    }
    assert checkpoints.newest_content()["said"] == 4
    assert checkpoints.problems() == []
    none = Checkpoints(tmp_path / "none")
    assert (none.newest({}), none.newest_content(), none.last, none.problems()) == (
        (0, {}, []),
        {},
        None,
        [],
    )


def test_the_last_n_are_kept(checkpoints):
    save(checkpoints, 6)
    save(checkpoints, 8)
    assert steps(checkpoints) == [6, 8]
    assert checkpoints.last == folder(checkpoints, 8)


@pytest.mark.parametrize("file", ["state.safetensors", "checkpoint.json"])
def test_a_damaged_one_is_named_and_passed_over(checkpoints, file):
    path = folder(checkpoints, 4) / file
    for place in range(0, path.stat().st_size, path.stat().st_size // 30):
        flip(path, place)
        step, _, notes = checkpoints.newest(MADE)
        assert step == 2 and f"{folder(checkpoints, 4)}: damaged" in notes[0], place
        assert [line for line in checkpoints.problems() if "step-00000004: damaged" in line]
        flip(path, place)
    path.unlink()
    assert checkpoints.newest(MADE)[0] == 2


def test_what_it_says_of_itself_is_not_believed_once_it_is_changed(checkpoints):
    file = folder(checkpoints, 4) / "checkpoint.json"
    file.write_text(file.read_text().replace('"said": 4', '"said": 5'))
    assert checkpoints.newest_content()["said"] == 2


def test_one_under_another_name_is_not_believed(checkpoints):
    folder(checkpoints, 4).rename(folder(checkpoints, 9))
    assert checkpoints.newest(MADE)[0] == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weights": "bb"}, 'another weights: the checkpoint has "aa", this call has "bb"'),
        (
            {"template": {"ids": [1, 3]}},
            "another template.ids: the checkpoint has [1, 2], this call has [1, 3]",
        ),
    ],
)
def test_one_of_something_else_is_refused(checkpoints, change, said):
    with pytest.raises(UserError, match="give another --out, or --overwrite") as caught:
        checkpoints.newest(MADE | change)
    assert said in str(caught.value)


@pytest.mark.parametrize("written", [0, 1])
def test_a_write_that_was_cut_off_leaves_the_old_one(checkpoints, monkeypatch, written):
    from twcli.storage.durable import write_durably

    left = [written]

    def full(path, data):
        if not left[0]:
            raise OSError(28, "No space left on device")
        left[0] -= 1
        write_durably(path, data)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr("twcli.storage.checkpoints.write_durably", full)
        save(checkpoints, 6, keep=1)
    assert checkpoints.newest(MADE)[0] == 4
    save(checkpoints, 6, keep=1)
    assert steps(checkpoints) == [6]


def test_later_and_unfinished_ones_are_removed(checkpoints):
    save(checkpoints, 6, keep=3)
    (checkpoints.path / ".step-00000008").mkdir()
    (checkpoints.path / ".step-00000008" / "state.safetensors").write_text("torn")
    checkpoints.remove_after(4)
    assert sorted(f.name for f in checkpoints.path.iterdir()) == ["step-00000002", "step-00000004"]
