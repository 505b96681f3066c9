"""The door for YAML files: what comes through it is plain data of bearable size, or a `ConfigError` says why not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from cryobench.conf.errors import ConfigError

#: A configuration file has some kilobytes. Aliases may repeat parts, but not make more of them than a file could hold.
MAX_BYTES, MAX_VALUES, MAX_DEPTH = 1_000_000, 100_000, 50


def check_yaml(path: Path) -> dict[str, Any]:
    """Read a configuration file and check that nothing in it can surprise whoever composes it.

    Returns:
        Its plain data, interpolations as they stand there.

    Raises:
        ConfigError: it cannot be read, is not YAML, has tags, keys that are no text or stand there twice, is no
            mapping, or grows beyond all measure by its aliases.
    """
    if not path.is_file():
        raise ConfigError(f"{path} is not a file. Expected YAML; remove it or give it another name.")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from error
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{path} has {len(content):,} bytes, expected a configuration of at most {MAX_BYTES:,}.")
    try:
        node = yaml.compose(content.decode("utf-8"), yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}). Save it as UTF-8.") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        text = " ".join(str(error).split())[:300] if not isinstance(error, RecursionError) else "nested too deeply"
        raise ConfigError(f"{path} is not YAML: {text}.") from error
    if node is None:
        return {}
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{path}: expected 'field: value' lines, found a {_kind(node)}.")
    _check(node, path)
    plain: dict[str, Any] = yaml.SafeLoader("").construct_document(node)
    return plain


def _check(root: yaml.Node, path: Path) -> None:
    """Go through the graph of nodes, of which aliases make several parents of one; sizes as if all were copied."""
    sizes: dict[int, int] = {}
    above: set[int] = set()

    def size(node: yaml.Node, depth: int) -> int:
        if id(node) in above:
            raise ConfigError(f"{path}: an alias in line {node.start_mark.line + 1} holds itself.")
        if depth > MAX_DEPTH:
            raise ConfigError(f"{path}: nested more than {MAX_DEPTH} deep in line {node.start_mark.line + 1}.")
        if id(node) not in sizes:
            above.add(id(node))
            _check_one(node, path)
            sizes[id(node)] = 1 + sum(size(child, depth + 1) for child in _children(node))
            above.remove(id(node))
        if sizes[id(node)] > MAX_VALUES:
            raise ConfigError(f"{path}: its aliases make more than {MAX_VALUES:,} values of it.")
        return sizes[id(node)]

    size(root, 0)


def _check_one(node: yaml.Node, path: Path) -> None:
    where = f"{path}, line {node.start_mark.line + 1}"
    if not node.tag.startswith("tag:yaml.org,2002:") or "python" in node.tag:
        raise ConfigError(f"{where}: the tag {node.tag} is not allowed. Expected plain values.")
    if isinstance(node, yaml.MappingNode):
        names: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ConfigError(f"{where}: a {_kind(key)} as a name. Expected 'field: value'.")
            if key.value in names:
                raise ConfigError(f"{where}: '{key.value}' stands there twice. Keep one of them.")
            names.add(key.value)


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield key
            yield value
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def _kind(node: yaml.Node) -> str:
    kinds = ((yaml.SequenceNode, "list"), (yaml.MappingNode, "mapping"))
    return next((name for kind, name in kinds if isinstance(node, kind)), "single value")
