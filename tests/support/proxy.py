"""A proxy between a client and a server, which may lose or change the server's answers."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

#: From the head of a request and the bytes of an answer to the bytes that the client gets. When
#: they differ, the connection is closed behind them.
Meddler = Callable[[bytes, bytes], bytes]


@contextmanager
def meddling_proxy(endpoint: str, meddle: Meddler) -> Iterator[str]:
    """The proxy's endpoint, while it runs. `meddle` sees each answer as it comes, in pieces."""
    target = urlsplit(endpoint)
    assert target.hostname
    assert target.port
    upstream = (target.hostname, target.port)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_accept, args=(listener, upstream, meddle))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def _accept(listener: socket.socket, upstream: tuple[str, int], meddle: Meddler) -> None:
    connections: list[socket.socket] = []
    threads: list[threading.Thread] = []
    with suppress(OSError):  # the listener is shut down
        while True:
            client, _ = listener.accept()
            server = socket.create_connection(upstream)
            requests = [b""]
            for work in (
                lambda c=client, s=server, r=requests: _pass_requests(c, s, r),
                lambda c=client, s=server, r=requests: _pass_answers(c, s, r, meddle),
            ):
                threads.append(threading.Thread(target=work))
                threads[-1].start()
            connections += [client, server]
    for connection in connections:
        _close(connection)
    for thread in threads:
        thread.join()
    for connection in connections:
        connection.close()


def _pass_requests(client: socket.socket, server: socket.socket, requests: list[bytes]) -> None:
    with suppress(OSError):
        while data := client.recv(1 << 16):
            if data.split(b" ", 1)[0] in (b"GET", b"PUT", b"POST", b"HEAD", b"DELETE"):
                requests.append(data)
            server.sendall(data)
    _close(server)


def _pass_answers(
    client: socket.socket, server: socket.socket, requests: list[bytes], meddle: Meddler
) -> None:
    with suppress(OSError):
        while data := server.recv(1 << 16):
            answer = data if data.startswith(b"HTTP/1.1 100") else meddle(requests[-1], data)
            client.sendall(answer)
            if answer != data:
                break
    _close(client)


def _close(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
