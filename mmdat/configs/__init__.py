"""Parts of the recipes for Python-style configs of other projects: ``with read_base(): from mmdat.configs...``.

The text-style configs of this project are in configs/; docs/other_projects.md shows how to use either.
"""
