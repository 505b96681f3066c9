import numpy as np

from cryobench.datasets.batches.subsets import stratified_subset, tile_groups
from cryobench.encoders.golden import GOLDEN_DIR, read_golden

GOLDEN = read_golden(GOLDEN_DIR / "protocol.json")["few_shot"]
COUNTS = np.asarray(GOLDEN["class_counts"])


def test_groups_are_the_references() -> None:
    groups = ["".join(map(str, group)) for group in tile_groups(COUNTS, GOLDEN["bins"])]
    assert groups == GOLDEN["group_of_tile"]


def test_each_group_gives_as_many_tiles_as_the_references() -> None:
    chosen = stratified_subset(COUNTS, GOLDEN["fraction"], GOLDEN["bins"], seed=234)
    assert len(chosen) == GOLDEN["total_selected"]
    found: dict[str, int] = {}
    for tile in chosen:
        group = GOLDEN["group_of_tile"][tile]
        found[group] = found.get(group, 0) + 1
    assert found == GOLDEN["selected_per_group"]


def test_a_direct_implementation_of_the_rule_agrees_on_group_sizes() -> None:
    rng = np.random.default_rng(5)
    counts = rng.multinomial(1000, [0.7, 0.2, 0.1], size=300)
    sizes: dict[tuple[float, ...], int] = {}
    for row in counts:
        key = tuple(np.ceil(row / row.sum() * 3) - 1)
        sizes[key] = sizes.get(key, 0) + 1
    expected = sum(max(1, int(size * 0.1)) for size in sizes.values())
    assert len(stratified_subset(counts, 0.1, 3, seed=1)) == expected


def test_a_larger_fraction_contains_a_smaller_one() -> None:
    few = set(stratified_subset(COUNTS, 0.1, 3, seed=7).tolist())
    half = set(stratified_subset(COUNTS, 0.5, 3, seed=7).tolist())
    assert few < half
    assert stratified_subset(COUNTS, 1.0, 3, seed=7).tolist() == list(range(len(COUNTS)))


def test_the_draw_is_the_seeds() -> None:
    one = stratified_subset(COUNTS, 0.1, 3, seed=1)
    assert np.array_equal(one, stratified_subset(COUNTS, 0.1, 3, seed=1))
    assert not np.array_equal(one, stratified_subset(COUNTS, 0.1, 3, seed=2))
