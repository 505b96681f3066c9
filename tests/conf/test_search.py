"""What may be asked of a search of learning rates, and never of the published tables."""

from pathlib import Path

import pytest

from cryobench.conf.compose import load_sweep
from cryobench.conf.errors import ConfigError
from cryobench.conf.schema import SweepSpec

RANGE = "lr_search={regimes:[finetune],lr:[1e-5,1e-1]}"
TABLES = ("paper_frozen", "paper_few_shot", "paper_finetune", "paper_lr_search", "full")


def test_by_default_rates_are_a_grid_and_nothing_is_stopped() -> None:
    sweep = load_sweep(["sweep=demo"])
    assert (sweep.search, sweep.scheduler, sweep.for_table) == ("grid", "none", False)


@pytest.mark.parametrize("scheduler", ["asha", "median"])
def test_a_scheduler_and_a_search_are_overrides(scheduler: str) -> None:
    sweep = load_sweep(["sweep=demo", f"scheduler={scheduler}", "search=optuna", RANGE])
    assert (sweep.search, sweep.scheduler) == ("optuna", scheduler)
    assert sweep.lr_search is not None
    assert sweep.lr_search.samples == 8
    assert load_sweep(["sweep=demo", "lr_search.samples=3"]).lr_search.samples == 3  # type: ignore[union-attr]


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("asked", ["scheduler=asha", "scheduler=median", "search=optuna"])
def test_trials_of_the_published_tables_are_trained_to_their_end(name: str, asked: str) -> None:
    assert load_sweep([f"sweep={name}"]).for_table
    with pytest.raises(ConfigError) as error:
        load_sweep([f"sweep={name}", asked, RANGE])
    told = str(error.value)
    assert f"found {asked} in a sweep whose trials make the published tables" in told
    assert "expected scheduler=none and search=grid" in told
    assert "CONFIG_DIR/sweep" in told
    assert told.count("\n") == 0


@pytest.mark.parametrize("override", ["for_table=false", "++for_table=false", "~for_table=true", "for_table=true"])
def test_no_override_says_what_tables_are_made_of(override: str) -> None:
    for name in ("paper_lr_search", "demo"):
        with pytest.raises(ConfigError, match="expected for_table in a sweep's file alone"):
            load_sweep([f"sweep={name}", override, "scheduler=asha"])


def test_a_users_own_sweep_searches_what_a_table_compares(tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    text = "# @package _global_\nname: mine\nencoders: [unet]\ndatasets: [glid]\nregimes: [finetune]\nlr: [1e-4]\n"
    (tmp_path / "sweep" / "mine.yaml").write_text(text + "scheduler: asha\n")
    assert load_sweep(["sweep=mine"], tmp_path).scheduler == "asha"
    (tmp_path / "sweep" / "mine.yaml").write_text(text + "scheduler: asha\nfor_table: true\n")
    with pytest.raises(ConfigError, match="found scheduler=asha"):
        load_sweep(["sweep=mine"], tmp_path)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["lr_search=null"], "found lr_search=null, expected e.g. lr_search="),
        (["lr_search={regimes:[finetune],lr:[1e-3]}"], r"found \[0.001\], expected at least two different rates"),
        (["lr_search={regimes:[finetune],lr:[1e-3,1e-3]}"], "expected at least two different rates"),
        ([RANGE, "seeds=[1,2]"], r"found seeds=\[1, 2\], expected exactly one"),
        (["lr_search={regimes:[finetune],lr:[1e-5,1e-1],samples:0}"], "lr_search.samples: Input should be greater"),
    ],
)
def test_a_search_needs_a_range_and_one_seed(overrides: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load_sweep(["sweep=demo", "search=optuna", *overrides])


def test_a_request_that_was_recorded_before_there_were_searches_is_read() -> None:
    plain = load_sweep(["sweep=demo"]).model_dump(mode="json")
    for name in ("search", "scheduler", "for_table"):
        del plain[name]
    del plain["lr_search"]["samples"]
    assert SweepSpec.model_validate(plain) == load_sweep(["sweep=demo"])
