"""The description of the package: README.md, without links into the source, which end there.

All else is in pyproject.toml.
"""

import re
from pathlib import Path

from setuptools import setup

_LINK = re.compile(r"\[([^]]*)\]\((?!https?:)([^)]*)\)")


def _without_link(link: re.Match[str]) -> str:
    text, target = link.groups()
    return f"`{target}`" if target.startswith(text) else f"{text} (`{target}`)"


setup(
    long_description=_LINK.sub(_without_link, Path("README.md").read_text(encoding="utf-8")),
    long_description_content_type="text/markdown",
)
