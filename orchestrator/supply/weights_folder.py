"""Published weights on this machine: which file an encoder needs, how to get it, and its digest.

A file's SHA-256 is recorded in the weights folder on first use, unless its YAML states the published one; a
later mismatch is an error, and the digest enters the trial's identity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from cryobench.conf.errors import BadCheckpointError, CryobenchError, FetchError, MissingWeightsError
from cryobench.conf.schema import EncoderSpec, WeightsSpec
from cryobench.conf.terms import Variant
from cryobench.conf.trial import TrialWeights
from cryobench.orchestrator.supply.digest_record import DigestRecord

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
        self.folder = folder
        self._record = DigestRecord(folder, cache_dir)

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
        return self._record.verified(spec.file, spec.sha256, BadCheckpointError)

    def fetch(self, spec: WeightsSpec, progress: Progress = lambda done, total: None) -> Path:
        """Download a file unless it is here, and verify it.

        Raises:
            FetchError: it cannot be downloaded; the message says how to get it by hand.
        """
        from cryobench.orchestrator.supply.fetch import download, download_from_hub

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
