"""Published weights on this machine: which file an encoder needs, and its digest, computed once a file."""

from __future__ import annotations

import json
from pathlib import Path

from cryobench.conf.schema import EncoderSpec, Variant
from cryobench.conf.trial import TrialWeights


class WeightsFolder:
    """A folder of published files, fetched by hand, and the digests of those seen before."""

    def __init__(self, folder: Path, cache_dir: Path) -> None:
        self._folder, self._memory = folder, cache_dir / "weights.json"
        self._known: dict[str, str] = {}
        if self._memory.exists():
            try:
                self._known = json.loads(self._memory.read_text())
            except ValueError:
                self._known = {}  # only a memory of digests: computed again

    def of(self, encoder: EncoderSpec, variant: Variant, wanted: str) -> tuple[TrialWeights, str | None]:
        """The weights of a trial, and what is missing, in words, if anything is."""
        if encoder.baseline:
            return TrialWeights(kind="scratch"), None
        if wanted == "random":
            return TrialWeights(kind="random"), None
        spec = encoder.variants[variant].weights
        if spec is None:
            return TrialWeights(kind="published"), (
                f"No weights are published for encoder '{encoder.name}'. Run it with weights=random (marked as such), "
                "or name a file under weights in its YAML."
            )
        path = self._folder / spec.file
        weights = TrialWeights(kind="published", digest=f"missing:{spec.file}", file=spec.file, layout=spec.layout)
        if not path.is_file():
            return weights, (
                f"Weights of '{encoder.name}' not found: expected {path} (published: {spec.published}). "
                "Fetch the file by hand into that folder, give another --weights-dir, or run with weights=random."
            )
        return weights.model_copy(update={"digest": self._digest(path)}), None

    def _digest(self, path: Path) -> str:
        from cryobench.workers.files import write_json

        stat = path.stat()
        key = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
        if key not in self._known:
            import hashlib

            with path.open("rb") as file:
                self._known[key] = hashlib.file_digest(file, "sha256").hexdigest()
            self._memory.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._memory, self._known)
        return self._known[key]
