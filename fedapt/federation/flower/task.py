"""A task: the server's description of the run and of a node's place in it, as Flower's records.

A task holds everything that a node needs besides its images: the settings without paths, the class
names, the CLIP by name and hash, and the node's domain and key as numbers. Every message carries
the task. A node therefore has no state to lose, except within a secure round.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

import torch
from flwr.app import ConfigRecord, RecordDict
from torch import Tensor

import fedapt
from fedapt.core import names
from fedapt.core.config import Config, config_from_dict, remove_paths
from fedapt.core.errors import ConfigError, FederationError
from fedapt.data.partition import ClientInfo
from fedapt.federation.flower.tensors import from_arrays
from fedapt.training.methods.base import Learned

# raise when messages change so that an older node would misread them
PROTOCOL = 3

# the records of a message, and of a reply
TASK, LEARNED, KEYS = "task", "learned", "keys"
REPLY, REFUSAL = "reply", "refusal"


@dataclass(frozen=True)
class Plan:
    """The part of a task that is the same for all nodes of a run.

    Attributes:
        config: settings of the run, without paths.
        classes: names in the order of the labels.
        clip_sha256: hash of the CLIP's weights.
        n_keys: number of keys N.
    """

    config: Config
    classes: tuple[str, ...]
    clip_sha256: str
    n_keys: int


@dataclass(frozen=True)
class Place:
    """A node's place in a round: `fedapt.data.partition.Client` without its images.

    Attributes:
        client, domain, key: indices.
        share: index among the clients of its domain, if several share a folder.
        round: number of the round, from 0.
    """

    client: int
    domain: int
    key: int
    share: int
    round: int

    @classmethod
    def of(cls, client: ClientInfo, share: int, round_number: int) -> Place:
        """The place of a client."""
        return cls(client.index, client.domain, client.key, share, round_number)


def task_to_record(plan: Plan, place: Place | None = None) -> ConfigRecord:
    """The record of a message to a node; without a place, of a request to introduce itself."""
    return ConfigRecord(
        {
            "protocol": PROTOCOL,
            "version": fedapt.__version__,
            "config": json.dumps(dataclasses.asdict(plan.config), sort_keys=True),
            "classes": list(plan.classes),
            "clip_sha256": plan.clip_sha256,
            "n_keys": plan.n_keys,
            **({} if place is None else dataclasses.asdict(place)),
        }
    )


def read_plan(record: ConfigRecord) -> Plan:
    """Read the plan of the run from the server's record.

    Raises:
        FederationError: the record is damaged, or its protocol version differs.
    """
    check_protocol(record)
    values: dict[str, Any] = dict(record)
    try:
        config = config_from_dict(json.loads(values["config"]), "the server's settings")
        if remove_paths(config) != config:  # an honest server sends no path
            raise ConfigError(
                where="the server's settings",
                found="a path of this machine",
                expected="settings without paths",
                next_step="ask the server's operator",
            )
        return Plan(config, tuple(values["classes"]), values["clip_sha256"], values["n_keys"])
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        found = error.found if isinstance(error, ConfigError) else f"{type(error).__name__}"
        raise FederationError(
            where="the server's message",
            shareable=True,
            found=found,
            expected="a task of this version of fedapt",
            next_step="install the same version of fedapt on server and nodes",
        ) from error


def read_place(record: ConfigRecord) -> Place:
    """Read this node's place in the round from the server's record.

    Raises:
        FederationError: the record is damaged.
    """
    values = {field.name: record.get(field.name) for field in dataclasses.fields(Place)}
    if wrong := [name for name, value in values.items() if type(value) is not int or value < 0]:
        raise FederationError(
            where="the server's message",
            shareable=True,
            found=f"{wrong[0]} = {values[wrong[0]]!r}",
            expected="a task of this version of fedapt",
            next_step="install the same version of fedapt on server and nodes",
        )
    return Place(**{name: int(str(value)) for name, value in values.items()})


def unpack(records: RecordDict, device: torch.device) -> tuple[Plan, Place, Learned, Tensor | None]:
    """Read a message of the server: the plan, the client's place, the learned tensors, the keys.

    Raises:
        FederationError: the message is damaged, or its protocol version differs.
    """
    task = records.config_records[TASK]
    learned = from_arrays(records.array_records[LEARNED], device)
    keys = from_arrays(records.array_records[KEYS], device).get(names.KEYS)
    return read_plan(task), read_place(task), learned, keys


def check_protocol(record: ConfigRecord) -> None:
    """Refuse a record of another protocol version.

    Raises:
        FederationError: the protocols differ.
    """
    if record.get("protocol") != PROTOCOL:
        raise FederationError(
            where="version",
            shareable=True,
            found=f"protocol {record.get('protocol')!r} of fedapt {record.get('version')!r}",
            expected=f"protocol {PROTOCOL} of fedapt {fedapt.__version__}",
            next_step="install the same version of fedapt on server and nodes",
        )
