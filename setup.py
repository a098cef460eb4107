"""The description of the package: README.md without what does not work outside of the source.

Links to other files of the source become their names, links to its own sections become text, and
pictures that are files of the source are left out. All else is in pyproject.toml.
"""

import re
from pathlib import Path

from setuptools import setup

#: A picture, with the link that is all around it, if there is one.
_PICTURE = re.compile(r"(\[)?!\[[^]]*\]\((?!https?:)[^)]*\)(?(1)\]\([^)]*\))")
_LINK = re.compile(r"\[([^]]*)\]\((?!https?:)([^)]*)\)")


def _without_link(link: re.Match[str]) -> str:
    text, target = link.groups()
    if target.startswith("#"):
        return text
    return f"`{target}`" if target.startswith(text) else f"{text} (`{target}`)"


def _description(page: str) -> str:
    return _LINK.sub(_without_link, _PICTURE.sub("", page))


setup(
    long_description=_description(Path("README.md").read_text(encoding="utf-8")),
    long_description_content_type="text/markdown",
)
