"""How fast do models answer? This version and 0.1.0 in turn, in the same precision.

    python -m bench.generate [--models smollm2-135m,qwen2.5-0.5b] [--precisions fp32,bf16] [--only one,many,eval]

one     an answer of 64 tokens, prompt included, to one question; the engine has answered another before
many    answers of at most 64 tokens to 100 questions of the data
eval    ``weitune eval`` of the run, from the command to its end: seconds, with the same 25 general questions in each
        language on both sides and an empty cache; again is a second evaluation, for which the base's are in the cache

Both sides generate greedily with a run's adapter. In fp32 the answers have to be equal.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.baseline import VERSION_0_1_0, environment, processor, sources, summary, weitune
from bench.compare import RESULTS, model_folder
from bench.start import finished

_DATA = Path(__file__).parents[1] / "src/weitune/data/builtin/captain-en.jsonl"
_GENERAL_QUESTIONS = 25
_SIDE = """
import json, sys, time
from weitune import Run
from weitune.data.conversation import Conversation, Turn
from weitune.generate.sampling import Sampling

run, questions, sampling = Run(sys.argv[1]), json.loads(sys.argv[2]), Sampling(max_new_tokens=64)
wanted = sys.argv[3].split(",")
engine = run.engine()
asked = [Conversation((Turn("user", question),)).with_system(run.recipe.system) for question in questions]
engine.answer(asked[-1], Sampling(max_new_tokens=20))
facts = {}
story = Conversation((Turn("user", "Tell me a long story about a fisherman and the sea."),))
for name, part in (("one", [story.with_system(run.recipe.system)]), ("many", asked)):
    if name not in wanted:
        continue
    start = time.perf_counter()
    answers = engine.answers(part, sampling)
    seconds = time.perf_counter() - start
    facts[name] = sum(len(answer.tokens) for answer in answers) / seconds
    facts[f"{name} answers"] = [answer.text for answer in answers]
print(json.dumps(facts))
"""


def measured(source: Path, run: Path, questions: list[str], only: str) -> dict[str, Any]:
    """Return the tokens a second of one side, and its answers; the seconds of ``eval``."""
    facts: dict[str, Any] = {}
    if "eval" in only.split(","):
        keeps = (source / "src/weitune/evaluate/general_base.py").exists()
        same = ["--training-rows", "0"] if keeps else []  # 0.1.0 does not ask these
        with tempfile.TemporaryDirectory() as cache:
            for name in ("eval", "again") if keeps else ("eval",):
                start = time.perf_counter()
                finished(weitune(source, ["eval", str(run), *same], XDG_CACHE_HOME=cache))
                facts[name] = time.perf_counter() - start
        facts.setdefault("again", facts["eval"])
    if only == "eval":
        return facts
    done = subprocess.run(
        [sys.executable, "-c", _SIDE, str(run), json.dumps(questions), only],
        env=environment(source), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return {**facts, **json.loads(done.stdout.splitlines()[-1])}


def questions_of(count: int) -> list[str]:
    """Return questions of the built-in data, numbered so that they differ where the data have fewer."""
    rows = [json.loads(line) for line in _DATA.read_text(encoding="utf-8").splitlines()]
    asked = [next(m["content"] for m in row["messages"] if m["role"] == "user") for row in rows]
    return [f"{asked[k % len(asked)]}{'' if k < len(asked) else f' ({k})'}" for k in range(count)]


def with_same_questions(both: Mapping[str, Path], folder: Path) -> dict[str, Path]:
    """Return copies of both sources in ``folder`` that have the same general questions: some of this version's."""
    name = Path("src/weitune/evaluate/general.jsonl")
    rows = (both["now"] / name).read_text(encoding="utf-8").splitlines()
    chosen = [
        row
        for language in ("en", "zh")
        for row in [row for row in rows if json.loads(row)["language"] == language][:_GENERAL_QUESTIONS]
    ]
    for side, source in both.items():
        shutil.copytree(source / "src", folder / side / "src")
        (folder / side / name).write_text("\n".join(chosen) + "\n", encoding="utf-8")
    return {side: folder / side for side in both}


def _entry(what: str, found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return the figures of one measurement, and how many answers of both sides are equal."""
    figures = {side: [facts[what] for facts in each] for side, each in found.items()}
    if what in {"eval", "again"}:
        return {**summary(figures), "seconds": figures}
    pairs = zip(*(each[0][f"{what} answers"] for each in found.values()), strict=True)
    return {**summary(figures), "equal_answers": sum(a == b for a, b in pairs), "tokens_per_second": figures}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="smollm2-135m,qwen2.5-0.5b")
    parser.add_argument("--precisions", default="fp32,bf16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--only", default="one,many")
    parser.add_argument("--baseline", default=VERSION_0_1_0, help="the commit to compare with")
    arguments = parser.parse_args()
    results: dict[str, Any] = {"processor": processor(), "questions": arguments.questions}
    questions = questions_of(arguments.questions)
    with sources(arguments.baseline) as both, tempfile.TemporaryDirectory() as folder:
        same = with_same_questions(both, Path(folder) / "sources")
        for name in arguments.models.split(","):
            for precision in arguments.precisions.split(","):
                run = Path(folder) / f"{name}-{precision}"
                training = ["train", "--model", str(model_folder(name)), "--data", str(_DATA), "--output", str(run),
                            "--train.max_steps", "2", "--train.precision", precision,
                            "--validation", "0.1"]  # fmt: skip
                finished(weitune(same["before"], training))
                found: dict[str, list[dict[str, Any]]] = {side: [] for side in both}
                for _ in range(arguments.rounds):
                    for side, source in same.items():
                        found[side].append(measured(source, run, questions, arguments.only))
                for what in arguments.only.replace("eval", "eval,again").split(","):
                    entry = _entry(what, found)
                    results[f"{name} {precision} {what}"] = entry
                    unit, equal = "s" if what in {"eval", "again"} else "tokens/s", entry.get("equal_answers", "")
                    print(f"{name} {precision} {what:5}  0.1.0 {entry['before']:6.1f} {unit}  "
                          f"now {entry['now']:6.1f} ratio {entry['ratio']:.2f}  equal {equal}", flush=True)  # fmt: skip
    (RESULTS / "generate.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
