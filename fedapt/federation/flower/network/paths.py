"""The paths of a node's requests, and the header that carries a message's number."""

from __future__ import annotations

JOIN, TAKE, SEEN, REPLY = "/fedapt/join", "/fedapt/take", "/fedapt/seen", "/fedapt/reply/"
MESSAGE = "x-fedapt-message"
# seconds that the server holds a request for a message; proxies wait longer for an answer
TAKE_S = 25.0
