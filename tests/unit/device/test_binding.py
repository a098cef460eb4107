"""Binding a PCI function to VFIO, on a sysfs of files."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from tests.unit.device.fake_sysfs import CONSOLE, OTHER, give, make_sysfs, take_iommu_away
from vconfs.cli import main
from vconfs.device import binding
from vconfs.device.binding import PciFunction, bound, candidates, parse_address
from vconfs.device.vfio import VfioAddress, open_bound_vfio
from vconfs.errors import VconfsError


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    return make_sysfs(tmp_path)


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
def test_wrong_addresses(text: str) -> None:
    with pytest.raises(ValueError, match="not a PCI address"):
        parse_address(text)


def test_candidates(sysfs: Path) -> None:
    assert candidates(sysfs) == [CONSOLE]


def test_a_wrong_address_names_the_right_ones(sysfs: Path) -> None:
    with pytest.raises(VconfsError, match=r"no PCI function 0000:00:09.0.*consoles: 0000:00:05.0"):
        PciFunction("0000:00:09.0", sysfs)


def test_another_device_is_not_a_console(sysfs: Path) -> None:
    with pytest.raises(VconfsError, match=r"06.0 is not a virtio console; .*: 0000:00:05.0"):
        PciFunction(OTHER, sysfs).check_console()
    (sysfs / "bus/pci/devices" / CONSOLE / "device").unlink()
    with pytest.raises(VconfsError, match="virtio consoles: none"):
        PciFunction(OTHER, sysfs).check_console()


def test_the_group_and_its_neighbours(sysfs: Path) -> None:
    function = PciFunction(CONSOLE, sysfs)
    assert function.group == "3"
    function.check_group()
    for driver in ("vfio-pci", "pci-stub", "pcieport"):
        give(sysfs, OTHER, driver)
        function.check_group()
    give(sysfs, OTHER, "virtio-pci")
    message = r"group of 0000:00:05.0 is not viable: drivers have 0000:00:06.0 \(virtio-pci\)"
    with pytest.raises(VconfsError, match=message):
        function.check_group()


@pytest.mark.parametrize(
    ("mode", "has_vfio", "advice"),
    [
        ("", False, "as root: modprobe vfio enable_unsafe_noiommu_mode=1"),
        ("", True, "with a kernel that has CONFIG_VFIO_NOIOMMU, or use --device kernel"),
        ("N", True, "as root: echo Y >/sys/module/vfio/parameters/enable_unsafe_noiommu_mode"),
    ],
)
def test_no_iommu(sysfs: Path, mode: str, has_vfio: bool, advice: str) -> None:
    if has_vfio:
        (sysfs / "module/vfio").mkdir(parents=True)
    take_iommu_away(sysfs, mode=mode)
    with pytest.raises(VconfsError, match="has no IOMMU: boot with intel_iommu=on") as caught:
        PciFunction(CONSOLE, sysfs).check_group()
    assert str(caught.value).endswith(f"; {advice}")


def test_no_iommu_and_a_vfio_that_does_without(sysfs: Path) -> None:
    take_iommu_away(sysfs, mode="Y")
    function = PciFunction(CONSOLE, sysfs)
    function.check_group()
    assert not function.has_iommu
    assert function.group == ""  # until VFIO has the function


def test_the_group_of_a_function_that_vfio_has_without_an_iommu(sysfs: Path) -> None:
    give(sysfs, CONSOLE, "vfio-pci")
    assert PciFunction(CONSOLE, sysfs).has_iommu
    take_iommu_away(sysfs, mode="Y")
    function = PciFunction(CONSOLE, sysfs)
    function.check_group()
    assert not function.has_iommu
    assert function.group == "noiommu-3"


@pytest.mark.parametrize("trouble", ["no IOMMU", "not viable", "not a virtio console"])
def test_what_vfio_cannot_use_stays_with_its_driver(sysfs: Path, trouble: str) -> None:
    give(sysfs, CONSOLE, "virtio-pci")
    path = sysfs / "bus/pci/devices" / CONSOLE
    match trouble:
        case "no IOMMU":
            (path / "iommu_group").unlink()
        case "not viable":
            give(sysfs, OTHER, "virtio-pci")
        case _:
            (path / "device").write_text("0x1041\n")
    with pytest.raises(VconfsError, match=trouble):
        PciFunction(CONSOLE, sysfs).bind()
    assert (path / "driver_override").read_text() == ""
    assert (path / "driver" / "unbind").read_text() == ""


def test_a_driver_that_does_not_take_it(sysfs: Path) -> None:
    give(sysfs, CONSOLE, "virtio-pci")
    function = PciFunction(CONSOLE, sysfs)
    with pytest.raises(VconfsError, match=r"vfio-pci does not take 0000:00:05.0"):
        function.bind()
    path = sysfs / "bus/pci/devices" / CONSOLE
    assert (path / "driver_override").read_text() == "\n"
    assert (path / "driver" / "unbind").read_text() == CONSOLE
    assert (sysfs / "bus/pci/drivers_probe").read_text() == CONSOLE


def test_without_the_module_of_vfio_a_function_stays_with_its_driver(sysfs: Path) -> None:
    give(sysfs, CONSOLE, "virtio-pci")
    (sysfs / "bus/pci/drivers/vfio-pci").rmdir()
    with pytest.raises(VconfsError, match="driver vfio-pci is not loaded: as root, modprobe"):
        PciFunction(CONSOLE, sysfs).bind()
    assert (sysfs / "bus/pci/devices" / CONSOLE / "driver_override").read_text() == ""
    assert (sysfs / "bus/pci/drivers/virtio-pci/unbind").read_text() == ""


def test_a_function_that_is_bound_already_stays(sysfs: Path) -> None:
    give(sysfs, CONSOLE, "vfio-pci")
    function = PciFunction(CONSOLE, sysfs)
    with bound(function):
        assert function.driver == "vfio-pci"
    assert (sysfs / "bus/pci/devices" / CONSOLE / "driver_override").read_text() == ""


Override = Callable[[PciFunction, str], None]


def obedient(override: Override, sysfs: Path) -> Override:
    """Have a kernel that gives the function to the driver it is told."""

    def kernel(self: PciFunction, driver: str) -> None:
        override(self, driver)
        give(sysfs, self.address, driver.strip() or "virtio-pci")

    return kernel


def test_a_bound_function_is_given_back(sysfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    give(sysfs, CONSOLE, "virtio-pci")
    function = PciFunction(CONSOLE, sysfs)
    monkeypatch.setattr(PciFunction, "_override", obedient(PciFunction._override, sysfs))
    with bound(function):
        assert function.driver == "vfio-pci"
    assert function.driver == "virtio-pci"


@pytest.mark.parametrize("gone", [False, True])
@pytest.mark.expect_log(
    "0000:00:05.0 stays with vfio-pci: cannot bind 0000:00:05.0: Is a directory"
)
def test_a_function_that_cannot_be_given_back(
    sysfs: Path, gone: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A mount goes on, and tries the device again."""
    give(sysfs, CONSOLE, "virtio-pci")
    monkeypatch.setattr(PciFunction, "_override", obedient(PciFunction._override, sysfs))
    with bound(PciFunction(CONSOLE, sysfs)):
        monkeypatch.undo()
        path = sysfs / "bus/pci/devices" / CONSOLE
        if gone:
            path.rename(sysfs / "gone")
        else:
            (sysfs / "bus/pci/drivers_probe").rename(sysfs / "bus/pci/other")
            (sysfs / "bus/pci/drivers_probe").mkdir()
    assert bool(caplog.messages) != gone


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.EACCES, "Permission denied: only root can do that$"),
        (errno.EPERM, "Operation not permitted: only root can do that$"),
        (errno.EINVAL, "Invalid argument$"),
    ],
)
@pytest.mark.parametrize("file", ["driver_override", "unbind", "drivers_probe"])
def test_a_file_of_the_kernel_that_refuses(
    sysfs: Path, file: str, code: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was changed by then is put back."""
    give(sysfs, CONSOLE, "virtio-pci")
    write = binding._write
    failed: list[Path] = []

    def fail_once(path: Path, text: str) -> None:
        if path.name == file and not failed:
            failed.append(path)
            raise OSError(code, os.strerror(code))
        write(path, text)

    monkeypatch.setattr(binding, "_write", fail_once)
    with pytest.raises(VconfsError, match=f"cannot bind 0000:00:05.0: {message}"):
        PciFunction(CONSOLE, sysfs).bind()
    assert (sysfs / "bus/pci/devices" / CONSOLE / "driver_override").read_text() == "\n"
    assert (sysfs / "bus/pci/drivers_probe").read_text() == CONSOLE


@pytest.mark.parametrize("fails", [False, True])
async def test_a_mount_that_binds_gives_the_function_back(
    sysfs: Path, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """True if the device can be used or not."""
    monkeypatch.setattr(binding, "SYSFS", sysfs)
    monkeypatch.setattr(binding.PciFunction, "_override", obedient(PciFunction._override, sysfs))
    give(sysfs, CONSOLE, "virtio-pci")
    drivers = []

    @asynccontextmanager
    async def open_vfio(address: VfioAddress) -> AsyncIterator[object]:
        drivers.append(PciFunction(address.pci, sysfs).driver)
        if fails:
            raise VconfsError("it is of no use")
        yield object()

    monkeypatch.setattr("vconfs.device.vfio.open_vfio", open_vfio)
    with suppress(VconfsError):
        async with open_bound_vfio(VfioAddress(CONSOLE)):
            assert not fails
    assert drivers == ["vfio-pci"]
    assert PciFunction(CONSOLE, sysfs).driver == "virtio-pci"


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
        (("bind", "5"), 2, "'5' is not a PCI address"),
        (("unbind",), 2, "Missing argument"),
    ],
)
@pytest.mark.expect_log(
    "Invalid value",
    "Missing argument",
    "is not a virtio console",
    "there is no PCI function",
    "vfio-pci does not take",
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
