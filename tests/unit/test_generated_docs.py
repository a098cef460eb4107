"""The pages and the files of share/ say what the code says, where they take it from there."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_what_is_generated_is_current() -> None:
    sys.path.insert(0, str(DOCS))
    try:
        generate = importlib.import_module("generate")
    finally:
        sys.path.remove(str(DOCS))
    wanted = generate.files()
    for file, text in wanted.items():
        name = file.relative_to(DOCS.parent)
        assert generate.current(file) == text, f"{name} is out of date: make docs"
    assert generate.leftover(wanted) == []
