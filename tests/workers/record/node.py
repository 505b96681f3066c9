"""One node that runs a trial: started by tests as a process of its own. Prints what happens, a line each."""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

from cryobench.conf.errors import CryobenchError
from cryobench.conf.schema import ResourceSpec
from cryobench.conf.trial import TrialSpec
from cryobench.workers.place import Place
from cryobench.workers.record import lease
from cryobench.workers.record.events import EpochFinished, Event, Note, Resumed
from cryobench.workers.trial import run_trial


def main() -> None:
    given = json.loads(sys.argv[1])
    if given["machine"]:
        lease._machine = lambda: given["machine"]  # type: ignore[assignment]
    place = Place(
        Path(given["storage"]),
        Path(given["data"]),
        Path(given["cache"]),
        device="cpu",
        resources=ResourceSpec(lease_s=given["lease_s"], storage_patience_s=60),
        mirror=given["mirror"],
    )

    def report(event: Event) -> None:
        if isinstance(event, EpochFinished):
            print(f"epoch {event.epoch}", flush=True)
            time.sleep(given["pause_s"])
        elif isinstance(event, Resumed):
            print(f"resumed {event.epoch}", flush=True)
        elif isinstance(event, Note):
            print(f"note {event.message}", flush=True)

    try:
        result = run_trial(
            TrialSpec.model_validate(given["spec"]), replace(place), report=report, waits_for_others=True
        )
        print(f"result {result.status}", flush=True)
    except CryobenchError as error:
        print(f"error {error.kind}", flush=True)


main()
