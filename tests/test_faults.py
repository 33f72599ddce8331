"""Faults end a tool with one sentence, and no traceback is lost: what is the user's own shows its own."""

import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from in_process import run_tool
from mmengine.config import Config
from mmengine.registry import DATASETS, HOOKS, TRANSFORMS
from paths import DEMO, ROOT

from mmdat.config.load import load_config
from mmdat.config.parts import check_arguments, check_maps, check_task
from mmdat.errors import RunError
from mmdat.explain import explain

CLASSIFIER, DETECTOR, SEGMENTOR = (
    DEMO / f'{name}.py' for name in ('datnano_shapes', 'maskrcnn_datnano_shapes', 'upernet_datnano_shapes')
)
OWN = ROOT / 'configs/own_data'
IMAGE = 'data/shapes/images/validation/shapes_val_00001.jpg'
QUICK = ['train_cfg.max_epochs=1', 'train_cfg.val_interval=1', 'custom_hooks=[]'] + [
    f'{part}_dataloader.{option}'
    for part in ('train', 'val', 'test')
    for option in ('num_workers=0', 'persistent_workers=False', 'batch_size=2')
]
#: Of a user's own. Each part fails in a way that MMEngine's own parts could fail, too.
MINE = """
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, HOOKS, TRANSFORMS
from mmpretrain.datasets import CustomDataset

def fail():
    open('x.json')

@HOOKS.register_module(force=True)
class MyHook(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        fail()

@TRANSFORMS.register_module(force=True)
class MyTransform:
    def __call__(self, results):
        fail()

@DATASETS.register_module(force=True)
class MyDataset(CustomDataset):
    def load_data_list(self):
        fail()
"""


DEMO_DATA = dict(num_train=2, num_val=1, size=64)


def train(monkeypatch, *options, config=CLASSIFIER):
    return run_tool(monkeypatch, 'train', config, '--work-dir', 'work', '--cfg-options', *QUICK, *options)


def log():
    (file,) = Path('work').glob('*/*.log')
    return file


# --- tracebacks ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'part, workers',
    [
        ('custom_hooks = [dict(type="MyHook")]', 0),
        ('train_dataloader = dict(dataset=dict(pipeline=[dict(type="MyTransform")]))', 0),
        ('train_dataloader = dict(dataset=dict(pipeline=[dict(type="MyTransform")]))', 1),
        ('train_dataloader = dict(dataset=dict(_delete_=True, type="MyDataset", data_root="data"))', 0),
    ],
    ids=['hook', 'transform', 'transform in a worker', 'dataset'],
)
def test_parts_of_the_users_own_show_their_traceback(part, workers, workplace, monkeypatch):
    Path('mine_of_the_user.py').write_text(MINE)
    monkeypatch.syspath_prepend(str(workplace))
    Path('config.py').write_text(
        f'_base_ = "{CLASSIFIER}"\ncustom_imports = dict(imports=["mine_of_the_user"])\n{part}'
    )
    options = [option for option in QUICK if 'custom_hooks' not in option and 'train_dataloader.num' not in option]
    try:
        with pytest.raises(FileNotFoundError, match=r'x\.json'):
            run_tool(
                *(monkeypatch, 'train', 'config.py', '--work-dir', 'work', '--cfg-options', *options),
                f'train_dataloader.num_workers={workers}',
            )
        written = log().read_text()
        assert 'mine_of_the_user.py", line' in written and 'in fail' in written and 'x.json' in written
    finally:
        for registry, name in ((HOOKS, 'MyHook'), (TRANSFORMS, 'MyTransform'), (DATASETS, 'MyDataset')):
            registry.module_dict.pop(name, None)
        sys.modules.pop('mine_of_the_user', None)


def test_the_sentence_names_the_log_with_the_traceback(workplace, monkeypatch, capsys):
    assert train(monkeypatch, 'model.head.depth=3') == 1
    error = capsys.readouterr().err
    assert 'Traceback' not in error
    (named,) = re.findall(r'\(the traceback is in (.+)\)$', error.strip())
    assert Path(named) == log()
    assert 'Traceback (most recent call last)' in log().read_text() and 'build_functions.py' in log().read_text()


def test_without_a_log_a_variable_shows_the_traceback(workplace, monkeypatch, capsys):
    command = [monkeypatch, 'train', 'nope.py']
    assert run_tool(*command) == 1
    assert 'Traceback' not in capsys.readouterr().err
    monkeypatch.setenv('MMDAT_TRACEBACK', '1')
    assert run_tool(*command) == 1
    assert 'Traceback (most recent call last)' in capsys.readouterr().err


# --- sentences -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'options, says',
    [
        (['--launcher', 'pytorch'], 'for processes that are started by torchrun'),
        (['--launcher', 'slurm'], 'for processes that are started by srun'),
        (
            ['--override', DEMO / 'on_shapes_ade20k.py'],
            'for mmseg, but the config is for mmpretrain: choose',
        ),
        (
            ['--override', OWN / 'coco_folder.py', '--data', 'data'],
            "'coco' describes data of mmdet, but .* for mmpretrain",
        ),
        (['--override', OWN / 'image_label_folder.py', '--data', 'data'], "'label_maps' describes data of mmseg, but"),
        (
            ['--cfg-options', 'optim_wrapper.optimizer.lr=1e400'],
            'learning rate of the optimizer must be a finite number',
        ),
        (['--override', DEMO / 'on_shapes_coco.py'], 'for mmdet, but the config is for mmpretrain: choose'),
        (['--cfg-options', 'train_dataloader.sampler.type=Nope'], 'Nope is not in the .*registry: correct the type'),
        (['--cfg-options', 'optim_wrapper.optimizer.type=Nope'], 'Nope is not in the .*registry: correct the type'),
        (['--cfg-options', 'optim_wrapper.optimizer.lr=fast'], r'optimizer\.lr=fast must be a number, such as'),
        (['--cfg-options', 'train_dataloader=5'], 'puts a int in the place of a dict: change one of its entries'),
        (['--cfg-options', 'train_cfg.max_epochs=two'], 'must be a number, such as'),
        (['--cfg-options', 'model.backbone.window_size=()'], 'the config cannot be used .*: correct what it names'),
        (['--cfg-options', 'model.head.in_channels=7'], r'head\.in_channels is 7, .* set model\.head\.in_channels=\d+'),
        (['--cfg-options', 'train_dataloader.batch_size=1', 'model.neck.type=BatchNorm1d'], 'cannot be used'),
        (['--cfg-options', 'vis_backends=[]', 'visualizer.vis_backends.0.type=Nope'], 'Nope is not in the .*registry'),
        (['--resume', 'nope.pth'], 'there is no checkpoint .*nope.pth'),
    ],
)
def test_wrong_command_lines_of_training(options, says, workplace, monkeypatch, capsys):
    """The options are checked in an instant, or before the first iteration."""
    quick = [] if '--cfg-options' in options else ['--cfg-options', *QUICK]
    assert run_tool(monkeypatch, 'train', CLASSIFIER, '--work-dir', 'work', *options, *quick) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(says, last), last


@pytest.mark.parametrize(
    'options, says',
    [
        (['train_cfg.val_interval=0'], 'val_interval must be at least 1, got 0'),
        (['randomness.seed=-1'], r'seed must be a whole number from 0 to 2\*\*32 - 1, got -1'),
        (['randomness.seed=1099511627776'], 'randomness.seed must be a whole number'),
        (['train_dataloader.dataset.pipeline=[]'], 'the pipeline of train_dataloader.dataset is empty'),
        (
            ['data_preprocessor.mean=[1,2,3,4]'],
            'has 4 values of mean and 3 of std, but the backbone takes .* 3 channels',
        ),
        (['data_preprocessor.std=[1,0,1]'], r'std must have no 0, which images are divided by, got \[1, 0, 1\]'),
        (
            ['val_evaluator.topk=[1,9]'],
            r'val_evaluator.topk has 9, but there are 4 classes: set val_evaluator.topk=\[1\]',
        ),
        (['model.backbone.init_cfg.checkpoint=x.pth'], 'has a checkpoint, but no type: set its type to Pretrained'),
        (
            ['model.backbone.init_cfg=dict(type=Pretrained,checkpoint=x)'],
            'cannot be read: write lists as .* KEY.ENTRY=',
        ),
    ],
)
def test_numbers_that_a_run_would_stop_at_later(options, says, workplace, monkeypatch, capsys):
    started = run_tool(monkeypatch, 'train', CLASSIFIER, '--work-dir', 'work', '--cfg-options', *options)
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert started == 1 and re.search(says, last), last
    assert not Path('work').exists()


@pytest.mark.parametrize('config', [CLASSIFIER, DETECTOR], ids=lambda config: config.stem)
def test_a_training_that_learns_nothing_more_is_a_failure(config, workplace, monkeypatch, capsys):
    """Its weights are NaN: the exit code is 1, and no checkpoint has them."""
    options = ['optim_wrapper.optimizer.lr=1e30', 'optim_wrapper.clip_grad=None', 'param_scheduler=None']
    options += ['train_cfg.max_epochs=3', 'default_hooks.checkpoint.interval=3']
    assert train(monkeypatch, *options, config=config) == 1
    assert re.search(r'after iteration \d there are weights that are infinite or NaN', capsys.readouterr().err)
    assert not list(workplace.rglob('*.pth'))


@pytest.mark.parametrize(
    'config, options, says',
    [
        (DETECTOR, {'neck.in_channels': [8, 16, 32, 64]}, r'set model\.neck\.in_channels=\[\d+, \d+, \d+, \d+\]'),
        (SEGMENTOR, {'decode_head.in_channels': [8, 16, 32, 64]}, r'set model\.decode_head\.in_channels=\[\d+'),
        (SEGMENTOR, {'auxiliary_head.in_channels': 9}, r'set model\.auxiliary_head\.in_channels=\d+'),
    ],
)
def test_channels_that_do_not_fit(config, options, says, workplace):
    with pytest.raises(RunError, match=says):
        check_maps(load_config(str(config), options={f'model.{key}': value for key, value in options.items()}))


@pytest.mark.parametrize(
    'config, options',
    [
        (DETECTOR, {'neck.start_level': 1}),
        (
            SEGMENTOR,
            {
                'decode_head': dict(
                    _delete_=True, type='FCNHead', in_channels=128, in_index=2, num_classes=5, channels=8
                ),
                'auxiliary_head': None,
            },
        ),
    ],
)
def test_maps_that_nothing_reads(config, options, workplace):
    """DistributedDataParallel would stop in the second iteration; one process does not care."""
    cfg = load_config(str(config), options={f'model.{key}': value for key, value in options.items()})
    check_maps(cfg)
    cfg.launcher = 'pytorch'
    with pytest.raises(RunError, match='start_level of the neck, in_index of heads.*out_indices=.*find_unused'):
        check_maps(cfg)
    cfg.find_unused_parameters = True
    check_maps(cfg)


def test_arguments_of_another_backbone_are_named_wherever_the_backbone_stands():
    mine, other = (
        dict(type='mmdat.DAT', _scope_='mmdet', arch='tiny'),
        dict(type='mmdat.DAT', pretrained=None, style='x'),
    )
    check_arguments(Config(dict(model=dict(backbone=mine))))
    for model in (dict(backbone=other), dict(backbone=mine, teacher=dict(backbone=other))):
        with pytest.raises(RunError, match='DAT takes no pretrained, style: put _delete_=True'):
            check_arguments(Config(dict(model=model)))


def test_configs_of_this_repository_fit():
    for path in [*ROOT.glob('configs/*_in1k.py'), *ROOT.glob('configs/*_t_*.py'), *DEMO.glob('*nano_shapes.py')]:
        cfg = Config.fromfile(path)
        cfg.launcher = 'pytorch'
        check_maps(cfg)
        check_task(cfg, 'train')


@pytest.mark.parametrize(
    'message, says',
    [
        (
            'Expected more than 1 value per channel when training, got input size torch.Size([1, 512, 1, 1])',
            'batch_size to 2',
        ),
        (
            'If the mean has 3 values, the input tensor should in shape of (3, H, W), but got the tensor with shape '
            'torch.Size([4, 64, 64])',
            'images have 4 channels, but data_preprocessor has 3 values of mean and std',
        ),
        (
            'Please run "pip install future tensorboard" to install the dependencies',
            'run pip install future tensorboard',
        ),
    ],
)
def test_what_packages_say_becomes_a_sentence(message, says):
    assert says in explain(ValueError(message))


# --- any command line ------------------------------------------------------------------------------

#: What each tool is called with, in a place with data but no checkpoints; training has a hook that does not exist.
TOOLS = {
    'train': ['mine.py'],
    'test': [CLASSIFIER, 'nope.pth'],
    'infer': [CLASSIFIER, 'nope.pth', 'nope.jpg'],
    'visualize_deformation': ['nope.jpg', '--config', CLASSIFIER],
    'convert_checkpoint': ['nope.pth', 'out.pth'],
    'get_flops': ['nope.py'],
    'make_shapes': ['--size', '-1'],
    'compare': ['mine.py', SEGMENTOR],
    'export_onnx': [CLASSIFIER, 'out.onnx', '--checkpoint', 'nope.pth'],
    'infer_onnx': ['nope.onnx', 'nope.jpg'],
    'reproduce': [ROOT / 'configs/dat_t_300e_in1k.py', 'nope.pth', '--table', 'table.yml'],
}
VALUES = [
    *(
        '',
        '-1',
        '0',
        '0.5',
        '9,9',
        '1e9',
        'nan',
        'x',
        'nope.py',
        'nope.pth',
        'nope/nope',
        '/dev/null',
        'pytorch',
        'a=b',
    ),
    *('mine/0', '\x1b[31m', 'ünï.py', str(SEGMENTOR), str(ROOT / 'configs/own_data/coco_folder.py'), 'data/shapes'),
]
SETTINGS = [
    *(
        'model=3',
        'model.backbone=None',
        'model.backbone.arch=huge',
        'model.backbone.arch.dims=(1,2)',
        'model.type=Nope',
    ),
    *(
        'model.backbone.out_indices=(9,)',
        'model.backbone.drop_path_rate=x',
        'model.head.num_classes=-1',
        'model.head=[]',
    ),
    *('model.backbone.window_size=0', 'model.head.in_channels=7', 'model.backbone.init_cfg.checkpoint=nope.pth'),
    *('train_cfg=None', 'train_cfg.max_epochs=0', 'train_cfg.type=Nope', 'val_cfg=None', 'optim_wrapper=None'),
    *('optim_wrapper.optimizer.type=Nope', 'optim_wrapper.optimizer.lr=x', 'optim_wrapper.clip_grad=3', 'resume=True'),
    *('train_dataloader.batch_size=none', 'train_dataloader.sampler.type=Nope', 'train_dataloader.dataset=None'),
    *('train_dataloader.dataset.pipeline=[]', 'train_dataloader.dataset.pipeline.0.type=Nope', 'train_dataloader=[]'),
    *('default_scope=mmpose', 'default_scope=mmdet', 'default_scope=None', 'load_from=3', 'work_dir=[1]', 'launcher=7'),
    *('default_hooks.logger=3', 'default_hooks.checkpoint.interval=x', 'env_cfg=1', 'visualizer=x', 'randomness=x'),
    *(
        'param_scheduler.type=Nope',
        'param_scheduler=3',
        'log_processor=3',
        'val_evaluator.type=Nope',
        'a.b=1',
        '=',
        '=1',
    ),
]


def options_of(tool, monkeypatch, capsys):
    assert run_tool(monkeypatch, tool, '--help') == 0
    return ['--nope', *sorted(set(re.findall(r'--[a-z-]+', capsys.readouterr().out)) - {'--help'})]


def test_any_command_line_ends_in_one_sentence(workplace, monkeypatch, capsys):
    """300 command lines, drawn at random."""
    mine = f'_base_ = {str(CLASSIFIER)!r}\ncustom_hooks = [dict(type="Nope")]\n'
    for part in ('train', 'val', 'test'):
        mine += f'{part}_dataloader = dict(num_workers=0, persistent_workers=False)\n'
    Path('mine.py').write_text(mine)
    options = {tool: options_of(tool, monkeypatch, capsys) for tool in TOOLS}
    draw = random.Random(0)
    for number in range(300):
        tool = list(TOOLS)[number % len(TOOLS)]
        command = list(TOOLS[tool])
        for option in draw.choices(options[tool], k=draw.randint(0, 2)):
            command += [option, *draw.choices(VALUES, k=draw.randint(0, 1))]
        if '--cfg-options' in options[tool]:
            command += ['--cfg-options', *draw.choices(SETTINGS, k=draw.randint(1, 2))]
        code = run_tool(monkeypatch, tool, *command)  # raises what has no sentence
        error = capsys.readouterr().err.strip()
        assert code in (1, 2), command
        assert error and 'Traceback' not in error, command
        assert error.splitlines()[-1].startswith(f'{tool}.py: '), (command, error)


def test_help_and_mistyped_options_answer_at_once(tmp_path):
    for tool in sorted(set(TOOLS) - {'infer_onnx', 'reproduce'}):  # which stand alone, and beside the tools
        for option, code in (('--help', 0), ('--nope', 2)):
            start = time.process_time()
            done = subprocess.run(
                [sys.executable, '-X', 'importtime', ROOT / 'tools' / f'{tool}.py', option],
                capture_output=True,
                text=True,
                cwd=tmp_path,
            )
            assert done.returncode == code
            assert not re.search(r'\| +(torch|mmengine|mmcv|cv2|numpy)$', done.stderr, re.MULTILINE), tool
            assert time.process_time() - start < 1
