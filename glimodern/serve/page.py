"""The page at `/`: its text, and the headers with which a browser lets it load nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

_FILE = Path(__file__).with_name("page.html")
_INLINE = ("style", "script")  # elements with a hash in the policy


@cache
def page() -> str:
    return _FILE.read_text(encoding="utf-8")


@cache
def page_headers() -> dict[str, str]:
    """Return the headers of the page. Its policy allows the style and the script in it by their hashes."""
    sources = {tag: " ".join(map(_source, re.findall(f"<{tag}>(.*?)</{tag}>", page(), re.DOTALL))) for tag in _INLINE}
    policy = (
        f"default-src 'none'; style-src {sources['style']}; script-src {sources['script']}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return {
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }


def _source(content: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() + "'"
