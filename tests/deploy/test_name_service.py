"""A real HAProxy with the cluster's configuration, a name service, and servers that come and go."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingUDPServer

import grpc
import pytest

from tests.deploy.haproxy import CLUSTER, Addresses, free_ports, newer_program, program, running, servers_up

NAME = "servers.test"
ADDRESS, ANSWER = 1, 0x8580  # a question for IPv4 addresses; flags of an answer that knows
DEADLINE_S = 60.0
NUM_SERVERS = 3
NUM_CALLERS = 4
ANSWER_S = 0.02
QUIET_S = 1.0  # without a request before a server is ended, as `probe --wait-idle` waits in a pod's preStop
SPEAK = "/test.Test/Speak"


@dataclass
class Server:
    """What HAProxy sees of a server: health and answers over HTTP, answers over gRPC; each answer is its address."""

    host: str
    http_port: int
    grpc_port: int
    last: float = field(default_factory=time.monotonic)  # when it last answered
    is_ended: bool = False
    _stack: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Server:
        health = ThreadingHTTPServer((self.host, self.http_port), self._handler())
        health.handle_error = lambda *_: None  # type: ignore[method-assign]  # checks reset their connections
        self._stack.enter_context(serving(health))
        server = grpc.server(ThreadPoolExecutor(NUM_CALLERS), options=[("grpc.so_reuseport", 0)])
        handler = grpc.unary_unary_rpc_method_handler(lambda _request, _context: self.answer())
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Test", {"Speak": handler})])
        assert server.add_insecure_port(f"{self.host}:{self.grpc_port}")
        server.start()
        self._stack.callback(lambda: server.stop(None).wait())
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Nothing new is answered, and connections that are open get errors."""
        self.is_ended = True
        self._stack.close()

    def answer(self) -> bytes:
        time.sleep(ANSWER_S)
        self.last = time.monotonic()
        return self.host.encode()

    def is_quiet(self) -> bool:
        return time.monotonic() - self.last > QUIET_S

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                body = server.answer() if self.path == "/speak" else b""
                self.send_response(503 if server.is_ended else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if body:
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Nothing."""

        return Handler


@contextmanager
def serving(server: ThreadingHTTPServer | ThreadingUDPServer) -> Iterator[None]:
    """`server` answers for the length of the block."""
    with server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def name_service(hosts: list[str]) -> ThreadingUDPServer:
    """Answers each question of DNS with `hosts`, as they are then."""

    class Names(BaseRequestHandler):
        def handle(self) -> None:
            message, listener = self.request
            end = message.index(0, 12) + 5  # past the name, type and class of the question
            (kind,) = struct.unpack(">H", message[end - 4 : end - 2])
            found = list(hosts) if kind == ADDRESS else []
            header = message[:2] + struct.pack(">5H", ANSWER, 1, len(found), 0, 0)
            # each: the question's name, type, class, seconds to live, length
            records = [struct.pack(">3HIH", 0xC00C, ADDRESS, 1, 1, 4) + socket.inet_aton(host) for host in found]
            listener.sendto(header + message[12:end] + b"".join(records), self.client_address)

    return ThreadingUDPServer(("127.0.0.1", 0), Names)


@dataclass
class Cluster:
    """HAProxy with the shipped files in front of servers that one name leads to."""

    stack: ExitStack
    ports: tuple[int, int]
    hosts: list[str] = field(default_factory=list)  # that the name leads to
    servers: dict[str, Server] = field(default_factory=dict)
    configuration: str = ""
    binary: str = ""
    balancer: Addresses = field(init=False)

    def start(self) -> Server:
        """One more server, ready and under the name."""
        host = f"127.0.0.{len(self.servers) + 2}"
        self.servers[host] = self.stack.enter_context(Server(host, *self.ports))
        self.hosts.append(host)
        return self.servers[host]

    def balancing(self, folder: Path) -> AbstractContextManager[Addresses]:
        """One more HAProxy, with its files in `folder`."""
        return running(self.configuration, folder, {"CHATTTS_SERVERS": NAME}, self.binary)

    def is_up(self, protocol: str, balancer: Addresses | None = None) -> bool:
        return len(servers_up(balancer or self.balancer, protocol)) == len(self.hosts)


@pytest.fixture(scope="module", params=[program, newer_program], ids=["installed", "newer"])
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three servers; only ports and name service are the test's."""
    http_port, grpc_port = free_ports(2)
    with ExitStack() as stack:
        found = Cluster(stack, (http_port, grpc_port), binary=request.param())
        for _ in range(NUM_SERVERS):
            found.start()
        names = name_service(found.hosts)
        stack.enter_context(serving(names))
        configuration = CLUSTER.read_text(encoding="utf-8")
        for shipped, here in {
            "parse-resolv-conf": f"nameserver here 127.0.0.1:{names.server_address[1]}",
            ':8001"': f':{grpc_port}" port {http_port}',
            ':8000"': f':{http_port}" port {http_port}',
        }.items():
            assert configuration.count(shipped) == 1
            configuration = configuration.replace(shipped, here)
        found.configuration = configuration
        found.balancer = stack.enter_context(found.balancing(tmp_path_factory.mktemp("haproxy")))
        for protocol in ("grpc", "http"):
            wait_for(partial(found.is_up, protocol), "a server is not up")
        unchecked_s = 3.0  # servers count as up until their checks have failed
        time.sleep(unchecked_s)
        yield found


def wait_for(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.05)


@contextmanager
def caller(cluster: Cluster, protocol: str, target: str = "") -> Iterator[Callable[[], str]]:
    """Calls over one connection, of gRPC to `target` if there is one; each says which server answered."""
    if protocol == "grpc":
        address = target or cluster.balancer.grpc_url
        # Of several addresses gRPC makes an authority with a comma, which HAProxy 3 refuses.
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.default_authority", "speech")]
        with grpc.insecure_channel(address, options) as channel:
            speak = channel.unary_unary(SPEAK)
            yield lambda: speak(b"", timeout=10).decode()
    else:
        connection = http.client.HTTPConnection(cluster.balancer.http_url, timeout=10)

        def get() -> str:
            connection.request("GET", "/speak")
            response = connection.getresponse()
            body = response.read().decode()
            assert response.status == 200, body
            return body

        yield get
        connection.close()


@contextmanager
def load(cluster: Cluster, protocol: str, target: str = "") -> Iterator[list[str | Exception]]:
    """NUM_CALLERS callers, one request after the other each; who answered, or the error, in the order of ends."""
    seen: list[str | Exception] = []
    is_over = threading.Event()

    def calls() -> None:
        with caller(cluster, protocol, target) as speak:
            while not is_over.is_set():
                try:
                    seen.append(speak())
                except Exception as error:
                    seen.append(error)

    with ThreadPoolExecutor(NUM_CALLERS) as pool:
        calling = [pool.submit(calls) for _ in range(NUM_CALLERS)]
        try:
            yield seen
        finally:
            is_over.set()
        for one in calling:
            one.result()


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_requests_of_one_connection_reach_every_server_of_a_name(cluster: Cluster, protocol: str) -> None:
    assert cluster.is_up(protocol)
    with caller(cluster, protocol) as speak:
        answers = Counter(speak() for _ in range(20 * NUM_SERVERS))
    assert set(answers) == set(cluster.hosts)
    assert min(answers.values()) > 10


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_rollout_under_load_costs_no_request(cluster: Cluster, protocol: str) -> None:
    """As Kubernetes does it: a new server comes, an old one leaves the name, is waited for and ended; for each."""
    old = list(cluster.hosts)
    with load(cluster, protocol) as seen:
        for host in old:
            new = cluster.start()
            wait_for(partial(seen.__contains__, new.host), f"{new.host} gets nothing")
            cluster.hosts.remove(host)
            wait_for(cluster.servers[host].is_quiet, f"{host} still gets requests")
            cluster.servers[host].end()
    assert [one for one in seen if isinstance(one, Exception)] == []
    print(f"MEASURED a rollout of {len(old)} servers: {len(seen)} requests over {protocol}, no error")


def num_requests(balancer: Addresses) -> int:
    """How many came over gRPC."""
    connection = http.client.HTTPConnection(balancer.metrics_url, timeout=5)
    connection.request("GET", "/metrics")
    found = re.search(
        r'^haproxy_frontend_http_requests_total\{proxy="grpc"\} (\d+)', connection.getresponse().read().decode(), re.M
    )
    connection.close()
    return int(found[1]) if found else 0


def test_a_balancer_that_ends_under_load_costs_no_request(cluster: Cluster, tmp_path: Path) -> None:
    """As Kubernetes ends it, by SIGUSR1; callers know a second one."""
    with cluster.balancing(tmp_path) as ending:
        wait_for(partial(cluster.is_up, "grpc", ending), "a server is not up")
        with load(cluster, "grpc", f"ipv4:{ending.grpc_url},{cluster.balancer.grpc_url}") as seen:
            wait_for(lambda: num_requests(ending) > 40, "the balancer gets nothing")
            before = num_requests(cluster.balancer)
            os.kill(ending.pid, signal.SIGUSR1)
            wait_for(lambda: num_requests(cluster.balancer) > before + 100, "the other one gets nothing")
    assert [one for one in seen if isinstance(one, Exception)] == []
