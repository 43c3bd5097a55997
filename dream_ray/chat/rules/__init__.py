"""The `rules` chat backend: OCR and a risk lexicon in place of a model, so that the whole loop runs offline.

Contract: exports `RulesChat`, and `digest`, on which its answers depend. It is a floor to debug and to measure against,
not a teacher or judge to trust.
"""

import hashlib
from functools import cache
from importlib import resources

from dream_ray.chat.rules.backend import RulesChat

__all__ = ["RulesChat", "digest"]


@cache
def digest() -> str:
    """sha256 over this package's code and word lists: other rules are another teacher."""
    found = [entry for entry in resources.files(__package__).iterdir() if entry.name.endswith((".py", ".yaml"))]
    content = hashlib.sha256()
    for entry in sorted(found, key=lambda entry: entry.name):
        content.update(entry.name.encode() + b"\0" + entry.read_bytes())
    return content.hexdigest()
