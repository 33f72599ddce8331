"""Runs that are cut off: what was whole stays whole, and after --resume all is as if nothing had happened."""

import fcntl
import itertools
import json
import os
import pickle
import random
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from in_process import run_tool
from mmengine.config import Config
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.runner import Runner
from paths import DEMO, ROOT

from mmdat.checkpoints import resuming, work_dir
from mmdat.checkpoints.reading import load_weights
from mmdat.checkpoints.resuming import load_run
from mmdat.checkpoints.whole_files import WholeFileBackend
from mmdat.checkpoints.work_dir import only_run
from mmdat.errors import CheckpointError, RunError
from mmdat.hooks.loops import SeededDataset, seeded

# Kills its process in the middle of an iteration, or when half of a checkpoint is on the disk.
KILLER = """
import os, signal
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

def write_half(number):
    os.ftruncate(number, os.fstat(number).st_size // 2)
    kill()

@HOOKS.register_module()
class Kill(Hook):
    when, _, step = os.environ.get('KILL', '').partition(' ')

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if self.when == 'iteration' and runner.iter + 1 == int(self.step):
            kill()

    def before_save_checkpoint(self, runner, checkpoint):
        if self.when == 'writing' and checkpoint['meta']['iter'] == int(self.step):
            os.fsync = write_half
"""
# Randomness everywhere: order, augmentation in two workers, dropped paths. Everything is logged, unsmoothed.
COMMON = """
custom_imports = dict(imports=['killer'])
custom_hooks = [dict(type='Kill')]
log_processor = dict(type='LogProcessor', window_size=1, by_epoch={by_epoch})
model = dict(backbone=dict(drop_path_rate=0.3))
train_dataloader = dict(batch_size=2, num_workers={workers}, persistent_workers={persistent})
val_dataloader = dict(num_workers=0, persistent_workers=False)
train_cfg = dict({length}, val_interval={interval})
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval={interval}))
randomness = dict({seed})
"""
EPOCHS = dict(length='max_epochs=3', by_epoch=True, interval=1)  # of three iterations
ITERATIONS = dict(length='max_iters=9', by_epoch=False, interval=3)


DEMO_DATA = dict(num_train=6, num_val=1, size=64)


@pytest.fixture
def workplace(workplace, monkeypatch):
    (workplace / 'killer.py').write_text(KILLER)
    monkeypatch.syspath_prepend(str(workplace))
    return workplace


def write_config(base, workers=2, persistent=True, seed='seed=3', **kind):
    text = f'_base_ = "{DEMO / base}.py"\n'
    Path('mine.py').write_text(
        text + COMMON.format(workers=workers, persistent=persistent and workers > 0, seed=seed, **kind)
    )


def command(*args, kill=''):
    """tools/train.py in a process of its own."""
    return subprocess.run(
        [sys.executable, ROOT / 'tools/train.py', 'mine.py', *map(str, args)],
        env=dict(os.environ, KILL=kill, PYTHONPATH=f'{ROOT}{os.pathsep}{Path.cwd()}', OMP_NUM_THREADS='1'),
        capture_output=True,
        text=True,
    )


def history(work_dir):
    """What was logged of each iteration; a later run has the last word."""
    logged = {}
    for path in sorted(Path(work_dir).glob('*/vis_data/scalars.json')):
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            if 'loss' in entry:
                kept = {key: value for key, value in entry.items() if 'time' not in key and key != 'memory'}
                logged[entry['step']] = kept
    return logged


def assert_same_run(one, other, last):
    assert sorted(history(one)) == list(range(1, 10))
    assert history(one) == history(other)
    states = [load_run(Path(work_dir) / last) for work_dir in (one, other)]
    assert_equal(*(state['state_dict'] for state in states))
    assert_equal(*(state['optimizer'] for state in states))


def assert_equal(one, other):
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for pair in zip(one, other):
            assert_equal(*pair)
    else:
        assert one == other


@pytest.mark.slow
@pytest.mark.parametrize(
    'base, workers, kill',
    [
        ('datnano_shapes', 0, 'iteration 8'),
        ('datppnano_shapes', 2, 'writing 6'),
        ('maskrcnn_datnano_shapes', 2, 'writing 6'),
        ('maskrcnn_datppnano_shapes', 0, 'iteration 5'),
        ('upernet_datnano_shapes', 2, 'iteration 8'),
        ('upernet_datppnano_shapes', 0, 'writing 6'),
    ],
)
def test_killed_and_resumed(base, workers, kill, workplace):
    kind, last = (ITERATIONS, 'iter_9.pth') if 'upernet' in base else (EPOCHS, 'epoch_3.pth')
    write_config(base, workers=workers, **kind)
    done = command('--work-dir', 'whole')
    assert done.returncode == 0, done.stderr[-2000:]
    assert command('--work-dir', 'cut', kill=kill).returncode == -signal.SIGKILL
    assert not Path('cut', last).exists()
    left = sorted(path.name for path in Path('cut').glob('*.pth*'))
    assert any(name.endswith('.part') for name in left) == kill.startswith('writing')
    done = command('--work-dir', 'cut', '--resume')
    assert done.returncode == 0, done.stderr[-2000:]
    assert 'resumed epoch' in done.stdout and 'starts from scratch' not in done.stdout
    assert_same_run('whole', 'cut', last)


@pytest.fixture
def train(workplace, monkeypatch):
    """tools/train.py for a classifier in this process, without workers; returns the exit code."""
    write_config('datppnano_shapes', workers=0, **EPOCHS)

    def run(work_dir, epochs, *args):
        options = ['--cfg-options', f'train_cfg.max_epochs={epochs}', 'default_hooks.checkpoint.max_keep_ckpts=5']
        return run_tool(monkeypatch, 'train', 'mine.py', '--work-dir', work_dir, *args, *options)

    return run


def test_cut_off_in_many_ways(train, workplace, capsys):
    """One run of three epochs against one with a full disk, a damaged checkpoint and a wrong pointer on its way."""
    assert train('whole', 3) == 0
    # The scheduler knows of all three epochs from the start, so the disk is what stops the second run.
    Path('cut').mkdir()
    Path('cut/epoch_2.pth.part').symlink_to('/dev/full')
    assert train('cut', 3) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert 'cut/epoch_2.pth cannot be written (No space left on device): free some space' in said
    assert {path.name for path in Path('cut').glob('*.pth*')} == {'epoch_1.pth'}
    load_run('cut/epoch_1.pth')

    # A half of a checkpoint, as other tools may leave it, and a pointer to it.
    half = Path('cut/epoch_2.pth')
    half.write_bytes(Path('cut/epoch_1.pth').read_bytes()[:5000])
    Path('cut/last_checkpoint').write_text(str(half))
    assert train('cut', 3, '--resume') == 0
    log = max(Path('cut').glob('*_*/*.log')).read_text()
    assert 'epoch_2.pth is not a readable PyTorch checkpoint' in log
    assert 'training goes on from cut/epoch_1.pth in its place' in log and 'resumed epoch: 1' in log
    assert_same_run('whole', 'cut', 'epoch_3.pth')


def test_resuming_never_starts_from_scratch_where_there_are_checkpoints(train, workplace, capsys):
    Path('work').mkdir()
    for number in (1, 2):
        Path(f'work/epoch_{number}.pth').write_bytes(b'half')
    assert train('work', 3, '--resume') == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert 'no whole checkpoint' in said and 'epoch_1.pth' in said and 'epoch_2.pth' in said
    assert 'name another with --resume PATH, or train from scratch without --resume' in said


class Noise:
    """A dataset of random numbers."""

    def __len__(self):
        return 5

    def __getitem__(self, index):
        return index, random.random(), np.random.rand(), torch.rand(1).item()


def noisy_loader(sampler, workers):
    config = dict(
        dataset=Noise(),
        sampler=dict(type=sampler),
        batch_size=2,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=dict(type=list),
        drop_last=True,
    )
    return Runner.build_dataloader(seeded(config), seed=0)


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('sampler', [InfiniteSampler, DefaultSampler])
def test_batches_of_a_run_by_iterations_follow_from_seed_and_number(sampler, workers):
    loader = noisy_loader(sampler, workers)

    def take(count, seed, first):
        loader.batch_sampler.begin(seed, first, endless=True)
        return list(itertools.islice(loader, count))

    whole = take(9, 3, 0)
    assert len({batch[0][1:] for batch in whole} | {batch[1][1:] for batch in whole}) == 18
    assert take(5, 3, 4) == whole[4:]
    assert take(9, 4, 0) != whole


@pytest.mark.parametrize('workers', [0, 2])
def test_batches_of_an_epoch_follow_from_seed_and_number(workers):
    loader = noisy_loader(DefaultSampler, workers)
    epochs = []
    for epoch in (0, 1, 0):
        loader.batch_sampler.sampler.set_epoch(epoch)
        loader.batch_sampler.begin(3, len(loader) * epoch, endless=False)
        epochs.append(list(loader))
    assert [len(epoch) for epoch in epochs] == [2, 2, 2] and len(loader) == 2
    assert epochs[0] == epochs[2] != epochs[1]


def test_what_a_seeded_dataset_has_is_its_datasets():
    """Hooks ask it for classes and images, and change its pipeline."""
    dataset = Noise()
    dataset.metainfo, dataset.pipeline = dict(classes=('a',)), 'first'
    dataset.get_data_info = lambda index: dict(index=index)
    seeded = pickle.loads(pickle.dumps(SeededDataset(Noise())))
    assert len(seeded) == 5 and seeded[3, 7] == seeded[3, 7] != seeded[3, 8]
    seeded = SeededDataset(dataset)
    seeded.pipeline = 'second'
    assert dataset.pipeline == 'second' and seeded.metainfo == dataset.metainfo
    assert seeded.get_data_info((3, 7)) == seeded.get_data_info(3) == dict(index=3)


def test_a_file_is_replaced_only_by_a_whole_one(tmp_path):
    path = tmp_path / 'a.pth'
    backend = WholeFileBackend()
    backend.put(b'old', path)
    (tmp_path / 'a.pth.part').symlink_to('/dev/full')
    with pytest.raises(RunError, match='a.pth cannot be written .No space left on device'):
        backend.put(b'new', path)
    assert path.read_bytes() == b'old' and os.listdir(tmp_path) == ['a.pth']
    backend.put(b'new', path)
    assert path.read_bytes() == b'new' and os.listdir(tmp_path) == ['a.pth']


def test_moved_work_directories_can_be_resumed(train, workplace):
    assert train('work', 1) == 0
    shutil.move('work', 'moved')
    assert train('moved', 2, '--resume') == 0
    assert load_run('moved/epoch_2.pth')['meta']['epoch'] == 2


# --- which checkpoint, and what changed ------------------------------------------------------------


def log_of(work_dir):
    return max(Path(work_dir).glob('*_*/*.log')).read_text()


def test_a_copied_directory_goes_on_from_its_own_checkpoint(train, workplace):
    assert train('work', 1) == 0
    shutil.copytree('work', 'copy')
    assert train('copy', 2, '--resume') == 0
    assert f'Load checkpoint from copy{os.sep}epoch_1.pth' in log_of('copy')


def test_without_a_pointer_the_last_iteration_counts_not_the_newest_file(tmp_path):
    for number in (10, 9, 2):
        (tmp_path / f'epoch_{number}.pth').touch()
    os.utime(tmp_path / 'epoch_10.pth', (1, 1))
    names = [path.name for path in resuming._candidates(Config(dict(work_dir=str(tmp_path))), load_weights)]
    assert names == ['epoch_10.pth', 'epoch_9.pth', 'epoch_2.pth']


def test_what_changed_is_listed_with_old_and_new(train, workplace):
    assert train('work', 1) == 0
    with Path('mine.py').open('a') as config:
        config.write('train_dataloader.update(batch_size=3)\noptim_wrapper = dict(optimizer=dict(lr=0.5))\n')
        config.write('randomness = dict(seed=8)\n')
    assert train('work', 2, '--resume') == 0
    (warning,) = [line for line in log_of('work').splitlines() if 'goes on otherwise' in line]
    for text in ('train_dataloader.batch_size: 2 -> 3', 'optimizer.lr: 0.001 -> 0.5', 'randomness.seed: 3 -> 8'):
        assert text in warning
    assert 'train_cfg.max_epochs: 1 -> 2' in warning


PLACES = {
    'a multiple of the sum': (dict(iter=8, epoch=2), 4, 'iter', None),
    'within a sum': (dict(iter=6, epoch=1), 4, 'iter', 'in the middle of 4 whose gradients are summed'),
    'the end of an epoch': (dict(iter=6, epoch=2), 1, 'epoch', None),
    'within an epoch': (dict(iter=7, epoch=2), 1, 'epoch', 'within an epoch of 3, .*checkpoint.by_epoch=True'),
    'the end of an epoch that does not count': (dict(iter=6, epoch=1), 1, 'epoch', 'within an epoch of 3'),
}


@pytest.mark.parametrize('meta, counts, kind, message', PLACES.values(), ids=PLACES)
def test_places_from_which_a_run_would_not_go_on_as_if_uninterrupted(meta, counts, kind, message, tmp_path):
    info = dict(runtime_info=dict(max_epochs=3, max_iters=9))
    torch.save(dict(meta=dict(meta, seed=3), state_dict={}, optimizer={}, message_hub=info), tmp_path / 'iter_1.pth')
    loops = dict(iter=dict(type='IterBasedTrainLoop'), epoch=dict(by_epoch=True))
    cfg = Config(dict(work_dir=str(tmp_path), train_cfg=loops[kind], optim_wrapper=dict(accumulative_counts=counts)))
    for resume, error in ((str(tmp_path / 'iter_1.pth'), CheckpointError), ('auto', RunError)):
        if message:
            with pytest.raises(error, match=message):
                resuming.resumed(cfg, resume)
        else:
            assert resuming.resumed(cfg, resume)[0].load_from == str(tmp_path / 'iter_1.pth')


# --- one run in a directory ------------------------------------------------------------------------


def test_a_second_run_in_the_same_directory_is_refused(train, workplace, capsys):
    with only_run('work'):
        assert train('work', 1) == 1
        said = capsys.readouterr().err.splitlines()[-1]
        assert f'is the work directory of a run of process {os.getpid()} on {socket.gethostname()}' in said
    assert not Path('work', work_dir.NAME).exists()
    with only_run('work'), only_run('elsewhere'):
        pass


HOLDER = """
import time
from mmdat.checkpoints.work_dir import only_run
with only_run("work"):
    print(1, flush=True)
    time.sleep(60)
"""


def test_the_lock_of_a_killed_run_does_not_count(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    holder = subprocess.Popen([sys.executable, '-c', HOLDER], stdout=subprocess.PIPE, env=environment)
    holder.stdout.readline()
    with pytest.raises(RunError, match=f'a run of process {holder.pid} on'), only_run('work'):
        pass
    holder.kill()
    holder.wait()
    with only_run('work'):
        assert json.loads(Path('work', work_dir.NAME).read_text())['process'] == os.getpid()


def test_the_lock_of_a_dead_process_that_its_children_hold_does_not_count(tmp_path):
    file = (tmp_path / work_dir.NAME).open('w')
    fcntl.flock(file, fcntl.LOCK_EX)
    dead = subprocess.Popen([sys.executable, '-c', ''])
    dead.wait()
    file.write(json.dumps(dict(process=dead.pid, host=socket.gethostname())))
    file.flush()
    with only_run(str(tmp_path)):
        pass


@pytest.mark.parametrize('variable', ['RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK'])
def test_one_lock_for_all_processes_of_a_run(variable, tmp_path, monkeypatch):
    with only_run(str(tmp_path)):
        monkeypatch.setenv(variable, '1')
        with only_run(str(tmp_path)):
            pass
