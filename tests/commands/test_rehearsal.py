"""`--dry-run` of train: what it foretells is what the run does."""

from tests.conftest import make_model, make_records, make_tokenizer, write_jsonl
from twcli.commands.rehearsal import rehearse
from twcli.config.train import TrainConfig


def test_several_seeds_are_rehearsed_with_the_first_of_them(tmp_path):
    """It decides which records are held out, and so how many batches an epoch has."""
    make_model().save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    records = make_records(60, 6)
    uneven = [r for p in range(60) for r in records[6 * p : 6 * p + 1 + p * p % 6]]
    write_jsonl(tmp_path / "data.jsonl", uneven)

    def said(**seeds):
        config = TrainConfig(
            model=str(tmp_path / "model"),
            data=str(tmp_path / "data.jsonl"),
            out=str(tmp_path / "run"),
            baseline_policy="dynamic",
            epochs=40,
            batch_tokens=100,
            device="cpu",
            **seeds,
        )
        return list(rehearse(config, {}))

    def length(**seeds):
        return next(line for line in said(**seeds) if line.startswith("length: "))

    assert length(seeds="5,6") == length(seed=5) != length(seed=0)
    assert any(line.startswith("seeds: 2 runs") for line in said(seeds="5,6"))
    assert not any(line.startswith("seeds: ") for line in said(seed=5))
