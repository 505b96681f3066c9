import numpy as np
import pytest

from cryobench.datasets.store.percentiles import PERCENTILES, percentiles

RNG = np.random.default_rng(1)


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "i4", "f4", "f8"])
def test_they_are_numpys_on_the_whole(dtype: str) -> None:
    kind = np.dtype(dtype)
    parts = []
    for size in (7, 16, 1):
        values = RNG.normal(0, 40, (3, size, 11))
        if kind.kind == "f":
            values[0, 0, :4] = [0.0, -0.0, 1e30, -1e30]
            parts.append(values.astype(kind))
        else:
            info = np.iinfo(kind)
            parts.append((values * (1 if kind.itemsize == 1 else 300)).clip(info.min, info.max).astype(kind))
    whole = np.concatenate([part.reshape(3, -1) for part in parts], axis=1)
    wanted = (0, *PERCENTILES, 100)
    found = percentiles(lambda: parts, kind, 3, whole.shape[1], wanted)
    np.testing.assert_allclose(found, np.percentile(whole.astype(np.float64), wanted, axis=1), rtol=1e-12)


def test_of_one_value_they_are_that_value() -> None:
    assert (percentiles(lambda: [np.full((1, 1, 1), 5, np.uint8)], np.dtype("u1"), 1, 1, (1, 50)) == 5).all()
