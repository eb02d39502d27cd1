"""The proxy's configuration as text: holds on machines without nginx. ``tests/e2e/test_proxy.py`` asks a real one."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES

from fedlearn.errors import DeploymentRefused, OutOfRange
from fedlearn.wire import MAX_MESSAGE_BYTES
from fedlearn_server.deployment import proxy_command
from fedlearn_server.deployment.certificates import ensure_certificates, now_utc
from fedlearn_server.deployment.proxy import MAX_BODY_MB, NODE_PATHS, STOCK_PATHS, ProxySettings, render_proxy
from fedlearn_server.deployment.records import new_deployment, saved
from fedlearn_server.deployment.renewal import names_in
from fedlearn_server.message import pack_answer

SETTINGS = ProxySettings(
    listen="127.0.0.1:9443",
    upstream="127.0.0.1:9092",
    ca=Path("/d/certs/ca.crt"),
    certificate=Path("/d/certs/proxy.crt"),
    key=Path("/d/certs/proxy.key"),
    work=Path("/d/proxy"),
    log=Path("/d/log"),
)
OPERATOR_ONLY = {"/v1/fleet/register-node", "/v1/fleet/unregister-node"}


def open_locations(text: str) -> dict[str, str]:
    """Return path -> where it is sent, of every exact location."""
    return dict(re.findall(r"location = (\S+) \{[^}]*proxy_pass https://superlink(\S+);", text))


@pytest.mark.parametrize("stock", [False, True])
def test_just_the_paths_of_a_node_are_open_and_each_is_sent_as_itself(stock: bool) -> None:
    text = render_proxy(replace(SETTINGS, stock_supernodes=stock))
    expected = {f"/v1/fleet/{name}" for name in NODE_PATHS + (STOCK_PATHS if stock else ())}
    found = open_locations(text)
    assert set(found) == expected
    assert all(path == sent for path, sent in found.items())
    assert text.count("proxy_pass https:") == len(expected)
    others = [line for line in re.findall(r"location ([^{]*) \{", text) if not line.startswith(("=", "@"))]
    assert others == ["/"]


def test_every_fleet_path_of_this_flower_is_open_or_left_to_the_operator() -> None:
    """A Flower with another path must make somebody decide."""
    fleet = {path for method, path in PROTOBUF_REQUEST_TYPES if path.startswith("/v1/fleet/") and method == "POST"}
    ours = {f"/v1/fleet/{name}" for name in NODE_PATHS + STOCK_PATHS}
    assert fleet == ours | OPERATOR_ONLY


@pytest.mark.parametrize(
    "line",
    [
        "if ($request_method != POST) {",
        "if ($request_uri != $uri) {",
        "server_tokens off;",
        "ssl_protocols TLSv1.3;",
        "proxy_ssl_verify on;",
        'proxy_ssl_trusted_certificate "/d/certs/ca.crt";',
        "proxy_ssl_name localhost;",
        "proxy_pass_request_headers off;",
        "proxy_request_buffering on;",
        "proxy_next_upstream off;",
        "client_header_timeout 10s;",
        "client_body_timeout 15s;",
        "limit_conn connections 64;",
        "limit_req_zone $binary_remote_addr zone=calls:4m rate=480r/s;",
        "client_max_body_size 64m;",
        "server 127.0.0.1:9092;",
        "listen 127.0.0.1:9443 ssl;",
    ],
)
def test_what_must_stand_there(line: str) -> None:
    assert line in [found.strip() for found in render_proxy(SETTINGS).splitlines()]


def test_nothing_is_left_to_fill_in_and_nothing_is_logged_of_a_body_or_header() -> None:
    text = render_proxy(SETTINGS)
    assert "%{" not in text
    logged = set(re.findall(r"\$\w+", text[text.index("log_format") : text.index("access_log")]))
    assert logged == {
        "$time_iso8601",
        "$remote_addr",
        "$request_method",
        "$call",
        "$status",
        "$request_length",
        "$bytes_sent",
        "$request_time",
        "$upstream_status",
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("listen", "9443"),
        ("listen", "fed.example.org:9443"),
        ("listen", "127.0.0.1:0"),
        ("listen", "127.0.0.1:65536"),
        ("listen", "127.0.0.1:9443; }"),
        ("listen", ":::9443"),
        ("upstream", "127.0.0.1"),
        ("upstream", "127.0.0.1:1;server evil:1"),
        ("upstream_name", "local host"),
        ("upstream_name", ""),
        ("user", "root;"),
        ("ca", Path("relative/ca.crt")),
        ("ca", Path('/d/"; include /etc/passwd; "')),
        ("key", Path("/d/$host.key")),
        ("work", Path("/d/a\nb")),
        ("log", Path("/d/{x}")),
        ("max_body_mb", 0),
        ("max_body_mb", 258),
        ("nodes_per_address", 0),
    ],
)
def test_what_has_no_place_in_a_configuration_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(OutOfRange, match=f"^{name}="):
        replace(SETTINGS, **{name: value})


def test_the_largest_message_of_the_wire_can_be_let_through() -> None:
    content = pack_answer(bytes(100_000), bytes(16))
    around = max(len(part.deflate()) for part in get_all_nested_objects(content).values()) - 100_000
    room = 2**20 * replace(SETTINGS, max_body_mb=MAX_BODY_MB).max_body_mb - MAX_MESSAGE_BYTES
    assert 0 < around < room - 1000, "a push has some ids beside the object"
    assert MAX_MESSAGE_BYTES % 2**20 == 0, "so that one more is enough"


@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")
@pytest.mark.parametrize("listen", ["127.0.0.1:9443", "[::1]:9443"])
def test_nginx_takes_it(tmp_path: Path, listen: str) -> None:
    ensure_certificates(tmp_path / "a b", now_utc())
    made = {name: tmp_path / "a b" / f"{stem}" for name, stem in (("ca", "ca.crt"), ("certificate", "server.crt"))}
    settings = replace(
        SETTINGS, listen=listen, key=tmp_path / "a b" / "server.key", work=tmp_path, log=tmp_path, user="root", **made
    )
    (tmp_path / "proxy.conf").write_text(render_proxy(settings), encoding="utf-8")
    done = subprocess.run(
        ["nginx", "-t", "-c", str(tmp_path / "proxy.conf")], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_command_writes_it_with_a_certificate_for_the_names_that_nodes_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory, out = tmp_path / "superlink", tmp_path / "proxy.conf"
    directory.mkdir()
    deployment = saved(replace(new_deployment(directory), address="127.0.0.1:4711"))
    ensure_certificates(deployment.layout.certificates, now_utc())
    common = ["--listen", "0.0.0.0:9443", "--out", str(out), "--dir", str(directory)]
    certificate = directory / "certs" / "proxy.crt"
    assert proxy_command.main([*common, "--name", "fed.example.org", "--name", "192.0.2.7"]) == 0
    assert set(names_in(certificate)) == {"localhost", "127.0.0.1", "fed.example.org", "192.0.2.7"}
    assert "8 paths of 127.0.0.1:4711 open at 0.0.0.0:9443" in capsys.readouterr().out
    text = out.read_text(encoding="utf-8")
    assert f'ssl_certificate "{certificate}";' in text
    assert "server 127.0.0.1:4711;" in text
    assert out.stat().st_mode & 0o777 == 0o600
    first = certificate.read_bytes()
    assert proxy_command.main([*common, "--stock-supernodes"]) == 0
    assert certificate.read_bytes() == first  # neither new names nor old age
    assert "/v1/fleet/get-fab" in out.read_text(encoding="utf-8")
    with pytest.raises(OutOfRange, match="give both"):
        proxy_command.main([*common, "--certificate", "/x"])
    with pytest.raises(DeploymentRefused, match="no deployment here"):
        proxy_command.main([*common[:-1], str(tmp_path / "none")])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--listen", "foo"], r"^--listen='foo': not HOST:PORT"),
        (["--max-body-mb", "0"], r"^--max-body-mb=0: must be in \[1, "),
        (["--nodes-per-address", "0"], r"^--nodes-per-address=0: "),
        (["--certificate", "/c;", "--certificate-key", "/k"], r"^--certificate='/c;': "),
        (["--certificate", "/c", "--certificate-key", "/k;"], r"^--certificate-key='/k;': "),
        (["--user", "a b"], r"^--user='a b': "),
    ],
    ids=["listen", "body", "nodes", "certificate", "key", "user"],
)
def test_the_command_names_what_it_refuses_as_it_was_typed(tmp_path: Path, options: list[str], words: str) -> None:
    with pytest.raises(OutOfRange, match=words):
        proxy_command.main([*deployed(tmp_path), *options])


def test_a_user_that_is_not_here_is_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert proxy_command.main([*deployed(tmp_path), "--user", "no-such-user"]) == 0
    assert "! --user no-such-user: no such user on this machine" in capsys.readouterr().out
    assert proxy_command.main([*deployed(tmp_path), "--user", "root"]) == 0
    assert "!" not in capsys.readouterr().out


def deployed(tmp_path: Path) -> list[str]:
    """Return the options of a deployment with certificates."""
    directory = tmp_path / "superlink"
    directory.mkdir(exist_ok=True)
    deployment = saved(replace(new_deployment(directory), address="127.0.0.1:4711"))
    ensure_certificates(deployment.layout.certificates, now_utc())
    return ["--listen", "0.0.0.0:9443", "--out", str(tmp_path / "proxy.conf"), "--dir", str(directory)]
