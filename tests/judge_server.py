"""An OpenAI-compatible server of one process, whose replies a function of the prompt gives."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def judge_server(reply, failures=()):
    """Yields the address and the requests so far, as (path, headers, body).

    Args:
        reply: to the text of a prompt; (status, headers, text) for an error.
        failures: such errors, for the first requests.
    """
    requests, failures = [], list(failures)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append((self.path, dict(self.headers), body))
            answer = failures.pop(0) if failures else reply(body["messages"][0]["content"])
            if isinstance(answer, str):
                answer = 200, {}, json.dumps({"choices": [{"message": {"content": answer}}]})
            status, headers, text = answer
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *unused):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", requests
    finally:
        server.shutdown()
        server.server_close()
