"""An MCP server by hand, over stdio, which fails in the way that it is told to.

    python -I -S faulty_server.py FOLDER

``FOLDER/tools.json`` has its tools, and is read each time that it is asked for them; each call is a
line in ``FOLDER/calls``. What a call does is the tool's name.
"""

import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

FOLDER = Path(sys.argv[1])
INPUT = {"type": "object", "properties": {"text": {"type": "string"}}}
LONG = {"type": "object", "title": "x" * 50_000}
TOOLS = ["echo", "fail", "lie", "picture", "leave", "crash", "hang", "big", "bytes", "deep"]
TOOLS += ["noise", "flood", "nag", "change", "environment", "socket", "stranger", "rpc_error"]
TOOLS += ["fall_silent", "stall", "blocks", "values", "ask"]


def say(message: Any) -> None:
    """Write a line."""
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def raw(data: bytes) -> None:
    """Write what may be anything."""
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def text(told: str) -> dict[str, Any]:
    """Make a result."""
    return {"content": [{"type": "text", "text": told}]}


def reply(request: dict[str, Any]) -> Any:
    """Ask something in the middle of a call, and return what is answered."""
    say({"id": "asked", **request})
    answer = json.loads(sys.stdin.readline())
    with (FOLDER / "replies").open("a") as file:
        file.write(json.dumps(answer) + "\n")
    return answer.get("result", answer.get("error"))


def asked_of(path: str) -> str:
    """Return what a daemon's socket answers to who comes without a token."""
    with socket.socket(socket.AF_UNIX) as daemon:
        daemon.connect(path)
        daemon.sendall(b'{"id": "1", "event": "system:config", "data": {}}\n')
        return daemon.makefile().readline()


def tools() -> list[dict[str, Any]]:
    """Return the tools: those of the file, or one for each fault."""
    file = FOLDER / "tools.json"
    if file.exists():
        return list(json.loads(file.read_text()))
    made = [{"name": name, "description": f"Does {name}.", "inputSchema": INPUT} for name in TOOLS]
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    next(each for each in made if each["name"] == "lie")["outputSchema"] = schema
    return made


def call(number: int, name: str, arguments: dict[str, Any], token: Any) -> None:  # noqa: C901  a table of faults
    """Do what the tool's name says."""
    with (FOLDER / "calls").open("a") as file:
        file.write(f"{name}\n")
    answer: dict[str, Any] = text(str(arguments.get("text", "")))
    head = f'{{"jsonrpc":"2.0","id":{number},"result":{{"content":[{{"type":"text","text":"'
    match name:
        case "fail":
            answer["isError"] = True
        case "lie":
            answer["structuredContent"] = {"n": "many"}
        case "picture":
            answer = {"content": [{"type": "image", "mimeType": "image/png", "data": "AAAA" * 10}]}
        case "ask":
            answer = text(json.dumps([reply(each) for each in json.loads(arguments["text"])]))
        case "crash":
            os._exit(3)
        case "stall":
            return
        case "fall_silent":
            os.close(1)
            time.sleep(60)
        case "hang":
            say(
                {
                    "method": "notifications/progress",
                    "params": {"progressToken": token, "progress": 1, "message": "hanging"},
                }
            )
            return
        case "big":
            raw(head.encode())
            for _ in range(100):
                raw(b"x" * 1_000_000)
            raw(b'"}]}}\n')
            return
        case "blocks":
            answer = {"content": [{"type": "text", "text": ""}] * 1_001}
        case "values":
            answer["structuredContent"] = {"n": [[]] * 60_000}
        case "bytes":
            raw(head.encode() + b'caf\xff"}]}}\n')
            return
        case "deep":
            raw(f'{{"jsonrpc":"2.0","id":{number},"result":'.encode() + b"[" * 100_000 + b"\n")
            return
        case "noise":
            raw("Listening …\n".encode())
            raw(b'{"neither": "one", "nor": "the other"}\n')
            sys.stderr.write("debug\n" * 100_000)
        case "flood":
            for _ in range(int(arguments["text"])):
                say({"method": "notifications/message", "params": {"level": "info", "data": "x"}})
        case "nag":
            for asked in range(2_000):
                say({"id": f"s{asked}", "method": "sampling/createMessage", "params": {}})
        case "change":
            (FOLDER / "tools.json").write_text(str(arguments["text"]))
            say({"method": "notifications/tools/list_changed"})
        case "environment":
            answer = text(json.dumps(dict(os.environ)))
        case "socket":
            answer = text(asked_of(str(arguments["text"])))
        case "stranger":
            for _ in range(int(arguments.get("times", 1))):
                say({"id": number + 1000, "result": text("for nobody")})
            say({"id": "no number", "result": text("for nobody")})
        case "rpc_error":
            code = int(arguments.get("text", -32602))
            say({"id": number, "error": {"code": code, "message": "not so"}})
            return
    say({"id": number, "result": answer})
    if name == "leave":
        os._exit(0)


def main() -> None:
    """Answer until there is nothing to read."""
    if (FOLDER / "refuses").exists():
        sys.stderr.write("the key sk-very-secret is wrong\n")
        sys.exit(1)
    (FOLDER / "started").open("a").write("x")
    while (FOLDER / "sleeps").exists():
        time.sleep(0.05)
    for line in sys.stdin:
        message = json.loads(line)
        number, method = message.get("id"), message.get("method")
        params = message.get("params") or {}
        if method == "initialize":
            say(
                {
                    "id": number,
                    "result": {
                        "protocolVersion": "2025-11-25",
                        "capabilities": {"tools": {"listChanged": True}},
                        "serverInfo": {"name": "faulty", "version": "1"},
                    },
                }
            )
        elif method == "tools/list" and (FOLDER / "stalls").exists():
            pass
        elif method == "tools/list" and (FOLDER / "endless").exists():
            page = int(params.get("cursor", 0))
            schema = LONG if (FOLDER / "long").exists() else INPUT
            made = [{"name": f"t{page}_{n}", "inputSchema": schema} for n in range(10)]
            say({"id": number, "result": {"tools": made, "nextCursor": str(page + 1)}})
        elif method == "tools/list":
            say({"id": number, "result": {"tools": tools()}})
        elif method == "tools/call":
            token = (params.get("_meta") or {}).get("progressToken")
            call(number, params["name"], params.get("arguments") or {}, token)
        elif number is not None and method is not None:
            say({"id": number, "error": {"code": -32601, "message": "no such method"}})


main()
