"""The parts of a report about the data: counts of rows and tokens, and rows with what is learned of them marked."""

from __future__ import annotations

from weitune.data.prepare.report import Preferences
from weitune.messages import Told, in_english, joined, say
from weitune.messages.translate import by_templates, translated
from weitune.report.markup import lang, text
from weitune.report.page import table
from weitune.run.data_record import DataRecord

MISSING = "–"


def data_tables(data: DataRecord | None) -> str:
    """Return the tables about the data of a run; nothing if it recorded none."""
    if data is None:
        return ""
    rows, examples, lengths = data.report.rows, data.report.examples, data.report.lengths

    def known(key: str, count: int) -> int | None:
        return None if key in data.report.missing else count

    facts = [
        (say("report.data_section.rows_read"), known("rows.read", rows.read)),
        (say("report.data_section.rows_trained"), known("rows.trained", rows.trained)),
        *(
            (say("report.data_section.set_aside", reason=translated(reason, "data")), count)
            for reason, count in rows.set_aside.items()
        ),
        (say("report.data_section.examples"), known("examples.kept", examples.kept)),
        (say("report.data_section.cut"), known("examples.cut", examples.cut)),
        (say("report.data_section.tokens"), known("tokens.all", lengths.all)),
        (say("report.data_section.learned_tokens"), known("tokens.supervised", lengths.supervised)),
        (
            say("report.data_section.exact_copies"),
            known("found.exact_duplicates", data.report.findings.exact_duplicates),
        ),
    ]
    if data.report.preferences is not None:
        facts += _preferences(data.report.preferences)
    if data.validation is not None:
        facts.append((say("report.data_section.validation_examples"), data.validation.examples))
    if data.kept is not None:
        name = say("report.data_section.kept", share=data.kept.share, target=data.kept.target)
        facts.append((name, data.kept.examples))
    columns = (say("report.data_section.file"), say("report.data_section.rows"), say("report.data_section.format"))
    sources = [(source.name, plain(source.rows), source.format) for source in data.report.sources]
    counts = [(name, plain(count)) for name, count in facts]
    parts = [
        table(columns, sources, caption=say("report.data_section.sources")),
        table((), counts, facts=True, caption=say("report.data_section.counts")),
    ]
    if spread := lengths.per_example:
        title = say("report.data_section.tokens_of_an_example")
        heads = [say("report.data_section.mean") if name == "mean" else name for name in spread]
        parts.append(table(heads, [[*map(plain, spread.values())]], numbers=True, caption=title))
    return "".join(parts)


def _preferences(found: Preferences) -> list[tuple[str, int]]:
    facts = [
        (say("report.data_section.pairs"), found.pairs),
        (say("report.data_section.divided_pairs"), found.divided),
        (say("report.data_section.liked"), found.liked),
        (say("report.data_section.disliked"), found.disliked),
        (say("report.data_section.contradicting_pairs"), found.contradicting_pairs),
        (say("report.data_section.both_ways"), found.both_ways),
    ]
    return [(name, count) for name, count in facts if count]


def learned_rows(data: DataRecord | None) -> str:
    """Return some rows as training sees them, with what is learned marked."""
    rows = []
    for example in data.preview if data else ():
        parts = "".join(_part(content, kind) for content, kind in example.parts)
        whole = "".join(content for content, _ in example.parts)
        place = place_text(example.place)
        rows.append(f'<p><small>{text(place)}</small></p><pre class="text"{lang(whole)}>{parts}</pre>\n')
    marked = "<mark>" + text(say("report.data_section.marked")) + "</mark>"
    grey = "<span class='control'>" + text(say("report.data_section.grey")) + "</span>"
    lead = "<p>" + text(say("report.data_section.legend")).format(marked=marked, grey=grey) + "</p>\n"
    return lead + "".join(rows) if rows else ""


def place_text(place: str) -> str:
    """Return the place of a row, which files have in English, in the user's language."""
    row = joined(" ", ["{file}", say("data.problems.row", row="{row}")])
    forms = [row, joined(" ", [row, say("data.problems.line", line="{line}")])]
    verdicts = (
        say("training.prepared_run.chosen"),
        say("training.prepared_run.rejected"),
        say("training.prepared_run.liked"),
        say("training.prepared_run.disliked"),
    )
    forms += [joined(", ", [form, verdict]) for form in forms for verdict in verdicts]
    found = by_templates(place, {in_english(form): str(form) for form in forms})
    return place if found == place else Told(found, place)


def plain(value: object) -> str:
    """Return a number as people read it, a dash for None, and anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return MISSING if value is None else str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3f}".rstrip("0").rstrip(".")


def _part(content: str, kind: str) -> str:
    if kind == "learned":
        return f"<mark>{text(content)}</mark>"
    return f'<span class="control">{text(content)}</span>' if kind == "control" else text(content)
