"""Package metadata; `pip install .` and `mim install .` carry configs and tools below mmdat/.mim."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent.resolve()


def requirements(name: str) -> list:
    """The requirements of requirements/{name}.txt, without comments."""
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text(encoding='utf-8').splitlines()
    return [line for line in map(str.strip, lines) if line and not line.startswith('#')]


def mmcv_operators() -> str:
    """The distribution with mmcv's operators: in a checkout by its directory, so that pip needs no index to find it.

    A source distribution has no such directory. So what is built from one, as `python -m build` does, names it only.
    """
    directory = ROOT / 'mmcv-ops-torchvision'
    if not directory.is_dir():
        return 'mmcv-ops-torchvision>=0.1'
    # A last part with a hyphen is a name and a version to pip: it would keep the wheel and take it again after a change
    # of the files. "." is none.
    return f'mmcv-ops-torchvision @ {directory.as_uri()}/.'


class BuildWithMim(build_py):
    """Put configs, tools and the model index below mmdat/.mim, where `mim` looks for them.

    An editable installation links to them, a wheel holds copies; so does an editable one where links are not allowed.
    """

    def run(self):
        super().run()
        editable = getattr(self, 'editable_mode', False)
        mim = (ROOT if editable else Path(self.build_lib)) / 'mmdat' / '.mim'
        shutil.rmtree(mim, ignore_errors=True)
        mim.mkdir(parents=True)
        for source in map(ROOT.joinpath, ('configs', 'tools', 'model-index.yml')):
            if editable:
                try:
                    (mim / source.name).symlink_to(source)
                    continue
                except OSError:  # Windows, without the right to make links
                    pass
            if source.is_dir():
                shutil.copytree(source, mim / source.name, ignore=shutil.ignore_patterns('__pycache__'))
            else:
                shutil.copy(source, mim)


setup(
    name='mmdat',
    version=re.search(r"__version__ = '(.+)'", (ROOT / 'mmdat' / 'version.py').read_text(encoding='utf-8'))[1],
    description='DAT and DAT++, Vision Transformers with Deformable Attention, for MMDetection, MMSegmentation '
    'and MMPretrain',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['mmdat', 'mmdat.*']),
    package_data={'mmdat.weights': ['table.json'], 'mmdat.visualization': ['page.html']},
    python_requires='>=3.9',
    install_requires=requirements('runtime'),
    extras_require={
        'mm': [*requirements('mm'), mmcv_operators()],
        'mim': requirements('mminstall'),
        'tests': requirements('tests'),
        'export': requirements('export'),
        'data': requirements('data'),
        'docs': requirements('docs'),
    },
    cmdclass={'build_py': BuildWithMim},
)
