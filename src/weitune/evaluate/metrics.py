"""Measures of answers: some compare them with references, some look at answers alone.

A thought before an answer is not compared with the reference; the measures of answers alone include it.

    chrF, BLEU     sacrebleu's corpus figures (Popović 2015; Papineni et al. 2002; Post 2018), 0 to 100; BLEU with
                   sacrebleu's Chinese tokenizer where the references are Chinese
    ROUGE-L        mean F1 of the longest common subsequence of units (Lin 2004), 0 to 1
    exact          share of answers that equal their reference but for white space
    distinct-1, -2 different units, and pairs of units, divided by all of them, over all answers (Li et al. 2016)
    stopped        share of answers that ended by themselves
    repeating      share of answers in which a run of 8 units occurs twice
    tokens         mean length

A unit is a Chinese, Japanese or Korean character, or a word of anything else in lower case.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from weitune.data.formats.reasoning import split_reasoning
from weitune.errors import MissingExtraError
from weitune.evaluate.evaluation import Scores
from weitune.evaluate.intervals import share_interval
from weitune.generate.stream import Answer

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_UNIT = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+")
_CHINESE = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]")
_CHINESE_SHARE = 0.3
_REPEATED_UNITS = 8


def score(answers: Sequence[Answer], references: Sequence[str | None]) -> Scores:
    """Return the measures of ``answers``, of which those that have a reference are compared with it.

    Raises MissingExtraError if there are references and sacrebleu is not installed, ValueError without answers.
    """
    if not answers:
        raise ValueError("there are no answers")
    texts = [answer.text for answer in answers]
    pairs = [
        (split_reasoning(text)[1], reference)
        for text, reference in zip(texts, references, strict=True)
        if reference is not None
    ]
    chrf, bleu = corpus_scores(*zip(*pairs, strict=True)) if pairs else (None, None)
    stopped, repeating = [answer.stopped for answer in answers], [repeats(text) for text in texts]
    exact = [text.split() == reference.split() for text, reference in pairs]
    shares = {"exact": exact, "stopped": stopped, "repeating": repeating}
    return Scores(
        answers=len(texts),
        chrf=chrf,
        bleu=bleu,
        rouge_l=sum(rouge_l(text, reference) for text, reference in pairs) / len(pairs) if pairs else None,
        exact=sum(exact) / len(exact) if exact else None,
        distinct_1=distinct(texts, 1),
        distinct_2=distinct(texts, 2),
        stopped=sum(stopped) / len(stopped),
        repeating=sum(repeating) / len(repeating),
        tokens=sum(len(answer.tokens) for answer in answers) / len(answers),
        intervals={name: share_interval(sum(each), len(each)) for name, each in shares.items() if each},
    )


def check_installed() -> None:
    """Raise MissingExtraError if the library that compares answers with references is not installed."""
    try:
        import sacrebleu  # noqa: F401
    except ImportError:
        raise MissingExtraError("sacrebleu", "eval") from None


def corpus_scores(texts: Sequence[str], references: Sequence[str]) -> tuple[float, float]:
    """Return sacrebleu's chrF and BLEU of ``texts``."""
    check_installed()
    from sacrebleu import corpus_bleu, corpus_chrf

    tokenizer = "zh" if is_chinese(references) else "13a"
    bleu = corpus_bleu(list(texts), [list(references)], tokenize=tokenizer)
    return float(corpus_chrf(list(texts), [list(references)]).score), float(bleu.score)


def is_chinese(texts: Sequence[str]) -> bool:
    """Return whether more than 30 % of the characters of ``texts``, without white space, are Chinese."""
    whole = "".join(texts)
    return len(_CHINESE.findall(whole)) > _CHINESE_SHARE * max(1, len(re.sub(r"\s", "", whole)))


def units(text: str) -> list[str]:
    """Return the characters and words that texts are compared by."""
    return _UNIT.findall(text.lower())


def rouge_l(text: str, reference: str) -> float:
    """Return the F1 of the longest common subsequence of both texts' units; 0 if one has none."""
    a, b = units(text), units(reference)
    common = _common_length(a, b)
    return 2 * common / (len(a) + len(b)) if common else 0.0


def _common_length(a: Sequence[str], b: Sequence[str]) -> int:
    """Return the length of the longest common subsequence, by the usual recurrence: O(len(a) · len(b))."""
    lengths = [0] * (len(b) + 1)
    for unit in a:
        diagonal = 0
        for j, other in enumerate(b, 1):
            diagonal, lengths[j] = lengths[j], diagonal + 1 if unit == other else max(lengths[j], lengths[j - 1])
    return lengths[-1]


def distinct(texts: Sequence[str], n: int) -> float:
    """Return the number of different runs of ``n`` (1 or 2) units, divided by that of all runs; 0 without any."""
    runs: list[tuple[str, ...]] = []
    for text in texts:
        of_text = units(text)
        runs += [(unit,) for unit in of_text] if n == 1 else list(pairwise(of_text))
    return len(set(runs)) / len(runs) if runs else 0.0


def repeats(text: str, length: int = _REPEATED_UNITS) -> bool:
    """Return whether a run of ``length`` units occurs twice in ``text``; the two may overlap."""
    of_text = units(text)
    runs = [tuple(of_text[at : at + length]) for at in range(len(of_text) - length + 1)]
    return len(set(runs)) < len(runs)
