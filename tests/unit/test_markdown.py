"""How the tests of the documentation read a page."""

from __future__ import annotations

import pytest

from tests.docs.markdown import Step, blocks, same, steps

PAGE = """\
# A page

```console
$ echo one
one
$ for i in 1 2
> do echo $i; done
1
2
```

1. Indented:

   ```toml title
   a = 1
   ```
"""


def test_blocks_and_their_commands() -> None:
    console, toml = blocks(PAGE)
    assert (console.line, console.kind, console.title) == (3, "console", "")
    assert (toml.line, toml.kind, toml.title, toml.lines) == (14, "toml", "title", ("a = 1",))
    assert steps(console) == [
        Step(4, "echo one", "one"),
        Step(6, "for i in 1 2\ndo echo $i; done", "1\n2"),
    ]


def test_mistakes_in_a_page_are_named() -> None:
    with pytest.raises(ValueError, match="the block in line 2 does not end"):
        list(blocks("\n```console\n$ true\n"))
    with pytest.raises(ValueError, match="line 2: a block begins with a command, not 'output'"):
        [steps(block) for block in blocks("```console\noutput\n```\n")]


@pytest.mark.parametrize(
    ("shown", "printed", "is_same"),
    [
        ("one\ntwo", "one\ntwo\n", True),
        ("one", "one\ntwo", False),
        ("", "", True),
        ("", "one", False),
        ("o...e", "one mor", False),
        ("o...e", "one more please", True),
        ("a\n...\nz", "a\nb\nc\nz", True),
        ("a\n...\nz", "a\nz", True),
        ("a\n...", "b\nc", False),
        ("at 10:11:12.345 sharp", "at 23:59:59.001 sharp", True),
        ("/dev/pts/3 1 vconfs", "/dev/pts/12 4711 vconfs", True),
        ("a.b", "aXb", False),
        ("PORT   NAME\nvcon0  x", "PORT     NAME\nvcon0    x   ", True),
        ("  indented", "indented", False),
    ],
)
def test_which_log_lines_are_the_same(shown: str, printed: str, is_same: bool) -> None:
    assert same(shown, printed) is is_same
