"""Published weights on this machine: which file an encoder needs, how to get it, and its digest.

A file's SHA-256 is recorded in the weights folder on first use (`RECORD`), unless its YAML states the published one; a
later mismatch is an error, and the digest enters the trial's identity.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from cryobench.conf.digests import file_sha256
from cryobench.conf.errors import BadCheckpointError, CryobenchError, FetchError, MissingWeightsError
from cryobench.conf.schema import EncoderSpec, Variant, WeightsSpec
from cryobench.conf.trial import TrialWeights
from cryobench.workers.files import write_json

RECORD = "sha256.json"
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class CatalogueEntry:
    """One published file and the encoders that read it."""

    spec: WeightsSpec
    encoders: tuple[str, ...]


def catalogue(encoders: Iterable[EncoderSpec]) -> list[CatalogueEntry]:
    """All published files, each once, by name."""
    specs: dict[str, WeightsSpec] = {}
    users: dict[str, list[str]] = {}
    for encoder in encoders:
        for variant in encoder.variants.values():
            if variant.weights:
                specs.setdefault(variant.weights.file, variant.weights)
                names = users.setdefault(variant.weights.file, [])
                names += [encoder.name] if encoder.name not in names else []
    return [CatalogueEntry(specs[file], tuple(users[file])) for file in sorted(specs)]


class WeightsFolder:
    """A folder of published files, and the digests of those seen before."""

    def __init__(self, folder: Path, cache_dir: Path) -> None:
        self.folder, self._memory = folder, cache_dir / "weights.json"
        self._known = _read(self._memory)

    def of(self, encoder: EncoderSpec, variant: Variant, wanted: str) -> tuple[TrialWeights, CryobenchError | None]:
        """The weights of a trial, and why it cannot have them, if so."""
        if encoder.baseline:
            return TrialWeights(kind="scratch"), None
        if wanted == "random":
            return TrialWeights(kind="random"), None
        spec = encoder.variants[variant].weights
        if spec is None:
            return TrialWeights(kind="published"), MissingWeightsError(
                f"No weights are published for encoder '{encoder.name}'. Run it with weights=random (marked as such), "
                "or name a file under weights in its YAML."
            )
        weights = TrialWeights(kind="published", digest=f"missing:{spec.file}", file=spec.file, layout=spec.layout)
        path = self.folder / spec.file
        if not path.is_file():
            return weights, MissingWeightsError(
                f"Weights of '{encoder.name}' not found: expected {path} (published: {spec.published}). Run: cryobench "
                f"weights fetch {encoder.name}, or bring the file there by hand, or run with weights=random."
            )
        try:
            return weights.model_copy(update={"digest": self.verified(spec)}), None
        except BadCheckpointError as error:
            return weights, error

    def verified(self, spec: WeightsSpec) -> str:
        """The file's digest, equal to the published or recorded one, or recorded now if there is neither.

        Raises:
            MissingWeightsError: there is no such file.
            BadCheckpointError: it is another file than before, or than was published.
        """
        path = self.folder / spec.file
        if not path.is_file():
            raise MissingWeightsError(f"No weights file {path}.")
        found, record = self._digest(path), _read(self.folder / RECORD)
        expected = spec.sha256 or record.get(spec.file)
        if expected is None:
            _write(self.folder / RECORD, record | {spec.file: found})
        elif found != expected:
            whose = "published" if spec.sha256 else f"recorded in {self.folder / RECORD} on first use"
            raise BadCheckpointError(
                f"{path} has SHA-256 {found[:16]}…, expected {expected[:16]}… ({whose}). It is damaged or another "
                "file: fetch it again; if you replaced it on purpose, remove its line from the record."
            )
        return found

    def fetch(self, spec: WeightsSpec, progress: Progress = lambda done, total: None) -> Path:
        """Download a file unless it is here, and verify it.

        Raises:
            FetchError: it cannot be downloaded; the message says how to get it by hand.
        """
        from cryobench.orchestrator.fetch import download, download_from_hub

        path = self.folder / spec.file
        if not path.is_file():
            try:
                if spec.hugging_face:
                    download_from_hub(spec.hugging_face, spec.file, path)
                elif spec.url:
                    download(spec.url, path, progress)
                else:
                    raise FetchError(f"{spec.file} has no address to download it from.")
            except FetchError as error:
                raise FetchError(
                    f"{error} Fetch {spec.file} by hand (published: {spec.published}) and put it into {self.folder}."
                ) from error
        self.verified(spec)
        return path

    def _digest(self, path: Path) -> str:
        stat = path.stat()
        key = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
        if key not in self._known:
            self._known[key] = file_sha256(path)
            _write(self._memory, self._known)
        return self._known[key]


def _read(path: Path) -> dict[str, str]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def _write(path: Path, values: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, values)
