"""Data parallel training on two processes of this machine."""

import warnings

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from mmdat import DAT

WORLD = 2


def gradients(model, images):
    """Of a loss that is a mean over images; a parameter without a gradient is an error of the caller's."""
    loss = sum(out.square().flatten(1).mean(1).mean() for out in model(images))
    loss.backward()
    module = model.module if isinstance(model, DistributedDataParallel) else model
    return loss.detach(), {name: p.grad for name, p in module.named_parameters()}


def worker(rank, folder, nano, with_cp, images):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=WORLD)
    torch.manual_seed(rank)  # DDP gives all processes the parameters of the first
    model = DistributedDataParallel(DAT(nano, img_size=64, with_cp=with_cp).double())
    # The second step fails if the first left parameters without a gradient.
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        for _ in range(2):
            model.zero_grad()
            loss, grads = gradients(model, images.chunk(WORLD)[rank])
    dist.all_reduce(loss)
    if rank == 0:
        said = [str(warning.message) for warning in caught]
        result = dict(loss=loss / WORLD, grads=grads, state=model.module.state_dict(), warnings=said)
        torch.save(result, f'{folder}/result.pth')
    dist.destroy_process_group()


@pytest.mark.parametrize('with_cp', [False, True])
def test_two_processes_train_as_one_with_both_batches(nano, with_cp, tmp_path):
    images = torch.randn(4, 3, 70, 96, dtype=torch.float64)
    # Forked, for importing PyTorch again takes longer than the steps.
    mp.start_processes(worker, (str(tmp_path), nano, with_cp, images), nprocs=WORLD, start_method='fork')
    result = torch.load(tmp_path / 'result.pth')
    assert not [said for said in result['warnings'] if 'strides' in said]  # gradients are laid out as their weights
    model = DAT(nano, img_size=64).double()
    model.load_state_dict(result['state'])
    loss, grads = gradients(model, images)
    torch.testing.assert_close(result['loss'], loss, rtol=1e-12, atol=0)
    largest = max(grad.abs().max() for grad in grads.values())
    for name, grad in grads.items():
        assert (grad - result['grads'][name]).abs().max() <= 1e-12 * largest, name
