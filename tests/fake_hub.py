"""A Hugging Face hub in a thread: repositories in memory, served over HTTP to the real huggingface_hub.

It knows what huggingface_hub asks for `create_repo`, `create_branch`, `file_exists`, `upload_folder` and
`snapshot_download` of model repositories, small files and one pull request only; anything else is a 404 that names it.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

Files = dict[str, bytes]


class FakeHub:
    """repositories: name -> branch or commit -> files; commits: (repository, branch, message) of every one made."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, Files]] = {}
        self.commits: list[tuple[str, str, str]] = []
        self.heads: dict[tuple[str, str], str] = {}
        self.tokens: set[str | None] = set()
        self.created: list[dict[str, object]] = []

    def commit(self, name: str, branch: str, files: Files, message: str = "", deleted: Collection[str] = ()) -> str:
        before = self.repositories.setdefault(name, {}).get(branch, {})
        content = {**{path: data for path, data in before.items() if path not in deleted}, **files}
        sha = hashlib.sha1(repr((sorted(content.items()), len(self.commits))).encode()).hexdigest()
        self.repositories[name][branch] = self.repositories[name][sha] = content
        self.heads[name, branch] = self.heads[name, sha] = sha
        self.commits.append((name, branch, message))
        return sha


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer_json(self, value: object, status: int = 200) -> None:
        self.answer(status, json.dumps(value).encode(), Content_Type="application/json")

    def route(self) -> list[str]:
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        if parts != ["api", "agent-harnesses"]:  # huggingface_hub asks once a day, of no repository and without a token
            self.hub.tokens.add(self.headers.get("Authorization"))
        return parts

    def do_HEAD(self) -> None:  # noqa: N802
        self.do_GET()

    def do_GET(self) -> None:  # noqa: N802
        match self.route():
            case ["api", "models", owner, name, "revision", revision]:
                if self.find(f"{owner}/{name}", revision) is not None:
                    sha = self.hub.heads[f"{owner}/{name}", revision]
                    self.answer_json({"id": f"{owner}/{name}", "sha": sha, "siblings": []})
            case ["api", "models", owner, name, "tree", revision]:
                files = self.find(f"{owner}/{name}", revision)
                if files is not None:
                    self.answer_json(
                        [
                            {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                            for path, data in files.items()
                        ]
                    )
            case [owner, name, "resolve", revision, *path]:
                files = self.find(f"{owner}/{name}", revision)
                if files is not None and "/".join(path) in files:
                    data = files["/".join(path)]
                    sha = self.hub.heads[f"{owner}/{name}", revision]
                    self.answer(200, data, ETag=f'"{hashlib.sha1(data).hexdigest()}"', X_Repo_Commit=sha)
                elif files is not None:
                    self.answer(404, X_Error_Code="EntryNotFound")
            case ["api", "models", owner, name, "discussions", number]:
                self.answer_json(
                    {
                        "num": int(number), "title": "", "createdAt": "2026-01-01T00:00:00.000Z", "status": "draft",
                        "isPullRequest": True, "repo": {"name": f"{owner}/{name}", "type": "model"}, "events": [],
                        "changes": {"base": "refs/heads/main"}, "filesWithConflicts": [],
                    }
                )  # fmt: skip
            case _:
                self.answer(404, f"not in the fake hub: GET {self.path}".encode())

    def find(self, name: str, revision: str) -> Files | None:
        """The files of a revision; answers the request if there is none."""
        if name not in self.hub.repositories:
            self.answer(404, X_Error_Code="RepoNotFound")
        elif revision not in self.hub.repositories[name]:
            self.answer(404, X_Error_Code="RevisionNotFound")
        else:
            return self.hub.repositories[name][revision]
        return None

    def do_POST(self) -> None:  # noqa: N802
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        match self.route():
            case ["api", "repos", "create"]:
                fields = json.loads(body)
                name = "/".join(filter(None, [fields.get("organization"), fields["name"]]))
                self.hub.created.append(fields)
                exists = name in self.hub.repositories
                if not exists:
                    self.hub.commit(name, "main", {".gitattributes": b""}, "initial commit")
                self.answer_json({"url": f"http://{self.headers['Host']}/{name}"}, 409 if exists else 200)
            case ["api", "models", owner, name, "branch", branch]:
                repository = self.hub.repositories[f"{owner}/{name}"]
                self.answer(409 if branch in repository else 200)
                if branch not in repository:
                    self.hub.commit(f"{owner}/{name}", branch, repository["main"])
            case ["api", "models", owner, name, "preupload", _]:
                paths = [file["path"] for file in json.loads(body)["files"]]
                self.answer_json(
                    {"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False, "oid": None} for p in paths]}
                )
            case ["api", "models", owner, name, "commit", branch]:
                rows = [json.loads(line) for line in body.splitlines()]
                files = {
                    row["value"]["path"]: base64.b64decode(row["value"]["content"])
                    for row in rows
                    if row["key"] == "file"
                }
                deleted = [row["value"]["path"] for row in rows if row["key"] == "deletedFile"]
                message = next(row["value"]["summary"] for row in rows if row["key"] == "header")
                pull = "create_pr=1" in self.path
                sha = self.hub.commit(f"{owner}/{name}", "refs/pr/1" if pull else branch, files, message, deleted)
                url = f"http://{self.headers['Host']}/{owner}/{name}"
                answer = {"commitUrl": f"{url}/commit/{sha}", "commitOid": sha, "success": True}
                self.answer_json({**answer, **({"pullRequestUrl": f"{url}/discussions/1"} if pull else {})})
            case ["api", "models", owner, name, "discussions"]:
                self.hub.commit(f"{owner}/{name}", "refs/pr/1", self.hub.repositories[f"{owner}/{name}"]["main"])
                self.answer_json({"num": 1})
            case ["api", "validate-yaml"]:
                self.answer_json({"errors": [], "warnings": []})
            case _:
                self.answer(404, f"not in the fake hub: POST {self.path}".encode())


@contextmanager
def in_place_of_the_hub(cache: Path) -> Iterator[FakeHub]:
    """A fake hub that huggingface_hub takes for the real one, with a cache of its own, for the time of the block."""
    from huggingface_hub import constants

    hub = FakeHub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, pytest.MonkeyPatch.context() as patch:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "ENDPOINT", address)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
