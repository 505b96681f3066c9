from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from cryobench.conf.schema import ProtocolSpec
from cryobench.conf.trial import TrialSpec
from cryobench.encoders.golden import GOLDEN_DIR, read_golden
from cryobench.workers.model.build import build_model
from cryobench.workers.model.segmentation import segmentation_loss
from cryobench.workers.training.epoch import learning_rate, make_optimizer

GOLDEN = read_golden(GOLDEN_DIR / "protocol.json")["lr_schedule"]
Build = Callable[..., TrialSpec]


def test_the_rate_is_the_references_at_every_step() -> None:
    protocol = ProtocolSpec()
    assert list(protocol.lr_milestones) == GOLDEN["milestones"]
    expected, changes = [], {c["step"]: c["lr"] for c in GOLDEN["changes"]}
    for step in range(GOLDEN["total_steps"]):
        expected.append(changes.get(step, expected[-1] if expected else None))
    found = [learning_rate(GOLDEN["base"], step, GOLDEN["total_steps"], protocol) for step in range(200)]
    assert found == expected


def test_the_rate_equals_torchs_multistep_schedule() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=3e-4)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [int(0.6 * 137), int(0.9 * 137)], gamma=0.1)
    for step in range(137):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(
            learning_rate(3e-4, step, 137, ProtocolSpec()), rel=1e-12
        )
        optimizer.step()
        scheduler.step()


def test_the_loss_leaves_ignored_pixels_out() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8))
    labels[0, :4] = 255
    expected = F.cross_entropy(logits, labels, ignore_index=255)
    torch.testing.assert_close(segmentation_loss(logits, labels), expected)
    assert segmentation_loss(logits, torch.full_like(labels, 255)) == 0


def test_a_frozen_encoder_stays_in_eval_mode_and_does_not_train(one_trial: Build) -> None:
    """The reference leaves frozen encoders in train mode."""
    model = build_model(one_trial("encoder=s12_moco_small", "regime=frozen"), 2, None).train()
    assert not any(module.training for module in model.encoder.modules())
    assert model.decoder.training
    assert not any(p.requires_grad for p in model.encoder.parameters())
    assert all(p.requires_grad for p in model.decoder.parameters())
    assert not any(name.startswith("encoder.") for name in model.trained_state())


@pytest.mark.parametrize(("encoder", "regime"), [("s12_moco_small", "finetune"), ("unet_small", "frozen")])
def test_finetuned_encoders_and_baselines_train_fully(one_trial: Build, encoder: str, regime: str) -> None:
    model = build_model(one_trial(f"encoder={encoder}", f"regime={regime}"), 2, None)
    assert all(p.requires_grad for p in model.parameters())
    spec = one_trial(f"encoder={encoder}", f"regime={regime}")
    (group,) = make_optimizer(model, spec).param_groups
    assert len(group["params"]) == len(list(model.parameters()))
    assert (group["weight_decay"], group["betas"]) == (0.05, (0.9, 0.999))


def test_initial_weights_are_the_seeds(one_trial: Build) -> None:
    def weights(*overrides: str) -> list[torch.Tensor]:
        return list(build_model(one_trial(*overrides), 2, None).state_dict().values())

    torch.manual_seed(99)
    first = weights()
    torch.manual_seed(1)
    assert all(torch.equal(a, b) for a, b in zip(first, weights(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, weights("seed=2"), strict=True))
