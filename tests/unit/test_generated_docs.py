"""The pages say what the code says, where they take it from there."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_the_generated_parts_are_current() -> None:
    sys.path.insert(0, str(DOCS))
    try:
        generate = importlib.import_module("generate")
    finally:
        sys.path.remove(str(DOCS))
    for page, text in generate.pages().items():
        assert page.read_text() == text, f"docs/{page.relative_to(DOCS)} is out of date: make docs"
