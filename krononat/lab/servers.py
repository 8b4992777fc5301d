"""The programs that run in the laboratory's namespaces, as command lines; their configuration is written beside their logs."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NamedTuple

from krononat.lab.topology import Topology

PAYLOAD_BYTES = 100_000_000
HOST_NAME = "www.krononat.test"  # RFC 6761: a name that no real DNS serves
HTTP, GATHER, FORWARDED, DNS, IPERF = 80, 8000, 8080, 53, 5201
SMTP = 25  # answered like HTTP, so that only the appliance's rule can be what keeps clients from it


class Server(NamedTuple):
    """A program to be started in `node`, ready once it listens on TCP `port`."""

    node: str
    label: str
    port: int
    words: tuple[str, ...]


_NGINX = """\
daemon off;
user root;  # may read the folder of the laboratory, which nobody else may
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_max_body_size 1g;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        {listen}
        root {folder}/www;
        location /upload/ {{ dav_methods PUT; create_full_put_path on; }}
    }}
}}
"""


def nginx(node: str, folder: Path, *ports: int, six: bool = False) -> Server:
    """An HTTP server over `folder`/www that also takes PUT below /upload/; ready when its first port is."""
    (folder / "www" / "upload").mkdir(parents=True, exist_ok=True)
    (folder / "www" / "index.html").write_text(f"{node}\n")
    config, ways = folder / "nginx.conf", ("", "[::]:") if six else ("",)
    config.write_text(_NGINX.format(folder=folder, listen=" ".join(f"listen {way}{port};" for way in ways for port in ports)))
    return Server(node, f"nginx-{node}", ports[0], ("nginx", "-e", str(folder / "error.log"), "-c", str(config)))


def dnsmasq(node: str, address: str) -> Server:
    """A DNS server that knows one name and a TXT record too long for a small answer."""
    alone = ("--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--pid-file=", "--user=root")
    names = (f"--address=/{HOST_NAME}/{address}", f"--txt-record=long.{HOST_NAME},{'x' * 250},{'y' * 250}")
    return Server(node, f"dnsmasq-{node}", DNS, ("dnsmasq", "--keep-in-foreground", *alone, *names))


def iperf3(node: str) -> Server:
    """The measuring server."""
    return Server(node, f"iperf3-{node}", IPERF, ("iperf3", "--server", "--port", str(IPERF)))


def gathering(node: str) -> Server:
    """The server that lets everybody wait for everybody."""
    words = (sys.executable, "-m", "krononat.lab.gathering", "serve", "0.0.0.0", str(GATHER))
    return Server(node, f"gathering-{node}", GATHER, words)


def payload(folder: Path) -> Path:
    """The file that is downloaded and uploaded: 100 MB that nothing can compress."""
    path = folder / "h1" / "www" / "payload.bin"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for _ in range(PAYLOAD_BYTES // 1_000_000):
                file.write(os.urandom(1_000_000))
    return path


def of(topology: Topology, folder: Path) -> list[Server]:
    """What runs in a laboratory: servers on the Internet hosts, and what a static mapping leads to."""
    six = bool(topology.six)
    h1 = [nginx("h1", folder / "h1", HTTP, SMTP, six=six), dnsmasq("h1", topology.address("h1")), iperf3("h1")]
    if "h2" not in topology.nodes:
        return h1
    h2 = [nginx("h2", folder / "h2", HTTP, six=six), gathering("h2")]
    return h1 + h2 + ([nginx("c2", folder / "c2", FORWARDED, six=six)] if "c2" in topology.nodes else [])
