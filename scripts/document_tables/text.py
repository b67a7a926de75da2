"""Pieces of text that several tables have."""

from statistics import mean, stdev


def with_notes(table: str, *notes: str) -> str:
    """A table in Markdown with paragraphs below it; empty ones are left out."""
    return "\n".join([table, *(f"{note}\n" for note in notes if note)])


def mean_and_error(values: list[float], sign: str = "") -> str:
    """A mean ± its standard error, in text; with sign "+" a positive mean has one too."""
    return f"{mean(values):{sign}.3f} ± {stdev(values) / len(values) ** 0.5:.3f}"
