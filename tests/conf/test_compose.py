from pathlib import Path

import pytest

from cryobench.conf.compose import load_dataset, load_datasets, load_encoder, load_encoders, load_sweep
from cryobench.conf.errors import ConfigError, UnknownNameError

SYSTEMS = 16


def test_the_published_protocol_is_the_default() -> None:
    protocol = load_sweep(["sweep=paper_frozen"]).protocol
    assert (protocol.epochs, protocol.batch_size, protocol.eval_every) == (80, 8, 5)
    assert (protocol.betas, protocol.weight_decay) == ((0.9, 0.999), 0.05)
    assert (protocol.lr_milestones, protocol.lr_gamma) == ((0.6, 0.9), 0.1)
    assert protocol.decoder_channels == 512
    sweep = load_sweep(["sweep=paper_frozen"])
    assert (sweep.lr, sweep.seeds) == ((1e-4,), (234,))


def test_paper_frozen_is_sixteen_systems_on_five_data_sets() -> None:
    sweep = load_sweep(["sweep=paper_frozen"])
    assert len(sweep.encoders) == SYSTEMS
    assert {d.name for d in sweep.datasets} == {"caffe", "gld", "glid", "gsdd", "sicd"}


def test_overrides_in_hydras_grammar() -> None:
    sweep = load_sweep(["sweep=paper_frozen", "encoders=[unet,vit]", "lr=[1e-4,1e-3]", "protocol.epochs=20"])
    assert [e.name for e in sweep.encoders] == ["unet", "vit"]
    assert sweep.lr == (1e-4, 1e-3)
    assert sweep.protocol.epochs == 20


def test_singular_forms_name_one() -> None:
    sweep = load_sweep(["encoder=unet", "dataset=glid", "regime=frozen", "seed=1"])
    assert [e.name for e in sweep.encoders] == ["unet"]
    assert sweep.seeds == (1,)


def test_every_configuration_file_is_valid() -> None:
    assert {"unet", "vit", "s12_mae", "croma", "terramind"} <= {e.name for e in load_encoders()}
    assert {"glid", "caffe", "gsdd", "gld", "sicd", "debris", "front"} == {d.name for d in load_datasets()}


@pytest.mark.parametrize(
    ("override", "listed"),
    [
        ("sweep=foo", "paper_frozen"),
        ("encoders=[unett]", "Did you mean 'unet'?"),
        ("datasets=[glidd]", "Did you mean 'glid'?"),
        ("regimes=[fozen]", "few_shot"),
        ("protocol=papers", "paper, reference, small"),
        ("resources=big", "default"),
    ],
)
def test_an_unknown_name_lists_the_known_ones(override: str, listed: str) -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown \w+ '\w+'.*Known: ") as error:
        load_sweep([override])
    assert listed in str(error.value)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("lr=-1", "lr.0"),
        ("protocol.epochs=0", "protocol.epochs: Input should be greater than or equal to 1; found 0"),
        ("protocol.batch_size=many", "protocol.batch_size"),
        ("weights=some", "weights: Input should be 'published' or 'random'; found 'some'"),
        ("protocol.epoch=3", "protocol.epoch"),
        ("lr=[1e-4", "Hydra's grammar"),
        ("nonsense", "expected name=value"),
        ("encoders=[unet,unet]", "named more than once"),
        ("encoders=unet", "expected a list"),
    ],
)
def test_a_wrong_value_names_the_field_and_what_it_accepts(override: str, named: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_sweep([override])
    assert named in str(error.value)


def test_own_files_come_from_the_config_dir(tmp_path: Path) -> None:
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "vit_wide.yaml").write_text("defaults: [vit, _self_]\ntitle: Wide\ninput_size: 256\n")
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "mine.yaml").write_text(
        "# @package _global_\nname: mine\nencoders: [vit_wide, unet]\ndatasets: [glid]\nregimes: [frozen]\nlr: [1e-4]\n"
    )
    sweep = load_sweep(["sweep=mine"], tmp_path)
    assert [(e.name, e.input_size) for e in sweep.encoders] == [("vit_wide", 256), ("unet", "tile")]
    assert sweep.encoders[0].settings == load_encoder("vit").settings


def test_own_files_may_not_take_a_built_in_name(tmp_path: Path) -> None:
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "vit.yaml").write_text("title: Other\n")
    with pytest.raises(ConfigError, match="one of cryobench's own"):
        load_sweep([], tmp_path)


def test_a_config_dir_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a folder"):
        load_sweep([], tmp_path / "no")


def test_an_unknown_field_in_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "mine.yaml").write_text("defaults: [glid, _self_]\ncolour: red\n")
    with pytest.raises(ConfigError, match=r"In dataset 'mine': colour: no such field. Known: name, title"):
        load_dataset("mine", tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "two words",
        "a#b,c=d;é雪",
        'it\'s "x"',
        "$HOME ${oc.env:HOME}",
        "a\\'b\\",
        "[x] ~{y} 100%20",
    ],
)
@pytest.mark.filterwarnings("error")  # Hydra only warns of a folder that it does not find
def test_a_config_dir_may_have_any_name(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    for group, file, text in (
        (
            "sweep",
            "mine",
            "# @package _global_\ndefaults: [demo, _self_]\nname: mine\nencoders: [wide]\ndatasets: [lakes]\n",
        ),
        ("encoder", "wide", "defaults: [vit, _self_]\ntitle: Wide\n"),
        ("dataset", "lakes", "defaults: [glid, _self_]\ntitle: Lakes\n"),
    ):
        (folder / group).mkdir(parents=True)
        (folder / group / f"{file}.yaml").write_text(text)
    sweep = load_sweep(["sweep=mine"], folder)
    assert (sweep.name, sweep.encoders[0].title, sweep.datasets[0].title) == ("mine", "Wide", "Lakes")
    assert load_encoder("wide", folder).settings == load_encoder("vit").settings
    assert load_dataset("lakes", folder).classes == load_dataset("glid").classes
