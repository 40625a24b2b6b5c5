"""The report and the card of a small root that is written by hand: every number is the ledger's."""

import io
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lvd.flows import patches, sheets
from lvd.flows.accounts import timings
from lvd.flows.collected import Cells, Embedded, Gathered, Matches, Part, Sources
from lvd.flows.recipe import parse
from lvd.flows.report import write_report
from lvd.flows.run import Run
from lvd.flows.versions import Published
from lvd.infra.committing import commit
from lvd.infra.series import Series
from lvd.infra.shards import StageDir
from lvd.infra.writing import write_shard
from lvd.tasks import cluster_map, ledger, ledger_sample, schemas
from lvd.tasks.contact_sheets import MAX_PICTURE_BYTES
from lvd.tasks.recall import Recall
from lvd.tasks.sources import Images, Partition

HOSTILE = "http://evil.example/<script>alert('x')</script>\"onerror=\"x.jpg"
POLICY = {"kind": "sample", "neighbors": 2}
# The pool of the test, in two shards: how each image ended (None: retrieved), its score and what it was dropped for.
FATES: list[list[tuple[str | None, str | None, str | None, float | None, str | None]]] = [
    [
        (None, None, None, None, None),
        ("dropped", "fingerprint", "exact_duplicate", 1.0, "pool-0"),
        ("dropped", "fingerprint", "near_duplicate", 0.99, "pool-0"),
        ("dropped", "copies", "copy", 0.61, "pool-0"),
        ("dropped", "copies", "copy", 0.52, "pool-0"),
    ],
    [
        ("dropped", "copies", "benchmark_copy", 0.47, "benchmark-1"),
        ("dropped", "copies", "curated_copy", 0.71, "birds-0"),
        ("dropped", "screen", "too_small", 8.0, None),
        ("failed", "screen", "truncated", None, None),
        (None, None, None, None, None),
        ("not retrieved", None, None, None, None),
        ("not embedded", None, None, None, None),
    ],
]


def picture(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((40, 60, 3), 10 * number, dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


class Root:
    """Stages written by hand below a root."""

    def __init__(self, root: str) -> None:
        self.root, self.directories = root, {}

    def write(
        self,
        stage: str,
        name: str,
        schema: Any,
        shards: list[list[dict[str, Any]]],
        *,
        rejects: list[dict[str, Any]] = (),
        notes: dict[str, Any] | None = None,
        shard_notes: dict[str, Any] | None = None,
    ) -> StageDir:
        """One stage directory; the rejects go into its last shard."""
        target = StageDir(root=self.root, stage=stage, fingerprint=name)
        for ref, rows in zip(target.planned(len(shards)), shards, strict=True):
            with write_shard(ref, schema, {}) as shard:
                for row in rows:
                    shard.keep({field: row.get(field) for field in schema.names})
                for reject in rejects if ref.index == len(shards) - 1 else ():
                    shard.reject(**reject)
                shard.notes.update(shard_notes or {})
        commit(
            target, len(shards), config=dict(POLICY, collisions="refill", depth_per_neighbor=8), inputs={}, notes=notes
        )
        self.directories.setdefault(stage, []).append(target.directory)
        return target

    def images(self, name: str, shards: list[list[dict[str, Any]]], rejects: list[dict[str, Any]] = ()) -> Part:
        """A partition whose images are written; `rejects` failed in the download."""
        listed = [[{**row, "domain": "evil.example"} for row in rows] for rows in shards]
        listed[-1] += [{"key": reject["key"], "domain": "evil.example"} for reject in rejects]
        manifest = self.write("crawl", name, schemas.MANIFEST, listed)
        images = self.write("download", name, schemas.IMAGES, shards, rejects=rejects)
        source = Images(path=f"/data/{name}", source="crawl <b>")
        partition = Partition(source=source, files=(name,), digest=name)
        return Part(partition=partition, manifest=manifest, images=images)


def image(name: str, number: int, key: str | None = None, data: bytes | None = None) -> dict[str, Any]:
    data = picture(number) if data is None else data
    facts = {"width": 60, "height": 40, "frames": 1, "format": "PNG", "num_bytes": len(data), "domain": "evil.example"}
    return {
        "image_id": f"{name}-{number}",
        "image": {"bytes": data, "path": "x"},
        "key": key or f"{name}/{number}",
        **facts,
    }


def recipe_of(root: str, names: list[str]) -> Any:
    curated = [{"name": name, "kind": "images", "path": "/data", "retrieve": POLICY} for name in names]
    embed = {"model": "builtin:color_texture"}
    return parse(
        {
            "name": "test",
            "root": root,
            "embed": embed,
            "pool": [{"kind": "images", "path": "/data"}],
            "curated": curated,
        }
    )


def arguments(root: str) -> tuple[Any, ...]:
    """What `write_report` is given: the pool of FATES, a benchmark, and a collection that retrieved two images."""
    at = Root(root)
    keys = {0: HOSTILE, 8: "s3://user:secret@host/8"}
    pool_images, number = [], 0
    for fates in FATES:
        rows = []
        for _ in fates:
            rows.append(image("pool", number, keys.get(number), b"broken" if number == 8 else None))
            number += 1
        pool_images.append(rows)
    gone = [{"key": f"http://evil.example/{i}", "reason": "http_404", "error": "<i>404</i>"} for i in range(3)]
    pool = Gathered(role="pool", name="pool", parts=(at.images("p", pool_images, gone),))
    tests = Gathered(
        role="benchmark", name="tests", parts=(at.images("b", [[image("benchmark", i) for i in range(3)]]),)
    )
    birds = Gathered(role="curated", name="birds", parts=(at.images("c", [[image("birds", i) for i in range(2)]]),))
    sources = Sources(pool=pool, benchmarks=(tests,), curated=(birds,))

    named = ("state", "stage", "reason", "score", "because_of")
    fates = [
        [
            {"image_id": row["image_id"], **dict(zip(named, fate, strict=True))}
            for row, fate in zip(rows, ends, strict=True)
        ]
        for rows, ends in zip(pool_images, FATES, strict=True)
    ]
    for row in (row for rows in fates for row in rows if row["stage"] is None):
        row["state"] = "kept"
    thresholds = {"min_similarity": 0.6, "benchmark_min_similarity": 0.45, "edge_min_similarity": 0.4}
    gone = {
        "collection": "tests",
        "role": "benchmark",
        "reference_id": "benchmark-0",
        "similarity": 0.47,
        "is_direct": True,
    }
    notes = {"thresholds": thresholds, "per_reference": {"tests": 1, "birds": 1}}
    notes |= copied(
        at,
        [{"representative": "pool-0", "size": 3, "min_similarity": 0.52}],
        [{"row": 4, "image_id": "pool-4", **gone}],
    )
    survivors = at.write("copies", "f", schemas.FATES, fates, notes=notes)
    lost = [{"key": "pool/11", "row": 11, "reason": "not_finite", "image_id": "pool-11"}]
    embedded = [
        [{"row": r, "image_id": f"pool-{r}", "vector": [1.0, r / 20]} for r in rows] for rows in ((0,), (9, 10))
    ]
    vectors = at.write("embed", "v", schemas.vectors(2), embedded, rejects=lost)
    cells = [
        {"row": row, "image_id": f"pool-{row}", "cluster_id": row % 2, "similarity": row / 20} for row in (0, 9, 10)
    ]
    fitted = [{"cluster_id": i, "size": 1, "vector": [0.0, 1.0]} for i in range(3)]
    grouped = clusters(at, fitted, cells)
    matches = [
        {
            "dataset": "birds",
            "query_id": f"birds-{q}",
            "row": row,
            "image_id": f"pool-{row}",
            "rank": 0,
            "similarity": s,
        }
        for q, row, s in ((0, 0, 0.81), (1, 9, 0.33))
    ]
    counts = {"kind": "sample", "queries": 2, "asked": 4, "found": 2, "images": 2, "collided": 1}
    counts |= {"ended": 1, "rounds": 1, "recall": None}
    found = at.write("retrieve", "r", schemas.MATCHES, [matches], notes=counts)
    return finish(at, sources, survivors, vectors, grouped, Matches(by_collection={"birds": found}), matches)


def copied(at: Root, components: list[dict[str, Any]], gone: list[dict[str, Any]]) -> dict[str, Any]:
    """What the decision about copies writes beside the fates, as its notes name it."""
    recall = Recall(
        probes=8,
        recall=0.991,
        interval=(0.98, 0.995),
        of_pairs=0.997,
        of_images=0.991,
        bands={"0.60": 0.97},
        queries=50,
        pairs=400,
    )
    return {
        "components": at.write("components", "f", schemas.COMPONENTS, [components]).directory,
        "decontaminated": at.write("decontaminated", "f", schemas.DECONTAMINATED, [gone]).directory,
        "search": {
            "neighbours": {"engine": "cells", "recall": recall.model_dump()},
            "references": {"engine": "exact", "recall": None},
        },
    }


def clusters(at: Root, fitted: list[dict[str, Any]], cells: list[dict[str, Any]]) -> Cells:
    done = {"over": "sample", "imbalance": 1.0, "num_empty": 0, "sizes": [1] * 7}
    notes = {"iterations": [{**done, "objective": 0.5}, {**done, "objective": 0.75, "over": "pool"}], "dim": 2}
    centroids = at.write("centroids", "z", schemas.centroids(2), [fitted], shard_notes=notes)
    counts = Counter(cell["cluster_id"] for cell in cells)
    sizes = [{"cluster_id": one["cluster_id"], "size": counts[one["cluster_id"]]} for one in fitted]
    placed = at.write("cluster", "k", schemas.CELLS, [cells])
    return Cells(centroids=centroids, cells=Series.of([placed]), sizes=at.write("sizes", "n", schemas.SIZES, [sizes]))


def finish(
    at: Root, sources: Sources, survivors: StageDir, vectors: StageDir, cells: Cells, matches: Matches, matched: Any
) -> tuple[Any, ...]:
    """The selection, the ledger and the published dataset as the chain would write them."""
    chosen = [{"part": 0, "row": row, "role": "curated"} for g in sources.curated for row in range(2)]
    chosen += [{"part": len(sources.curated), "role": "retrieved", **match} for match in matched]
    selection = at.write("selection", "s", schemas.SELECTION, [chosen]).shards()
    book = StageDir(root=at.root, stage="curated/v1", fingerprint="ledger")
    parts = [part for g in (*sources.curated, sources.pool) for part in g.parts]
    sides = [(p.manifest.shards()[i], ref, n) for n, p in enumerate(parts) for i, ref in enumerate(p.images.shards())]
    for target, (manifest, images, part) in zip(book.planned(len(sides)), sides, strict=True):
        if part < len(sources.curated):
            ledger.curated_shard.fn(manifest, images, [], selection, part, target)
        else:
            fates, found = survivors.shards()[images.index], vectors.shards()[images.index]
            ledger.pool_shard.fn(manifest, images, fates, found, selection, part, target)
    commit(book, len(sides), config={}, inputs={})
    rows = [{"role": "curated"}] * 2 * len(sources.curated) + [
        {"role": "retrieved", "retrieved_for": ["birds"]} for _ in matched
    ]
    dataset = at.write("curated", "v1", schemas.CURATED, [rows])
    candidates = sum(part.manifest.account()["rows_in"] for part in parts)
    states = ledger.check_balance(book.shards(), candidates)
    published = Published(version="v1", dataset=dataset, ledger=book, states=states, candidates=candidates)
    recipe = recipe_of(at.root, [g.name for g in sources.curated])
    record = {"seconds": 12.5, "computed": {"download": 1}, "directories": at.directories}
    record["recipe"] = {"root": "s3://user:secret@bucket/x", "name": "<script>"}
    record["cost"] = [timing.model_dump() for timing in timings(Run(recipe), record)]
    embedded = Embedded(pool=Series.of([vectors]), curated={})
    return Run(recipe), published, sources, survivors, embedded, cells, matches, record


def texts(run: Run) -> tuple[str, str]:
    return tuple(run.storage.read_bytes(f"curated/v1/{name}").decode() for name in ("report.html", "README.md"))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    given = arguments(str(tmp_path_factory.mktemp("root")))
    write_report(*given)
    html, card = texts(given[0])
    return SimpleNamespace(given=given, html=html, card=card, published=given[1])


def test_the_figures_are_the_ledgers(written: SimpleNamespace) -> None:
    assert written.published.states == {"kept": 4, "dropped": 8, "failed": 5}
    for state, number in written.published.states.items():
        assert f"<dt>{state}</dt><dd>{number}<small>" in written.html
        assert f"| {state} | {number} |" in written.card
    assert "4 images chosen from 17 candidates" in written.html
    assert "4 images (2 curated, 2 retrieved), chosen from 17 candidates" in written.card


def test_the_search_is_accounted_for(written: SimpleNamespace) -> None:
    assert '<td>cells, 8 probes</td><td class="n">99.10 %</td>' in written.html and "0.60: 97.0 %" in written.html
    assert '<td>exact</td><td class="n">all</td>' in written.html
    assert "1 group of copies, the largest of 3 images" in written.html and "is 0.5200" in written.html
    assert "Within the pool, 99.10 % of the pairs are found (95 %: 98.00 to 99.50 %" in " ".join(written.card.split())


def test_what_was_decontaminated_is_listed(written: SimpleNamespace) -> None:
    data = written.given[0].storage.read_bytes("curated/v1/decontaminated.parquet")
    (row,) = pq.read_table(io.BytesIO(data)).to_pylist()
    assert (row["key"], row["image_id"], row["collection"], row["role"]) == ("pool/4", "pool-4", "tests", "benchmark")
    assert (row["reference_key"], row["reference_id"], row["is_direct"]) == ("benchmark/0", "benchmark-0", True)
    assert row["similarity"] == np.float32(0.47)


def test_the_funnel_goes_from_the_candidates_to_what_is_published(written: SimpleNamespace) -> None:
    steps = [line.split(" | ")[:2] for line in written.card.split("## Method")[1].split("\n- ")[0].splitlines()[4:]]
    found = {label.removeprefix("| "): int(number) for label, number in (step for step in steps if len(step) == 2)}
    assert found == {
        "candidates": 15,
        "valid, each once": 15,
        "fetched": 12,
        "decodable": 11,
        "within the screening rules": 10,
        "unique by fingerprint": 8,
        "after self-deduplication": 6,
        "after decontamination": 4,
        "embedded": 3,
        "retrieved": 2,
        "published": 4,
    }


def test_nothing_hostile_is_active_and_no_secret_is_shown(written: SimpleNamespace) -> None:
    assert "<script>alert" not in written.html and "alert(&#39;x&#39;)" in written.html
    assert "<i>404" not in written.html and "&lt;i&gt;404&lt;/i&gt;" in written.html
    assert "crawl <b>" not in written.html + written.card
    assert "secret" not in written.html + written.card


def test_pictures_stand_beside_what_they_were_dropped_for(written: SimpleNamespace) -> None:
    copies = written.html.split("<h3>Copies <small>")[1].split("</section>")[0]
    assert copies.index("<b>stays</b>") < copies.index("<b>0.520</b>") < copies.index("<b>0.610</b>")
    assert "<b>tests</b>" in written.html and "<b>0.470</b>" in written.html
    queries = written.html.split("Queries of birds")[1].split("</section>")[0]
    assert queries.count("<b>query</b>") == 2 and "<b>0.330</b>" in queries
    assert written.html.count("data:image/webp;base64,") > 15


def test_a_step_of_the_funnel_opens_to_what_was_lost_there(written: SimpleNamespace) -> None:
    opened = written.html.split('<details id="funnel-copies"')[1].split("</details>")[0]
    assert "<h4>copy <small>2 · 100% of what was lost here" in opened and opened.count("data-image-id") == 2
    assert '<div id="funnel-candidates" class="step">' in written.html


def test_the_collection_tells_where_its_images_come_from(written: SimpleNamespace) -> None:
    birds = written.html.split('id="collection-birds"')[1].split("Queries of birds")[0]
    assert "<dt>clusters reached</dt><dd>2<small>of 2</small>" in birds
    assert '<th scope="row">evil.example</th><td class="n">2</td>' in birds
    assert "<dt>pool copies of them, dropped</dt><dd>1</dd>" in birds


def test_the_map_shows_every_vector_of_a_small_pool(written: SimpleNamespace) -> None:
    lines = json.loads(written.html.partition('id="data-map">')[2].partition("</script>")[0])
    assert [(line[0], *line[3:]) for line in lines[:-1]] == [
        ("pool-0", 0, 1, [0]),
        ("pool-9", 1, 1, [0]),
        ("pool-10", 0, 0, []),
    ]
    assert "3 of 3 embedded images: 2 that are published, of 2, and 1 other<" in written.html


def test_the_whole_ledger_can_be_searched(written: SimpleNamespace) -> None:
    data = written.html.partition('id="data-ledger">')[2].partition("</script>")[0]
    rows = json.loads(data)[:-1]
    assert len(rows) == 17 and "All 17 candidates are here." in written.html
    assert Counter(row[2] for row in rows) == {"kept": 4, "dropped": 8, "failed": 5}
    assert [row[1] for row in rows if row[4] == "curated_copy"] == ["pool/6"]
    assert HOSTILE in {row[1] for row in rows} and "secret" not in data


def test_the_page_stays_below_15_mb_whatever_the_pool() -> None:
    """Every picture at its limit, as many as there can be; the data of the scripts at theirs."""
    rules, reasons = 12, 24  # that drop images which have pictures
    groups = sum(each * (1 + 4) for each in sheets.GROUPS_EACH.values())
    others = rules * sheets.SCREENED_EACH + reasons * sheets.LOST_EACH + 2 * sheets.SAMPLE_SIZE
    matches = sheets.QUERIES * (1 + sheets.MATCHES_EACH) + sheets.CLUSTERS * sheets.CLUSTER_IMAGES
    num = groups + others + matches + 2 * patches.IMAGES
    dots = 100 * (2 * cluster_map.EACH + num)
    rows = ledger_sample.MAX_CHARACTERS + 100 * (ledger_sample.MAX_ROWS + reasons * ledger_sample.EACH)
    assert num * (MAX_PICTURE_BYTES * 4 / 3 + 700) + dots + rows < 15e6


def test_the_card_says_nothing_of_where_and_when(written: SimpleNamespace, tmp_path: Path) -> None:
    given = arguments(str(tmp_path / "elsewhere"))
    given[-1]["seconds"] = 99.0
    write_report(*given)
    assert texts(given[0])[1] == written.card
    assert str(tmp_path) not in written.card and "/data/" not in written.card


def test_a_root_with_nothing_but_a_pool_is_reported(tmp_path: Path) -> None:
    """No benchmark, no curated collection, no duplicate, no failure, no cluster that holds an image."""
    at = Root(str(tmp_path))
    part = at.images("p", [[{**image("pool", 0), "domain": None}]])
    sources = Sources(pool=Gathered(role="pool", name="pool", parts=(part,)), benchmarks=(), curated=())
    notes = {"thresholds": {"min_similarity": 0.6, "benchmark_min_similarity": 0.45}, "per_reference": {}}
    notes |= copied(at, [], [])
    survivors = at.write("copies", "f", schemas.FATES, [[{"image_id": "pool-0", "state": "kept"}]], notes=notes)
    vectors = at.write("embed", "v", schemas.vectors(2), [[]])
    cells = clusters(at, [{"cluster_id": 0, "size": 0, "vector": [0.0, 1.0]}], [])
    given = finish(at, sources, survivors, vectors, cells, Matches(by_collection={}), [])
    write_report(*given)
    html, card = texts(given[0])
    for text in ("No pool image was retrieved", "nothing was decontaminated", "recipe asks for none", "no clusters"):
        assert text in html
    assert "Not decontaminated against any benchmark." in card and "Nothing was retrieved" in card
