"""From YAML groups and overrides to a checked `SweepSpec`, by Hydra's compose API.

The users' own files come from ``config_dir``, which has the same groups; they add names and may not take the
names of this package's files, so that a name means the same thing everywhere.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc
from pydantic import BaseModel, ValidationError
from yaml import YAMLError

from cryobench.conf.dataset_spec import DatasetSpec
from cryobench.conf.errors import ConfigError, UnknownNameError
from cryobench.conf.schema import EncoderSpec, RegimeSpec, SweepSpec
from cryobench.conf.yaml_files import check_yaml

_HERE = Path(__file__).parent
GROUPS = ("encoder", "dataset", "regime", "sweep", "protocol", "resources")
#: Singular forms accepted where a single trial is asked for.
_SINGULAR = {"encoder": "encoders", "dataset": "datasets", "regime": "regimes", "seed": "seeds"}
#: Lists in the primary configuration that sweeps refer to.
_SHORTHANDS = ("systems", "benchmark")
#: What no override may change.
_FILE_ONLY = "for_table"
#: Fields that are paths of a machine, and enter no result.
_PATHS = ("cache_dir",)

M = TypeVar("M", bound=BaseModel)


def load_sweep(overrides: Sequence[str] = (), config_dir: Path | None = None) -> SweepSpec:
    """The sweep that ``overrides`` ask for, e.g. ``["sweep=paper_frozen", "encoders=[unet,vit]"]``.

    Raises:
        UnknownNameError: a sweep, encoder, data set, regime or protocol that no file defines.
        ConfigError: an override or value that cannot be used; the message names the field.
    """
    for override in overrides:
        if override.lstrip("+~").partition("=")[0] == _FILE_ONLY:
            raise ConfigError(
                f"Found the override {override}; expected {_FILE_ONLY} in a sweep's file alone: it says that published "
                "tables are made of its trials. Leave it out; to search learning rates or stop trials early, write a "
                "sweep of your own, CONFIG_DIR/sweep/NAME.yaml."
            )
    with Library(config_dir) as library:
        plain = library.compose("cryobench", [_plural(o) for o in overrides])
        for name in _SHORTHANDS:
            plain.pop(name, None)
        for field, group, model in (
            ("encoders", "encoder", EncoderSpec),
            ("datasets", "dataset", DatasetSpec),
            ("regimes", "regime", RegimeSpec),
        ):
            names = plain.get(field)
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                example = library.known(group)[0]
                raise ConfigError(f"{field}: expected a list of names such as [{example}], found {names!r}.")
            doubles = sorted({name for name in names if names.count(name) > 1})
            if doubles:
                raise ConfigError(f"{field}: {', '.join(doubles)} named more than once; name each once.")
            plain[field] = [library.load(group, name, model) for name in names]
        search = plain.get("lr_search")
        if isinstance(search, dict):
            for field, group in (("regimes", "regime"), ("datasets", "dataset")):
                for name in search.get(field) or ():
                    library.require(group, name)
        return _checked(SweepSpec, plain, f"sweep '{plain.get('name')}'")


def load_dataset(name: str, config_dir: Path | None = None) -> DatasetSpec:
    """The data set that ``dataset/<name>.yaml`` describes."""
    with Library(config_dir) as library:
        return library.load("dataset", name, DatasetSpec)


def load_encoder(name: str, config_dir: Path | None = None) -> EncoderSpec:
    """The encoder that ``encoder/<name>.yaml`` describes."""
    with Library(config_dir) as library:
        return library.load("encoder", name, EncoderSpec)


def load_encoders(config_dir: Path | None = None) -> list[EncoderSpec]:
    """All configured encoders, by name."""
    with Library(config_dir) as library:
        return [library.load("encoder", name, EncoderSpec) for name in library.known("encoder")]


def load_datasets(config_dir: Path | None = None) -> list[DatasetSpec]:
    """All configured data sets, by name."""
    with Library(config_dir) as library:
        return [library.load("dataset", name, DatasetSpec) for name in library.known("dataset")]


class Library:
    """The YAML files of this package and of the user's folder, opened for composing."""

    def __init__(self, config_dir: Path | None = None) -> None:
        self._overrides: list[str] = []
        if config_dir is not None:
            if not config_dir.is_dir():
                raise ConfigError(
                    f"--config-dir {config_dir} is not a folder. Expected one with some of {', '.join(GROUPS)} in it."
                )
            for group in GROUPS:
                for path in sorted((config_dir / group).glob("*.yaml")):
                    if (_HERE / group / path.name).exists():
                        raise ConfigError(
                            f"{path}: the {group} '{path.stem}' is one of cryobench's own. Rename the file; to "
                            f"start from the built-in one, begin it with 'defaults: [{path.stem}, _self_]'."
                        )
            self._overrides = [f"hydra.searchpath=[{_quoted(f'file://{config_dir.resolve()}')}]"]
        self._folders = [_HERE] + ([config_dir] if config_dir else [])

    def __enter__(self) -> Library:
        GlobalHydra.instance().clear()
        initialize_config_dir(config_dir=str(_HERE), version_base="1.3")
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        GlobalHydra.instance().clear()

    def known(self, group: str) -> list[str]:
        """The names that a group offers."""
        return sorted({path.stem for folder in self._folders for path in (folder / group).glob("*.yaml")})

    def require(self, group: str, name: str) -> None:
        """Raise `UnknownNameError` unless ``group`` offers ``name``."""
        if name not in self.known(group):
            raise UnknownNameError(group, name, self.known(group), f"Your own go into CONFIG_DIR/{group}/NAME.yaml.")

    def load(self, group: str, name: str, model: type[M]) -> M:
        """One file of a group, checked against its model."""
        self.require(group, name)
        plain: Any = self._checked_file(group, name)
        if "defaults" in plain:  # built upon other files: Hydra's business
            plain = self.compose("part", [f"+{group}={name}"]).get(group)
        else:
            plain = self._resolved(lambda: OmegaConf.create(plain), f"{group} '{name}'")
        if not isinstance(plain, dict):
            raise ConfigError(f"{group} '{name}': expected 'field: value' lines, found {type(plain).__name__}.")
        return _checked(model, {**plain, "name": name}, f"{group} '{name}'")

    def compose(self, config: str, overrides: list[str]) -> dict[str, Any]:
        """The plain data of one config with overrides."""
        for override in overrides:
            group, _, value = override.partition("=")
            if group in GROUPS:
                self.require(group, value)
        for override in overrides:
            group, _, value = override.lstrip("+").partition("=")
            if group in GROUPS and value in self.known(group):
                self._checked_file(group, value)
        plain = self._resolved(
            lambda: compose(config_name=config, overrides=[*self._overrides, *overrides]),
            f"{config} with {' '.join(overrides)[:300] or 'no overrides'}",
        )
        return {str(key): value for key, value in plain.items()}

    def _checked_file(self, group: str, name: str, above: tuple[tuple[str, str], ...] = ()) -> dict[str, Any]:
        """A file of a group through the door for YAML, and with it all that it is built upon."""
        if (group, name) in above:
            chain = " -> ".join(f"{one}/{other}" for one, other in (*above, (group, name)))
            raise ConfigError(f"The defaults of {above[0][0]}/{above[0][1]}.yaml lead back to themselves: {chain}.")
        path = next((p for folder in self._folders if (p := folder / group / f"{name}.yaml").exists()), None)
        if path is None:
            return {}  # of a name that no file has, Hydra says what it looked for
        plain = check_yaml(path)
        listed = plain.get("defaults") or []
        if not isinstance(listed, list):
            raise ConfigError(f"{path}: defaults: expected a list of names, found {listed!r}.")
        for entry in listed:
            for below_group, below in _named_in(entry, group):
                self._checked_file(below_group, below, (*above, (group, name)))
        return plain

    def _resolved(self, build: Callable[[], Any], what: str) -> dict[str, Any]:
        """Plain data with all interpolations in it, but for the environment's outside of paths."""
        with _environment_for_paths_alone():
            try:
                plain: Any = OmegaConf.to_container(build(), resolve=True)
            except (HydraException, OmegaConfBaseException, YAMLError, ValueError, TypeError, RecursionError) as error:
                reason = " ".join(str(error).strip().splitlines()[:3])[:600]
                raise ConfigError(
                    f"Cannot compose {what}: {reason}. Overrides are name=value in Hydra's grammar, e.g. sweep=demo "
                    "encoders=[unet,vit] lr=[1e-4,1e-3]."
                ) from error
        if not isinstance(plain, dict):
            raise ConfigError(f"{what}: expected 'field: value' lines, found {type(plain).__name__}.")
        return plain


def _named_in(entry: object, group: str) -> Iterator[tuple[str, str]]:
    """The files, as group and name, that an entry of a defaults list names."""
    if isinstance(entry, str) and entry != "_self_":
        other, _, name = entry.rpartition("/")
        yield (other.strip("/") or group, name)
    elif isinstance(entry, dict):
        for key, names in entry.items():
            other = str(key).split()[-1].partition("@")[0].strip("/")
            for name in names if isinstance(names, list) else [names]:
                if isinstance(name, str):
                    yield other, name


@contextmanager
def _environment_for_paths_alone() -> Iterator[None]:
    """What the environment holds may be secret; in the name of a sweep, say, it would be written everywhere."""

    def of_environment(variable: str, default: str | None = None, *, _node_: Any) -> str | None:
        if _node_._get_full_key(None).rpartition(".")[2] not in _PATHS:
            raise ConfigError(
                f"The environment's {variable} may not be used here: what stands in a configuration is written into "
                f"folders, logs and MLflow. Only paths ({', '.join(_PATHS)}) may name it"
            )
        if variable not in os.environ and default is None:
            raise ConfigError(f"The environment has no variable {variable}")
        return os.environ.get(variable, default)

    OmegaConf.register_new_resolver("oc.env", of_environment, replace=True)
    try:
        yield
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)


def _quoted(text: str) -> str:
    """Any text as one quoted value of Hydra's grammar, where a backslash means something only before a quote.

    The text of a ``file:`` path, not its URI: Hydra takes what stands there as it is, a space as %20 too.
    """
    return "'" + re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + (r"\'" if found[2] else ""), text) + "'"


def _plural(override: str) -> str:
    key, equals, value = override.partition("=")
    if not equals:
        raise ConfigError(f"'{override}' is no override; expected name=value, e.g. lr=[1e-4,1e-3].")
    if key in _SINGULAR:
        return f"{_SINGULAR[key]}=[{value.strip('[]')}]"
    return override


def _checked(model: type[M], plain: dict[str, Any], where: str) -> M:
    try:
        return model.model_validate(plain)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            field = ".".join(str(part) for part in problem["loc"]) or "(whole)"
            found = problem["input"]
            shown = f"; found {repr(found)[:100]}" if not isinstance(found, dict | list) else ""
            if problem["type"] == "extra_forbidden":
                lines.append(f"{field}: no such field. Known: {', '.join(model.model_fields)}")
            else:
                lines.append(f"{field}: {problem['msg']}{shown}")
        raise ConfigError(f"In {where}: " + "; ".join(lines)) from None
