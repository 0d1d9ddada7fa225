"""Nobody sees a run without the token, and with it nobody reads what the server did not list."""

from __future__ import annotations

import http.client
import socket

import httpx
import pytest

from tests.runtime.dashboard.conftest import served, visitor
from tests.runtime.dashboard.run_folders import make_folder, write_log

SECRET = "a-secret-of-the-run"


def plain(server) -> httpx.Client:
    return httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=30, trust_env=False)


@pytest.mark.parametrize(
    "path", ["/", "/api/poll", "/api/recipe", "/static/app.js", "/static/none", "/nothing"]
)
def test_without_the_token_there_is_only_a_refusal(folder, path):
    with served(folder) as server, plain(server) as client:
        answer = client.get(path)
        assert answer.status_code == 401
        assert "quick" not in answer.text
        assert client.get(path, params={"token": "wrong"}).status_code == 401
        assert client.get(path, params={"token": "ü" * 43}).status_code == 401
        assert client.get(path, headers={"cookie": "a=b; ;=\x7f"}).status_code == 401


def test_a_token_in_the_address_of_anything_but_the_page_does_not_count(folder):
    with served(folder) as server, plain(server) as client:
        assert client.get("/api/poll", params={"token": server.token}).status_code == 401


def test_the_token_becomes_a_cookie_that_scripts_and_other_sites_do_not_get(folder):
    with served(folder) as server, plain(server) as client:
        answer = client.get("/", params={"token": server.token})
        assert answer.status_code == 303
        assert (
            answer.headers["location"] == "./"
        )  # no token in the address bar, no host: tunnels and proxies work
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        page = client.get("/")
        assert page.status_code == 200
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        assert server.token not in page.text


def test_each_start_has_its_own_token_and_cookie(folder):
    with served(folder) as one, served(folder) as other, visitor(one) as client:
        assert one.token != other.token
        assert len(one.token) >= 43  # 256 bits
        jar = dict(client.cookies)
        answer = httpx.get(f"http://127.0.0.1:{other.port}/api/poll", cookies=jar, trust_env=False)
        assert answer.status_code == 401
        client.base_url = httpx.URL(f"http://127.0.0.1:{other.port}")
        client.get("/", params={"token": other.token})
        assert len(client.cookies) == 2  # browsers keep one jar for all ports of a host


def test_it_listens_on_loopback_alone(folder):
    with served(folder) as server:
        assert server.url.startswith(f"http://127.0.0.1:{server.port}/?token=")
        with socket.socket() as elsewhere:
            elsewhere.bind(("127.0.0.2", server.port))  # free: it did not take every address


def test_it_only_shows(folder):
    with served(folder) as server, visitor(server) as client:
        for method in ("POST", "PUT", "DELETE", "PATCH"):
            assert client.request(method, "/api/poll").status_code == 405


def test_a_stack_is_asked_for_by_the_dashboards_own_page_alone(folder):
    with served(folder) as server, visitor(server) as client:
        asked = folder.root / "stacks/asked/trainer-0"
        order = {"x-verst-dash": "1"}
        for headers in (
            {},
            {"origin": "http://127.0.0.1:9", "content-type": "text/plain"},
        ):  # a form of another page
            answer = client.post("/api/stack", params={"name": "trainer-0"}, headers=headers)
            assert answer.status_code == 405
        with plain(server) as stranger:
            answer = stranger.post("/api/stack", params={"name": "trainer-0"}, headers=order)
            assert answer.status_code == 401
        assert (
            client.options("/api/stack").status_code == 405
        )  # what a browser asks before a foreign page may
        assert client.post("/api/poll", headers=order).status_code == 405
        for name in ("../../keys/x", "trainer-9", ""):
            assert client.post("/api/stack", params={"name": name}, headers=order).status_code == 404
        assert not (folder.root / "stacks").exists()
        assert client.post("/api/stack", params={"name": "trainer-0"}, headers=order).status_code == 200
        assert asked.is_file()


@pytest.mark.parametrize(
    "name",
    [
        "../keys/curve.json",
        "life-0/../../keys/curve.json",
        "life-0/trainer/0/../../../../keys/curve.json",
        "/etc/passwd",
        "life-0/trainer/0/link.log",
        "life-0/trainer/0",
        "life-0/trainer/0/trainer-0.log\x00",
        "",
    ],
)
def test_only_logs_that_the_server_lists_are_read(folder, visit, name):
    (folder.keys / "curve.json").write_text(SECRET)
    log = write_log(folder, "life-0/trainer/0/trainer-0.log", "fine\n")
    (log.parent / "link.log").symlink_to(folder.keys / "curve.json")
    client = visit(folder)
    answer = client.get("/api/log", params={"file": name})
    assert answer.status_code == 404
    assert SECRET not in answer.text
    assert [name for name, _ in client.get("/api/logs").json()["files"]] == ["life-0/trainer/0/trainer-0.log"]


@pytest.mark.parametrize(
    "target",
    [
        "/static/../app.py",
        "/static/%2e%2e/app.py",
        "/static/..%2f..%2f..%2fkeys/curve.json",
        "/static//etc/passwd",
        "/../../etc/passwd",
        "/keys/curve.json",
    ],
)
def test_paths_lead_to_nothing_but_the_pages_own_files(folder, target):
    (folder.keys / "curve.json").write_text(SECRET)
    with served(folder) as server, visitor(server) as client:
        cookie = "; ".join(f"{name}={value}" for name, value in client.cookies.items())
        connection = http.client.HTTPConnection(
            "127.0.0.1", server.port, timeout=30
        )  # sends the path as it is
        connection.putrequest("GET", target, skip_accept_encoding=True)
        connection.putheader("Cookie", cookie)
        connection.endheaders()
        answer = connection.getresponse()
        assert answer.status == 404
        assert SECRET.encode() not in answer.read()
        connection.close()


def test_a_symlink_in_place_of_kept_samples_is_not_followed(tmp_path, visit):
    folder = make_folder(tmp_path / "run")
    (folder.keys / "curve.json").write_text(SECRET)
    (folder.root / "shown").mkdir()
    (folder.root / "shown" / "step-000001.jsonl").symlink_to(folder.keys / "curve.json")
    assert visit(folder).get("/api/samples").json() == {"steps": [], "step": -1, "samples": []}
