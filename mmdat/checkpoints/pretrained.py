"""Published weights as a checkpoint of a whole model, and as a backbone."""

from pathlib import Path
from typing import Any

from mmdat.errors import CheckpointError
from mmdat.models.checkpoint import Signature, StateDict, backbone_entries, convert_model
from mmdat.weights import Weights, fetch, find_weights

from .reading import load_weights

_WEB_PAGE = (b'<!doctype', b'<html', b'<?xml')


def load_pretrained(name: str) -> dict[str, Any]:
    """The checkpoint of published weights, downloaded on first use.

    Args:
        name: As :func:`mmdat.weights.find_weights` takes it.

    Returns:
        ``{'state_dict': …, 'meta': …}`` with the keys of the toolboxes: ``backbone.…``, and ``head.fc.…`` of a
        classifier or ``neck.…`` and others of a detector; on the CPU.

    Raises:
        CheckpointError: If the name is unknown, or there is no way to the file; says what to do by hand.
    """
    weights = find_weights(name)
    state_dict = fetch(weights, lambda path: read_published(path, weights))
    return dict(state_dict=state_dict, meta=dict(mmdat_weights=weights.name))


def read_published(path: Path, weights: Weights) -> StateDict:
    """The state dict of a file, in the toolboxes' layout, if it is of the right model.

    Raises:
        CheckpointError: If it is not; the message is a part of a sentence that :func:`mmdat.weights.fetch` makes.
    """
    with path.open('rb') as file:
        if file.read(64).lstrip().lower().startswith(_WEB_PAGE):
            raise CheckpointError('it is a web page, as servers send when a quota is used up or a file has moved')
    try:
        state_dict = convert_model(load_weights(path))
    except CheckpointError as error:
        raise CheckpointError('it is not a readable checkpoint of a DAT') from error
    signature = Signature.of(backbone_entries(state_dict))
    if signature is None or signature.name != weights.arch:
        raise CheckpointError(f'it holds {signature or "only a part of a DAT"}, and not arch={weights.arch!r}')
    return state_dict


def build_pretrained(cls: type, name: str, **kwargs: Any) -> Any:
    """A backbone of a class, :class:`mmdat.DAT` or one derived from it, with published weights.

    Raises:
        CheckpointError: As :func:`load_pretrained`.
        ValueError: If an argument is out of range.
    """
    weights = find_weights(name)
    # Arguments are checked before anything is downloaded.
    model = cls(weights.arch, **{'img_size': weights.img_size, 'window_size': weights.window_size, **kwargs})
    missing = model.load_state_dict(backbone_entries(load_pretrained(name)['state_dict']), strict=False).missing_keys
    # Output norms of stages that the published model does not return stay as they are initialised.
    missing = [key for key in missing if not key.startswith('norm')]
    if missing:
        raise CheckpointError(f'the weights {weights.name} lack {missing[0]}: leave out the argument that asks for it')
    model.pretrained = weights
    return model
