"""Records as the strings that fill a request's fields.

Contract: pure; the one place that decides what a teacher or judge is shown of a dialogue and of observations.
Observations are JSON in the same keys that `parse_observations` reads.
"""

import json
from collections.abc import Iterable, Sequence

from dream_ray.records import Observation, Turn, to_row


def user_text(turns: Sequence[Turn]) -> str:
    """All that the user wrote, one message a line: what the text pass looks through."""
    return "\n".join(turn.text for turn in turns if turn.role == "user" and turn.text.strip())


def transcript(turns: Sequence[Turn]) -> str:
    """What is to be answered: the text of a single turn as it is, a longer dialogue with the speakers named."""
    if len(turns) == 1:
        return turns[0].text
    return "\n".join(f"{turn.role.capitalize()}: {turn.text}" for turn in turns)


def observation_field(observation: Observation) -> str:
    """One observation as a JSON object."""
    return json.dumps(to_row(observation), ensure_ascii=False)


def observations_field(observations: Iterable[Observation]) -> str:
    """Observations as a JSON list."""
    return json.dumps([to_row(observation) for observation in observations], ensure_ascii=False)
