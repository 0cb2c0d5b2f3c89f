"""A real HAProxy with the cluster's configuration, a name service, and servers that are healthy and nothing else."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingUDPServer

import pytest

from tests.deploy.haproxy import CLUSTER, Addresses, free_ports, running, servers_up

NAME = "servers.test"
HOSTS = ["127.0.0.2", "127.0.0.3", "127.0.0.4"]
ADDRESS, ANSWER = 1, 0x8580  # a question for IPv4 addresses; flags of an answer that knows
DEADLINE_S = 60.0


class Names(BaseRequestHandler):
    """Answers each question of DNS with HOSTS."""

    def handle(self) -> None:
        message, listener = self.request
        end = message.index(0, 12) + 5  # past the name, type and class of the question
        (kind,) = struct.unpack(">H", message[end - 4 : end - 2])
        hosts = HOSTS if kind == ADDRESS else []
        header = message[:2] + struct.pack(">5H", ANSWER, 1, len(hosts), 0, 0)
        # each: the question's name, type, class, seconds to live, length
        records = [struct.pack(">3HIH", 0xC00C, ADDRESS, 1, 1, 4) + socket.inet_aton(host) for host in hosts]
        listener.sendto(header + message[12:end] + b"".join(records), self.client_address)


class Health(BaseHTTPRequestHandler):
    """Says that the server is ready."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/v2/health/ready" else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def serving(server: ThreadingHTTPServer | ThreadingUDPServer) -> Iterator[None]:
    """`server` answers for the length of the block."""
    with server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Addresses]:
    """HAProxy with the shipped files in front of HOSTS; only ports and name service are the test's."""
    http_port, grpc_port = free_ports(2)
    with ExitStack() as stack:
        names = ThreadingUDPServer(("127.0.0.1", 0), Names)
        stack.enter_context(serving(names))
        for host in HOSTS:
            stack.enter_context(serving(ThreadingHTTPServer((host, http_port), Health)))
            stack.enter_context(socket.create_server((host, grpc_port)))
        configuration = CLUSTER.read_text(encoding="utf-8")
        for shipped, here in {
            "parse-resolv-conf": f"nameserver here 127.0.0.1:{names.server_address[1]}",
            ':8001"': f':{grpc_port}" port {http_port}',
            ':8000"': f':{http_port}" port {http_port}',
        }.items():
            assert configuration.count(shipped) == 1
            configuration = configuration.replace(shipped, here)
        yield stack.enter_context(running(configuration, tmp_path, {"CHATTTS_SERVERS": NAME}))


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_every_server_of_a_name_gets_requests(cluster: Addresses, protocol: str) -> None:
    end = time.monotonic() + DEADLINE_S
    while len(servers_up(cluster, protocol)) < len(HOSTS):
        assert time.monotonic() < end, servers_up(cluster, protocol)
        time.sleep(0.1)
    unchecked_s = 3.0  # servers count as up until their checks have failed
    time.sleep(unchecked_s)
    assert len(servers_up(cluster, protocol)) == len(HOSTS)
