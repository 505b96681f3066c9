"""The leaderboard: Parquet, one row a trial, one file a trial plus a compacted table; types fixed here alone.

A projection of the trial folders: it can be deleted and rebuilt at any time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cryobench.conf.errors import ConfigError, RecordError, disk_full
from cryobench.orchestrator.results.comparability import Comparability
from cryobench.workers.record.files import write_whole
from cryobench.workers.record.folder import TrialFolder
from cryobench.workers.record.mirror import Mirror

#: Raised with every change of the columns; 1 had no number and no comparability key.
TABLE_FORMAT = 2
SCHEMA = pa.schema(
    [
        # identity
        ("trial_id", pa.string()),
        ("sweep", pa.string()),
        ("encoder", pa.string()),
        ("title", pa.string()),
        ("variant", pa.string()),
        ("dataset", pa.string()),
        ("regime", pa.string()),
        ("lr", pa.float64()),
        ("seed", pa.int64()),
        # what may be compared (orchestrator/results/comparability.py): one cell of a table holds one key alone
        ("comparability", pa.string()),
        ("editions", pa.list_(pa.string())),
        ("protocol", pa.string()),  # first 8 hex digits of the protocol's digest
        ("regime_digest", pa.string()),
        ("modality", pa.string()),
        ("view", pa.string()),
        ("statistics", pa.string()),
        ("weights_kind", pa.string()),
        ("weights_digest", pa.string()),
        ("encoder_digest", pa.string()),
        # outcome, in percent
        ("status", pa.string()),
        ("failure_kind", pa.string()),
        ("message", pa.string()),
        ("precision", pa.string()),
        ("micro_batches", pa.int32()),  # more than one: gradients gathered after a batch did not fit into memory
        ("epochs", pa.int32()),
        ("best_epoch", pa.int32()),
        ("best_val_miou", pa.float64()),
        ("test_miou", pa.float64()),
        ("test_miou_low", pa.float64()),
        ("test_miou_high", pa.float64()),
        ("test_mean_f1", pa.float64()),
        ("test_overall_accuracy", pa.float64()),
        ("classes", pa.list_(pa.string())),
        ("class_iou", pa.list_(pa.float64())),
        ("class_f1", pa.list_(pa.float64())),
        # provenance
        ("weights", pa.string()),
        ("store_digest", pa.string()),
        ("data_origin", pa.string()),
        ("code_version", pa.string()),
        ("libraries", pa.map_(pa.string(), pa.string())),
        ("host", pa.string()),
        ("device", pa.string()),
        # cost
        ("training_tiles", pa.int64()),
        ("parameters", pa.int64()),
        ("trained_parameters", pa.int64()),
        ("gmacs", pa.float64()),  # 10^9 multiply-adds for one crop, the paper's "GFLOPs"
        ("train_seconds", pa.float64()),
        ("tiles_per_second", pa.float64()),
        ("peak_memory_mb", pa.float64()),
        ("mlflow_run_id", pa.string()),
    ],
    metadata={"cryobench_format": str(TABLE_FORMAT)},
)
#: Columns that differ between two undisturbed runs of the same trial.
VOLATILE = ("host", "train_seconds", "tiles_per_second", "peak_memory_mb", "mlflow_run_id", "code_version")


def table_path(storage: Path) -> Path:
    """The compacted table."""
    return storage / "leaderboard" / "leaderboard.parquet"


def leaderboard_row(folder: TrialFolder, sweep: str, run_id: str | None) -> dict[str, Any] | None:
    """The row of a trial that ended (completed, diverged or failed), else None; one that was stopped early has none."""
    state = folder.state()
    if not (state.finished or state.status == "failed"):
        return None
    spec, result, unreadable = folder.spec(), None, None
    try:
        result = folder.result()
    except RecordError as error:  # the row stands all the same, and says what is wrong with it
        unreadable = str(error)
    key = Comparability.of(
        spec,
        result.provenance.data_origin if result else spec.dataset.origin,
        result.micro_batches if result else None,
    )
    row: dict[str, Any] = {
        **key.columns(),
        "trial_id": folder.trial_id,
        "sweep": sweep,
        "encoder": spec.encoder.name,
        "title": spec.encoder.title,
        "dataset": spec.dataset.name,
        "lr": spec.lr,
        "seed": spec.seed,
        "status": state.status,
        "failure_kind": state.kind,
        "message": unreadable or state.message,
        "precision": spec.protocol.precision,
        "epochs": state.epoch,
        "weights": spec.encoder.weights.provenance,
        "data_origin": spec.dataset.origin,
        "mlflow_run_id": run_id,
    }
    if result is not None:
        test, cost, provenance = result.test, result.cost, result.provenance
        row |= {
            "message": result.message,
            "best_epoch": result.best_epoch,
            "best_val_miou": result.best_val_miou,
            "classes": list(result.classes),
            "data_origin": provenance.data_origin,
            "code_version": provenance.code,
            "libraries": list(provenance.libraries.items()),
            "host": provenance.host,
            "device": provenance.device,
            "training_tiles": result.training_tiles,
            "parameters": cost.parameters,
            "trained_parameters": cost.trained_parameters,
            "gmacs": cost.gmacs,
            "train_seconds": cost.train_seconds,
            "tiles_per_second": cost.tiles_per_second,
            "peak_memory_mb": cost.peak_memory_mb,
        }
        if test is not None:
            row |= {
                "test_miou": test.miou,
                "test_miou_low": test.miou_low,
                "test_miou_high": test.miou_high,
                "test_mean_f1": test.mean_f1,
                "test_overall_accuracy": test.overall_accuracy,
                "class_iou": list(test.iou),
                "class_f1": list(test.f1),
            }
    return row


def has_row(storage: Path, trial: str) -> bool:
    """Whether the trial has a row that can be read."""
    try:
        return len(_read(_row_path(storage, trial))) == 1
    except (OSError, pa.ArrowException, RecordError):
        return False


def remove_row(storage: Path, trial: str, mirror: Mirror | None = None) -> bool:
    """Remove a trial's row, also from the object store; whether there was one."""
    path = _row_path(storage, trial)
    if not path.exists():
        return False
    path.unlink()
    if mirror is not None:  # else it would be brought back
        mirror.store.delete([path.relative_to(storage).as_posix()])
    return True


def recorded_run_id(storage: Path, trial: str) -> str | None:
    """The MLflow run that the trial's row names; None without a row."""
    try:
        row = _read(_row_path(storage, trial)).to_pylist()
    except (OSError, pa.ArrowException, RecordError):
        return None
    return row[0]["mlflow_run_id"] if row else None


def write_rows(storage: Path, rows: Sequence[dict[str, Any]]) -> dict[str, bool | Exception]:
    """Write each trial's file, unless it says the same already.

    Returns:
        By trial whether it was written, or what kept it from being.
    """
    found: dict[str, bool | Exception] = {}
    for row in rows:
        try:
            table = pa.Table.from_pylist([row], SCHEMA)
            found[row["trial_id"]] = _written(_row_path(storage, row["trial_id"]), table, _write_unsynced)
        except Exception as error:  # one trial's problem
            found[row["trial_id"]] = error
    return found


@dataclass
class Compaction:
    """Gathers all trials' files into one table, with a memory of those that it has read: only news are read again."""

    storage: Path
    _stamps: dict[str, tuple[int, int]] = field(default_factory=dict)
    _table: pa.Table = field(default_factory=lambda: SCHEMA.empty_table())

    def run(
        self,
        exists: Callable[[str], bool] = lambda trial: True,
        unreadable: Callable[[str, Exception], None] = lambda trial, error: None,
    ) -> pa.Table:
        """Write the table, sorted by identity; files of trials that are no more are removed.

        Args:
            exists: whether a trial still has its folder, asked at the moment in which its row would go: rows that come
                in meanwhile, from a driver beside this process, stay.
            unreadable: is told of each row that is damaged or of a later release; it is left out, and its file left
                alone.
        """
        kept: dict[str, tuple[int, int]] = {}
        fresh: list[pa.Table] = []
        for trial, path, stamp in _row_files(self.storage):
            if not exists(trial):
                path.unlink(missing_ok=True)
            elif self._stamps.get(trial) == stamp:
                kept[trial] = stamp
            else:
                try:
                    fresh.append(_read(path))
                except (OSError, pa.ArrowException, RecordError) as error:
                    unreadable(trial, error)
                else:
                    kept[trial] = stamp
        if fresh or kept.keys() != self._stamps.keys():
            same = [trial for trial, stamp in kept.items() if self._stamps.get(trial) == stamp]
            old = self._table.filter(pc.is_in(self._table["trial_id"], value_set=pa.array(same, pa.string())))
            keys = [(name, "ascending") for name in ("dataset", "regime", "encoder", "lr", "seed", "trial_id")]
            self._table = pa.concat_tables([old, *fresh]).combine_chunks().sort_by(keys)
            self._stamps = kept
        _written(table_path(self.storage), self._table, write_whole)
        return self._table


def _row_files(storage: Path) -> Iterator[tuple[str, Path, tuple[int, int]]]:
    """Trial, path, and size and time of each trial's file."""
    try:
        entries = sorted(os.scandir(storage / "leaderboard" / "trials"), key=lambda entry: entry.name)
    except FileNotFoundError:
        return
    for entry in entries:
        trial, _, ending = entry.name.rpartition(".")
        if ending == "parquet" and not trial.startswith("."):
            stat = entry.stat()
            yield trial, Path(entry.path), (stat.st_size, stat.st_mtime_ns)


def _read(path: Path) -> pa.Table:
    """A table of this or an earlier release: columns that it lacks are null.

    Raises:
        RecordError: it was written by a later release.
        OSError, pa.ArrowException: it is not there, or damaged.
    """
    found = _whole(path)
    _require_readable(path, found)
    if found.schema.equals(SCHEMA):
        return found.replace_schema_metadata(SCHEMA.metadata)
    columns = [
        found[field.name].cast(field.type) if field.name in found.column_names else pa.nulls(len(found), field.type)
        for field in SCHEMA
    ]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def _whole(path: Path) -> pa.Table:
    """The file's table; `pyarrow.parquet.read_table` looks for a data set first, which takes ten times as long."""
    with pq.ParquetFile(path) as file:
        return file.read()


def _require_readable(path: Path, found: pa.Table) -> None:
    number = int((found.schema.metadata or {}).get(b"cryobench_format", b"1"))
    if number > TABLE_FORMAT:
        raise RecordError(
            f"{path} has format {number}, this release reads up to {TABLE_FORMAT}: it was written by a later "
            "cryobench. Update cryobench where you run this command; nothing was changed."
        )


def _written(path: Path, table: pa.Table, write: Callable[[Path, Callable[[Path], object]], None]) -> bool:
    """Write a table unless it stands there already; whether it was written."""
    try:
        found = _whole(path)
        _require_readable(path, found)
        if found.schema.metadata == SCHEMA.metadata and found.equals(table):
            return False
    except (OSError, pa.ArrowException):
        pass  # there is none yet, or it is damaged: the folders are the truth
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, lambda temporary: pq.write_table(table, temporary))
    return True


def _write_unsynced(path: Path, write: Callable[[Path], object]) -> None:
    """As `write_whole`, without waiting for the disk: what a power cut leaves damaged is made again from its folder."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise disk_full(error, path) or error from error


def _row_path(storage: Path, trial: str) -> Path:
    return storage / "leaderboard" / "trials" / f"{trial}.parquet"


def read_leaderboard(storage: Path) -> pa.Table:
    """The compacted table.

    Raises:
        ConfigError: there is none yet, or it is damaged.
    """
    path = table_path(storage)
    if not path.exists():
        raise ConfigError(
            f"No leaderboard at {path}. Run a sweep with this --storage first; if trials are there, "
            "cryobench sync rebuilds it from their folders."
        )
    try:
        return _read(path)
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{path} cannot be read ({error}). cryobench sync rebuilds it.") from error
