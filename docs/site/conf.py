"""Sphinx's settings for the site, see build.py."""

project = "vconfs"
project_copyright = "The vconfs authors"
extensions = ["myst_parser"]
html_theme = "furo"
html_title = "vconfs"
html_copy_source = False
html_show_sourcelink = False

myst_heading_anchors = 4
