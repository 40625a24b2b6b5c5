"""What the reasons for which candidates end mean, in words."""

from http import HTTPStatus

MEANINGS = {
    "invalid_url": "not an address that may be fetched",
    "duplicate_url": "an earlier row names the same address",
    "domain_full": "the domain has as many addresses as the recipe allows",
    "extension": "the name ends in none of the wanted extensions",
    "blocked_extension": "the name ends as no picture of ours does",
    "blocked_domain": "on a list of blocked domains",
    "blocked_url": "on a list of blocked addresses",
    "unsafe_word": "a word of the address is on a list of unsafe words",
    "domain_not_allowed": "on no list of allowed domains",
    "page_opted_out": "the page says that its images are not to be used",
    "unreadable_archive": "the archive could not be read from here on",
    "unreadable_record": "a record of the archive could not be read",
    "fetched": "an image came",
    "opted_out": "the server says that the image is not to be used",
    "robots_txt": "robots.txt disallows it",
    "blocked_address": "leads to an address that is not public",
    "no_such_host": "the name does not resolve",
    "dead_host": "the host had not answered several times before",
    "retry_later": "the host asked for a longer pause than allowed",
    "tls_failed": "no secure connection: the certificate or the handshake",
    "bad_response": "no answer that HTTP knows",
    "wrong_digest": "other bytes than the list says lie there now",
    "connection_failed": "no connection to the server",
    "timeout": "no whole answer within the time limit",
    "incomplete_body": "the answer broke off",
    "empty_body": "an answer without a byte",
    "too_large": "more bytes than allowed",
    "too_many_redirects": "redirected on and on",
    "unreadable": "the file could not be read",
    "not_an_image": "the bytes are of no image format",
    "truncated": "the file ends before the picture does",
    "undecodable": "the decoder gave up",
    "too_many_pixels": "larger than may be decoded",
    "too_small": "the short edge is below the limit; value: pixels",
    "aspect_ratio": "too long or too tall; value: long edge ÷ short edge",
    "format": "a format that the recipe leaves out",
    "too_many_frames": "more frames than may be counted",
    "nsfw": "the classifier finds it unsafe; value: probability",
    "animated": "more than one frame; value: frames",
    "near_empty": "hardly any contrast; value: contrast or entropy",
    "blurred": "sharpness below the limit",
    "too_dark": "mean luminance below the limit",
    "too_bright": "mean luminance above the limit",
    "exact_duplicate": "the same bytes as another image",
    "near_duplicate": "PCA hash and thumbnail almost those of another image",
    "copy": "descriptor joins it to another image (self-deduplication)",
    "benchmark_copy": "copies an image of a benchmark (relative deduplication)",
    "curated_copy": "copies a curated image (relative deduplication)",
    "forgotten": "taken down by request, or a copy of an image that was",
    "not_finite": "the model gave no finite vector",
    "semantic_duplicate": "means the same as another image of its cluster; value: similarity",
    "not_retrieved": "unlike the curated images: nothing is wrong with it",
}


def meaning(reason: str) -> str:
    """What a reason means; empty for one that nobody knows."""
    if reason.startswith("http_") and reason[5:].isdigit():
        known = {status.value: status.phrase for status in HTTPStatus}
        return f"the server answered {known.get(int(reason[5:]), 'so')}".lower()
    return MEANINGS.get(reason, "")
