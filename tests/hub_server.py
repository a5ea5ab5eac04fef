"""An in-memory Hugging Face Hub on the standard library: as much of the protocol as push and pull
need.

    with HubServer() as hub:                     # hub.endpoint is http://127.0.0.1:PORT
        hub.drop("POST", "/commit/")             # the next commit is broken off
        subprocess.run(..., env={"HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": "1", ...})

`huggingface_hub` reads its endpoint when it is imported, so the client runs in a process of its
own. Without xet the client uploads large files by the LFS batch protocol and a plain PUT, which is
what this server speaks.
"""

import base64
import hashlib
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".parquet", ".arrow", ".zip", ".gz")
LFS_BYTES = 10 * 2**20
KINDS = {None: "model", "models": "model", "datasets": "dataset", "spaces": "space"}
DATE = "2026-01-01T00:00:00.000Z"

VERBS = "preupload|commit|tree|revision|paths-info|refs|branch|tag|commits"
API = re.compile(
    rf"^/api/(models|datasets|spaces)/([^/]+/[^/]+?)(?:/({VERBS})(?:/([^/]+))?(?:/(.*))?)?$"
)
BATCH = re.compile(r"^/(?:(?:datasets|spaces)/)?[^/]+/[^/]+\.git/info/lfs/objects/batch$")
BLOB = re.compile(r"^/_lfs/([0-9a-f]{64})$")
RESOLVE = re.compile(r"^/(?:(datasets|spaces)/)?([^/]+/[^/]+)/(?:resolve|raw)/([^/]+)/(.+)$")


class HubError(Exception):
    """An answer other than success: HTTP status, the Hub's error code and a message."""

    def __init__(self, status: int, code: str, message: str, headers: dict | None = None):
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, headers or {}


class Repo:
    """One repository: its commits, each a full mapping of path to file, and its branches."""

    def __init__(self, repo_id: str, kind: str, private: bool):
        self.id, self.kind, self.private = repo_id, kind, private
        self.commits: dict[str, dict] = {}
        self.refs: dict[str, str] = {}
        self.refs["main"] = self.add_commit({}, "initial commit")

    def add_commit(self, files: dict, message: str) -> str:
        sha = hashlib.sha1(
            f"{self.id}{message}{sorted(files)}{time.time_ns()}".encode()
        ).hexdigest()
        self.commits[sha] = files
        return sha

    def resolve(self, revision: str | None) -> str:
        """Commit id of a branch name or commit id; `HubError` where there is none."""
        name = unquote(revision or "main")
        sha = self.refs.get(name, name)
        if sha not in self.commits:
            raise HubError(404, "RevisionNotFound", "Invalid rev id")
        return sha

    def info(self, revision: str | None) -> dict:
        sha = self.resolve(revision)
        siblings = [{"rfilename": path} for path in sorted(self.commits[sha])]
        flags = {
            "private": self.private,
            "disabled": False,
            "gated": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
        }
        names = {"_id": "0" * 24, "id": self.id, "modelId": self.id, "sha": sha}
        return {**names, **flags, "lastModified": DATE, "createdAt": DATE, "siblings": siblings}


class Handler(BaseHTTPRequestHandler):
    """One connection: reads the request, lets the hub answer, writes the answer."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args) -> None:
        """Silence: requests are kept in `HubServer.requests`."""

    def answer(
        self, body: bytes | dict | list = b"", status: int = 200, headers: dict | None = None
    ) -> None:
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        self.send_response(status)
        fields = {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            **(headers or {}),
        }
        for name, value in fields.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer_blob(self, blob: bytes, headers: dict) -> None:
        headers = {"Content-Type": "application/octet-stream", **headers}
        part = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if part is None:
            self.answer(blob, headers=headers)
            return
        first, last = int(part[1]), int(part[2] or len(blob) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(blob)}"
        self.answer(blob[first : last + 1], 206, headers)

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def check_token(self) -> None:
        if not self.headers.get("Authorization", "").startswith("Bearer hf_"):
            self.read_body()
            raise HubError(401, "Unauthorized", "Invalid username or password.")

    def handle_request(self) -> None:
        url = urlsplit(self.path)
        hub: HubServer = self.server.hub
        hub.requests.append((self.command, unquote(url.path)))
        if hub.takes_drop(self.command, url.path):
            self.rfile.read(min(hub.drop_after, int(self.headers.get("Content-Length") or 0)))
            self.close_connection = True
            return self.connection.close()
        try:
            if self.command in ("POST", "PUT") and not url.path.startswith("/_lfs/"):
                self.check_token()
            hub.route(self, url.path, parse_qs(url.query), self.read_body())
        except HubError as error:
            headers = {
                "X-Error-Code": error.code,
                "X-Error-Message": error.message,
                **error.headers,
            }
            self.answer({"error": error.message}, error.status, headers)

    # names that http.server calls
    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_request  # noqa: N815


class HubServer:
    """The server, a context manager. `endpoint`: its address; `requests`: `(method, path)` of all
    that was asked."""

    def __init__(self, user: str = "tester"):
        self.user = user
        self.repos: dict[tuple[str, str], Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.dropped, self.drops_left, self.drop_after = ("", ""), 0, 0
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.hub = self
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        self.server.shutdown()
        self.server.server_close()

    def drop(self, method: str, part: str, times: int = 1, after: int = 0) -> None:
        """Breaks the connection of the next `times` requests whose path contains `part`, `after`
        bytes of the body."""
        self.dropped, self.drops_left, self.drop_after = (method, part), times, after

    def takes_drop(self, method: str, path: str) -> bool:
        """Whether this request is to be broken off; counts it."""
        hit = self.drops_left > 0 and method == self.dropped[0] and self.dropped[1] in path
        self.drops_left -= hit
        return hit

    def files(self, repo_id: str) -> list[str]:
        """Paths in the main branch of a model repository."""
        repo = self.find("model", repo_id)
        return sorted(repo.commits[repo.refs["main"]])

    def find(self, kind: str, repo_id: str) -> Repo:
        if (kind, repo_id) not in self.repos:
            raise HubError(404, "RepoNotFound", "Repository not found")
        return self.repos[kind, repo_id]

    def route(self, http: Handler, path: str, query: dict, body: bytes) -> None:
        """Answer one request; `path` is still quoted, since a revision may hold a quoted slash."""
        if path == "/api/whoami-v2":
            token = {"accessToken": {"role": "write"}}
            return http.answer({"type": "user", "name": self.user, "orgs": [], "auth": token})
        if path == "/api/validate-yaml":
            return http.answer({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self.create(http, json.loads(body))
        if BATCH.match(unquote(path)):
            return http.answer(self.offer_uploads(json.loads(body)["objects"]))
        if match := BLOB.match(path):
            return self.exchange_blob(http, match[1], body)
        if match := API.match(path):
            repo = self.find(KINDS[match[1]], match[2])
            return self.api(http, repo, match[3], match[4], unquote(match[5] or ""), query, body)
        if match := RESOLVE.match(path):
            return self.download(
                http, self.find(KINDS[match[1]], match[2]), match[3], unquote(match[4])
            )
        raise HubError(404, "NotFound", f"no route for {http.command} {path}")

    def url(self, kind: str, repo_id: str) -> str:
        return f"{self.endpoint}/{'' if kind == 'model' else kind + 's/'}{repo_id}"

    def create(self, http: Handler, wanted: dict) -> None:
        kind = wanted.get("type") or "model"
        repo_id = f"{wanted.get('organization') or self.user}/{wanted['name']}"
        answer = {"url": self.url(kind, repo_id), "name": repo_id}
        if (kind, repo_id) in self.repos:
            http.answer({"error": "You already created this repo", **answer}, 409)
            return
        self.repos[kind, repo_id] = Repo(repo_id, kind, wanted.get("visibility") == "private")
        http.answer(answer)

    def offer_uploads(self, objects: list[dict]) -> dict:
        offers = []
        for wanted in objects:
            offer = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.blobs:
                offer["actions"] = {
                    "upload": {"href": f"{self.endpoint}/_lfs/{wanted['oid']}", "header": {}}
                }
            offers.append(offer)
        return {"transfer": "basic", "objects": offers}

    def exchange_blob(self, http: Handler, oid: str, body: bytes) -> None:
        if http.command != "PUT":
            http.answer_blob(self.blobs[oid], {})
            return
        if hashlib.sha256(body).hexdigest() != oid:
            raise HubError(400, "BadRequest", "sha256 mismatch")
        self.blobs[oid] = body
        http.answer()

    def download(self, http: Handler, repo: Repo, revision: str, path: str) -> None:
        sha = repo.resolve(revision)
        file = repo.commits[sha].get(path)
        if file is None:
            raise HubError(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": sha})
        blob = self.blobs[file["oid"]] if file["lfs"] else file["data"]
        etag = f'"{file["oid"]}"'
        headers = {
            "X-Repo-Commit": sha,
            "ETag": etag,
            "X-Linked-Etag": etag,
            "Accept-Ranges": "bytes",
        }
        http.answer_blob(blob, {**headers, "X-Linked-Size": str(len(blob))})

    def api(
        self, http: Handler, repo: Repo, verb, revision, rest: str, query: dict, body: bytes
    ) -> None:
        if verb in (None, "revision"):
            return http.answer(repo.info(revision))
        if verb == "refs":
            branches = [
                {"name": n, "ref": f"refs/heads/{n}", "targetCommit": sha}
                for n, sha in repo.refs.items()
            ]
            return http.answer({"branches": branches, "converts": [], "tags": []})
        files = repo.commits[repo.resolve(revision)]
        if verb == "tree":
            recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
            return http.answer(list_tree(files, rest, recursive))
        if verb == "paths-info":
            is_json = http.headers.get("Content-Type", "").startswith("application/json")
            paths = (
                json.loads(body)["paths"] if is_json else parse_qs(body.decode()).get("paths", [])
            )
            return http.answer([describe(path, files[path]) for path in paths if path in files])
        if verb == "preupload":
            return http.answer(
                {"files": [upload_mode(file, files) for file in json.loads(body)["files"]]}
            )
        if verb == "commit":
            return self.commit(
                http,
                repo,
                revision,
                [json.loads(line) for line in body.splitlines() if line.strip()],
            )
        raise HubError(404, "NotFound", f"no verb {verb}")

    def commit(self, http: Handler, repo: Repo, revision: str, operations: list[dict]) -> None:
        files = dict(repo.commits[repo.resolve(revision)])
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                data = base64.b64decode(value["content"])
                files[value["path"]] = {
                    "lfs": False,
                    "data": data,
                    "oid": git_oid(data),
                    "size": len(data),
                }
            elif operation["key"] == "lfsFile":
                if value["oid"] not in self.blobs:
                    raise HubError(400, "BadRequest", "LFS object missing")
                size = len(self.blobs[value["oid"]])
                files[value["path"]] = {"lfs": True, "oid": value["oid"], "size": size}
            elif operation["key"] == "deletedFile":
                files.pop(value["path"], None)
        sha = repo.add_commit(files, operations[0]["value"].get("summary", ""))
        repo.refs[unquote(revision)] = sha
        http.answer(
            {
                "success": True,
                "commitOid": sha,
                "commitUrl": f"{self.url(repo.kind, repo.id)}/commit/{sha}",
            }
        )


def git_oid(data: bytes) -> str:
    """Git's id of a blob."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def describe(path: str, file: dict) -> dict:
    """The Hub's entry for one file of a tree."""
    entry = {"type": "file", "path": path, "size": file["size"], "oid": file["oid"]}
    if file["lfs"]:
        entry |= {
            "oid": git_oid(file["oid"].encode()),
            "lfs": {"oid": file["oid"], "size": file["size"], "pointerSize": 134},
        }
    return entry


def list_tree(files: dict, folder: str, recursive: bool) -> list[dict]:
    """Files (and, unless recursive, folders) below `folder`."""
    prefix = f"{folder.strip('/')}/" if folder else ""
    entries, folders = [], set()
    for path in sorted(p for p in files if p.startswith(prefix)):
        head, _, tail = path[len(prefix) :].partition("/")
        if recursive or not tail:
            entries.append(describe(path, files[path]))
        elif head not in folders:
            folders.add(head)
            entries.append({"type": "directory", "path": prefix + head, "oid": "0" * 40, "size": 0})
    return entries


def upload_mode(wanted: dict, files: dict) -> dict:
    """How the client shall send a file: weights and large files by LFS, the others inside the
    commit."""
    path = wanted["path"]
    mode = "lfs" if path.endswith(LFS_SUFFIXES) or wanted["size"] > LFS_BYTES else "regular"
    oid = files[path]["oid"] if path in files else None
    return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid}
