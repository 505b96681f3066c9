"""What a Ray worker runs: one trial after another in one process, reporting epochs to the driver."""

from __future__ import annotations

from typing import Any

from cryobench.conf.errors import CryobenchError
from cryobench.conf.trial import TrialSpec
from cryobench.workers.trial import Place, run_trial

#: Reported events the driver is interested in; all others stay in the folder.
_NEWS = {"attempt", "resumed", "epoch", "failed", "diverged", "finished"}


def run_in_worker(config: dict[str, Any], place: Place, specs: dict[str, dict[str, Any]]) -> None:
    """Run the trial that ``config`` names.

    A failure that is explained ends the trial here, recorded in its folder; anything unexpected is raised, so that
    Tune tries again from the last checkpoint.
    """
    from ray import tune

    spec = TrialSpec.model_validate(specs[config["trial"]])

    def report(event: dict[str, Any]) -> None:
        if event["event"] in _NEWS:
            tune.report({key: value for key, value in event.items() if isinstance(value, str | int | float)})

    try:
        result = run_trial(spec, place, report=report)
    except CryobenchError as error:
        tune.report({"event": "ended", "status": "failed", "kind": error.kind, "message": str(error)})
        return
    tune.report({"event": "ended", "status": result.status, "epochs": result.epochs})
