"""Parts for Python-style configs of other projects: backbones and the optimizer of the papers.

``with read_base(): from mmdat.configs.backbones import ...``; docs/other_projects.md shows it. Whole recipes are the
text-style configs in configs/.
"""
