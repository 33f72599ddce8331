"""A server on this machine that gives a file, or fails in one of the ways in which servers do."""

import threading
import time
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlparse

PAGE = b'<!DOCTYPE html><html><body>Sorry, too many downloads today.</body></html>'


class Handler(BaseHTTPRequestHandler):
    """``/CASE/FILE`` gives FILE of the directory in the way that CASE says; ``/CASE/`` the only file in it."""

    def do_GET(self):
        case, name = urlparse(self.path).path.strip('/').partition('/')[::2]
        self.server.asked[case] += 1
        file = self.server.directory / name if name else next(self.server.directory.iterdir())
        if case == 'missing' or not file.is_file():
            return self.send_error(404)
        if case == 'page':
            return self.send(PAGE, len(PAGE))
        content = file.read_bytes()
        if case == 'silent':
            self.server.closed.wait(10)
        elif case == 'half':
            self.send(content[: len(content) // 2], len(content))
        elif case == 'half-of-unknown':
            self.send(content[: len(content) // 2])
        elif case == 'slow':
            time.sleep(0.5)
            self.send(content, len(content))
        elif case == 'reset':
            self.close_connection = True
        else:
            self.send(content, len(content))

    def send(self, content, length=None):
        self.send_response(200)
        if length is not None:
            self.send_header('Content-Length', str(length))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


@contextmanager
def serving(directory: Path):
    """A server of the files of a directory, with ``asked``, the number of requests by case, and its ``address``."""
    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    server.directory, server.asked, server.closed = directory, Counter(), threading.Event()
    server.address = f'http://127.0.0.1:{server.server_port}'
    threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=0.01), daemon=True).start()
    try:
        yield server
    finally:
        server.closed.set()
        server.shutdown()
        server.server_close()
