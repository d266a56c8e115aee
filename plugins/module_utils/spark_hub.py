"""Ask a Hugging Face Hub what a repo consists of and whether we may have it, with the standard library alone.

Source: https://huggingface.co/docs/hub/api, and the errors as huggingface_hub reads them (X-Error-Code).
"""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from urllib.parse import quote, urljoin, urlsplit

from .spark_transfer import Trouble

_MOST_FILES = 100_000
_MOST_BYTES = 64 << 20
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


class Hub:
    """A Hub at `endpoint`, asked with `token` or without one. Every method raises Trouble."""

    def __init__(self, endpoint: str, token: str | None = None, timeout: float = 15.0):
        self.endpoint, self.token, self.timeout = endpoint.rstrip("/"), token, timeout
        self.name = urlsplit(self.endpoint).netloc or self.endpoint

    def listing(self, repo: str, revision: str) -> dict:
        """{commit, files: [{path, size, etag, xet}]} of a revision; `etag` is the blob's name in the cache."""
        about, _unused = self._ask(repo, f"/api/models/{quote(repo)}/revision/{quote(revision, safe='')}", revision)
        commit = about.get("sha") if isinstance(about, dict) else None
        if not isinstance(commit, str) or not re.fullmatch(r"[0-9a-f]{40}", commit):
            raise Trouble("hub", f"{self.name} gave no commit for {repo}.")
        files: list[dict] = []
        place: str | None = f"/api/models/{quote(repo)}/tree/{commit}?recursive=true&expand=false"
        while place:
            rows, place = self._ask(repo, place, revision)
            files += [_file(row) for row in rows if isinstance(row, dict) and row.get("type") == "file"]
            if len(files) > _MOST_FILES:
                raise Trouble("hub", f"{repo} has more than {_MOST_FILES:,} files.")
        return {"commit": commit, "files": files}

    def allowed(self, repo: str, commit: str, path: str) -> None:
        """Raise Trouble where we may not have that file; a gated repo tells its list of files to everybody."""
        place = f"/{quote(repo)}/resolve/{commit}/{quote(path)}"
        with self._open(repo, place, commit, method="HEAD"):
            pass

    def _ask(self, repo: str, place: str, revision: str) -> tuple[object, str | None]:
        """(the JSON at a place, the place of its next page)."""
        with self._open(repo, place, revision) as answer:
            try:
                value = json.loads(answer.read(_MOST_BYTES))
            except (ValueError, RecursionError, OSError):
                raise Trouble("hub", f"{self.name} answered something else than JSON; is it a Hub?") from None
            following = re.search(r'<([^>]+)>;\s*rel="next"', answer.headers.get("Link") or "")
        if following:
            link = urlsplit(urljoin(self.endpoint, following[1]))
            # A token goes to the Hub itself and to nobody that it names.
            if f"{link.scheme}://{link.netloc}" != self.endpoint:
                raise Trouble("hub", f"{self.name} sent us on to {link.netloc[:100]}.")
            return value, f"{link.path}?{link.query}"
        return value, None

    def _open(self, repo: str, place: str, revision: str, method: str = "GET"):
        headers = {"User-Agent": "spark-control", "Accept": "application/json"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        try:
            request = urllib.request.Request(self.endpoint + place, headers=headers, method=method)
            return urllib.request.build_opener(_Stay).open(request, timeout=self.timeout)
        except urllib.error.HTTPError as error:
            if 300 <= error.code < 400 and method == "HEAD":
                return error  # to where the file is stored: so we may have it
            raise self._refusal(repo, revision, error) from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            raise Trouble(
                "hub_unreachable", f"{self.name} cannot be reached from this Spark: {str(reason)[:200]}."
            ) from None

    def _refusal(self, repo: str, revision: str, error: urllib.error.HTTPError) -> Trouble:
        code, said = error.headers.get("X-Error-Code"), (error.headers.get("X-Error-Message") or "")[:300]
        page = f"{self.endpoint}/{repo}"
        if code == "GatedRepo" and not self.token:
            return Trouble(
                "no_token",
                f"{repo} is gated: ask for access on {page}, then give a token of that account (hf_token_file).",
            )
        if code == "GatedRepo":
            return Trouble("gated", f"{repo} is gated and this token's account has no access yet: ask on {page}.")
        if error.code == 401 and self.token and code != "RepoNotFound":
            return Trouble("token_refused", f"{self.name} refuses the token: it is wrong, expired or revoked.")
        if code == "RevisionNotFound":
            return Trouble("no_revision", f"{repo} has no revision \u201c{revision}\u201d.")
        if code == "RepoNotFound" or error.code in (401, 404):
            private = "it is private to others" if self.token else "it is private and needs a token (hf_token_file)"
            return Trouble("not_found", f"There is no {repo} on {self.name}, or {private}.")
        if error.code == 429:
            return Trouble("hub_busy", f"{self.name} answers that this address asks too often; try again later.")
        return Trouble("hub", f"{self.name} answered {error.code}{f': {said}' if said else ''}.")


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follow a redirect on the Hub itself (a repo that was renamed), and no other: the token would go along."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        """None makes the redirect an HTTPError."""
        old, new = urlsplit(req.full_url), urlsplit(newurl)
        if req.get_method() == "GET" and (old.scheme, old.netloc) == (new.scheme, new.netloc):
            return super().redirect_request(req, fp, code, msg, headers, newurl)
        return None


def _file(row: dict) -> dict:
    """One file of a tree. Raises Trouble where its name would leave the folder."""
    lfs = row.get("lfs") if isinstance(row.get("lfs"), dict) else {}
    path, size, etag = row.get("path"), lfs.get("size", row.get("size")), lfs.get("oid") or row.get("oid")
    sound = isinstance(path, str) and isinstance(size, int) and size >= 0 and isinstance(etag, str)
    if not sound or not _HASH.fullmatch(etag) or path.startswith("/") or {"..", ".", ""} & set(path.split("/")):
        raise Trouble("hub", f"The Hub lists a file that cannot be one: {str(path)[:100]!r}.")
    xet = row.get("xetHash")
    return {
        "path": path,
        "size": size,
        "etag": etag,
        "xet": xet if isinstance(xet, str) and re.fullmatch("[0-9a-f]{64}", xet) else None,
    }
