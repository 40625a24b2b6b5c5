"""The files that close an export: its card, SHA256SUMS and, last, export.json."""

import hashlib

from lvd.flows.export_asked import Asked
from lvd.flows.export_place import CARD, MANIFEST, SUMS, reached
from lvd.infra.committing import versions
from lvd.infra.shards import StageDir, read_schema, read_table
from lvd.infra.storage import Storage
from lvd.tasks import export_card

TOOLS = ("python", "lvd", "pyarrow", "datasets")  # whose versions the bytes can depend on


def close(asked: Asked, storage: Storage, files: StageDir) -> None:
    """Writes them. Memory: the names of one shard's files, and of all shards."""
    refs, account = files.shards(), files.account()
    suffixes: dict[str, int] = {}
    for notes in account["shard_notes"]:
        for name, count in notes["suffixes"].items():
            suffixes[name] = suffixes.get(name, 0) + count
    listed, num_bytes, images = [], 0, 0
    with reached(asked, storage):
        with storage.whole_file(SUMS) as path:
            with path.open("w", encoding="utf-8") as sums:
                for ref in refs:
                    for one in read_table(ref).to_pylist():
                        sums.write(f"{one['sha256']}  {one['name']}\n")
                        num_bytes += one["bytes"]
                        images += one["rows"]
                        if asked.config.kind != "imagefolder":
                            listed.append({"images": one.pop("rows"), **one})
                text = card(asked, len(refs), num_bytes, suffixes).encode()
                storage.write_bytes(CARD, text)
                sums.write(f"{hashlib.sha256(text).hexdigest()}  {CARD}\n")
            with path.open("rb") as sums:
                digest = hashlib.file_digest(sums, "sha256").hexdigest()
        manifest = {
            "identity": asked.identity,
            "said": asked.said,
            "version": asked.dataset.fingerprint,
            **asked.config.model_dump(),
            "images": images,
            "bytes": num_bytes,
            "shards": len(refs),
            "num_files": account["rows"],
            "files": listed,  # of an image folder they stand in SHA256SUMS only
            "suffixes": suffixes,
            "sha256sums": digest,
            "versions": {name: found for name, found in versions().items() if name in TOOLS},
        }
        storage.write_json(MANIFEST, manifest)


def card(asked: Asked, shards: int, num_bytes: int, suffixes: dict[str, int]) -> str:
    """The card of the version as that of the export."""
    storage, name = asked.dataset.storage, f"{asked.dataset.directory}/{CARD}"
    schema = read_schema(asked.dataset.shards()[0])
    made = export_card.Made(
        kind=asked.config.kind,
        version=asked.dataset.fingerprint,
        images=asked.images,
        shards=shards,
        num_bytes=num_bytes,
        order=f"shuffled with seed {asked.config.seed}" if asked.config.shuffle else "as published",
        suffixes=suffixes,
    )
    text = storage.read_bytes(name).decode() if storage.exists(name) else ""
    columns = [schema.field(name) for name in asked.config.chosen(schema.names)]
    return export_card.render(text, made, columns)
