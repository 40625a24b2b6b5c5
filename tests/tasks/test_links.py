"""What is known of an image before it is fetched comes with its link."""

import pytest

from lvd.tasks import sources
from lvd.tasks.links import links
from lvd.tasks.sources import Warc
from lvd.tests.tasks.test_archives import http, record


@pytest.mark.parametrize(
    ("source", "found"),
    [(None, ["https://a.org/terms", None]), ("as we read it", ["https://a.org/terms", "as we read it"])],
)
def test_the_licence_is_that_of_the_page_else_of_the_source(tmp_path, source, found) -> None:
    stated = record("https://a.org/1", http(b'<img src="1.jpg"><a rel="license" href="/terms">'))
    silent = record("https://b.org/2", http(b'<img src="2.jpg">'))
    (tmp_path / "crawl.warc").write_bytes(stated + silent)
    (partition,) = sources.partitions(Warc(path=str(tmp_path), license=source))
    rows = list(links(partition, partition.files[0]))
    assert [row["url"] for row in rows] == ["https://a.org/1.jpg", "https://b.org/2.jpg"]
    assert [row["license"] for row in rows] == found
