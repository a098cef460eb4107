"""Tables on a terminal: how texts are cut that do not fit."""

from __future__ import annotations

import pytest
from rich.cells import cell_len

from vconfs.cli._tables import cut


@pytest.mark.parametrize(
    ("text", "width", "shown"),
    [
        ("org.example.agent.12", 20, "org.example.agent.12"),
        ("org.example.agent.12", 19, "org.examp….agent.12"),
        ("org.example.agent.12", 11, "org.e…nt.12"),
        ("org.example.agent.12", 2, "…2"),
        ("org.example.agent.12", 1, "…"),
        ("日本語日本語", 7, "日 … 語"),
        ("", 1, ""),
    ],
)
def test_a_text_is_cut_in_its_middle(text: str, width: int, shown: str) -> None:
    assert cut(text, width) == shown
    assert cell_len(shown) <= width


def test_the_mark_can_be_another() -> None:
    assert cut("org.example.agent.12", 5, "~") == "or~12"
