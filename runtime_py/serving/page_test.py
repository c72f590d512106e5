"""The page at ``/`` as bytes: what is served under which policy, and that it names nothing outside."""

from __future__ import annotations

import http.client
import json
import re
from typing import Any

import pytest

from runtime_py.serving.conftest import KEY, NAME, Server

pytest.importorskip("starlette")

from starlette.routing import Route

from runtime_py.serving import openapi, page, request
from runtime_py.serving.application import Serving, application
from runtime_py.serving.chat import ServerLimits
from runtime_py.serving.pictures import PictureLimits

FILES = sorted(path.name for path in page.FOLDER.iterdir())


def got(server: Server, path: str, headers: dict[str, str] | None = None) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request("GET", path, headers=headers or {})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, content


def test_the_page_is_open_and_under_a_strict_policy(server: Server) -> None:
    status, headers, content = got(server, "/")
    assert status == 200 and headers["content-type"].startswith("text/html")
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert got(server, "/", {"If-None-Match": headers["etag"]})[0] == 304
    for address in re.findall(rb'(?:src|href)="(/[^"]+)"', content):
        assert got(server, address.decode())[0] == 200, address


@pytest.mark.parametrize("path", ["/page/", "/page/..%2fpage.py", "/page/../page.py", "/page/page.py", "/browser/main.js"])
def test_nothing_else_is_served(server: Server, path: str) -> None:
    assert got(server, path)[0] == 404


@pytest.mark.parametrize("name", FILES)
def test_files_name_nothing_outside_and_hold_no_inline_script(name: str) -> None:
    text = (page.FOLDER / name).read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
    assert "http://" not in text and "https://" not in text
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|\son\w+=\"|\sstyle=\"", text)
    for address in re.findall(r'from "\./([\w.]+)"', text):
        assert address in FILES


def test_every_route_is_described_and_every_description_is_routed(server: Server) -> None:
    app = application(server.service, Serving(NAME, ServerLimits(PictureLimits(), 1 << 20, 60.0)))
    undescribed = {"/openapi.json", *(route.path for route in page.routes())}
    routed = {
        route.path.replace(":path}", "}"): set(route.methods or ()) - {"HEAD"}
        for route in app.routes
        if isinstance(route, Route) and route.path not in undescribed
    }
    assert len(routed) + len(undescribed) == len(app.routes)
    described = json.loads(got(server, "/openapi.json")[2])["paths"]
    assert {path: {method.upper() for method in methods} for path, methods in described.items()} == routed


def resolved(name: str) -> dict[str, Any]:
    """A schema of the document with the others beside it, for a validator of JSON Schema."""
    components = openapi.document("demo")["components"]["schemas"]
    text = json.dumps({"$ref": f"{openapi.SHARED}{name}", "$defs": components})
    value: dict[str, Any] = json.loads(text.replace(openapi.SHARED, "#/$defs/"))
    return value


def test_answers_are_as_described(server: Server) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    for path, name in (
        ("/health", "Health"),
        ("/v1/models", "Models"),
        ("/v1/models/demo", "Model"),
        ("/v1/models/x", "Error"),
    ):
        jsonschema.validate(json.loads(got(server, path, {"Authorization": f"Bearer {KEY}"})[2]), resolved(name))
    body = {"model": "demo", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3}
    jsonschema.validate(body, resolved("ChatRequest"))
    assert request.schema().problems(body) == []
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    answer = json.loads(connection.getresponse().read())
    connection.close()
    jsonschema.validate(answer, resolved("Completion"))
    timings = answer["timings"]
    assert timings["decode_steps"] == 2 and 0 < timings["prefill_seconds"] <= timings["first_token_seconds"]
