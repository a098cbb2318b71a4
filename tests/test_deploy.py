"""The files that put a server into service agree with each other and with the package: Dockerfile, deploy/."""

import configparser
import fnmatch
import json
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
LINES = DOCKERFILE.replace("\\\n", " ").splitlines()
PORT = "8000"


def instructions(name: str) -> list[str]:
    return [line.split(None, 1)[1].strip() for line in LINES if line.startswith(f"{name} ")]


def compose() -> dict:
    (service,) = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8"))["services"].values()
    return service


def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str
    parser.read(ROOT / "deploy" / "glimodern.service", encoding="utf-8")
    return parser


def test_the_image_gets_what_its_build_reads():
    """.dockerignore lets through what is copied, and no more; the wheel's build needs what pyproject.toml names."""
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    let_in = {line[1:] for line in ignored if line.startswith("!")}
    assert "*" in ignored and all((ROOT / name).exists() for name in let_in)
    copied = {name for line in instructions("COPY") if not line.startswith("--from") for name in line.split()[:-1]}
    assert copied == let_in
    tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = set(settings["tool"]["scikit-build"]["wheel"]["packages"].values())
    project = settings["project"]
    assert {*packages, "csrc", "CMakeLists.txt", project["readme"], *project["license-files"]} <= let_in
    built = [line for line in ignored if line.startswith("**/")]
    assert any(fnmatch.fnmatch("glimodern/_C.so", line.replace("**/", "*")) for line in built)


def test_the_image_is_not_run_by_root():
    *_, user = instructions("USER")
    assert int(user) > 0 and f"--uid {user} " in DOCKERFILE
    assert LINES.index(f"USER {user}") > max(i for i, line in enumerate(LINES) if line.startswith("FROM"))


def test_everything_listens_on_one_port():
    service = compose()
    assert instructions("EXPOSE") == [PORT]
    assert service["command"][-2:] == ["--port", PORT] == unit()["Service"]["ExecStart"].split()[-2:]
    assert service["ports"] == [f"127.0.0.1:{PORT}:{PORT}"]
    assert all(line.startswith('["python", "-m", "glimodern.serve"') for line in instructions("ENTRYPOINT"))
    assert " -m glimodern.serve " in unit()["Service"]["ExecStart"]


def test_models_are_mounted_where_the_server_looks():
    service = compose()
    model = service["command"][0]
    (volume,) = service["volumes"]
    assert volume.endswith(f":{model}:ro") and model.startswith(instructions("VOLUME")[0] + "/")
    assert (ROOT / "deploy" / service["build"]).resolve() == ROOT.resolve()
    assert "GLIMODERN_TOKEN" in service["environment"]


class _Healthy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:  # noqa: N802
        self.send_response(self.server.status if self.path == "/healthz" else 404)  # type: ignore[attr-defined]
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1), (None, 1)])
def test_the_health_check(status, code, monkeypatch):
    """The command of HEALTHCHECK, on the port of a test; status None: nothing listens. A proxy is not asked."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    (check,) = instructions("HEALTHCHECK")
    python, flag, program = json.loads(check[check.index("[") :])
    assert (python, flag) == ("python", "-c") and program.count(PORT) == 1
    server = HTTPServer(("127.0.0.1", 0), _Healthy)
    server.status = status  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.handle_request)
    port = server.server_port
    if status is None:
        server.server_close()
    else:
        thread.start()
    done = subprocess.run([sys.executable, flag, program.replace(PORT, str(port))], capture_output=True, timeout=60)
    if status is not None:
        thread.join()
        server.server_close()
    assert done.returncode == code


def test_hadolint_finds_nothing():
    hadolint = ROOT / ".venv" / "bin" / "hadolint"
    if not hadolint.exists():
        found = shutil.which("hadolint")
        if found is None:
            pytest.skip("needs hadolint, which `make lint` installs (the extra dev)")
        hadolint = Path(found)
    done = subprocess.run([hadolint, "--no-color", "Dockerfile"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_systemd_reads_the_unit(tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    text = (ROOT / "deploy" / "glimodern.service").read_text(encoding="utf-8")
    (program,) = re.findall(r"^ExecStart=(\S+)", text, re.MULTILINE)
    copy = tmp_path / "glimodern.service"
    copy.write_text(text.replace(program, "/bin/sh"), encoding="utf-8")  # which is there
    done = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
