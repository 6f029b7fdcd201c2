"""The server's answers to a node's four requests: join, take a message, reply, and seen."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from fedapt.federation.flower.network.handshake_log import HandshakeLog
from fedapt.federation.flower.network.http import Request, Response
from fedapt.federation.flower.network.keys import (
    INSTANCE,
    KEY,
    ClockDiffers,
    KeyRegistry,
    Refused,
    verify,
)
from fedapt.federation.flower.network.mailbox import Displaced, Mailbox, NotJoined
from fedapt.federation.flower.network.paths import JOIN, MESSAGE, REPLY, SEEN, TAKE, TAKE_S

# a reply's maximum: twice the message's size, because int64 may replace float32, plus 1 MiB
_MIN_BODY_BYTES, _VALUE_GROWS = 1 << 20, 2
_MAX_INSTANCE = 64
_FORBIDDEN = Response(403)


class Answers:
    """Answers the nodes' requests from a mailbox.

    Args:
        keys: the keys of the nodes that may connect.
        mailbox: the messages for the nodes.
        log: records unknown keys.
        connected: called with the name of each node that joins.
    """

    def __init__(
        self,
        keys: KeyRegistry,
        mailbox: Mailbox,
        log: HandshakeLog,
        connected: Callable[[str], None] = lambda name: None,
    ) -> None:
        self._keys, self._mailbox, self._log, self._connected = keys, mailbox, log, connected

    def identify(self, address: str, path: str, headers: Mapping[str, str]) -> str | Response:
        """The name of the node that has signed these headers; 403 for all others.

        An unknown key costs one table look-up, and sometimes a line in the log.
        """
        name = self._keys.names.get(headers.get(KEY, ""))
        if name is None:
            self._log.refuse_key(address, path, headers)
            return _FORBIDDEN
        try:
            verify(path, headers)
        except ClockDiffers as error:
            return Response(401, str(error).encode())
        except Refused:
            return _FORBIDDEN
        return name

    def max_body(self, path: str) -> int:
        """Maximum bytes of a body. A reply's maximum follows from the largest message sent."""
        if not path.startswith(REPLY):
            return 0
        return _MIN_BODY_BYTES + _VALUE_GROWS * self._mailbox.largest

    async def answer(self, request: Request) -> Response:
        """The response to a node: 404 if its process has to join first, 409 if it was replaced."""
        instance = request.headers[INSTANCE]
        if len(instance) > _MAX_INSTANCE:
            return Response(400, b"no number of a process")
        try:
            if request.path == JOIN:
                self._mailbox.join(request.node, instance)
                self._connected(request.node)
                return Response(200, request.node.encode())
            if request.path == TAKE:
                return await self._take(request.node, instance)
            if request.path == SEEN:
                self._mailbox.touch(request.node, instance)
                return Response(204)
            if request.path.startswith(REPLY):
                number = request.path.removeprefix(REPLY)
                wanted = self._mailbox.answer(request.node, instance, number, request.body)
                return Response(204 if wanted else 410)
        except NotJoined:
            return Response(404, b"join first")
        except Displaced:
            return Response(409, b"another process has joined with this node's key")
        return Response(404, b"no such path")

    async def _take(self, node: str, instance: str) -> Response:
        try:
            letter = await self._mailbox.take(node, instance, TAKE_S)
        except BaseException:  # cancelled, because the node has disconnected
            self._mailbox.leave(node, instance)
            raise
        if letter is None:
            return Response(204)
        values = {
            "id": letter.id,
            "kind": letter.kind,
            "group": letter.group,
            "run": letter.run,
        }
        return Response(200, letter.body, {MESSAGE: json.dumps(values)})
