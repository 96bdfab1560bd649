"""`twcli eval`: a run and held-out records become figures, and the run's `report.html`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from twcli.config.commands import EvalConfig
from twcli.errors import UserError
from twcli.evaluation import evaluate as evaluation
from twcli.evaluation import page, several
from twcli.storage.durable import write_durably
from twcli.storage.run_folder import RunFolder


def evaluate(
    config: EvalConfig, say: Callable[[str], None], progress: Callable[[str, int], Any]
) -> dict[str, Any]:
    """All figures of `eval --json`, as `metrics.summarise` documents them; the page goes to the
    run's folder. Of a folder of several runs these are `runs`, by name, beside what
    `several.compare` says of them.

    Raises:
        UserError: the run, the data or the judge is wrong.
    """
    folders = RunFolder(config.run).several()
    if not folders:
        return _evaluate_one(config, say, progress)
    if config.server is not None:
        raise UserError(f"{config.run}: holds several runs; --server has one, give its folder")
    results = {}
    for folder in folders:
        say(f"{folder.path}:")
        one = dataclasses.replace(config, run=str(folder.path))
        results[folder.path.name] = _evaluate_one(one, say, progress)
    return {"runs": results, **several.compare(results)}


def _evaluate_one(
    config: EvalConfig, say: Callable[[str], None], progress: Callable[[str, int], Any]
) -> dict[str, Any]:
    result, evidence = evaluation.evaluate(config, say, progress)
    run = RunFolder(config.run)
    settings = run.read_config().to_mapping()
    html = page.render_html(result, run.read_metrics(), settings, evidence)
    try:
        write_durably(run.report, html.encode())
    except OSError as error:  # evaluating a run that one may only read is fine
        say(f"{run.report}: not written: {error.strerror}")
    return result
