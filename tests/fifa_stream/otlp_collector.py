"""A collector of traces: an HTTP server that takes OTLP and remembers the spans."""

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Collector:
    """What came in. `status` is what it answers; other than 200 keeps nothing."""

    def __init__(self) -> None:
        self.requests: list[ExportTraceServiceRequest] = []
        self.paths: list[str] = []
        self.status = 200
        self.arrived = threading.Condition()
        self.endpoint = ""

    @property
    def spans(self) -> list[Span]:
        """In the order they came."""
        return [span for request in self.requests for resource in request.resource_spans for scope in resource.scope_spans for span in scope.spans]

    def wait(self, num_spans: int, timeout_s: float = 60.0) -> list[Span]:
        """Until so many have come."""
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.spans) >= num_spans, timeout_s), f"{len(self.spans)} of {num_spans} spans came"
        return self.spans


def attributes(owner: Any) -> dict[str, Any]:
    """Of a span, a resource or a scope."""
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in owner.attributes}


@contextmanager
def collector() -> Iterator[Collector]:
    """A collector on a free port."""
    ours = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            with ours.arrived:
                ours.paths.append(self.path)
                if ours.status == 200:
                    assert self.headers["Content-Type"] == "application/x-protobuf"
                    request = ExportTraceServiceRequest()
                    request.ParseFromString(gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)
                    ours.requests.append(request)
                ours.arrived.notify_all()
            self.send_response(ours.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    ours.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield ours
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
