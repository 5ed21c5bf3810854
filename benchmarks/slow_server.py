"""`python -m benchmarks.slow_server MB RATE`: one file, of which each connection is given RATE bytes a second.

Prints its address, and serves until it is killed.
"""

import socket
import sys
import threading
import time
from contextlib import suppress


def content(megabytes: int) -> bytes:
    """Return the file."""
    return b"0123456789abcdef" * (megabytes * 2**16)


def main(megabytes: int, rate: int) -> None:
    """Serve."""
    data = content(megabytes)
    listening = socket.create_server(("127.0.0.1", 0), backlog=64)
    print(f"http://127.0.0.1:{listening.getsockname()[1]}/big.bin", flush=True)
    while True:
        connection, _ = listening.accept()
        threading.Thread(target=_answer, args=(connection, data, rate), daemon=True).start()


def _answer(connection: socket.socket, data: bytes, rate: int) -> None:
    with connection, suppress(OSError):
        head = b""
        while b"\r\n\r\n" not in head:
            head += connection.recv(65_536)
        size = len(data)
        start, stop, status, ranged = 0, size, "200 OK", ""
        for line in head.decode("latin-1").lower().split("\r\n"):
            if line.startswith("range: bytes="):
                first, _, last = line.removeprefix("range: bytes=").partition("-")
                start, stop = int(first), int(last) + 1 if last else size
                status, ranged = "206 Partial Content", f"Content-Range: bytes {start}-{stop - 1}/{size}\r\n"
        connection.sendall(
            f'HTTP/1.1 {status}\r\nContent-Length: {stop - start}\r\n{ranged}ETag: "a"\r\nAccept-Ranges: bytes\r\n'
            "Connection: close\r\n\r\n".encode()
        )
        began, piece = time.monotonic(), rate // 20
        for at in range(start, stop, piece):
            connection.sendall(data[at : min(at + piece, stop)])
            ahead = (at + piece - start) / rate - (time.monotonic() - began)
            if ahead > 0:
                time.sleep(ahead)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
