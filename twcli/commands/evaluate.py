"""`twcli eval`: a run and held-out records become figures, and the run's `report.html`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from twcli.commands.report import about, write_page, write_verdict
from twcli.config.evaluate import EvalConfig
from twcli.config.phases import LOAD_RUN, Phases
from twcli.data.dataset import Examples
from twcli.errors import UserError
from twcli.evaluation import evaluate as evaluation
from twcli.evaluation import page, several
from twcli.storage.run_folder import RunFolder


def evaluate(
    config: EvalConfig,
    say: Callable[[str], None],
    progress: Callable[[str, int], Any],
    phases: Phases | None = None,
    records: Examples | None = None,
) -> dict[str, Any]:
    """All figures of `eval --json`, as `metrics.summarise` documents them; the page goes to the
    run's folder. Of a folder of several runs these are `runs`, by name, beside what
    `several.compare` says of them, and there is a page of all as well.

    Args:
        phases, records: as of `precompute`.

    Raises:
        UserError: the run, the data or the judge is wrong.
    """
    phases = phases or Phases()
    folders = RunFolder(config.run).several()
    if not folders:
        return _evaluate_one(config, say, progress, phases, records)
    if config.server is not None:
        raise UserError(f"{config.run}: holds several runs; --server has one, give its folder")
    results: dict[str, Any] = {}
    for folder in folders:
        if results:
            phases.begin(LOAD_RUN, str(folder.path))
        else:
            say(f"{folder.path}:")
        one = dataclasses.replace(config, run=str(folder.path))
        results[folder.path.name] = _evaluate_one(one, say, progress, phases, records)
    compared = several.compare(results)
    html = page.runs_page(
        results,
        {folder.path.name: folder.read_metrics() for folder in folders},
        compared,
        folders[0].read_config().to_mapping(),
        about(RunFolder(config.run), folders[0].read_config(), say, data=config.data),
    )
    write_page(RunFolder(config.run), html, say)
    return {"runs": results, **compared}


def _evaluate_one(
    config: EvalConfig,
    say: Callable[[str], None],
    progress: Callable[[str, int], Any],
    phases: Phases,
    records: Examples | None,
) -> dict[str, Any]:
    """Figures of one run, whose page is written into its folder."""
    result, evidence = evaluation.evaluate(config, say, progress, phases, records)
    result["latent_cards"] = evidence["latent_cards"]
    run = RunFolder(config.run)
    trained = run.read_config()
    html = page.evaluation_page(
        result,
        run.read_metrics(),
        trained.to_mapping(),
        about(run, trained, say, data=config.data),
        evidence,
    )
    write_verdict(run, result["verdict"], "twcli eval", config.data, say)
    write_page(run, html, say)
    return result
