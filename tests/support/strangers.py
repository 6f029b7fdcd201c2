"""What a stranger tries: the paths of Flower's SuperLink, and its own control client."""

from __future__ import annotations

from collections.abc import Iterator

import httpx

FLOWERS_PATHS = (
    "/",
    "/docs",
    "/openapi.json",
    "/health",
    *(
        f"/v1/control/{name}"
        for name in ("start-run", "list-runs", "stop-run", "stream-logs", "register-node")
    ),
    *(f"/v1/runtime/{name}" for name in ("acquire-task", "pull-messages", "push-messages")),
    *(
        f"/v1/fleet/{name}"
        for name in ("register-node", "activate-node", "pull-messages", "push-object", "get-fab")
    ),
    "//v1/control/list-runs",
    "/v1/fleet/../control/list-runs",
)
OUR_PATHS = ("/fedapt/join", "/fedapt/take", "/fedapt/seen", "/fedapt/reply/0")


def ask_for_control(address: str, authority: bytes) -> Iterator[tuple[str, int]]:
    """Submit an app, list, stop and read the logs of runs, by Flower's own client.

    Yields:
        What was asked for, and the HTTP status of the answer.
    """
    from flwr.proto import control_pb2
    from flwr.supercore.control import ControlHttpClient

    requests = {
        "StartRun": control_pb2.StartRunRequest(),
        "ListRuns": control_pb2.ListRunsRequest(),
        "StopRun": control_pb2.StopRunRequest(run_id=1),
        "StreamLogs": control_pb2.StreamLogsRequest(run_id=1),
    }
    client = ControlHttpClient.from_server_address(
        address, insecure=False, root_certificates=authority, interceptors=[]
    )
    for name, request in requests.items():
        try:
            list(getattr(client, name)(request) or ())
        except httpx.HTTPStatusError as error:
            yield name, error.response.status_code
        except TypeError:  # an answer that is no stream: it was let in
            yield name, 200
        else:
            yield name, 200
    client.close()
