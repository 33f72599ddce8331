"""The packages import in one direction, and other packages are used by their public names."""

import ast
import graphlib
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'mmdat'
#: Each line may import from those above it.
LAYERS = [
    'version errors compat explain',
    'ops weights',
    'models',
    'checkpoints',
    'registry',
    'datasets schedulers extraction',
    'config visualization',
    'hooks',
    'apis analysis',
    'export',
    'cli doctor',
]
#: Shortcuts that are taken when a method is called, not when its module is imported.
SHORTCUTS = {('models.dat', 'checkpoints.pretrained'): 'DAT.from_pretrained'}
RANK = {name: rank for rank, line in enumerate(LAYERS) for name in line.split()}


def modules():
    for path in sorted(PACKAGE.rglob('*.py')):
        parts = path.relative_to(PACKAGE).with_suffix('').parts
        if parts[0] not in ('configs', '__init__'):
            yield '.'.join(parts).removesuffix('.__init__'), path


def imports(name, path):
    """The modules of mmdat that a module names in its import statements, wherever they stand."""
    base = name.split('.') if path.name == '__init__.py' else name.split('.')[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom):
            continue
        start = ['mmdat', *base[: len(base) - node.level + 1]] if node.level else []
        source = [*start, *(node.module or '').split('.')]
        for alias in node.names:
            parts = [
                part for part in (source if node.module and source != ['mmdat'] else [*source, alias.name]) if part
            ]
            if parts[0] == 'mmdat' and len(parts) > 1:
                yield '.'.join(parts[1:])


def test_imports_point_one_way():
    for name, path in modules():
        for imported in imports(name, path):
            package, target = name.split('.')[0], imported.split('.')[0]
            points_down = target == package or RANK.get(target, -1) < RANK[package]
            assert points_down or (name, imported) in SHORTCUTS, f'{name} imports {imported}'


def test_no_cycle():
    graph = {
        name: {i for i in imports(name, path) if i != name and (name, i) not in SHORTCUTS} for name, path in modules()
    }
    graphlib.TopologicalSorter(graph).prepare()


#: Names of other packages that begin with an underscore and that nothing public replaces. Each has a comment in place.
PRIVATE = {
    '_load_from_state_dict': 'how a torch module takes weights of another layout, whichever way they are loaded',
    '_schemes': "MMEngine's loaders of checkpoints can be registered, but not asked for or taken away",
    '_utils': 'where the functions are that pickles of torch name',
    '_rebuild_tensor_v2': 'named by every pickle of a tensor',
    '_rebuild_parameter': 'named by every pickle of a parameter',
    '_python_dispatch': 'where PyTorch keeps TorchDispatchMode, which it documents',
    '_pytree': 'where PyTorch keeps the walk through nested arguments that its operators use',
    '_ext': "mmcv's compiled operators, which are tested against those of PyTorch",
    '_replace': 'the documented way to change a named tuple',
    '_inductor': 'where PyTorch keeps the functions of AOTInductor, which it documents',
    '_exit': 'the documented end of a process that was forked',
    '_C': 'the reader of zip files, which tells a TorchScript archive before it is run',
}
TREES = [
    (path, ast.parse(path.read_text()))
    for path in sorted([*PACKAGE.rglob('*.py'), *(ROOT / 'tests').glob('*.py'), *(ROOT / 'tools').glob('*.py')])
]


def is_private(name):
    return name.startswith('_') and not name.endswith('__')


def is_self(node):
    return isinstance(node, ast.Name) and node.id == 'self'


def own_names():
    """Private names that our own files define: functions, classes, variables, fields and arguments."""
    for _, tree in TREES:
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                yield node.name
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id
            elif (
                isinstance(node, ast.Attribute)
                and isinstance(node.ctx, ast.Store)
                and ast.unparse(node.value) == 'self'
            ):
                yield node.attr


def used_names(tree):
    """Private names that a file takes from elsewhere: attributes, imports and texts of getattr and the like."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from (part for alias in node.names for part in alias.name.split('.'))
            yield from (getattr(node, 'module', None) or '').split('.')
        elif isinstance(node, ast.Call) and getattr(node.func, 'id', '') in (
            'getattr',
            'setattr',
            'hasattr',
            'delattr',
        ):
            yield from (arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str))


def test_no_private_name_of_another_package_is_touched():
    own = set(own_names()) - set(PRIVATE)
    found = {
        (name, path.relative_to(ROOT).as_posix())
        for path, tree in TREES
        for name in used_names(tree)
        if is_private(name) and name not in own and name not in PRIVATE
    }
    assert not found
    used = {name for _, tree in TREES for name in used_names(tree)} | set(own_names())
    assert set(PRIVATE) <= used, 'no longer needed'


def test_the_map_names_every_package_and_environment_variable():
    page = (ROOT / 'docs/map.md').read_text()
    for name in {name.split('.')[0] for name, _ in modules()} - {'version'}:
        path = f'`mmdat/{name}/`' if (PACKAGE / name).is_dir() else f'`mmdat/{name}.py`'
        assert path in page, path
    files = [file for name in ('mmdat', 'tools', 'tests', 'benchmarks') for file in (ROOT / name).rglob('*.[ps][yh]')]
    for file in files:
        for name in re.findall(r"""['"{]\b(MMDAT_[A-Z_]+)\b""", file.read_text()):
            assert f'`{name}' in page, f'{file}: {name}'
