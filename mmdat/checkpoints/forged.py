"""Files that take memory or time out of all proportion to their size; they are refused before they are read."""

import os
import pickle
import pickletools
import tarfile
import zipfile
from collections.abc import Iterable
from typing import Any, BinaryIO, Callable, NamedTuple

# Checkpoints are a few dozen containers deep at most, and share next to none of them.
MAX_DEPTH = 100
MAX_VISITS = 10**7


def check_no_tar(file: BinaryIO) -> None:
    """Refuse tar files: PyTorch extracts them to the disk, with whatever kinds of files they have.

    Raises:
        pickle.UnpicklingError: If it is one, as PyTorch's first versions wrote.
    """
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode='r:'):
            raise pickle.UnpicklingError('it is a tar file, as PyTorch wrote before 2017')
    except tarfile.TarError:
        return


def check_zip(file: BinaryIO, records: Iterable[str]) -> None:
    """Refuse zip files that hold more than they are long; PyTorch stores its own without compression.

    Args:
        file: The file.
        records: The names in it by PyTorch's own reading.

    Raises:
        pickle.UnpicklingError: Says what is wrong.
    """
    file.seek(0)
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise pickle.UnpicklingError('it has compressed records, which PyTorch does not write')
    if sum(entry.file_size for entry in entries) > file.seek(0, os.SEEK_END):
        raise pickle.UnpicklingError('its records are longer than the file')
    if not {entry.filename.partition('/')[2] for entry in entries}.issuperset(records):
        raise pickle.UnpicklingError('it has two tables of contents')


def check_opcodes(file: BinaryIO) -> None:
    """Refuse a pickle whose memo has numbers out of order: a large one alone takes gigabytes.

    Raises:
        pickle.UnpicklingError: If so, or if it is no pickle.
    """
    start = file.tell()
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if opcode.name in ('PUT', 'BINPUT', 'LONG_BINPUT') and argument > count:
                raise pickle.UnpicklingError(f'a pickle with the memo index {argument}')
    except (ValueError, OverflowError, MemoryError) as error:
        raise pickle.UnpicklingError(f'a pickle that is damaged: {error}') from error
    file.seek(start)


class _Visited(NamedTuple):
    node: Any  # kept, so that no other object gets its id
    settled: Any
    visits: int


class Settling:
    """Puts values in the place of what stands for them in nested containers, each container once.

    Args:
        value_of: The value of a leaf.

    Raises:
        pickle.UnpicklingError: For containers that hold themselves, or each other so often that a walk over all of them
            would not end; and for those nested too deeply.
    """

    def __init__(self, value_of: Callable[[Any], Any]):
        self._value_of = value_of
        self._seen: dict[int, Any] = {}

    def __call__(self, node: Any) -> Any:
        return self._settle(node, 0).settled

    def _settle(self, node: Any, depth: int) -> _Visited:
        if not isinstance(node, (dict, list)) and type(node) is not tuple:
            return _Visited(node, self._value_of(node), 1)
        if id(node) in self._seen:
            visited = self._seen[id(node)]
            if visited is None:
                raise pickle.UnpicklingError('it has a container that holds itself')
            return visited
        if depth == MAX_DEPTH:
            raise pickle.UnpicklingError(f'its containers are nested more than {MAX_DEPTH} deep')
        self._seen[id(node)] = None
        children = [self._settle(child, depth + 1) for child in (node.values() if isinstance(node, dict) else node)]
        visits = 1 + sum(child.visits for child in children)
        if visits > MAX_VISITS:
            raise pickle.UnpicklingError(f'its containers hold each other more than {MAX_VISITS} times')
        settled = node
        if isinstance(node, dict):
            for key, child in zip(list(node), children):
                node[key] = child.settled
        elif isinstance(node, list):
            node[:] = [child.settled for child in children]
        else:
            settled = tuple(child.settled for child in children)
        self._seen[id(node)] = _Visited(node, settled, visits)
        return self._seen[id(node)]
