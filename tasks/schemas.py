"""Every pyarrow schema that lies between the stages.

A row of a measuring sidecar carries `row`: the row of its image in the partition's `images`, because the same
`image_id` can stand in many rows before deduplication.
"""

import pyarrow as pa

MANIFEST = pa.schema(
    [
        ("key", pa.string()),  # the candidate's name in the ledger: the URL, or the source path
        ("url", pa.string()),  # null for images that come from a folder, a tar shard or a dataset
        ("page_url", pa.string()),
        ("alt", pa.string()),
        ("source", pa.string()),
        ("domain", pa.string()),
        ("discovered_at", pa.timestamp("us", tz="UTC")),
        ("label", pa.string()),  # the class, where the source names one (a folder, a label column)
        (
            "license",
            pa.string(),
        ),  # as found: what a column, the sample, the page or the source states; nobody checked it
        ("digest", pa.string()),  # "sha256:…" or "md5:…" that the bytes must have, where the source tells one
        # where the bytes are, for sources that are not fetched: file, tar member, dataset row
        ("location", pa.string()),
    ]
)

LINKS = pa.schema(
    [
        *(MANIFEST.field(name) for name in ("key", "url", "page_url", "alt", "source", "domain", "discovered_at")),
        MANIFEST.field("license"),
        MANIFEST.field("digest"),
        ("robots", pa.list_(pa.string())),  # what the page says to robots: X-Robots-Tag, <meta name="robots">
    ]
)

VERDICTS = pa.schema(
    [
        ("url_hash", pa.uint64()),  # xxh3 of the normalised URL; 0 where a rule is broken
        ("domain_hash", pa.uint64()),
        ("reason", pa.string()),  # the rule that the URL breaks, or null
        ("error", pa.string()),
    ]
)

CHOICES = pa.schema([("reason", pa.string())])  # why a URL is left out, or null; row by row as the links

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

IMAGES = pa.schema(
    [
        ("image_id", pa.string()),
        ("image", IMAGE),
        ("key", pa.string()),
        ("url", pa.string()),
        ("page_url", pa.string()),
        ("alt", pa.string()),
        ("source", pa.string()),
        ("domain", pa.string()),
        ("label", pa.string()),
        ("license", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("frames", pa.int32()),
        ("format", pa.string()),
        ("num_bytes", pa.int64()),
    ]
)

MEASURES = pa.schema(
    [
        ("row", pa.int64()),
        ("image_id", pa.string()),
        ("brightness", pa.float32()),  # mean luminance, 0 to 1
        ("contrast", pa.float32()),  # standard deviation of the luminance, 0 to 0.5
        ("sharpness", pa.float32()),  # variance of the Laplacian of the luminance, at a fixed size
        ("entropy", pa.float32()),  # of the luminance histogram, bits, 0 to 8
        ("thumbnail", pa.binary(1024)),  # 32 × 32 luminance, row by row
    ]
)

CONTENT = pa.schema(
    [
        ("row", pa.int64()),
        ("image_id", pa.string()),
        ("nsfw_score", pa.float32()),  # probability of the unsafe labels, 0 to 1; null if nobody looked
        # x0, y0, x1, y1 in shares of width and height of the upright image, and score; null if nobody looked
        ("face_boxes", pa.list_(pa.list_(pa.float32(), 5))),
    ]
)

HASHES = pa.schema([("row", pa.int64()), ("image_id", pa.string()), ("pca_hash", pa.binary(8))])

FATES = pa.schema(
    [
        ("image_id", pa.string()),
        ("state", pa.string()),  # kept, dropped or failed, so far
        ("stage", pa.string()),  # where it was dropped or failed
        ("reason", pa.string()),
        ("score", pa.float32()),
        ("because_of", pa.string()),  # the image that caused it
    ]
)

EDGES = pa.schema([("left", pa.int64()), ("right", pa.int64()), ("similarity", pa.float32())])

COMPONENTS = pa.schema(
    [
        ("representative", pa.string()),  # the image that is kept
        ("size", pa.int64()),  # images, with the representative
        ("min_similarity", pa.float32()),  # the lowest of any image to the representative
    ]
)

DECONTAMINATED = pa.schema(
    [
        ("row", pa.int64()),  # pool row
        ("image_id", pa.string()),
        ("collection", pa.string()),  # the benchmark, or the curated collection, that it copies
        ("role", pa.string()),
        ("reference_id", pa.string()),  # the image of the collection that is named as the cause
        ("similarity", pa.float32()),  # to that image
        ("is_direct", pa.bool_()),  # False: joined through other images of the pool
    ]
)

MARKS = pa.schema(
    [
        ("row", pa.int64()),
        ("image_id", pa.string()),
        ("kind", pa.string()),  # why a takedown means it: asked, found or domain
    ]
)

WITHDRAWN = pa.schema(
    [
        ("row", pa.int64()),
        ("image_id", pa.string()),
        ("because_of", pa.string()),  # the forgotten image that it is a copy of; null if it was asked for itself
    ]
)

CENTROIDS_FIELDS = (("cluster_id", pa.int32()), ("size", pa.int64()))

CELLS = pa.schema(
    [("row", pa.int64()), ("image_id", pa.string()), ("cluster_id", pa.int32()), ("similarity", pa.float32())]
)

SIZES = pa.schema([("cluster_id", pa.int32()), ("size", pa.int64())])

CANDIDATES = pa.schema(
    [
        ("query", pa.int64()),  # its place among the vectors of the collection
        ("row", pa.int64()),  # pool row
        ("similarity", pa.float32()),
    ]
)

MATCHES = pa.schema(
    [
        ("dataset", pa.string()),
        ("query_id", pa.string()),  # the query that retrieved it; for a cluster, the query nearest to its centroid
        ("row", pa.int64()),  # pool row
        ("image_id", pa.string()),
        ("rank", pa.int32()),
        ("similarity", pa.float32()),
        ("kind", pa.string()),  # sample or cluster
        ("cluster_id", pa.int32()),
    ]
)

REPEATED = "repeated"  # role in the selection of a pool image whose content is published as a curated one
SELECTION = pa.schema(
    [
        ("part", pa.int32()),  # which of the image datasets: the included curated ones first, then the pool's
        ("row", pa.int64()),  # its row there
        ("role", pa.string()),
        ("retrieved_for", pa.list_(pa.string())),
        ("query_id", pa.string()),
        ("similarity", pa.float32()),
        ("cluster_id", pa.int32()),
    ]
)

CURATED = pa.schema(
    [
        ("image_id", pa.string()),
        ("image", IMAGE),
        ("key", pa.string()),
        ("url", pa.string()),
        ("source", pa.string()),
        ("role", pa.string()),  # curated, retrieved or survivor; in the selection also `repeated`
        ("retrieved_for", pa.list_(pa.string())),
        ("query_id", pa.string()),
        ("similarity", pa.float32()),
        ("cluster_id", pa.int32()),
        ("label", pa.string()),
        ("license", pa.string()),  # as found
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("faces_blurred", pa.int32()),  # null if no faces were looked for; `image_id` is that of the image as fetched
    ]
)

LEDGER = pa.schema(
    [
        ("key", pa.string()),
        ("role", pa.string()),  # pool or curated
        ("source", pa.string()),
        ("image_id", pa.string()),
        ("state", pa.string()),
        ("stage", pa.string()),
        ("reason", pa.string()),
        ("score", pa.float32()),
        ("because_of", pa.string()),
    ]
)


def vectors(dim: int) -> pa.Schema:
    """Descriptors and embeddings: (dim,) float16 unit vectors."""
    return pa.schema([("row", pa.int64()), ("image_id", pa.string()), ("vector", pa.list_(pa.float16(), dim))])


def cells(next_cells: int) -> pa.Schema:
    """The cell of every vector, and the next ones if there are any, the nearest first."""
    return CELLS.append(pa.field("others", pa.list_(pa.int32(), next_cells))) if next_cells else CELLS


def lists(dim: int) -> pa.Schema:
    """Inverted lists: vectors in the order of their cells."""
    return pa.schema([("cluster_id", pa.int32()), ("row", pa.int64()), ("vector", pa.list_(pa.float16(), dim))])


def centroids(dim: int) -> pa.Schema:
    return pa.schema([*CENTROIDS_FIELDS, ("vector", pa.list_(pa.float32(), dim))])
