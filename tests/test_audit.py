"""The audit of .ci/audit, by the real pip-audit, with an advisory service on this machine in the place of OSV's."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

AUDIT = Path(__file__).parents[1] / ".ci" / "audit"
BAD = {"name": "lightning", "version": "2.6.2"}
ADVISORY = {
    "id": "TEST-1",
    "modified": "2026-01-01T00:00:00Z",
    "published": "2026-01-01T00:00:00Z",
    "summary": "malicious upload",
    "affected": [
        {
            "package": {"name": BAD["name"], "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": BAD["version"]}, {"fixed": "2.6.4"}]}],
            "versions": [BAD["version"]],
        }
    ],
}


class Service(BaseHTTPRequestHandler):
    """Knows one advisory; ``asked`` of the server are the packages that it was asked for."""

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if "package" in asked:
            self.server.asked.append(f"{asked['package']['name']}=={asked['version']}")
        is_bad = asked.get("package", {}).get("name") == BAD["name"] and asked["version"] == BAD["version"]
        answer = json.dumps({"vulns": [ADVISORY] if is_bad else []}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        """Nothing."""


@pytest.fixture
def service():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    server.asked = []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """A folder with pip-audit, in an environment of its own."""
    folder = tmp_path_factory.mktemp("audit")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    installed = subprocess.run([folder / "bin" / "pip", "install", "-q", "pip-audit"], capture_output=True, check=False)
    if installed.returncode != 0:
        pytest.skip("pip-audit cannot be installed here")
    return folder / "bin"


def audit(port, *arguments, path=""):
    there = {"OSV_URL": f"http://127.0.0.1:{port}/v1/query", "PATH": f"{path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        [str(AUDIT), *map(str, arguments)], env=os.environ | there, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


def test_a_service_that_cannot_be_reached_is_told_and_no_failure(service):
    port = service.server_address[1]
    service.server_close()  # nobody listens there any more
    code, output = audit(port)
    assert code == 0
    assert output.startswith("not audited: the advisory service cannot be reached")


@pytest.mark.slow
def test_all_tested_versions_are_asked_for(service, programs):
    code, output = audit(service.server_address[1], path=programs)
    assert code == 0, output
    assert "No known vulnerabilities found" in output
    constraints = (AUDIT.parents[1] / "constraints.txt").read_text().splitlines()
    assert len(service.asked) == sum("==" in line for line in constraints)


@pytest.mark.slow
def test_a_known_vulnerability_fails(service, programs, tmp_path):
    (tmp_path / "bad.txt").write_text(f"six==1.17.0\n{BAD['name']}=={BAD['version']}\n")
    code, output = audit(service.server_address[1], tmp_path / "bad.txt", path=programs)
    assert code == 1
    assert "TEST-1" in output
    assert sorted(service.asked) == ["lightning==2.6.2", "six==1.17.0"]
