"""A hub on the loopback interface: the calls of huggingface_hub and of modelscope's client that we rely on, no more.

Repositories are in memory. Large files (`*.safetensors`, `*.png`, `*.pt`) go up as LFS objects, in parts where they are
larger than `PART` bytes; downloads honour Range. `deny`, `cut` and `requests` let a test break things and look on.
"""

import base64
import hashlib
import json
import re
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

from huggingface_hub import constants

TOKEN = "hf_correctHorseBatteryStaple"
PART = 20_000
SHA = "1" * 40
LARGE = (".safetensors", ".png", ".pt", ".pth", ".bin")


class Hub:
    """What the server holds, and what it was asked."""

    def __init__(self):
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.objects: dict[str, bytes] = {}
        self.commits: list[str] = []  # messages
        self.requests: list[tuple[str, str, str | None]] = []  # method, path, Range
        self.deny: dict[str, int] = {}  # a part of a path → status
        self.silent = False  # takes every request and answers none
        self.gated: set[str] = set()
        self.cut: dict[str, int] = {}  # file name → bytes after which the connection breaks, once
        self.slow: dict[str, float] = {}  # file name → seconds before its content
        self.stated: dict[str, bytes] = {}  # file name → content that sizes and digests are stated of
        self.url = ""

    def add(self, repo: str, files: dict[str, bytes]) -> None:
        self.repos[repo], self.private[repo] = dict(files), False

    def asked(self, part: str) -> list[tuple[str, str, str | None]]:
        return [request for request in self.requests if part in request[1]]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    @property
    def hub(self) -> Hub:
        return self.server.hub

    def reply(self, status=200, body=b"", **headers):
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer(self):
        length = self.headers.get("Content-Length")
        if length is not None:
            self.body = self.rfile.read(int(length))
        else:
            self.body = self._chunks() if self.headers.get("Transfer-Encoding") == "chunked" else b""
        path = unquote(urlsplit(self.path).path)
        self.query = {key: values[0] for key, values in parse_qs(urlsplit(self.path).query).items()}
        self.hub.requests.append((self.command, unquote(self.path), self.headers.get("Range")))
        if self.hub.silent:
            time.sleep(2)
            self.close_connection = True
            return None
        status = next((status for part, status in self.hub.deny.items() if part in self.path), None)
        if status:
            return self.reply(status, {"error": "denied", "Message": "denied", "Code": status})
        presigned = path.startswith(("/put/", "/parts/"))
        writes = self.command in ("POST", "PUT") and not presigned
        if writes and f"Bearer {TOKEN}" != self.headers.get("Authorization"):
            return self.reply(401, {"error": "Invalid credentials", "Message": "no login"})
        for method, pattern, function in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method:
                return function(self, *match.groups())
        return self.reply(404, {"error": f"no route {self.command} {path}"})

    do_GET = do_POST = do_PUT = do_HEAD = answer

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def json(self):
        return json.loads(self.body)

    def send_file(self, name: str, content: bytes, **headers):
        start = 0
        if asked := self.headers.get("Range"):
            start = int(re.fullmatch(r"bytes=(\d+)-(\d*)", asked)[1])
            if start >= len(content):
                return self.reply(416, Content_Range=f"bytes */{len(content)}")
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        time.sleep(self.hub.slow.get(name, 0))
        cut = self.hub.cut.get(name)
        if cut is None:
            return self.reply(206 if asked else 200, content[start:], **headers)
        self.send_response(206 if asked else 200)
        for key, value in {"Content-Length": len(content) - start, **headers}.items():
            self.send_header(key.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(content[start:cut])
        self.wfile.flush()
        self.close_connection = True
        self.hub.deny[name] = 503
        return None

    # Hugging Face

    def no_repo(self):
        return self.reply(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")

    def create(self):
        wanted = self.json()
        repo = f"{wanted['organization']}/{wanted['name']}"
        exists = repo in self.hub.repos
        if not exists:
            self.hub.add(repo, {})
            self.hub.private[repo] = wanted.get("visibility") == "private"
        return self.reply(409 if exists else 200, {"url": f"{self.hub.url}/{repo}"})

    def info(self, repo, revision=None):
        if repo not in self.hub.repos:
            return self.no_repo()
        if revision not in (None, "main", SHA):
            return self.reply(404, {"error": "no revision"}, X_Error_Code="RevisionNotFound")
        siblings = []
        for name, content in self.hub.repos[repo].items():
            content = self.hub.stated.get(name, content)
            entry = {"rfilename": name, "size": len(content), "blobId": git_sha(content)}
            if name.endswith(LARGE):
                entry["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 1}
            siblings.append(entry)
        private = self.hub.private[repo]
        return self.reply(200, {"id": repo, "sha": SHA, "private": private, "siblings": siblings, "tags": []})

    def tree(self, repo, revision):
        files = self.hub.repos[repo].items()
        return self.reply(200, [{"type": "file", "path": n, "size": len(c), "oid": git_sha(c)} for n, c in files])

    def preupload(self, repo, revision):
        if repo not in self.hub.repos:
            return self.no_repo()
        files = [
            {"path": file["path"], "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular"}
            for file in self.json()["files"]
        ]
        return self.reply(200, {"files": [{**file, "shouldIgnore": False} for file in files]})

    def batch(self, repo):
        objects = []
        for wanted in self.json()["objects"]:
            oid, size = wanted["oid"], wanted["size"]
            entry = {"oid": oid, "size": size}
            if oid not in self.hub.objects:
                href = f"{self.hub.url}/put/{oid}"
                upload = {"href": href}
                if size > PART and "multipart" in self.json().get("transfers", []):
                    count = -(-size // PART)
                    upload["header"] = {"chunk_size": PART, **{f"{n + 1:05}": f"{href}/{n}" for n in range(count)}}
                    upload["href"] = f"{self.hub.url}/parts/{oid}"
                entry["actions"] = {"upload": upload}
            objects.append(entry)
        # Hugging Face's own shape and ModelScope's envelope in one.
        return self.reply(200, {"objects": objects, "Code": 200, "Data": {"objects": objects}})

    def put(self, oid):
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self.reply(400, {"error": "digest"})
        self.hub.objects[oid] = self.body
        return self.reply()

    def put_part(self, oid, number):
        self.hub.objects[f"{oid}/{number}"] = self.body
        return self.reply(200, ETag=f"part-{number}")

    def complete(self, oid):
        numbers = [part["partNumber"] for part in self.json()["parts"]]
        self.body = b"".join(self.hub.objects[f"{oid}/{number - 1}"] for number in numbers)
        return self.put(oid)

    def commit(self, repo, revision):
        files = self.hub.repos[repo]
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                self.hub.commits.append(value["summary"])
            elif entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
        return self.reply(200, {"success": True, "commitUrl": f"{self.hub.url}/{repo}/commit/{SHA}", "commitOid": SHA})

    def resolve(self, repo, revision, name):
        if repo in self.hub.gated:
            return self.reply(403, {"error": "gated"}, X_Error_Code="GatedRepo")
        if repo not in self.hub.repos:
            return self.no_repo()
        content = self.hub.repos[repo].get(name)
        if content is None:
            return self.reply(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound")
        return self.send_file(name, content, ETag=f'"{git_sha(content)}"', X_Repo_Commit=SHA)

    # ModelScope

    def ms_create(self):
        wanted = self.json()
        repo = f"{wanted['Path']}/{wanted['Name']}"
        if repo in self.hub.repos:
            return self.reply(400, {"Code": 400, "Message": "exists"})
        self.hub.add(repo, {})
        self.hub.private[repo] = wanted["Visibility"] == 1
        return self.reply(200, {"Code": 200, "Success": True, "Data": wanted})

    def ms_info(self, repo):
        if repo not in self.hub.repos:
            return self.reply(404, {"Code": 404, "Message": "not found"})
        owner, name = repo.split("/")
        return self.reply(200, {"Code": 200, "Data": {"Path": owner, "Name": name}, "success": True, "data": {}})

    def ms_files(self, repo):
        if repo not in self.hub.repos:
            return self.reply(404, {"Code": 404, "Message": "not found"})
        files = [
            {"Path": name, "Size": len(content), "Sha256": hashlib.sha256(content).hexdigest(), "Type": "blob"}
            for name, content in ((n, self.hub.stated.get(n, c)) for n, c in self.hub.repos[repo].items())
        ]
        return self.reply(200, {"Code": 200, "Success": True, "Data": {"Files": files}})

    def ms_download(self, repo):
        name = self.query["FilePath"]
        return self.send_file(name, self.hub.repos[repo][name])

    def ms_commit(self, repo, revision):
        wanted = self.json()
        self.hub.commits.append(wanted["commit_message"])
        for action in wanted["actions"]:
            if action["action"] == "delete":
                del self.hub.repos[repo][action["path"]]
                continue
            lfs = action["type"] == "lfs"
            content = self.hub.objects[action["sha256"]] if lfs else base64.b64decode(action["content"])
            self.hub.repos[repo][action["path"]] = content
        return self.reply(200, {"Code": 200, "Success": True, "Data": {"CommitId": SHA}})


NAME = r"([\w.-]+/[\w.-]+)"
ROUTES = [
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", lambda self: self.reply(200, {"errors": [], "warnings": []})),
    ("GET", f"/api/models/{NAME}", Handler.info),
    ("GET", f"/api/models/{NAME}/revision/(.+)", Handler.info),
    ("GET", f"/api/models/{NAME}/tree/(.+)", Handler.tree),
    ("POST", f"/api/models/{NAME}/preupload/(.+)", Handler.preupload),
    ("POST", f"/api/models/{NAME}/branch/.+", lambda self, repo: self.reply(200, {})),
    ("POST", f"/{NAME}.git/info/lfs/objects/batch", Handler.batch),
    ("PUT", "/put/([0-9a-f]+)", Handler.put),
    ("PUT", r"/put/([0-9a-f]+)/(\d+)", Handler.put_part),
    ("POST", "/parts/([0-9a-f]+)", Handler.complete),
    ("POST", f"/api/models/{NAME}/commit/(.+)", Handler.commit),
    (("GET", "HEAD"), f"/{NAME}/resolve/([^/]+)/(.+)", Handler.resolve),
    ("POST", "/api/v1/models", Handler.ms_create),
    ("GET", f"/(?:api|openapi)/v1/models/{NAME}", Handler.ms_info),
    ("GET", f"/api/v1/models/{NAME}/repo/files", Handler.ms_files),
    ("GET", f"/api/v1/models/{NAME}/repo", Handler.ms_download),
    ("GET", f"/api/v1/datasets/{NAME}/repo/tree", Handler.ms_files),
    ("GET", f"/api/v1/datasets/{NAME}/repo", Handler.ms_download),
    ("POST", f"/api/v1/repos/models/{NAME}/info/lfs/objects/batch", Handler.batch),
    ("POST", f"/api/v1/repos/models/{NAME}/commit/(.+)", Handler.ms_commit),
]


def git_sha(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def serve():
    """A running `Hub`; its `url` is the address."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.hub = hub
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def point_to(url: str, monkeypatch) -> None:
    """Have this process's clients, and those of processes that it starts, talk to the hub at `url`."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", url)
    monkeypatch.setattr("transformers.utils.hub._hf_api", None)  # shared, with the address of its first use
    monkeypatch.setattr("modelscope_hub.config._default_config", None)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setenv("HF_ENDPOINT", url)
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", url)
