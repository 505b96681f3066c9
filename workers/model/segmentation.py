"""Encoder and decoder as one module, and one step of training it. Needs torch alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cryobench.conf.terms import IGNORE, Modality
from cryobench.workers.model.numerics import autocast


class SegmentationModel(nn.Module):
    """An encoder, frozen or not, under a decoder.

    A frozen encoder stays in eval mode, whatever mode the model is put into, and runs without gradients unless
    adapters in it train.

    Args:
        encoder: from inputs by modality to feature maps.
        decoder: from feature maps and a size to logits of that size.
        train_encoder: whether the encoder trains. Parameters of a frozen one that are to train all the same
            (adapters) are to be given ``requires_grad`` afterwards, and `train` called again.
        frozen_mode: the mode in which a frozen encoder stays; ``train`` is the reference's error.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, train_encoder: bool, frozen_mode: str = "eval") -> None:
        super().__init__()
        self.encoder, self.decoder, self.train_encoder = encoder, decoder, train_encoder
        self._frozen_mode, self._encoder_learns = frozen_mode, train_encoder
        encoder.requires_grad_(train_encoder)
        self.train()

    def train(self, mode: bool = True) -> SegmentationModel:
        """Training or eval mode; a frozen encoder stays in its own. Settles whether anything in it learns."""
        super().train(mode)
        self._encoder_learns = any(p.requires_grad for p in self.encoder.parameters())
        self.encoder.train(mode and (self.train_encoder or self._frozen_mode == "train"))
        return self

    def forward(self, inputs: dict[Modality, Tensor]) -> Tensor:
        """Logits (B, classes, H, W) at the inputs' size."""
        size = next(iter(inputs.values())).shape[-2:]
        with torch.set_grad_enabled(self._encoder_learns and torch.is_grad_enabled()):
            features = self.encoder(inputs)
        logits: Tensor = self.decoder(features, (int(size[0]), int(size[1])))
        return logits

    def trained_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that the optimizer updates, in a fixed order."""
        return (p for p in self.parameters() if p.requires_grad)

    def trained_state(self) -> dict[str, Tensor]:
        """What training changes: without what is frozen, which comes from its file or the seed."""
        if self.train_encoder or self._frozen_mode == "train":
            return self.state_dict()
        learning = {name for name, p in self.named_parameters() if p.requires_grad}
        state: dict[str, Tensor] = self.state_dict()
        return {k: v for k, v in state.items() if k in learning or not k.startswith("encoder.")}

    def load_trained_state(self, state: dict[str, Tensor]) -> None:
        """The inverse of `trained_state`."""
        expected = self.trained_state().keys()
        if expected != state.keys():
            raise KeyError(f"expected {len(expected)} tensors, found {len(state)}")
        self.load_state_dict(state, strict=False)


def segmentation_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy over the labelled pixels; zero where a batch has none."""
    return summed_loss(logits, labels) / labelled_pixels(labels)


def summed_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy summed over the labelled pixels, in float32."""
    logits = logits.float()
    if torch.are_deterministic_algorithms_enabled():
        # On GPUs torch's own sum over an image adds in varying order; that of a tensor does not.
        return F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none").sum()
    return F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")


def labelled_pixels(labels: Tensor) -> Tensor:
    """Their number, at least one."""
    return (labels != IGNORE).sum().clamp(min=1)


def training_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: dict[Modality, Tensor],
    labels: Tensor,
    *,
    precision: str = "fp32",
    micro_batches: int = 1,
) -> Tensor:
    """One step; the loss stays on the device. Nothing in here waits for it.

    With ``micro_batches`` the gradient is gathered from as many parts of the batch, of sizes that differ by one at
    most (``chunk`` would leave a single crop of 7 or 10, which batch norm cannot train on). It is the whole batch's
    but for batch norm, whose statistics are those of the parts.
    """
    optimizer.zero_grad(set_to_none=True)
    count, total = labelled_pixels(labels), torch.zeros((), device=labels.device)
    parts = {modality: values.tensor_split(micro_batches) for modality, values in inputs.items()}
    for i, part in enumerate(labels.tensor_split(micro_batches)):
        with autocast(precision, labels.device):
            logits = model({modality: values[i] for modality, values in parts.items()})
        loss = summed_loss(logits, part) / count
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
    optimizer.step()
    return total


def make_adamw(
    parameters: Iterable[nn.Parameter] | Sequence[dict[str, object]],
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
) -> torch.optim.AdamW:
    """AdamW in one fused kernel a step."""
    return torch.optim.AdamW(parameters, lr=lr, betas=betas, weight_decay=weight_decay, fused=True)
