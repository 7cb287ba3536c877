"""The course: 23 lessons, each a linear script that derives, builds, checks, trains and looks. `python -m lessons` lists them."""
