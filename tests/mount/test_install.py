"""What `pip install` gives, and mount(8) with it: in a mount namespace where it is in the path."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.support import needs
from tests.support.packages import BESIDE, copy_source

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment where pip has installed us from a copy of the source."""
    folder = tmp_path_factory.mktemp("install")
    folder.parent.chmod(0o755)  # other users run it too
    folder.chmod(0o755)
    source, environment = folder / "source", folder / "venv"
    copy_source(source)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin/python"
    words = "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"
    # The tests' own packages, instead of the network's.
    home = subprocess.check_output(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
    )
    (Path(home.strip()) / "tests.pth").write_text(sysconfig.get_path("purelib"))
    pip = sys.executable, "-m", "pip", "--python", python
    subprocess.run([*pip, "install", "-q", *words, source], check=True)
    return environment


def with_vconfs(installed: Path, script: str, folder: Path) -> str:
    """Run a script where root has vconfs in /usr/local/bin, with $M an empty folder."""
    (folder / "mnt").mkdir()
    prepare = f'mount --bind {installed}/bin /usr/local/bin; M={folder}/mnt; cd {folder}; eval "$0"'
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-euc", prepare, script],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_command_is_there_and_runs(installed: Path, tmp_path: Path) -> None:
    script = """
        vconfs --version
        vconfs mount --port a=echo "$M"
        exec 3<>"$M"/vcon0; echo hello >&3; head -n 1 <&3; exec 3>&-
        vconfs umount "$M"; ls "$M"
    """
    assert with_vconfs(installed, script, tmp_path) == "vconfs, version 0.1.0\nhello\n"


def test_mount_calls_it_for_its_type(installed: Path, tmp_path: Path) -> None:
    script = """
        mount -t fuse.vconfs none "$M" -o mode=0640,wait
        findmnt -n -o FSTYPE,SOURCE "$M"; stat -c %a "$M/vcon1"
        umount "$M"; ls "$M"
    """
    assert with_vconfs(installed, script, tmp_path).split() == ["fuse.vconfs", "none", "640"]


def test_fstab_names_a_file_of_options(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "vcon.toml").write_text('port = ["org.a=echo", "org.b=null"]\nlog-format = "json"')
    line = f"none {tmp_path}/mnt fuse.vconfs config={tmp_path}/vcon.toml,mode=0644,nofail 0 0\n"
    (tmp_path / "fstab").write_text(line)
    script = """
        mount -T fstab "$M"
        ls "$M/by-name"; stat -c %a "$M/vcon1"
        umount "$M"
    """
    assert with_vconfs(installed, script, tmp_path).split() == ["org.a", "org.b", "644"]


def test_a_mount_helper_of_its_own_takes_the_flags_of_mount(
    installed: Path, tmp_path: Path
) -> None:
    """What a Debian package has in /usr/sbin; here mount(8) does not look, so it is called."""
    (tmp_path / "mount.fuse.vconfs").symlink_to(installed / "bin/vconfs")
    script = """
        ./mount.fuse.vconfs none "$M" -f -o rw; ls "$M"
        ./mount.fuse.vconfs none "$M" -s -n -v -o rw,mode=0640 -t fuse.vconfs
        findmnt -n -o FSTYPE,SOURCE "$M"; stat -c %a "$M/vcon1"
        umount "$M"; ls "$M"
    """
    assert with_vconfs(installed, script, tmp_path).split() == ["fuse.vconfs", "none", "640"]


def test_a_wrong_option_is_also_an_error_of_mount(installed: Path, tmp_path: Path) -> None:
    script = 'mount -t fuse.vconfs none "$M" -o nonsense 2>&1 || echo failed; ls "$M"'
    output = with_vconfs(installed, script, tmp_path)
    assert "unknown option 'nonsense'" in output
    assert output.endswith("failed\n")


def test_the_mount_helper_may_drop_privileges(installed: Path, tmp_path: Path) -> None:
    """It mounts as root, and hands the device over to us, who then run as the user `nobody`."""
    needs.other_users()
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    script = """
        mount.fuse3 vconfs#none "$M" -o setuid=nobody,drop_privileges,allow_other,dev,suid
        stat -c %U "$M/vcon1"; ls "$M"
        umount "$M"
    """
    output = with_vconfs(installed, script, tmp_path).split()
    assert output == ["nobody", "by-name", "hvc0", "vcon0", "vcon1"]


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where scripts/install-files has put its files."""
    folder = tmp_path_factory.mktemp("prefix")
    subprocess.run([ROOT / "scripts/install-files", folder], check=True)
    return folder


def test_man_finds_the_pages(prefix: Path) -> None:
    for words, title in {
        "vconfs": "VCONFS(1)",
        "vconfs mount": "VCONFS-MOUNT(1)",
        "vconfs.toml": "VCONFS.TOML(5)",
        "mount.fuse.vconfs": "MOUNT.FUSE.VCONFS(8)",
    }.items():
        command = "man", "-M", str(prefix / "share/man"), *words.split()
        assert title in subprocess.check_output(command, text=True)


@pytest.mark.parametrize(
    ("shell", "script", "output"),
    [
        ("bash", 'source "$D/bash-completion/completions/vconfs"; complete -p vconfs', "vconfs"),
        (
            "zsh",
            'fpath=("$D/zsh/site-functions" $fpath); autoload -Uz compinit; compinit -u -D;'
            " echo $_comps[vconfs]",
            "_vconfs",
        ),
        ("fish", 'complete -C "vconfs umo"', "umount"),
    ],
)
def test_each_shell_finds_its_completion(
    prefix: Path, tmp_path: Path, shell: str, script: str, output: str
) -> None:
    environment = {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "HOME": str(tmp_path),
        "D": str(prefix / "share"),
        "XDG_DATA_DIRS": str(prefix / "share"),
    }
    done = subprocess.run([shell, "-c", script], env=environment, capture_output=True, check=True)
    assert output in done.stdout.decode()


def test_shells_and_systemd_find_their_files(prefix: Path) -> None:
    files = {str(path.relative_to(prefix)) for path in prefix.rglob("*") if path.is_file()}
    assert files == BESIDE


def test_shellcheck_finds_nothing_in_scripts(prefix: Path) -> None:
    completion = prefix / "share/bash-completion/completions/vconfs"
    command: list[str | Path] = ["shellcheck", *(ROOT / "scripts").iterdir(), completion]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == done.stderr == ""
