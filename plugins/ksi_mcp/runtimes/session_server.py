"""The server that a program such as the ``claude`` command starts to have KSI's tools.

It makes no calls. What the program calls it asks the daemon for, which answers with the result once
the turn has made that call by its gate: ``session_server.py HANDOVER``. The file ``HANDOVER`` has
the daemon's socket, a token that is good for one connection and for asking that, and the tools; it
is removed when it has been read.

A script of its own, run by a bare Python, in a few lines of JSON-RPC: the program starts one for
each conversation, and waits for it. It is there in 20 ms, where importing the SDK alone takes more
than a second of CPU time.
"""

import contextlib
import json
import os
import socket
import sys
import threading
from pathlib import Path
from typing import Any, Final

VERSIONS: Final = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")
CALL: Final = "mcp:session_call"
TOOL_USE: Final = "claudecode/toolUseId"
METHOD_NOT_FOUND: Final = -32601
INVALID_REQUEST: Final = -32600
PARSE_ERROR: Final = -32700

Message = dict[str, Any]


class Daemon:
    """The connection to the daemon; answers are handed on as they come."""

    def __init__(self, path: str, token: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(path)
        self._answers = self._socket.makefile("rb")
        self.send({"id": 0, "event": "router:authenticate", "data": {"token": token}})
        if "error" in json.loads(self._answers.readline() or b'{"error": null}'):
            raise PermissionError("the daemon does not know this conversation")

    def send(self, frame: Message) -> None:
        """Send a line."""
        self._socket.sendall(json.dumps(frame).encode() + b"\n")

    def __iter__(self) -> Any:
        return map(json.loads, self._answers)


class Server:
    """Speaks with the program.

    Args:
        daemon: Knows the results of calls.
        tools: What the program sees.
    """

    def __init__(self, daemon: Daemon, tools: list[Message]) -> None:
        self._daemon = daemon
        self._tools = tools
        self._lock = threading.Lock()
        self._asked: dict[int, Any] = {}
        self._last = 0

    def run(self) -> None:
        """Serve until the program or the daemon has gone."""
        threading.Thread(target=self._listen, daemon=True).start()
        for line in sys.stdin.buffer:
            try:
                message = json.loads(line)
            except (ValueError, RecursionError):
                self._say({"id": None, "error": {"code": PARSE_ERROR, "message": "no JSON"}})
                continue
            self._take(message if isinstance(message, dict) else {"id": None})

    def _take(self, message: Message) -> None:
        method, params = message.get("method"), message.get("params") or {}
        if not isinstance(params, dict):
            method, params = None, {}  # so it is no request
        if method == "notifications/cancelled":
            self._cancel(params.get("requestId"))
        if "id" not in message:
            return
        if method == "tools/call" and isinstance(params.get("name"), str):
            self._call(message["id"], params)
            return
        self._say({"id": message["id"], **self._answer(method, params)})

    def _answer(self, method: Any, params: Message) -> Message:
        match method:
            case "initialize":
                asked = params.get("protocolVersion")
                told: Message = {
                    "protocolVersion": asked if asked in VERSIONS else VERSIONS[-1],
                    "capabilities": {"tools": {}},
                    "serverInfo": {"name": "ksi", "version": "1"},
                }
                return {"result": told}
            case "ping":
                return {"result": {}}
            case "tools/list":
                return {"result": {"tools": self._tools}}
            case str():
                return {"error": {"code": METHOD_NOT_FOUND, "message": f"there is no {method}"}}
        return {"error": {"code": INVALID_REQUEST, "message": "that is no request"}}

    def _call(self, request_id: Any, params: Message) -> None:
        with self._lock:
            self._last += 1
            number = self._last
            self._asked[number] = request_id
        arguments = params.get("arguments")
        data: Message = {
            "name": params["name"],
            "arguments": arguments if isinstance(arguments, dict) else {},
        }
        meta = params.get("_meta")
        tool_use = meta.get(TOOL_USE) if isinstance(meta, dict) else None
        if isinstance(tool_use, str):
            data["id"] = tool_use
        self._daemon.send({"id": number, "event": CALL, "data": data})

    def _cancel(self, request_id: Any) -> None:
        with self._lock:
            numbers = [n for n, asked in self._asked.items() if asked == request_id]
        for number in numbers:
            self._daemon.send({"id": number, "cancel": True})

    def _listen(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            for answer in self._daemon:
                with self._lock:
                    request_id = self._asked.pop(answer.get("id"), None)
                if request_id is not None:
                    self._say({"id": request_id, "result": result_of(answer)})
        os._exit(0)  # the daemon is gone; nothing else wakes a thread that reads

    def _say(self, message: Message) -> None:
        line = json.dumps({"jsonrpc": "2.0", **message}) + "\n"
        with self._lock, contextlib.suppress(BrokenPipeError):
            sys.stdout.write(line)
            sys.stdout.flush()


def result_of(answer: Message) -> Message:
    """Return what the daemon has told of a call, as the program is to read it."""
    result = answer.get("result")
    if result is None:
        error = answer.get("error") or {}
        told = f"{error.get('code')}: {error.get('message')}"
        return {"content": [{"type": "text", "text": told}], "isError": True}
    content = [{"type": "text", "text": result["content"]}]
    return {"content": content, "isError": result.get("is_error", False)}


def main(handover: str) -> None:
    """Read what was handed over, and serve."""
    file = Path(handover)
    told = json.loads(file.read_bytes())
    file.unlink()
    with contextlib.suppress(ValueError, BrokenPipeError):
        Server(Daemon(told["socket"], told["token"]), told["tools"]).run()


if __name__ == "__main__":
    main(sys.argv[1])
