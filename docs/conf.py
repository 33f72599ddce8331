"""The site: `sphinx-build --fail-on-warning -c docs . build/site` makes it (requirements/docs.txt).

The source directory is the whole project, so that README.md, docs/ and configs/README.md are pages as they are, with
the links that they have in the repository.
"""

import mmdat

project = 'mmdat'
version = release = mmdat.__version__

extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon', 'sphinx.ext.viewcode']
root_doc = 'docs/index'
include_patterns = [
    'README.md',
    'CHANGELOG.md',
    'CONTRIBUTING.md',
    'configs/README.md',
    'docs/*',
    'mmcv-ops-torchvision/README.md',
]
exclude_patterns = ['.*', 'build', 'data', 'work_dirs']  # directories that would be searched in vain

myst_heading_anchors = 3  # the anchors that the repository's viewers give to headings

autodoc_typehints = 'description'
autodoc_typehints_description_target = 'documented_params'
autodoc_member_order = 'bysource'
napoleon_use_ivar = True  # "Attributes" of docstrings as a list; most are fields of named tuples
# Names of mmdat in docstrings and signatures must exist; those of other packages are not looked up.
nitpicky = True
# So are type variables, which are written with the module that they are made in.
nitpick_ignore_regex = [('py:.*', r'(?!mmdat\b).*'), ('py:class', r'mmdat\.weights\.fetch\.Content')]

html_theme = 'furo'
html_title = f'mmdat {version}'
html_extra_path = ['index.html']
