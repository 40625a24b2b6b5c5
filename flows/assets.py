"""Prefect's assets: every directory of a stage by its URI, made of others, from the sources to the version."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lvd.flows.figures import Account, Books
from lvd.flows.run import Run
from lvd.infra.logs import redacted

RESTRICTED = frozenset("\n\r\t\0 #?&%\"'<>[]{}|\\^`")  # prefect.types.names
LONGEST_KEY = 512
DIGEST = 12  # hex characters that tell keys apart whose characters were replaced
MOST_UPSTREAM = 80  # of one asset: Prefect's events have 100 related resources at most, the run and its flow among them


def asset_key(uri: str) -> str:
    """The key of what lies at a URI or path, by Prefect's rules: a URI, shorter than 513 characters, none restricted.

    Characters that a key may not have are replaced; then, as where it is cut, a digest of the URI ends it. A password
    is left out.
    """
    uri = redacted(uri)
    if "://" not in uri:
        uri = f"file://{uri}" if uri.startswith("/") else f"source://{uri}"
    scheme, rest = uri.split("://", 1)
    key = f"{_plain(scheme).lower()}://{''.join('_' if c in RESTRICTED else c for c in rest)}"
    if key == uri and len(key) <= LONGEST_KEY:
        return key
    tail = f"~{hashlib.sha256(uri.encode()).hexdigest()[:DIGEST]}"
    return key[: LONGEST_KEY - len(tail)] + tail


def _plain(scheme: str) -> str:
    """A scheme as a key may have it: letters and digits."""
    return "".join(c for c in scheme if c.isascii() and c.isalnum()) or "source"


def upstream(run: Run, account: Account, books: Books) -> list[str]:
    """The URIs of what a directory was made of: other directories of the run, or the files of a source."""
    named = dict.fromkeys(_texts(account.inputs))
    found = [run.storage.uri(name) for name in named if name in books and name != account.directory]
    files = account.inputs.get("files", ())
    return found or [str(Path(file).absolute()) if _is_path(file) else file for file in files]


def _texts(value: Any) -> Iterator[str]:
    """Every text in a tree of inputs."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _texts(one)


def _is_path(name: str) -> bool:
    return "://" not in name and Path(name).exists()


def metadata(account: Account, inputs: list[str]) -> dict[str, Any]:
    """What the asset says of itself."""
    return {
        "stage": account.stage,
        "rows in": account.rows_in,
        "rows": account.rows,
        "reasons": account.reasons,
        "seconds": round(account.seconds, 3),
        "shards": account.shards,
        "made of": len(inputs),
        **account.cost,
    }


def leave_assets(run: Run, accounts: list[Account], books: Books, url: str | None = None) -> None:
    """Materialises an asset for each of these directories, in a small task of its own. Call it inside a flow.

    url: of the page that shows the last of them.
    """
    from prefect.assets import Asset, AssetProperties, add_asset_metadata, materialize
    from prefect.cache_policies import NO_CACHE

    for account in accounts:
        inputs = upstream(run, account, books)
        stage, name = account.directory.rsplit("/", 1)
        page = url if url and account is accounts[-1] else None
        properties = AssetProperties(name=f"{stage} {name[:DIGEST]}", **({"url": page} if page else {}))
        asset = Asset(key=asset_key(run.storage.uri(account.directory)), properties=properties)
        options = {"name": f"asset-{stage.replace('/', '-')}", "persist_result": False, "cache_policy": NO_CACHE}
        made_of = [asset_key(uri) for uri in inputs[:MOST_UPSTREAM]]
        made = materialize(asset, by="lvd", asset_deps=made_of, **options)(add_asset_metadata)
        made(asset, metadata(account, inputs))
