"""nginx as the instance behind every proxy, and as a proxy itself; one process each."""

from __future__ import annotations

from pathlib import Path

_MAIN = """
master_process off; daemon off; pid {folder}/{name}.pid; error_log stderr crit; worker_rlimit_nofile 16384;
events {{ worker_connections 8192; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 3600; client_max_body_size 1g;
  client_body_buffer_size 128k; client_body_temp_path {folder}/{name}-body; proxy_temp_path {folder}/{name}-proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  {body}
}}
"""
# A probe as an activator sends it to a queue-proxy is answered as the queue-proxy does.
_INSTANCE = """
  map $http_k_network_probe $answer {{ default "{answer}"; queue queue; }}
  server {{ listen {address} backlog=4096; root {folder}; default_type text/plain;
    location = / {{ return 200 $answer; }} location = /healthz {{ return 200 $answer; }} }}
"""
_PROXY = """
  upstream instance {{ server {target}; keepalive 512; keepalive_requests 1000000000; }}
  server {{ listen {address} backlog=4096; location / {{
    proxy_pass http://instance; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host;
    proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; proxy_buffering {buffering};
    proxy_request_buffering {buffering}; }} }}
"""
_CALLS = """
  upstream instance {{ server {target}; keepalive 512; keepalive_requests 1000000000; }}
  server {{ listen {address} http2 backlog=4096; http2_max_requests 1000000000; location / {{
    grpc_pass grpc://instance; grpc_read_timeout 1h; grpc_send_timeout 1h; }} }}
"""


def instance(folder: Path, name: str, address: str) -> list[str]:
    """The command: 100 bytes at /, 64 KiB at /64k."""
    (folder / "64k").write_bytes(bytes(65536))
    return _command(folder, name, _INSTANCE.format(address=address, folder=folder, answer="x" * 100))


def proxy(folder: Path, name: str, address: str, target: str, buffering: bool = True) -> list[str]:
    on = "on" if buffering else "off"
    return _command(folder, name, _PROXY.format(address=address, target=target, buffering=on))


def calls_proxy(folder: Path, name: str, address: str, target: str) -> list[str]:
    """h2c on both sides."""
    return _command(folder, name, _CALLS.format(address=address, target=target))


def _command(folder: Path, name: str, body: str) -> list[str]:
    config = folder / f"{name}.conf"
    config.write_text(_MAIN.format(folder=folder, name=name, body=body), encoding="ascii")
    return ["nginx", "-c", str(config), "-p", str(folder)]
