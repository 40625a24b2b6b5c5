"""Where a picture is in what was curated: in the pool, as a copy, in the published set; and what is like it.

Everything comes from what the last run left on storage: the ledger, hashes, descriptors, embeddings, centroids. Each of
them is read once, for all pictures that are asked for together.
"""

import hashlib
from pathlib import Path

import numpy as np
from pydantic import BaseModel

from lvd.flows.found import Cell, Finding
from lvd.flows.register import Register
from lvd.flows.stored import Stored, Vectors, is_reference
from lvd.flows.veiling import Veil, said
from lvd.flows.verdict import verdict
from lvd.infra.shards import ShardRef
from lvd.tasks.algorithms import kmeans
from lvd.tasks.copies import Thresholds
from lvd.tasks.decode import DecodeError
from lvd.tasks.finding import Hit, nearest_stored, thumbnail_of, vectors_of
from lvd.tasks.models import engine
from lvd.tasks.sources import IMAGE_SUFFIXES
from lvd.tasks.takedowns import Record

MAX_COPIES = 64  # of one picture that are listed, of the pool and of the references each
OWN_AND_REPEATED = 8  # neighbours that are looked up beyond those asked for: the picture itself, images that lie twice


class Picture(BaseModel, frozen=True, arbitrary_types_allowed=True):
    """A picture that is asked for."""

    path: str
    image_id: str
    thumbnail: np.ndarray


class Looked(BaseModel, frozen=True):
    """What the stored vectors and hashes say of one picture."""

    pool: list[Hit]  # by descriptor, whatever the similarity
    references: list[Hit]  # by descriptor, above the threshold
    hashed: list[Hit]  # of the pool
    neighbours: list[Hit]
    cluster: Cell | None


def find(root: str, images: list[str], *, neighbours: int = 5) -> list[Finding]:
    """What was found of every picture: files as they are named, of a folder every image file in it, by name.

    neighbours: images that are most like it by meaning; raising it lists more, 5 to 50 is usual.
    A file that is no picture has an `error`, and the others go on.
    Raises InputError if nothing was published, or the models of the last run cannot be had.
    """
    stored = Stored(root)
    read = [picture_at(path) for path in files_of(images)]
    pictures = [picture for picture in read if isinstance(picture, Picture)]
    found = iter(findings(stored, pictures, neighbours)) if pictures else iter(())
    return [next(found) if isinstance(entry, Picture) else entry for entry in read]


def files_of(images: list[str]) -> list[str]:
    """The files, and for each folder the image files below it, sorted; a folder without any stands for itself."""
    files: list[str] = []
    for name in images:
        inside = [
            str(path)
            for path in sorted(Path(name).rglob("*"))
            if path.suffix.lower() in {*IMAGE_SUFFIXES, ""} and not path.name.startswith(".") and path.is_file()
        ]
        files += inside or [name]
    return files


def picture_at(path: str) -> Picture | Finding:
    """The picture in a file, or what is wrong with the file."""
    try:
        data = Path(path).read_bytes()
        return Picture(path=path, image_id=hashlib.sha256(data).hexdigest()[:32], thumbnail=thumbnail_of(data))
    except IsADirectoryError:
        return Finding(path=path, error="a folder without image files")
    except OSError as error:
        return Finding(path=path, error=f"cannot be read: {error.strerror or error}")
    except DecodeError as error:
        return Finding(path=path, error=f"{error.reason}: {' '.join(str(error).split())}")


def findings(stored: Stored, pictures: list[Picture], neighbours: int, *, veil: bool = True) -> list[Finding]:
    """What was found of every picture, in their order. veil: what was taken down is not named."""
    looked = look(stored, pictures, neighbours)
    hits = [hit for each in looked for hit in (*each.pool, *each.references, *each.hashed, *each.neighbours)]
    image_ids = {hit.image_id for hit in hits} | {picture.image_id for picture in pictures}
    register = Register(stored, image_ids, [hit for hit in hits if is_reference(hit.directory)])
    hides, limits = Veil(stored.root) if veil else None, stored.thresholds
    return [
        veiled(picture, each, register, limits, neighbours, hides)
        if hides
        else finding(picture, each, register, limits, neighbours)
        for picture, each in zip(pictures, looked, strict=True)
    ]


def veiled(
    picture: Picture, looked: Looked, register: Register, thresholds: Thresholds, neighbours: int, veil: Veil
) -> Finding:
    """As `finding`, without the images that were taken down; of the picture itself, or of one that it copies, is said
    when that was."""

    def record(image_id: str) -> Record | None:
        return veil.record(image_id, register.rows.get(image_id, []))

    if own := record(picture.image_id):
        return Finding(path=picture.path, image_id=picture.image_id, verdict=said(own), cluster=looked.cluster)
    copied = [hit for hit in looked.pool if hit.similarity >= thresholds.min_similarity]
    gone = [found for hit in (*looked.hashed, *copied, *looked.references) if (found := record(hit.image_id))]
    lists = {name: getattr(looked, name) for name in ("pool", "references", "hashed", "neighbours")}
    left = {name: [hit for hit in hits if record(hit.image_id) is None] for name, hits in lists.items()}
    shown = finding(picture, looked.model_copy(update=left), register, thresholds, neighbours)
    if not gone:
        return shown
    return shown.model_copy(update={"verdict": f"a copy of an image that was {said(gone[0])}", "published": False})


def look(stored: Stored, pictures: list[Picture], neighbours: int) -> list[Looked]:
    """One pass over the hashes, the descriptors and the embeddings for all pictures."""
    descriptors = stored.vectors("adjusted" if stored.is_adjusted else "descriptors")
    embeddings, image_ids = stored.vectors("embed"), [picture.image_id for picture in pictures]
    copy_queries, bias = stored.adjusted(vectors_at(pictures, descriptors, stored.device), image_ids)
    floor, device = stored.thresholds.benchmark_min_similarity, stored.device
    options = {"k": MAX_COPIES, "bias": bias, "device": device}
    in_pool = nearest_stored(copy_queries, descriptors.pool, inverted=stored.inverted(descriptors.pool), **options)
    in_references = nearest_stored(copy_queries, descriptors.references, min_similarity=floor, **options)
    queries = vectors_at(pictures, embeddings, device)
    like = nearest_stored(
        queries, [*embeddings.pool, *embeddings.references], k=neighbours + OWN_AND_REPEATED, device=device
    )
    hashed = stored.hashed(np.stack([picture.thumbnail for picture in pictures]))
    clusters = cells_of(queries, stored.stage("centroids")[0].shards()[0], device)
    parts = zip(in_pool, in_references, hashed, like, clusters, strict=True)
    return [Looked(pool=p, references=r, hashed=h, neighbours=n, cluster=c) for p, r, h, n, c in parts]


def vectors_at(pictures: list[Picture], vectors: Vectors, device: str) -> np.ndarray:
    """(n, d) float16 of the pictures; their files are read again, so that no more than one batch is in memory."""
    images = (Path(picture.path).read_bytes() for picture in pictures)
    return vectors_of(images, vectors.spec, device=device)


def cells_of(queries: np.ndarray, centroids: ShardRef, device: str) -> list[Cell | None]:
    """The cluster of each query; None for a query of zeros."""
    asked = queries.any(axis=1)
    cluster_id, similarity = kmeans.assign(queries[asked], engine.read_vectors(centroids), device=device)
    cells = iter(zip(cluster_id[:, 0].tolist(), similarity[:, 0].tolist(), strict=True))
    return [Cell(cluster_id=(c := next(cells))[0], similarity=round(c[1], 5)) if one else None for one in asked]


def finding(picture: Picture, looked: Looked, register: Register, thresholds: Thresholds, neighbours: int) -> Finding:
    """What the hits come to for one picture."""
    own = picture.image_id
    in_pool = [register.similar(hit, "descriptor") for hit in others(looked.pool, own)]
    near = [image for image in in_pool if image.similarity >= thresholds.min_similarity]
    known = {image.image_id for image in near}
    hashed = [register.similar(hit, "hash") for hit in others(looked.hashed, own) if hit.image_id not in known]
    references = [register.similar(hit, "bytes" if hit.image_id == own else "descriptor") for hit in looked.references]
    copies = tuple(sorted([*near, *hashed, *references], key=lambda image: -image.similarity))
    below = [image for image in in_pool[len(near) :] if image.image_id not in {copy.image_id for copy in copies}]
    nearest, row = (below[0] if below else None), register.best(own)
    return Finding(
        path=picture.path,
        image_id=own,
        verdict=verdict(row, register, copies, nearest, thresholds.min_similarity),
        published=register.is_published(row) or any(copy.published for copy in copies),
        candidates=register.candidates(own),
        copies=copies,
        nearest=nearest,
        neighbours=tuple(register.similar(hit, "embedding") for hit in others(looked.neighbours, own)[:neighbours]),
        cluster=looked.cluster,
    )


def others(hits: list[Hit], own: str) -> list[Hit]:
    """The hits of other contents than the picture's own, each content once, the most similar first."""
    best: dict[str, Hit] = {}
    for hit in hits:
        if hit.image_id != own:
            best.setdefault(hit.image_id, hit)
    return list(best.values())
