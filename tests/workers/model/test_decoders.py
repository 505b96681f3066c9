import pytest
import torch

from cryobench.encoders.golden import GOLDEN_DIR, TOLERANCE, deviation, golden_state, noise, read_golden
from cryobench.workers.model.decoders.unet_decoder import UNetDecoder
from cryobench.workers.model.decoders.upernet import UPerNet


@pytest.mark.parametrize("name", ["upernet_plain4", "upernet_pyramid4", "upernet_single", "upernet_small"])
def test_upernet_is_the_references(name: str) -> None:
    golden = read_golden(GOLDEN_DIR / f"{name}.json")
    decoder = UPerNet(tuple(golden["in_channels"]), golden["pyramid"], golden["channels"], golden["num_classes"], 0.1)
    state = golden_state(golden)
    missing, extra = decoder.load_state_dict(state, strict=False)
    assert extra == []
    assert all(key.endswith("num_batches_tracked") for key in missing)
    features = [noise(golden["seed"], f["key"], f["shape"]) for f in golden["features"]]
    with torch.no_grad():
        logits = decoder.eval()(features, tuple(golden["output_size"]))
    assert deviation([logits], golden) <= TOLERANCE


def test_the_unet_decoder_has_the_published_widths() -> None:
    decoder = UNetDecoder((512, 512, 256, 128, 64), 3)
    widths = [(m[0].in_channels, m[0].out_channels) for m in decoder.merge]  # type: ignore[index]
    assert widths == [(1024, 256), (512, 128), (256, 64), (128, 64)]
    assert [(u.in_channels, u.out_channels) for u in decoder.up] == [(512, 512), (256, 256), (128, 128), (64, 64)]


@pytest.mark.parametrize("size", [(32, 32), (50, 70), (33, 47)])
def test_the_unet_decoder_returns_to_any_size(size: tuple[int, int]) -> None:
    shapes = [size]
    for _ in range(2):
        shapes.append((shapes[-1][0] // 2, shapes[-1][1] // 2))
    features = [torch.randn(1, c, *s) for c, s in zip((16, 16, 8), shapes[::-1], strict=True)]
    assert UNetDecoder((16, 16, 8), 3)(features, size).shape == (1, 3, *size)
