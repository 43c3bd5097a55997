"""The survey of a source and the list of formats as tables on a terminal.

Contract: prints what it is given; decides nothing.
"""

from collections import Counter
from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from dream_ray.config import SourceConfig
from dream_ray.sources.format import source_name
from dream_ray.sources.registry import FORMATS
from dream_ray.sources.survey import Survey


def print_formats(console: Console, only: str | None) -> None:
    """What each format is, what its folder must hold and under which licence it comes."""
    for layout in FORMATS.values():
        if only in (None, layout.name):
            console.print(f"[bold]{layout.name}[/bold]  {layout.summary}", highlight=False)
            console.print(f"    holds:   {layout.expects}", highlight=False, markup=False)
            if layout.licence:
                console.print(f"    licence: {layout.licence} ({layout.terms})", highlight=False, markup=False)
            if layout.counts:
                sizes = ", ".join(
                    f"{subset} {' or '.join(f'{size:,}' for size in sizes)}" for subset, sizes in layout.counts.items()
                )
                console.print(f"    rows:    {sizes}", highlight=False, markup=False)
            if layout.citation:
                console.print(f"    cite:    {layout.citation}", highlight=False, markup=False)


def print_survey(console: Console, source: SourceConfig, found: Survey) -> None:
    """Counts by split, subset, risk and category; what was mended, what is bad, what is missing."""
    table = Table(title=f"{source_name(source)}: {found.prompts:,} prompts", title_justify="left")
    for column in ("split", "subset", "risk", "category", "prompts"):
        table.add_column(column, justify="right" if column == "prompts" else "left")
    for (split, risk, subset, category), number in sorted(found.labels.items()):
        table.add_row(split, subset, risk, category, f"{number:,}")
    console.print(table)
    lines = {"turns": _turns(found.turns), "images": f"{found.images:,} files named, {found.missing:,} of them missing"}
    if found.observed:
        use = "used" if source.observations == "use" else "not used (observations=use does)"
        lines["observations"] = f"{found.observations:,} on {found.observed:,} prompts, {use}"
    for name, line in lines.items():
        console.print(f"{name}: {line}", highlight=False)
    for title, counts in (("mended or left out", found.repaired), ("no prompts", found.bad)):
        for reason, number in counts.most_common():
            console.print(f"{title}: {reason} {number:,}", highlight=False, markup=False)
    for line in found.first_bad:
        console.print(f"    {line}", highlight=False, markup=False)
    for complaint in found.complaints:
        console.print(f"{'part of the set' if source.partial else 'WRONG COUNT'}: {complaint}", highlight=False)


def _turns(turns: Mapping[int, int]) -> str:
    return ", ".join(f"{count:,} with {number}" for number, count in sorted(Counter(turns).items()))
