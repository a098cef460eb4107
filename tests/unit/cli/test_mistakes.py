"""Command lines that are wrong, or are not those of the manual, and what is said of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from vconfs.cli import main

Run = Callable[..., tuple[object, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*words: str) -> tuple[object, str]:
        """Run a command; give its exit code and what it printed."""
        with pytest.raises(SystemExit) as ended:
            main(words)
        return ended.value.code, "".join(capsys.readouterr())

    return run


@pytest.mark.parametrize("command", ["mount", "umount", "top", "ls"])
def test_an_unset_variable_is_not_the_current_folder(run: Run, command: str) -> None:
    code, said = run(command, "")
    assert code == 2
    assert "it is empty: name a folder" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("unmount /mnt", "there is no command 'unmount': did you mean 'umount'? (see vconfs"),
        ("mout /mnt", "there is no command 'mout': did you mean 'mount'? (see vconfs --help)"),
        ("list /mnt", "there is no command 'list'"),
        ("xyzzy", "there is no command 'xyzzy' (see vconfs --help)"),
    ],
)
def test_a_misspelt_command_is_not_a_device(run: Run, words: str, message: str) -> None:
    code, said = run(*words.split())
    assert code == 2
    assert message in said


@pytest.mark.parametrize("word", ["--help", "help", "-h"])
def test_help_is_a_command_as_well(run: Run, word: str) -> None:
    code, said = run(word)
    assert code == 0
    assert "Named ports between a virtual machine" in said


def test_help_of_a_command_can_be_asked_for_either_way(run: Run) -> None:
    assert run("help", "umount") == run("umount", "--help")


@pytest.mark.parametrize("word", ["version", "--version", "-V"])
def test_each_way_to_ask_for_the_version_works(run: Run, word: str) -> None:
    code, said = run(word)
    assert code == 0
    assert said.startswith("vconfs, version ")
