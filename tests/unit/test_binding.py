"""Binding a PCI function to VFIO, on a sysfs of files."""

from __future__ import annotations

from pathlib import Path

import pytest

from vconfs.cli import main
from vconfs.device import binding
from vconfs.device.binding import PciFunction, bound, candidates, parse_address
from vconfs.device.errors import DeviceError

CONSOLE = "0000:00:05.0"
OTHER = "0000:00:06.0"


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    for address, device in ((CONSOLE, "0x1043"), (OTHER, "0x1041")):
        path = tmp_path / "bus/pci/devices" / address
        path.mkdir(parents=True)
        (path / "vendor").write_text("0x1af4\n")
        (path / "device").write_text(device + "\n")
        (path / "driver_override").write_text("")
        group = tmp_path / "kernel/iommu_groups/3"
        (group / "devices").mkdir(parents=True, exist_ok=True)
        (path / "iommu_group").symlink_to(group)
        (group / "devices" / address).symlink_to(path)
    (tmp_path / "bus/pci/drivers_probe").write_text("")
    return tmp_path


def give(sysfs: Path, address: str, driver: str) -> None:
    """Do what the kernel does when a driver takes a function."""
    home = sysfs / "bus/pci/drivers" / driver
    home.mkdir(parents=True, exist_ok=True)
    (home / "unbind").write_text("")
    link = sysfs / "bus/pci/devices" / address / "driver"
    link.unlink(missing_ok=True)
    link.symlink_to(home)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("0000:00:05.0", CONSOLE),
        ("00:05.0", CONSOLE),
        ("00:1F.7", "0000:00:1f.7"),
        ("0001:ff:00.0", "0001:ff:00.0"),
    ],
)
def test_addresses(text: str, address: str) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["", "5.0", "00:05", "00:05.8", "00:25.0", "../00:05.0", "0:5.0"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="no PCI address"):
        parse_address(text)


def test_candidates(sysfs: Path) -> None:
    assert candidates(sysfs) == [CONSOLE]


def test_a_wrong_address_names_the_right_ones(sysfs: Path) -> None:
    with pytest.raises(DeviceError, match=r"no PCI function 0000:00:09.0.*consoles: 0000:00:05.0"):
        PciFunction("0000:00:09.0", sysfs)


def test_the_group_and_its_neighbours(sysfs: Path) -> None:
    function = PciFunction(CONSOLE, sysfs)
    assert function.group == "3"
    assert function.group_neighbours == []
    give(sysfs, OTHER, "virtio-pci")
    assert function.group_neighbours == [OTHER]
    give(sysfs, OTHER, "vfio-pci")
    assert function.group_neighbours == []


def test_no_iommu(sysfs: Path) -> None:
    (sysfs / "bus/pci/devices" / CONSOLE / "iommu_group").unlink()
    with pytest.raises(DeviceError, match="has no IOMMU"):
        _ = PciFunction(CONSOLE, sysfs).group


def test_a_driver_that_does_not_take_it(sysfs: Path) -> None:
    give(sysfs, CONSOLE, "virtio-pci")
    function = PciFunction(CONSOLE, sysfs)
    with pytest.raises(DeviceError, match=r"vfio-pci does not take 0000:00:05.0"):
        function.bind()
    path = sysfs / "bus/pci/devices" / CONSOLE
    assert (path / "driver_override").read_text() == "\n"
    assert (path / "driver" / "unbind").read_text() == CONSOLE
    assert (sysfs / "bus/pci/drivers_probe").read_text() == CONSOLE


def test_what_is_bound_already_stays(sysfs: Path) -> None:
    give(sysfs, CONSOLE, "vfio-pci")
    function = PciFunction(CONSOLE, sysfs)
    with bound(function):
        assert function.driver == "vfio-pci"
    assert (sysfs / "bus/pci/devices" / CONSOLE / "driver_override").read_text() == ""


def test_what_was_bound_is_given_back(sysfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    give(sysfs, CONSOLE, "virtio-pci")
    function = PciFunction(CONSOLE, sysfs)
    override = PciFunction._override

    def kernel(self: PciFunction, driver: str) -> None:
        override(self, driver)
        give(sysfs, CONSOLE, driver.strip() or "virtio-pci")

    monkeypatch.setattr(PciFunction, "_override", kernel)
    with bound(function):
        assert function.driver == "vfio-pci"
    assert function.driver == "virtio-pci"


def test_no_permission(sysfs: Path) -> None:
    path = sysfs / "bus/pci/devices" / CONSOLE / "driver_override"
    path.unlink()
    path.mkdir()
    with pytest.raises(DeviceError, match=r"cannot bind 0000:00:05.0: Is a directory"):
        PciFunction(CONSOLE, sysfs).bind()


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_the_commands(
    sysfs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(binding, "SYSFS", sysfs)
    assert run("bind") == 0
    assert capsys.readouterr().out == "0000:00:05.0  -\n"
    give(sysfs, CONSOLE, "vfio-pci")
    assert run("bind", "00:05.0") == 0
    assert run("bind") == 0
    assert capsys.readouterr().out == "0000:00:05.0  vfio-pci\n"
    override = sysfs / "bus/pci/devices" / CONSOLE / "driver_override"
    assert override.read_text() == "vfio-pci"
    assert run("unbind", CONSOLE) == 0
    assert override.read_text() == "\n"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("bind", "0000:00:09.0"), 1, "virtio consoles: 0000:00:05.0"),
        (("unbind", "0000:00:09.0"), 1, "no PCI function 0000:00:09.0"),
        (("bind", CONSOLE), 1, "vfio-pci does not take 0000:00:05.0"),
        (("bind", OTHER), 1, "0000:00:06.0 is not a virtio console"),
        (("bind", "5"), 2, "'5' is no PCI address"),
        (("unbind",), 2, "Missing argument"),
    ],
)
def test_the_commands_fail_clearly(
    words: tuple[str, ...],
    code: int,
    message: str,
    sysfs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(binding, "SYSFS", sysfs)
    assert run(*words) == code
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
