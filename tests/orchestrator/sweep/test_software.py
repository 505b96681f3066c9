"""A node that runs other software than the driver refuses, and says which."""

from dataclasses import replace

import pytest

from cryobench.conf.errors import OtherSoftwareError
from cryobench.orchestrator.sweep.software import Software


def test_the_same_software_is_accepted_and_any_other_is_named_with_the_drivers() -> None:
    here = Software.here()
    here.require_here("gpu-1")
    for name in ("cryobench", "torch", "python"):
        driver = replace(here, **{name: "0.0.9"})
        with pytest.raises(OtherSoftwareError, match=f"Node gpu-1 runs {name} .*, the driver has 0.0.9. Install"):
            driver.require_here("gpu-1")


def test_a_changed_file_is_other_software(monkeypatch: pytest.MonkeyPatch) -> None:
    from cryobench.orchestrator.sweep import software

    before = software._digest()
    assert software._digest() == before
    real = software._contents
    monkeypatch.setattr(software, "_contents", lambda folder, name: [*real(folder, name), ("conf/new.py", b"")])
    assert software._digest() != before
