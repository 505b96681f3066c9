import numpy as np

from cryobench.conf.streams import stream, stream_seed


def test_a_stream_depends_on_seed_and_name_alone() -> None:
    assert np.array_equal(stream(1, "order", 3).random(4), stream(1, "order", 3).random(4))
    assert stream_seed(1, "order", 3) != stream_seed(1, "order", 4)
    assert stream_seed(1, "order", 3) != stream_seed(2, "order", 3)
    assert stream_seed(1, "order") != stream_seed(1, "crop")


def test_known_values_never_change() -> None:
    assert stream_seed(234, "order", 1) == 3736506497526099716
    assert stream(234, "order", 1).integers(0, 1000, 4).tolist() == [667, 598, 8, 307]
    assert 0 <= stream_seed(234, "initialise", "encoder") < 2**63
