"""Hashes of the values on which all clients of a round have to agree.

The masks of two neighbours depend on the settings, the model, the keys, and the public keys of all
clients of the round. If a server sends different values to two clients, their masks do not cancel,
and the sum is noise.

Source: SHA-256 (FIPS 180-4) over parts that each begin with their length.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping

from fedapt.training.methods.base import Learned

# the fields of a task that describe the run, not one client or the sender
_OF_THE_RUN = ("protocol", "config", "classes", "clip_sha256", "n_keys")


def hash_parts(*parts: bytes) -> bytes:
    """Hash of a list of parts, 32 bytes; two different lists have different hashes."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()


def hash_tensors(tensors: Learned) -> bytes:
    """Hash of the names, shapes, dtypes and values of tensors, 32 bytes."""
    return hash_parts(*_list_tensors(tensors))


def hash_work(
    task: Mapping[str, object], round_number: int, start: Learned, frozen: Learned
) -> bytes:
    """Hash of all inputs of a client's training, except its images, 32 bytes.

    Args:
        task: the record of the run as it is sent, which all versions read in the same way.
        start: the tensors that the client was sent.
        frozen: `Method.frozen`.
    """
    settings = repr([(name, task.get(name)) for name in _OF_THE_RUN]).encode()
    number = round_number.to_bytes(8, "little")
    return hash_parts(settings, number, hash_tensors(start), hash_tensors(frozen))


def hash_keys(clients: Mapping[int, tuple[bytes, bytes]]) -> bytes:
    """Hash of a round's public keys: client -> (key for masks, key for sealed shares)."""
    parts = [(f"{c}".encode(), *keys) for c, keys in sorted(clients.items())]
    return hash_parts(*(part for client in parts for part in client))


def hash_clients(clients: Collection[int]) -> bytes:
    """Hash of a set of clients, 32 bytes."""
    return hash_parts(*(f"{client}".encode() for client in sorted(set(clients))))


def _list_tensors(tensors: Learned) -> Iterable[bytes]:
    for name, tensor in sorted(tensors.items()):
        yield name.encode()
        yield repr((tuple(tensor.shape), str(tensor.dtype))).encode()
        yield tensor.detach().cpu().contiguous().numpy().tobytes()
