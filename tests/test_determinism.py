"""The same seed gives the same losses and weights, bit for bit, through the Runner on a CPU."""

import pytest
import torch
from small_runs import SIZE, train_alone

slow = pytest.mark.slow


DEMO_DATA = dict(num_train=4, num_val=1, size=SIZE)


@pytest.fixture
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


#: AdamW, which turns the smallest difference of a gradient into one of a weight, and stochastic depth.
TRAINING = {
    'optim_wrapper.optimizer': dict(_delete_=True, type='AdamW', lr=1e-3),
    'train_cfg.max_epochs': 2,
    'train_dataloader.sampler.shuffle': True,
    'model.backbone.drop_path_rate': 0.3,
}


@pytest.mark.parametrize(
    'task, threads',
    [
        ('classifier', 1),
        pytest.param('classifier', 2, marks=slow),
        pytest.param('upernet', 1, marks=slow),
        pytest.param('maskrcnn', 1, marks=slow),
    ],
    indirect=['threads'],
)
@pytest.mark.parametrize('generation', ['dat', 'datpp'])
def test_same_seed_same_run(task, generation, threads, workplace):
    runs = {
        name: train_alone(task, generation, workplace / name, {**TRAINING, 'model.backbone.with_cp': name == 'cp'})
        for name in ('first', 'second', 'cp')
    }
    losses = [step['loss'] for step in runs['first']['losses']]
    assert len(set(losses)) == len(losses) == 4
    for name in ('second', 'cp'):  # computing blocks again changes nothing but the memory needed
        assert runs[name]['losses'] == runs['first']['losses']
        for key, value in runs['first']['weights'].items():
            assert torch.equal(runs[name]['weights'][key], value), key
