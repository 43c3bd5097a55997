"""What a judge says itself, apart from what it quotes of the text under judgement.

Contract: pure. `own_words` takes quoted passages out of a reply, so that a grade that an answer asks for and the judge
repeats is not the judge's; `is_reported` says of a passage outside quotation marks that it is somebody else's words. Where
quoting cannot be told from speaking they lean to "not the judge's own": a grade that is not found is asked for once more,
one that was smuggled in is believed.
"""

import re

NEAR_CHARS = 120
"""How far before a passage the words are looked for that make it an answer or somebody else's: a reply may be long."""

_QUOTED = re.compile(
    r"```.*?```"
    # A passage of the rendered prompt with its marks (prompts/__init__.py).
    r"|^\[[^\]\n]* (?P<code>[0-9a-f]{12})\].*?^\[end of [^\]\n]* (?P=code)\]"
    r"|^[ \t]*>.*?$"
    r'|(?P<key>"\w+"\s*:)'  # the key of a JSON object is no quotation
    r'|"[^"]*"'
    r"|\u201c[^\u201d]*\u201d|\u00ab[^\u00bb]*\u00bb|`[^`\n]*`"
    r"|(?<!\w)'[^'\n]*'(?!\w)|\u2018[^\u2019\n]*\u2019(?!\w)",
    re.DOTALL | re.MULTILINE,
)

_LABELS = re.compile(r"\b(?:answer|verdict|score|rating|grade)\W*(?:is\W*)?$", re.IGNORECASE)

_REPORTING = re.compile(
    r"\b(?:say|says|said|saying|claims?|claiming|reads|writes?|wrote|ends? (?:with|in|on)|asks?(?: \w+)? (?:for|to)"
    r"|demands?|demanding|tells?|told|instructs?|orders?|quotes?|repeats?|insists?|begs?)\b"
    r"(?:[\s:'\"\u201c*{(\[]+\w+){0,4}[\s:'\"\u201c*{(\[]*$",
    re.IGNORECASE,
)


def own_words(reply: str) -> str:
    """The reply without what it quotes; a quotation right after a label ('Answer: "Yes"') is an answer and stays, and so
    does a reply that is one quotation."""

    def keep_answers(match: re.Match[str]) -> str:
        label = _LABELS.search(reply, max(0, match.start() - NEAR_CHARS), match.start())
        return match.group() if match["key"] or label else " "

    own = _QUOTED.sub(keep_answers, reply)
    return own if re.search(r"\w", own) else reply


def is_reported(reply: str, position: int) -> bool:
    """True where the sentence makes what stands at `position` somebody else's words ("it asks me to write ...")."""
    before = reply[max(0, position - NEAR_CHARS) : position]
    return _REPORTING.search(re.split(r"[.!?;\n]", before)[-1]) is not None
