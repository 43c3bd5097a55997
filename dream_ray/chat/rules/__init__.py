"""The `rules` chat backend: OCR and a risk lexicon in place of a model, so that the whole loop runs offline.

Contract: exports `RulesChat`. It is a floor to debug and to measure against, not a teacher or judge to trust.
"""

from dream_ray.chat.rules.backend import RulesChat

__all__ = ["RulesChat"]
