"""The ClientApp for Flower's own executor, which starts a process for every message.

`fedapt federation node` does not need it. A SuperNode shared with other apps uses it, with the
node's configuration in `--node-config 'data="ROOT" domain="NAME"'`.
"""

from __future__ import annotations

from fedapt.core.report import PlainReporter
from fedapt.federation.flower.client_app import build_client_app, read_party
from fedapt.federation.flower.node import Node

client_app = build_client_app(lambda task, context: Node(read_party(context)), PlainReporter())
