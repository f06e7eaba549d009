"""The load: asks one socket a fixed number of times and prints what it measured, as JSON.

It is a process of its own, so that it shares neither the interpreter nor the loop with what it
measures. Frames are built before the clock starts, and answers are counted by their newlines: the
load must cost less than the server. Usage: python load.py KIND 'JSON OF ITS ARGUMENTS'
"""

import json
import select
import socket
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, Final

TIMEOUT_S: Final = 30.0
QUIET_S: Final = 2.0  # after which no more pushes are expected
SOAK_IN_FLIGHT: Final = 100
WARM_UP_EVENTS: Final = 200
READ_BYTES: Final = 256 * 1024
TEXT: Final = "example"  # makes the frame of a request 58 bytes long


def frame(number: int, event: str) -> bytes:
    """Build a request."""
    return b'{"id":%d,"event":"%b","data":{"text":"%b"}}\n' % (
        number,
        event.encode(),
        TEXT.encode(),
    )


def connect(path: str, event: str) -> socket.socket:
    """Connect, and make sure that requests are answered as they should be."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(TIMEOUT_S)
    sock.connect(path)
    sock.sendall(frame(1000, event))
    answer = json.loads(sock.recv(READ_BYTES))
    if answer != {"id": 1000, "result": {"text": TEXT}}:
        raise RuntimeError(f"{event} was answered with {answer}")
    return sock


def check(answer: bytes) -> None:
    """Refuse to count errors as answers."""
    if b'"error"' in answer:
        raise RuntimeError(f"an error came instead of an answer: {answer[:300]!r}")


def serial(path: str, event: str, warm_up: int, count: int) -> dict[str, float]:
    """Ask one thing after the other over one connection."""
    frames = [frame(1000 + number % 9000, event) for number in range(warm_up + count)]
    took_ns = []
    clock = time.perf_counter_ns
    with connect(path, event) as sock:
        send, receive = sock.send, sock.recv
        for each in frames:
            began = clock()
            send(each)
            answer = receive(READ_BYTES)
            took_ns.append(clock() - began)
            check(answer)
    kept = took_ns[warm_up:]
    ordered = statistics.quantiles(kept, n=100)
    return {
        "p50_us": ordered[49] / 1000,
        "p99_us": ordered[98] / 1000,
        "per_s": count / (sum(kept) / 1e9),
    }


def many(path: str, event: str, connections: int, warm_up: int, count: int) -> dict[str, float]:
    """Ask over many connections, each of which waits for its answer before it asks again."""
    sockets = [connect(path, event) for _ in range(connections)]
    by_number = {sock.fileno(): sock for sock in sockets}
    request = frame(1000, event)
    poll = select.epoll()
    for sock in sockets:
        poll.register(sock.fileno(), select.EPOLLIN)
    answered, began, last = 0, 0.0, warm_up + count
    for sock in sockets:
        sock.send(request)
    while answered < last:
        ready = poll.poll(TIMEOUT_S)
        if not ready:
            raise TimeoutError(f"{answered} of {last} requests were answered")
        for number, _ in ready:
            sock = by_number[number]
            check(sock.recv(READ_BYTES))
            sock.send(request)
        if answered < warm_up <= answered + len(ready):
            began, start = time.perf_counter(), answered + len(ready)
        answered += len(ready)
    took = time.perf_counter() - began
    for sock in sockets:
        sock.close()
    return {"per_s": (answered - start) / took}


def pipelined(
    path: str, event: str, batch: int, batches: int, warm_up: int, count: int
) -> dict[str, float]:
    """Ask over one connection, ``batches`` times ``batch`` requests ahead of the answers."""
    prebuilt = [
        b"".join(frame(1000 + n, event) for n in range(first * batch, (first + 1) * batch))
        for first in range(batches)
    ]
    answered, sent, began, start = 0, 0, 0.0, 0
    with connect(path, event) as sock:
        for request in prebuilt:
            sock.sendall(request)
            sent += batch
        while answered < warm_up + count:
            chunk = sock.recv(READ_BYTES)
            check(chunk)
            answered += chunk.count(b"\n")
            if not began and answered >= warm_up:
                began, start = time.perf_counter(), answered
            while sent - answered <= (batches - 1) * batch:
                sock.sendall(prebuilt[sent // batch % batches])
                sent += batch
        took = time.perf_counter() - began
    return {"per_s": (answered - start) / took}


def subscribe(path: str, connections: int, deaf: int, count: int) -> dict[str, float]:
    """Subscribe and count what is pushed; the first ``deaf`` connections are never read."""
    sockets = [
        ask(path, "router:subscribe", b'{"pattern":"bench:news"}') for _ in range(connections)
    ]
    print("subscribed", flush=True)
    poll = select.epoll()
    by_number = {sock.fileno(): sock for sock in sockets}
    for sock in sockets[deaf:]:
        poll.register(sock.fileno(), select.EPOLLIN)
    expected = count * (connections - deaf)
    received, lagged, ended = 0, 0, 0.0
    patience_s = TIMEOUT_S
    while received < expected:
        ready = poll.poll(patience_s)
        if not ready:
            break  # some were missed; the counts tell
        for number, _ in ready:
            chunk = by_number[number].recv(READ_BYTES)
            received += chunk.count(b"\n")
            lagged += chunk.count(b'"router:lagged"')
        ended, patience_s = time.perf_counter(), QUIET_S
    waiting = sum(_pending_lines(sock) for sock in sockets[:deaf])
    for sock in sockets:
        sock.close()
    return {
        "received": received - lagged,
        "lagged": lagged,
        "ended": ended,
        "dropped": deaf * count - waiting,
    }


def _pending_lines(sock: socket.socket) -> int:
    """Count what the daemon still had for who did not read."""
    sock.settimeout(QUIET_S)
    lines = 0
    try:
        while chunk := sock.recv(READ_BYTES):
            lines += chunk.count(b"\n")
    except TimeoutError:
        return lines
    return lines


def publish(path: str, text: str, ahead: int, count: int) -> dict[str, float]:
    """Publish, with ``ahead`` events that are not confirmed yet."""
    request = (
        b'{"id":%d,"event":"router:publish","data":{"event":"bench:%b","data":{"text":"%b"}}}\n'
    )
    warm = [request % (number, b"nothing", text.encode()) for number in range(WARM_UP_EVENTS)]
    frames = [request % (number, b"news", text.encode()) for number in range(count)]
    with ask(path, "system:hello", b"{}") as sock:
        _publish_all(sock, warm, ahead)
        began = time.perf_counter()
        _publish_all(sock, frames, ahead)
    return {"began": began}


def _publish_all(sock: socket.socket, frames: list[bytes], ahead: int) -> None:
    confirmed, sent = 0, 0
    while confirmed < len(frames):
        batch = frames[sent : confirmed + ahead]
        if batch:
            sock.sendall(b"".join(batch))
            sent += len(batch)
        chunk = sock.recv(READ_BYTES)
        check(chunk)
        confirmed += chunk.count(b"\n")


def ask(path: str, event: str, data: bytes) -> socket.socket:
    """Connect and ask one thing."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(TIMEOUT_S)
    sock.connect(path)
    sock.sendall(b'{"id":1,"event":"%b","data":%b}\n' % (event.encode(), data))
    check(sock.recv(READ_BYTES))
    return sock


def soak(path: str, count: int) -> dict[str, float]:
    """Ask for a bit of everything, a thousand at a time, each time over connections of its own."""
    began = time.perf_counter()
    batch = _mixture()
    answered = errors = pushed = connected = 0
    while answered < count:
        with (
            ask(path, "router:subscribe", b'{"pattern":"bench:news"}') as listener,
            ask(path, "system:hello", b"{}") as sock,
        ):
            connected += 2
            for first in range(0, len(batch), SOAK_IN_FLIGHT):
                part = batch[first : first + SOAK_IN_FLIGHT]
                sock.sendall(b"".join(part))
                answers = _read_lines(sock, len(part))
                answered += len(part)
                errors += answers.count(b'"error"')
            published = sum(b'"router:publish"' in each for each in batch)
            pushed += _read_lines(listener, published).count(b'"bench:news"')
    took_s = time.perf_counter() - began
    return {
        "answered": answered,
        "errors": errors,
        "pushed": pushed,
        "connected": connected,
        "took_s": took_s,
    }


def _mixture() -> list[bytes]:
    """Build a thousand requests: most are answered, the rest fail in all the ways there are."""
    bodies = (
        [b'"event":"bench:echo","data":{"text":"%d"}'] * 500
        + [b'"event":"bench:echo_async","data":{"text":"%d"}'] * 300
        + [b'"event":"router:publish","data":{"event":"bench:news","data":{"number":%d}}'] * 50
        + [b'"event":"bench:echo","data":{"text":"%d"},"idempotency_key":"one of %d"'] * 50
        + [b'"event":"bench:echo","data":{"text":%d}'] * 40
        + [b'"event":"bench:nobody","data":{"text":"%d"}'] * 30
        + [b'"event":"system:health","data":{"unknown":%d}'] * 20
        + [b'"event":"bench:fails","data":{"text":"%d"}'] * 10
    )
    mixed = [bodies[number * 377 % len(bodies)] for number in range(len(bodies))]
    return [
        b'{"id":%d,%b}\n' % (number, body.replace(b"%d", b"%d" % number))
        for number, body in enumerate(mixed)
    ]


def _read_lines(sock: socket.socket, count: int) -> bytes:
    lines = b""
    while lines.count(b"\n") < count:
        chunk = sock.recv(READ_BYTES)
        if not chunk:
            raise ConnectionError("the daemon closed a connection")
        lines += chunk
    return lines


def paced(path: str, event: str, per_s: int, batch: int, count: int) -> dict[str, float]:
    """Ask at a steady rate, as long as the answers keep up with it."""
    request = b"".join(frame(1000 + number, event) for number in range(batch))
    slowest = 0.0
    with connect(path, event) as sock:
        began = time.perf_counter()
        for first in range(0, count, batch):
            due = began + first / per_s
            time.sleep(max(0.0, due - time.perf_counter()))
            sock.sendall(request)
            check(_read_lines(sock, batch))
            slowest = max(slowest, time.perf_counter() - due)
        took = time.perf_counter() - began
    return {"asked": count, "per_s": count / took, "slowest_ms": slowest * 1000}


KINDS: Final[dict[str, Callable[..., dict[str, float]]]] = {
    "serial": serial,
    "many": many,
    "pipelined": pipelined,
    "subscribe": subscribe,
    "publish": publish,
    "soak": soak,
    "paced": paced,
}


def main(kind: str, arguments: str) -> None:
    """Run one kind of load."""
    given: dict[str, Any] = json.loads(arguments)
    print(json.dumps(KINDS[kind](**given)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
