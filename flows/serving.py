"""`lvd serve`: what was curated and the whole ledger as pages on this machine. Reads only.

`/`, `/v/N/report`, `/v/N/images`, `/image/ID`, `/ledger`, `/find`, `/runs`: each is a function of `pages`, answered as
HTML, and as JSON at the same address below `/api`. Prefect has no part in it.
"""

import re
import tempfile
from collections.abc import Callable
from typing import IO, Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from lvd.flows import pages, rendering
from lvd.flows.pages import Site
from lvd.flows.pictures import EDGES_PX, tag
from lvd.flows.questions import Asked, Busy, Malformed
from lvd.flows.shelf import NotThere
from lvd.infra.errors import InputError, RetryableError, ShardError
from lvd.infra.guard import APART, Guard

MAX_UPLOAD = 32 << 20  # bytes of a picture that is asked for
STATUS: dict[type[Exception], int] = {
    Malformed: 400,
    NotThere: 404,
    InputError: 409,
    Busy: 503,
    RetryableError: 503,
    FileNotFoundError: 404,
    ShardError: 500,
}
ID, NUMBER = re.compile(r"[0-9a-f]{32}"), re.compile(r"[0-9]{1,9}")

Say = Callable[..., dict[str, Any]]


def application(root: str, host: str = "127.0.0.1", folder: str | None = None) -> Guard:
    """The pages of a root, behind their rules. host: what the server is bound to. folder: for pictures that come."""
    site = Site(root)

    def both(path: str, template: str, say: Say) -> list[Route]:
        """A page, and the same as JSON."""
        return [
            Route(path, html(site, template, say), methods=["GET"]),
            Route(f"/api{path if path != '/' else ''}", json(site, say), methods=["GET"]),
        ]

    routes = [
        *both("/", "overview", pages.overview),
        *both("/v/{v}/images", "images", pages.images),
        *both("/ledger", "ledger", pages.ledger),
        *both("/image/{image_id}", "image", pages.image),
        *both("/image/{image_id}/similar", "similar", pages.similar),
        *both("/runs", "runs", pages.runs),
        *both("/runs/{run_id}", "run", pages.run),
        Route("/find", html(site, "find", asking), methods=["GET"]),
        Route("/find", uploaded(site, as_html, folder), methods=["POST"]),
        Route("/api/find", uploaded(site, as_json, folder), methods=["POST"]),
        Route("/v/{v}/report", written(site, "report.html"), methods=["GET"]),
        Route("/v/{v}/card", written(site, "README.md"), methods=["GET"]),
        Route("/picture/{image_id}", picture(site), methods=["GET"]),
        Route("/style.css", text(rendering.style, "text/css"), methods=["GET"]),
        Route("/script.js", text(script, "text/javascript"), methods=["GET"]),
    ]
    handlers = {error: trouble for error in (*STATUS, HTTPException)}
    return Guard(Starlette(routes=routes, exception_handlers=handlers), host)


def script() -> str:
    return rendering.source("script.js")


def asking(site: Site, asked: Asked) -> dict[str, Any]:
    return pages.asking(site, asked) | {"most": MAX_UPLOAD}


def said(site: Site, say: Say, request: Request) -> dict[str, Any]:
    """What a page says to a request: the version in its path counts as a parameter."""
    path = dict(request.path_params)
    check_id(path.get("image_id"))
    given = dict(request.query_params)
    if "v" in path:
        given["v"] = str(number_in(path.pop("v")))
    return say(site, Asked(given), **path)


def number_in(version: str) -> int:
    if not NUMBER.fullmatch(version):
        raise NotThere(f"a version is a number such as 1, was {version[:40]!r}: see / for those that are published")
    return int(version)


def check_id(image_id: str | None) -> None:
    if image_id is not None and not ID.fullmatch(image_id):
        raise NotThere("an image id has 32 hexadecimal digits: look for it in /ledger")


def html(site: Site, template: str, say: Say) -> Any:
    def answer(request: Request) -> Response:
        return as_html(template, said(site, say, request))

    return answer


def json(site: Site, say: Say) -> Any:
    def answer(request: Request) -> Response:
        return JSONResponse(said(site, say, request))

    return answer


def as_html(template: str, values: dict[str, Any], status: int = 200) -> Response:
    return Response(rendering.page(template, values), status, media_type="text/html")


def as_json(template: str, values: dict[str, Any]) -> Response:
    return JSONResponse(values)


def uploaded(site: Site, shown: Callable[[str, dict[str, Any]], Response], folder: str | None) -> Any:
    """Answers what is found of the picture that is the body of the request; the file is removed afterwards."""

    async def answer(request: Request) -> Response:
        asked = Asked(request.query_params)
        name = asked.text("name") or "the picture"
        with tempfile.NamedTemporaryFile(prefix="lvd-", dir=folder) as file:
            await receive(request, file)
            found = await run_in_threadpool(pages.findings, site, asked, file.name, name)
        return shown("find", found | {"most": MAX_UPLOAD})

    return answer


async def receive(request: Request, file: IO[bytes]) -> None:
    """Writes the body to the file. Raises HTTPException 413 before more than MAX_UPLOAD of it has come."""
    too_large = HTTPException(413, f"a picture may have at most {MAX_UPLOAD:,} bytes: make it smaller")
    given = request.headers.get("content-length", "0")
    if not given.isdigit() or int(given) > MAX_UPLOAD:
        raise too_large
    try:
        async for part in request.stream():
            if file.tell() + len(part) > MAX_UPLOAD:
                raise too_large
            file.write(part)
    except ClientDisconnect as error:
        raise HTTPException(400, "the picture did not arrive whole: send it again") from error
    if not file.tell():
        raise HTTPException(400, "the body must be the bytes of a picture, was empty")
    file.flush()


def written(site: Site, name: str) -> Any:
    """A file that was published beside a version. The report runs apart from the other pages."""

    def answer(request: Request) -> Response:
        data = pages.written(site, number_in(request.path_params["v"]), name)
        if name.endswith(".html"):
            return Response(data, media_type="text/html", headers=APART)
        return Response(data, media_type="text/plain")

    return answer


def picture(site: Site) -> Any:
    def answer(request: Request) -> Response:
        image_id, asked = request.path_params["image_id"], Asked(request.query_params)
        check_id(image_id)
        data = site.pictures.webp(site.edition(asked), image_id, asked.one_of("size", EDGES_PX, "small"))
        headers = {"ETag": tag(data), "Cache-Control": "private, no-cache"}  # asked for again, as it may be taken down
        if request.headers.get("if-none-match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        return Response(data, media_type="image/webp", headers=headers)

    return answer


def text(source: Callable[[], str], kind: str) -> Any:
    def answer(request: Request) -> Response:
        return Response(source(), media_type=kind, headers={"Cache-Control": "no-cache"})

    return answer


def trouble(request: Request, error: Exception) -> Response:
    """One line of what is wrong: as a page for a person, as JSON below /api, else as text."""
    if isinstance(error, HTTPException):
        status, line = error.status_code, error.detail
    else:
        status = next(code for kind, code in STATUS.items() if isinstance(error, kind))
        line = " ".join(str(error).split())
    if isinstance(error, FileNotFoundError):
        line = f"{line}: it was removed while the page was made; load it again"
    if request.url.path.startswith("/api"):
        return JSONResponse({"error": line}, status)
    if "text/html" in request.headers.get("accept", ""):
        return as_html("trouble", {"status": status, "line": line}, status)
    return PlainTextResponse(f"{line}\n", status)
