"""The documentation: links that lead somewhere, a whole API reference, a site that builds, a notebook that runs."""

import importlib
import json
import pkgutil
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote

import pytest
from markdown_it import MarkdownIt
from mmengine.config import Config

from mmdat import DAT

ROOT = Path(__file__).parents[1]
NOT_OURS = {'build', 'data', 'mutants', 'work_dirs'}
FOLDERS = [path for path in ROOT.iterdir() if path.is_dir() and path.name[0] != '.' and path.name not in NOT_OURS]
NOTEBOOK = ROOT / 'demo/mmdat_tour.ipynb'


def texts() -> dict:
    """The Markdown of the project by file: pages, and the text cells of the notebook."""
    pages = [*ROOT.glob('*.md'), *(page for folder in FOLDERS for page in folder.rglob('*.md'))]
    found = {page: page.read_text() for page in pages}
    cells = json.loads(NOTEBOOK.read_text())['cells']
    found[NOTEBOOK] = '\n\n'.join(''.join(cell['source']) for cell in cells if cell['cell_type'] == 'markdown')
    return found


TEXTS = texts()


def tokens(text: str) -> list:
    """All tokens of a page, those within paragraphs included."""
    parsed = MarkdownIt('commonmark').enable('table').parse(text)
    return [token for block in parsed for token in (block, *(block.children or []))]


def links(text: str) -> list:
    """Targets of the links and images of a page that stay within the project."""
    targets = [token.attrGet('href') or token.attrGet('src') for token in tokens(text)]
    return [unquote(target) for target in targets if target and not re.match(r'[a-z]+:', target)]


def anchors(text: str) -> set:
    """What the headings of a page are called in links."""
    parsed = tokens(text)
    titles = [after.content for token, after in zip(parsed, parsed[1:]) if token.type == 'heading_open']
    return {re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-') for title in titles}


def test_anchors_are_those_of_the_viewers():
    assert anchors('# Your data, your pictures\n\n## `a_b`: what *differs*\n') == {
        'your-data-your-pictures',
        'a_b-what-differs',
    }


def test_links_are_found():
    text = '[a](x.md) ![b](images/y.png "t") <https://z.org> `[no](code.md)`\n\n| c |\n|---|\n| [d][e] |\n\n[e]: f.md#g'
    assert links(text) == ['x.md', 'images/y.png', 'f.md#g']


@pytest.mark.parametrize('page', TEXTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    broken = []
    for link in links(TEXTS[page]):
        name, _, anchor = link.partition('#')
        target = (page.parent / name).resolve() if name else page
        if not target.is_relative_to(ROOT) or not target.exists():
            broken.append(f'{link}: no such file')
        elif anchor and anchor not in anchors(TEXTS[target]):
            broken.append(f'{link}: the headings are {sorted(anchors(TEXTS[target]))}')
    assert not broken


@pytest.mark.parametrize('page', TEXTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_and_tests_that_a_page_speaks_of_exist(page):
    """In commands and in prose; what a reader is to write has other names."""
    text = TEXTS[page]
    files = re.findall(r'(?<![\w/.])(?:configs|docs|mmdat|requirements|tests|tools)/[\w/.-]+\.\w+', text)
    assert [name for name in files if not (ROOT / name).exists()] == []
    for file, test in re.findall(r'(tests/\w+\.py)::(\w+)', text):
        assert f'\ndef {test}(' in (ROOT / file).read_text(), f'{file}::{test}'


@pytest.mark.parametrize('example', re.findall(r'```python\n(.*?)```', TEXTS[ROOT / 'configs/README.md'], re.S))
def test_examples_of_derived_configs_fit_together(example, tmp_path):
    file = tmp_path / 'own.py'
    file.write_text(example.replace("_base_ = '", f"_base_ = '{ROOT}/configs/"))
    model = Config.fromfile(file).model
    assert DAT(model.backbone.arch).out_channels == tuple(model.neck.in_channels)


def documented() -> list:
    """What docs/api.rst describes."""
    names = re.findall(r'^\.\. (?:auto(?!module)\w+|py:data):: (\S+)$', (ROOT / 'docs/api.rst').read_text(), re.M)
    return [pkgutil.resolve_name(':'.join(name.rsplit('.', 1))) for name in names]


def test_members_in_the_api_reference_exist():
    text = (ROOT / 'docs/api.rst').read_text()
    named = re.findall(r'^\.\. autoclass:: (\S+)\n   :members: (.+)$', text, re.M)
    missing = [
        f'{owner}.{member}'
        for owner, members in named
        for member in members.split(', ')
        if not hasattr(pkgutil.resolve_name(':'.join(owner.rsplit('.', 1))), member)
    ]
    assert named and missing == []


def public() -> dict:
    """Everything public by name: what packages export, and what configs can name."""
    packages = [str(file.parent.relative_to(ROOT)).replace('/', '.') for file in ROOT.glob('mmdat/**/__init__.py')]
    modules = [importlib.import_module(package) for package in packages]
    found = {
        f'{module.__name__}.{name}': getattr(module, name)
        for module in modules
        for name in getattr(module, '__all__', [])
    }
    registries = importlib.import_module('mmdat.registry')
    for registry in (
        registries.MODELS,
        registries.HOOKS,
        registries.DATASETS,
        registries.LOOPS,
        registries.OPTIM_WRAPPER_CONSTRUCTORS,
        registries.PARAM_SCHEDULERS,
    ):
        registry.import_from_location()
        found.update({f"type='mmdat.{name}'": value for name, value in registry.module_dict.items()})
    return found


def test_everything_public_is_in_the_api_reference():
    described = documented()
    names = public()
    assert {'mmdat.DAT', 'mmdat.ops.TableBias', "type='mmdat.LayerDecayOptimWrapperConstructor'"} <= set(names)
    assert [name for name, value in names.items() if not any(value is other for other in described)] == []


def test_everything_in_the_api_reference_has_a_docstring():
    assert [value for value in documented() if callable(value) and not value.__doc__] == []


def test_the_notebook_is_small_and_was_run_in_one_go():
    assert NOTEBOOK.stat().st_size < 600_000
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())['cells'] if cell['cell_type'] == 'code']
    assert [cell['execution_count'] for cell in cells] == list(range(1, len(cells) + 1))
    assert not any(output['output_type'] == 'error' for cell in cells for output in cell['outputs'])
    # Directories of whoever ran it are nobody's business.
    assert not re.search(r'[ "\'=(](/home|/root|/tmp|/work|/Users)\b', NOTEBOOK.read_text())


def needs(*packages: str) -> pytest.MarkDecorator:
    missing = [package for package in packages if find_spec(package) is None]
    return pytest.mark.skipif(bool(missing), reason=f'no {missing}: pip install -r requirements/docs.txt')


@pytest.mark.slow
@needs('sphinx', 'myst_parser', 'furo')
def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, '-m', 'sphinx', '--fail-on-warning', '--keep-going', '-q', '-c', 'docs', '.', tmp_path]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    contents = (tmp_path / 'docs/index.html').read_text()
    pages = {page.name for page in (ROOT / 'docs').glob('*.md')} - {'index.md'}
    for page in (*pages, 'api.rst', '../README.md', '../configs/README.md', '../CONTRIBUTING.md'):
        assert f'href="{page.rsplit(".", 1)[0]}.html"' in contents, f'{page} is not in the table of contents'


@pytest.mark.slow
@needs('nbclient', 'ipykernel')
def test_the_notebook_runs(tmp_path):
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=600, kernel_name='python3', resources={'metadata': {'path': tmp_path}}).execute()
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == 'code')
