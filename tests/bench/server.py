"""The server that all tools read from: nginx with one worker, which hands out static files on this machine."""

from __future__ import annotations

import getpass
import http.client
import os
import resource
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median

__all__ = ("MISSING", "measure_delay", "running")

MISSING = "nginx is not installed; on Debian: apt-get install nginx-light libnginx-mod-http-echo"

_CONFIG = """\
{load}
{user}
daemon off;
worker_processes 1;
pid nginx.pid;
error_log error.log warn;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
    open_file_cache max={cached} inactive=1h;
    open_file_cache_valid 1h;
    default_type text/plain;
    types {{ application/json json; }}
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    server {{
        listen 127.0.0.1:{port} backlog=1024;
        root "{pages}";
        location / {{ try_files $uri/p$arg_page_token.json $uri =404; }}
        {late}
    }}
}}
"""

# A path of /late/50/… is answered like what follows it, 50 ms later.
_LATE = "location ~ ^/late/{ms}(/.*)$ {{ echo_sleep {seconds}; echo_exec $1 $args; }}"


@contextmanager
def running(pages: Path, prefix: Path, *, latencies_ms: tuple[int, ...] = ()) -> Iterator[str]:
    """The server's address while it runs. `prefix` is its own folder.

    Raises:
        FileNotFoundError: nginx, or for latencies its echo module, is not there; the message says what to install.
    """
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if program is None:
        raise FileNotFoundError(MISSING)
    prefix.mkdir(parents=True, exist_ok=True)
    module = _echo_module()
    if latencies_ms and module is None:
        raise FileNotFoundError(f"nginx lacks its echo module, which makes it answer late; {MISSING}")
    port = _free_port()
    config = prefix / "nginx.conf"
    config.write_text(
        _CONFIG.format(
            load=f"load_module {module};" if module else "",
            # Only a master that is root may choose; its workers must be able to read the pages.
            user=f"user {getpass.getuser()};" if os.geteuid() == 0 else "",
            port=port,
            pages=pages,
            # Beyond the limit of open files it would answer 404.
            cached=min(40_000, resource.getrlimit(resource.RLIMIT_NOFILE)[0] * 3 // 4),
            late="\n        ".join(_LATE.format(ms=ms, seconds=ms / 1000) for ms in latencies_ms),
        )
    )
    server = subprocess.Popen(
        [program, "-p", str(prefix), "-c", str(config), "-e", str(prefix / "error.log")]
    )
    try:
        _wait_for(port, server, prefix / "error.log")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(timeout=10)


def _echo_module() -> Path | None:
    """Where Debian puts the module that can answer late."""
    place = Path("/usr/lib/nginx/modules/ngx_http_echo_module.so")
    return place if place.exists() else None


def measure_delay(url: str, path: str, *, count: int = 20) -> float:
    """Milliseconds from asking to the whole answer, one request after the other on one connection: the median."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"))
    found = []
    for _ in range(count):
        began = time.perf_counter()
        connection.request("GET", path)
        connection.getresponse().read()
        found.append((time.perf_counter() - began) * 1000)
    connection.close()
    return median(found)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(100):
        if server.poll() is not None:
            raise RuntimeError(f"nginx ended at once; {log} says why")
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise RuntimeError("nginx does not answer")
