"""How Sphinx builds these pages (`make docs`); they are Markdown and read as well where they lie."""

project = "relprop"
author = "The relprop developers"
copyright = "2026, The relprop developers"

extensions = ["myst_parser"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4  # links to headings, as `rules.md#bias`, are checked

html_theme = "alabaster"
html_theme_options = {"description": "Relevance propagation for PyTorch", "page_width": "1100px"}
