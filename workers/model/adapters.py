"""What part of an encoder learns, and how fast: low-rank adapters, and rates that fall with depth."""

from __future__ import annotations

import re
import warnings
from typing import Any

from torch import nn

from cryobench.conf.errors import ConfigError, MissingLibraryError

#: Names of the lists of blocks, stages and layers in every family; the number that follows is a block's place.
_BLOCK = re.compile(r"(?:^|\.)(?:blocks|layers|stages|resblocks|features|down|downs|encoder)\.(\d+)(?=\.)")

#: What lies before the first block, though it may have layers of its own (DOFA's makes its weights by a transformer).
_STEM = "patch_embed"


def add_lora(encoder: nn.Module, rank: int, alpha: float) -> list[str]:
    """Put low-rank adapters (the peft library's) on the linear layers of every block; only they train.

    Returns:
        The names of the layers that were adapted.

    Raises:
        MissingLibraryError: peft is not installed.
        ConfigError: the encoder has no such layers.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise MissingLibraryError("Adapters need the peft library: pip install 'cryobench[lora]'.") from error
    targets = [name for name, module in encoder.named_modules() if _adaptable(encoder, name, module)]
    if not targets:
        raise ConfigError(
            f"{type(encoder).__name__} has no linear layers in attention or MLP to adapt. "
            "The regime lora is for transformers; choose frozen or finetune."
        )
    for module in encoder.modules():
        if hasattr(module, "qkv_bias_separate"):  # timm's BEiT attention else reads its weights without calling them
            module.qkv_bias_separate = True  # type: ignore[assignment]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets), encoder)
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_("lora_" in name)
    return targets


def parameter_groups(model: nn.Module, lr: float, layer_decay: float | None) -> list[dict[str, Any]]:
    """The optimizer's groups, each with its ``scale`` of the learning rate.

    Without ``layer_decay`` one group of all that trains. With it, the decoder learns at the full rate, the encoder's
    last block (and norm) at ``layer_decay`` times that, each block below at that much less again, and what lies before
    the first block at the least.
    """
    learning = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if layer_decay is None:
        return [{"params": [p for _, p in learning], "lr": lr, "scale": 1.0}]
    places = block_places([name for name, _ in learning if name.startswith("encoder.")])
    top = max(places.values(), default=0)
    groups: dict[int, dict[str, Any]] = {}
    for name, parameter in learning:
        above = top + 1 - places[name] if name in places else 0
        scale = layer_decay**above
        group = groups.setdefault(above, {"params": [], "lr": lr * scale, "scale": scale})
        group["params"].append(parameter)
    return [groups[above] for above in sorted(groups)]


def block_places(names: list[str]) -> dict[str, int]:
    """A number for each parameter's depth: 0 before the first block, then block by block, norms at the end topmost."""
    paths = {n: () if _STEM in n else tuple(int(number) for number in _BLOCK.findall(n)) for n in names}
    order = {path: i for i, path in enumerate(sorted({path for path in paths.values() if path}), start=1)}
    last = max(order.values(), default=0)
    return {name: order[path] if path else last if _closes(name) else 0 for name, path in paths.items()}


def _closes(name: str) -> bool:
    parts = name.split(".")
    return len(parts) >= 2 and parts[-2] in ("norm", "ln_post", "fc_norm")


def _adaptable(encoder: nn.Module, name: str, module: nn.Module) -> bool:
    if not isinstance(module, nn.Linear) or not _BLOCK.search(name + ".") or _STEM in name:
        return False
    # torchvision's windowed attention reads the weights of its linear layers without calling them.
    parent = encoder.get_submodule(name.rpartition(".")[0])
    return type(parent).__module__ != "torchvision.models.swin_transformer" or "attn" not in name
