"""Starts moto's server (`moto_server.py -H HOST -p PORT`) with puts that are atomic, as those of S3 are.

moto checks `If-None-Match` and then writes, with nothing in between to stop another thread: on a loaded machine two racing
puts-if-absent both win, and the probe of a vault refuses the store, as it should. Here a lock lets one put in at a time. The
body is read before the lock is taken, so that a client which stalls holds nobody up.
"""

import io
import sys
import threading

from moto import server

one_at_a_time = threading.Lock()


def with_atomic_puts(app):
    def atomic(environ, start_response):
        if environ["REQUEST_METHOD"] not in ("PUT", "POST"):
            return app(environ, start_response)
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = io.BytesIO(body)
        with one_at_a_time:
            return list(app(environ, start_response))

    return atomic


def run(host, port, app, **options):
    run_simple(host, port, with_atomic_puts(app), **options)


run_simple = server.run_simple
server.run_simple = run
sys.argv[0] = "moto_server"
server.main()
