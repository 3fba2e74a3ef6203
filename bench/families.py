"""Which families of chat models train with the defaults, what is adapted, and what does the run become?

    python -m bench.families [NAME …] [--no-real] [--tables]

Every family of tests/families.py, a tiny model with random weights, trains two steps with the defaults and is exported
as a merged model, with the proof. Families of which there is a test model train two steps with its real
weights too. Prints the table, keeps it as bench/results/families.json, and writes it into docs/models.md and its
Chinese twin. With NAMEs, the other rows stay as they are; with ``--tables``, all do. Which families become GGUF files
is what tests/export/formats/test_gguf_families.py proves.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

from bench.compare import RESULTS, model_folder
from tests.export.formats.gguf_families import FAMILIES as GGUF_FAMILIES
from tests.families import GROUPS, save_family
from weitune import Recipe, train
from weitune.cli.shared.export_support import export_support
from weitune.cli.shared.terminal import quiet_libraries
from weitune.errors import WeituneError
from weitune.export.options import ExportOptions
from weitune.export.run import export
from weitune.generate.run import Run
from weitune.model.fast.decoder import BlockDecoder
from weitune.model.load.locate import locate_base
from weitune.training.run_plan import plan_run

DOCS = Path(__file__).parents[1] / "docs"
SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
REAL = {"qwen2": "qwen2.5-0.5b", "llama": "smollm2-135m", "gemma3_text": "gemma3-270m"}
"""Test models with real weights, by family."""

MODELS: Mapping[str, str] = {
    "qwen2": "Qwen2, Qwen2.5", "qwen3": "Qwen3", "llama": "Llama 2 and 3, SmolLM2, Yi", "mistral": "Mistral 7B, Nemo",
    "ministral": "Ministral 8B", "ministral3": "Ministral 3, text alone", "ernie4_5": "ERNIE 4.5 0.3B",
    "granite": "Granite 3", "seed_oss": "Seed-OSS", "gemma": "Gemma", "gemma2": "Gemma 2",
    "gemma3_text": "Gemma 3 270M, 1B", "gemma3n_text": "Gemma 3n",
    "gemma4_text": "Gemma 4, text alone", "smollm3": "SmolLM3", "olmo2": "OLMo 2",
    "olmo3": "OLMo 3", "exaone4": "EXAONE 4", "cohere2": "Command R7B, A", "hunyuan_v1_dense": "Hunyuan dense",
    "phi3": "Phi-3, Phi-4", "glm4": "GLM-4-0414", "starcoder2": "StarCoder2", "stablelm": "StableLM 2",
    "apertus": "Apertus", "qwen2_moe": "Qwen1.5-MoE, Qwen2 57B", "qwen3_moe": "Qwen3 MoE", "mixtral": "Mixtral",
    "olmoe": "OLMoE", "gpt_oss": "gpt-oss", "ernie4_5_moe": "ERNIE 4.5 MoE", "hunyuan_v1_moe": "Hunyuan-A13B",
    "deepseek_v3": "DeepSeek-V3, R1", "glm4_moe": "GLM-4.5", "llama4_text": "Llama 4, text alone",
    "granitemoe": "Granite 3 MoE", "minimax_m2": "MiniMax-M2", "dots1": "dots.llm1",
    "qwen3_5_text": "Qwen3.5, text alone", "qwen3_5_moe_text": "Qwen3.5 MoE, text alone", "qwen3_next": "Qwen3-Next",
    "falcon_h1": "Falcon-H1", "lfm2": "LFM2", "lfm2_moe": "LFM2 MoE", "granitemoehybrid": "Granite 4",
    "nemotron_h": "Nemotron 3 Nano", "nemotron_h_dense": "Nemotron-H, Nemotron Nano 2", "bamba": "Bamba",
    "jamba": "Jamba", "gemma3": "Gemma 3 4B to 27B",
    "gemma4": "Gemma 4", "qwen3_5": "Qwen3.5", "mistral3": "Mistral Small 3", "mistral3_ministral3": "Ministral 3",
    "qwen3_vl": "Qwen3-VL", "qwen2_5_vl": "Qwen2.5-VL", "internvl": "InternVL 3", "llama4": "Llama 4",
    "glm4v": "GLM-4.1V",
}  # fmt: skip
"""Published models of each family."""


def main() -> int:
    """Train, export, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these families")
    parser.add_argument("--no-real", action="store_true", help="leave out the test models with real weights")
    parser.add_argument("--tables", action="store_true", help="write the tables of what was found before, and no more")
    arguments = parser.parse_args()
    quiet_libraries()
    path = RESULTS / "families.json"
    kept = {row["family"]: row for row in json.loads(path.read_text())} if path.is_file() else {}
    for group, families in GROUPS.items():
        for name in families:
            if arguments.tables or (arguments.names and name not in arguments.names):
                continue
            real = None if arguments.no_real else REAL.get(name)
            kept[name] = {"family": name, "group": group, "models": MODELS[name], **facts(name, real)}
            print(line(kept[name]), flush=True)
            lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in in_order(kept))
            path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    rows = in_order(kept)
    for page in (DOCS / "models.md", DOCS / "models.zh-CN.md"):
        write_tables(page, rows)
    return 0


def in_order(kept: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows that there are, in the order of the groups."""
    return [kept[each] for families in GROUPS.values() for each in families if each in kept]


def facts(name: str, real: str | None) -> dict[str, Any]:
    """Return what becomes of a tiny model of the family, after training two steps of the test model ``real``."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if real:
            train(recipe(model_folder(real), folder / "real"), device="cpu")
        model = save_family(folder / "model", name)
        wanted = recipe(str(model), folder / "run")
        meta = plan_run(wanted, device="cpu").meta
        told = export_support(wanted, locate_base(wanted)).to_json()
        with patch.object(BlockDecoder, "states", autospec=True, side_effect=BlockDecoder.states) as passes:
            run = train(wanted, device="cpu")
        record = json.loads((run.path / "environment.json").read_text())
        targets = meta.targets.to_json() if meta.targets else {}
        return {
            **targets,
            "trainable": meta.trainable,
            "shares": record["shares_rows"],
            "fast": record["shares_rows"] and passes.call_count >= wanted.train.max_steps,
            "why_not": meta.capabilities.why_not,
            "merged": merged(run, folder / "merged"),
            "told_before": told,
            "weights": "real" if real else "random",
        }


def recipe(model: str, output: Path) -> Recipe:
    return Recipe.model_validate(
        {
            "model": model,
            "data": ["builtin:captain-en"],
            "output": str(output),
            "train": {"max_steps": 2, "precision": "fp32"},
        }
    )


def merged(run: Run, output: Path) -> str:
    """Return ``proved``, or why the run cannot be merged."""
    try:
        export(run, output, ExportOptions("merged", prompts=2))
    except WeituneError as error:
        return str(error).splitlines()[0]
    return "proved"


def last_names(kinds: list[str]) -> list[str]:
    return list(
        dict.fromkeys(
            "experts" if ".experts." in kind else kind.removesuffix(".*").rpartition(".")[2] for kind in kinds
        )
    )


def line(row: dict[str, Any]) -> str:
    """Return the row of the table, the same in every language."""
    adapted = last_names(list(row["adapted"]))
    exports = (row["merged"] == "proved", row["family"] in GGUF_FAMILIES, row["told_before"]["vLLM"]["possible"])
    left_out = [each["name"] for each in row["not_adapted"] if each["name"] != "lm_head"]
    cells = [
        f"`{row['family']}`",
        row["models"] + (" *" if row["weights"] == "real" else ""),
        "7" if set(adapted) == set(SEVEN) else " ".join(f"`{each}`" for each in adapted),
        " ".join(f"`{each}`" for each in last_names(left_out)) or "–",
        *("✓" if yes else "–" for yes in (row["shares"], row["fast"], *exports)),
    ]
    return f"| {' | '.join(cells)} |"


def write_tables(page: Path, rows: list[dict[str, Any]]) -> None:
    """Put the rows of each group between the page's marks for it, below the head that is there."""
    text = page.read_text(encoding="utf-8")
    for group in GROUPS:
        start, end = f"<!-- {group} -->\n", f"<!-- /{group} -->"
        before, old, after = text.partition(start)[0], *text.partition(start)[2].partition(end)[::2]
        head = "".join(old.splitlines(keepends=True)[:2])
        body = "".join(f"{line(row)}\n" for row in rows if row["group"] == group)
        text = before + start + head + body + end + after
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
