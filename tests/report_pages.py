"""Pages of the report made by hand: one that is empty, one whose every text is hostile, and one with everything."""

import base64
import io
from collections import Counter

import numpy as np
from PIL import Image

from lvd.tasks import charts, report
from lvd.tasks.cluster_map import ClusterMap, Dot
from lvd.tasks.contact_sheets import At, Pairing, Sheet, Shown, Thumbnail
from lvd.tasks.funnel import Loss, funnel, losses
from lvd.tasks.ledger_sample import Entry, LedgerSample
from lvd.tasks.reached import InCluster, Reached

EVIL = "<script>alert(1)</script>\"'><img src=http://evil.example/x onerror=alert(1)>"

REASONS = ("copy", "too_small", "not_retrieved")


def sheet(*pairings: Pairing) -> Sheet:
    return Sheet(title=f"Sheet {EVIL}" if pairings else "Sheet", text=EVIL, pairings=pairings)


def page(**changes) -> report.Report:
    """A page on which everything is empty, but for the changes."""
    values = {
        **dict.fromkeys(("title", "name", "version", "date", "root", "recipe"), "x"),
        **dict.fromkeys(("losses", "duplicates", "decontamination", "collections", "retrievals", "cluster_charts"), ()),
        **dict.fromkeys(("examples", "formats", "short_edges", "domains", "errors", "timings"), ()),
        **dict.fromkeys(("clusters", "screened", "not_retrieved", "sample"), sheet()),
        **{name: {} for name in ("published", "cluster_figures", "versions", "overlaps")},
        "states": {"kept": 0, "dropped": 0, "failed": 0},
        "thresholds": {
            "hash_distance": 6,
            "thumbnail_similarity": 0.985,
            "copy_similarity": 0.6,
            "reference_similarity": 0.45,
        },
        "funnel": funnel(Counter()),
        "components": report.Components(count=0, largest=0, lowest=1.0, chained=0),
        "searches": (),
        "group_sizes": (report.GroupSizes(reason="copy", bins=(("2", 0),), share=1.0),),
        "run_seconds": 0.0,
        "num_bytes": (0, 0),
        "num_domains": 0,
    }
    return report.Report(**{**values, **changes})


def hostile_page() -> report.Report:
    at, bare = At("pool", "pool", 1), At("pool", "pool", 2)
    picture = Thumbnail(
        src="data:image/webp;base64,AA==",
        image_id=EVIL,
        key=EVIL,
        alt=EVIL,
        label=EVIL,
        width=9,
        height=9,
        format=EVIL,
        num_bytes=3,
    )
    shown = sheet(Pairing(head=Shown(at=at, note=EVIL), others=(Shown(at=bare), Shown(at=None)), more=7, title=EVIL))
    retrieval = report.Retrieval(
        name=EVIL,
        notes={"kind": EVIL, "queries": 1, "asked": 4, "found": 4, "images": 4, "collided": 0},
        settings={"collisions": EVIL},
        chart=charts.histogram(EVIL, np.array([1, 2]), np.array([0.0, 0.5, 1.0])),
        sheet=shown,
    )
    return page(
        **dict.fromkeys(("title", "name", "version", "date", "root", "recipe"), EVIL),
        **dict.fromkeys(("clusters", "screened", "not_retrieved", "sample"), shown),
        **dict.fromkeys(("duplicates", "decontamination"), (shown, shown)),
        states={"kept": 1, "dropped": 2, "failed": 3},
        losses=(Loss(stage=EVIL, state=EVIL, reason=EVIL, count=5),),
        retrievals=(retrieval,),
        cluster_figures={EVIL: EVIL},
        cluster_charts=(charts.line(EVIL, [0.1, 0.2], EVIL),),
        examples=(report.Example(reason=EVIL, key=EVIL, error=EVIL),),
        formats=(report.Breakdown(name=EVIL, before=1, after=1),),
        domains=(report.Domain(name=EVIL, listed=2, fetched=1, kept=1, lost={EVIL: 1}),),
        errors=(report.Outcome(stage=EVIL, state=EVIL, reason=EVIL, count=1, domains=1),),
        collections=(
            report.Collection(role=EVIL, name=EVIL, kind=EVIL, path=EVIL, listed=1, fetched=1, dropped_for_it=1),
        ),
        versions={EVIL: EVIL},
        lost={EVIL: (Shown(at=at, note=EVIL),)},
        ledger=LedgerSample(entries=(entry(EVIL, image_id=EVIL, state=EVIL, reason=EVIL),), total=2),
        reached={EVIL: reached(EVIL)},
        cluster_map=ClusterMap(
            names=(EVIL,),
            dots=(Dot(image_id=EVIL, x=1, y=1, cluster=0, is_published=True, selections=(0,)),),
            total=1,
            published=1,
        ),
        shifts=(charts.paired(EVIL, np.array([1]), np.array([1]), [EVIL], (EVIL,)),),
        domain_shares=(report.Breakdown(name=EVIL, before=1, after=1),),
        patches=report.Patches(
            model=EVIL,
            pictures=(report.PatchPicture(image_id=EVIL, key=EVIL, grid=EVIL, seen=picture.src, colours=picture.src),),
        ),
        pictures={at: picture, bare: picture.model_copy(update={"src": ""})},
    )


def entry(key: str, *, image_id: str = "", state: str = "dropped", reason: str = "copy") -> Entry:
    return Entry(
        key=key,
        role="pool",
        image_id=image_id,
        state=state,
        stage="copies",
        reason=reason,
        score=0.5,
        because_of="f" * 32,
    )


def reached(domain: str) -> Reached:
    top = InCluster(cluster=1, images=2, size=3)
    return Reached(clusters=1, of_clusters=2, top_clusters=(top,), domains=1, top_domains=((domain, 2),))


def square(number: int) -> str:
    """A small picture as a `data:` URL."""
    file = io.BytesIO()
    colour = tuple(np.random.default_rng(number).integers(0, 256, 3).tolist())
    Image.new("RGB", (120 + number % 3 * 40, 120), colour).save(file, "WEBP")
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def full_page(num: int = 80) -> report.Report:
    """A page on which everything is: pictures, two collections, a map, a ledger of 300 rows with one hostile key."""
    places = [At("pool", "pool", row) for row in range(num)]
    pictures = {
        at: Thumbnail(
            src=square(at.row),
            image_id=f"{at.row:032x}",
            key=f"http://site-{at.row % 7}.example/{at.row}.jpg",
            alt=f"picture {at.row}",
            label="",
            width=120,
            height=120,
            format="WEBP",
            num_bytes=900,
        )
        for at in places
    }

    def shown(first: int, count: int) -> tuple[Shown, ...]:
        return tuple(Shown(at=places[(first + n) % num], note=f"0.{n}00") for n in range(count))

    def groups(title: str) -> Sheet:
        pairs = (Pairing(head=one, others=shown(n + 3, 3), more=2, title="") for n, one in enumerate(shown(0, 4)))
        return Sheet(title=title, text="some", pairings=tuple(pairs))

    retrievals = tuple(
        report.Retrieval(
            name=name,
            notes={"kind": "sample", "queries": 9, "asked": 36, "found": 30, "images": 28, "collided": 2},
            settings={"neighbors": 4},
            chart=charts.histogram("Matches", np.array([1, 5, 3]), np.array([0.0, 0.3, 0.6, 1.0])),
            sheet=groups(f"Queries of {name}"),
        )
        for name in ("birds", "old planes")
    )
    ended = Counter(
        {
            ("pool", "screen", "dropped", "too_small"): 7,
            ("pool", "copies", "dropped", "copy"): 60,
            ("pool", "retrieve", "dropped", "not_retrieved"): 113,
            ("pool", "publish", "kept", "retrieved"): 120,
        }
    )
    rules = tuple(Pairing(head=None, others=shown(9, 3), title=f"{rule}: it is") for rule in ("too_small", "animated"))
    entries = [
        entry(f"http://site-{n % 7}.example/{n}.jpg", image_id=f"{n:032x}", reason=REASONS[n % 3]) for n in range(299)
    ]
    dots = tuple(
        Dot(
            image_id=f"{n:032x}",
            x=n * 7919 % 1000,
            y=n * 104729 % 1000,
            cluster=n % 5,
            is_published=n % 3 > 0,
            selections=(n % 2,) if n % 3 else (),
        )
        for n in range(200)
    )
    return page(
        title="A set",
        states={"kept": 120, "dropped": 180, "failed": 0},
        published={"retrieved": 120},
        funnel=funnel(ended),
        losses=losses(ended),
        lost={"copy": shown(20, 4), "too_small": shown(30, 2)},
        duplicates=(groups("Exact duplicates"), groups("Near duplicates"), groups("Copies")),
        decontamination=(groups("Copies of benchmark images"), groups("Copies of curated images")),
        collections=(
            report.Collection(
                role="benchmark", name="tests", kind="images", path="x", listed=9, fetched=9, dropped_for_it=3
            ),
            report.Collection(
                role="curated", name="birds", kind="images", path="x", listed=9, fetched=9, dropped_for_it=1
            ),
        ),
        retrievals=retrievals,
        reached={name: reached("site-1.example") for name in ("birds", "old planes")},
        cluster_figures={"clusters": "5"},
        clusters=groups("Nearest to the centroid"),
        screened=Sheet(title="Dropped by a rule", text="a sample", pairings=rules),
        sample=Sheet(title="Retrieved", text="a sample", pairings=(Pairing(head=None, others=shown(0, 12)),)),
        not_retrieved=Sheet(
            title="Not retrieved", text="a sample", pairings=(Pairing(head=None, others=shown(40, 9)),)
        ),
        ledger=LedgerSample(entries=(*entries, entry(EVIL, image_id="e" * 32)), total=900),
        cluster_map=ClusterMap(names=("birds", "old planes"), dots=dots, total=500, published=120),
        shifts=(charts.paired_clusters("Clusters", np.array([9, 5, 0, 2]), np.array([3, 1, 0, 2])),),
        formats=(report.Breakdown(name="JPEG", before=9, after=4),),
        timings=tuple(
            report.Timing(
                stage=stage,
                directories=(f"{stage}/x",),
                shards=3,
                computed=3,
                rows_in=300,
                rows=280,
                seconds=seconds,
                peak_memory_mb=500,
                read_bytes=9_000_000,
                written_bytes=4_000_000,
                gpu_seconds=gpu,
            )
            for stage, seconds, gpu in (("download", 60.0, 0.0), ("embed", 20.0, 18.0))
        ),
        pictures=pictures,
    )
