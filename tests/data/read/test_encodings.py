"""Text that is not UTF-8 is read correctly or refused with likely encodings; a given encoding is used."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from weitune.cli import main
from weitune.data.formats.parse import Options
from weitune.data.prepare.recipe_reader import recipe_reader
from weitune.data.problems import Problem
from weitune.data.read.conversations import Reader, read_conversations
from weitune.data.read.text_file import examine
from weitune.errors import DataError, RecipeError
from weitune.recipe.load import build_recipe, dump_recipe, load_recipe
from weitune.recipe.schema import Recipe

TEXTS = {
    "ko": "안녕하세요, 오늘 날씨가 어때요?",
    "ja": "こんにちは、今日の天気はどうですか。",
    "tw": "你好，今天天氣如何？請用一句話介紹台灣。",
    "th": "สวัสดีครับ วันนี้อากาศเป็นอย่างไรบ้าง",
    "ru": "Привет, как дела сегодня? Расскажи о погоде.",
    "el": "Καλημέρα, τι κάνεις σήμερα;",
    "ar": "مرحبا كيف حالك اليوم",
    "he": "שלום, מה שלומך היום?",
    "en": "It is 25°C today, and a ticket costs £5 or 10½ marks.",
    "fr": "Où est le café, près de l'église ?",
    "pl": "Proszę opisać łódź żaglową.",
}
LEGACY = [
    ("ko", "cp949", "cp949 or euc_kr"),
    ("ko", "euc_kr", "cp949 or euc_kr"),
    ("ko", "iso2022_kr", "iso2022_kr"),
    ("ja", "cp932", "cp932 or shift_jis"),
    ("ja", "euc_jp", "euc_jp"),
    ("ja", "iso2022_jp", "iso2022_jp"),
    ("tw", "big5", "cp950 or big5"),
    ("th", "tis-620", "cp874 or tis-620"),
    ("ru", "cp1251", "cp1251"),
    ("ru", "koi8-r", "koi8-r"),
    ("ru", "cp866", "cp866"),
    ("el", "cp1253", "cp1253"),
    ("ar", "cp1256", "cp1256"),
    ("he", "cp1255", "cp1255"),
    ("en", "latin-1", "cp1252 or latin-1"),
    ("fr", "cp1252", "cp1252 or latin-1"),
    ("pl", "cp1250", "cp1250"),
]
CHINESE = [
    "你好，今天天气怎么样？",
    "你好吗？",
    "學而時習之，不亦說乎？有朋自遠方來，不亦樂乎？",
    "子曰：吾十有五而志于学，三十而立，四十而不惑，五十而知天命。",
    "张伟\n王芳\n李娜\n刘洋\n陈静",
    "The word for hello is 你好, and for thanks it is 谢谢.",
    "👩‍👩‍👧 我是谁？我们在一起。",
]


def table(path: Path, text: str, encoding: str) -> Path:
    path.write_bytes(("instruction,output\n" + f'"{text}","{text}"\n' * 3).encode(encoding))
    return path


def questions(reader: Reader) -> list[str]:
    return [conversation.turns[0].content for conversation in read_conversations(reader)]


@pytest.mark.parametrize(("language", "encoding", "named"), LEGACY)
def test_another_encoding_is_refused_by_name_and_read_when_given(
    tmp_path: Path, language: str, encoding: str, named: str
) -> None:
    text = TEXTS[language]
    path = table(tmp_path / "rows.csv", text, encoding)
    with pytest.raises(DataError) as error:
        questions(Reader([str(path)], Options()))
    [problem] = [problem for problem in error.value.problems if isinstance(problem, Problem)]
    assert problem.kind == "unknown encoding"
    assert problem.found.startswith(f"bytes that read as {named}")
    assert "encoding: " in problem.fix
    reader = Reader([str(path)], Options(encoding=encoding))
    assert questions(reader) == [text] * 3


@pytest.mark.parametrize("text", CHINESE)
def test_chinese_is_read_as_gb18030(tmp_path: Path, text: str) -> None:
    path = table(tmp_path / "rows.csv", text, "gb18030")
    assert questions(Reader([str(path)], Options())) == [text] * 3
    assert examine(path).encoding == "gb18030"


def test_a_part_in_another_encoding_is_refused(tmp_path: Path) -> None:
    chinese = (CHINESE[0] + "\n").encode("gb18030") * 50
    for other in (TEXTS["ko"].encode("cp949") * 20, "一半是这样写的".encode()):
        path = tmp_path / "rows.csv"
        path.write_bytes(b"instruction,output\n" + chinese + other + b"\n" + chinese)
        fault = examine(path).fault
        assert fault is not None
        assert fault.kind == "mixed encodings"
        assert fault.line == 52


@pytest.mark.parametrize(("language", "encoding"), [("ko", "cp949"), ("tw", "big5"), ("ja", "euc_jp")])
def test_a_single_line_in_another_encoding_is_refused(tmp_path: Path, language: str, encoding: str) -> None:
    rows = [f"{TEXTS[language]},{TEXTS[language]}\n".encode(encoding)]
    path = tmp_path / "rows.csv"
    path.write_bytes(b"".join([b"instruction,output\n", *[f"{CHINESE[0]},x\n".encode("gb18030")] * 12, *rows]))
    fault = examine(path).fault
    assert fault is not None
    assert (fault.kind, fault.line) == ("mixed encodings", 14)


RARE = (
    "黄芪、枸杞、薏苡仁、茯苓、蒲公英、菟丝子、鸡血藤、蛤蚧、鳖甲、罂粟壳、吴茱萸、砒霜、巴豆、斑蝥、蟾酥、硇砂、硼砂"
)


def test_a_line_of_rare_hanzi_among_others_is_chinese(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    lines = ["instruction,output", *[f"{CHINESE[0]},x"] * 12, f"列出药材,{RARE}"]
    path.write_bytes("\n".join(lines).encode("gb18030"))
    assert questions(Reader([str(path)], Options()))[-1] == "列出药材"


def test_rare_hanzi_alone_are_refused_with_advice(tmp_path: Path) -> None:
    path = table(tmp_path / "rows.csv", RARE, "gb18030")
    fault = examine(path).fault
    assert fault is not None
    assert fault.found == 'bytes that read as gb18030, but hardly Chinese, “"黄芪、枸杞、薏苡仁、茯苓、蒲公英”'
    assert "--encoding gb18030" in fault.fix
    assert questions(Reader([str(path)], Options(encoding="gb18030"))) == [RARE] * 3


def test_other_scripts_within_chinese_are_gb18030(tmp_path: Path) -> None:
    for text in (
        "你好的俄语是 Привет，谢谢是 Спасибо。",
        "你好的日语是「こんにちは」，你知道吗？",
        "中国是 zhōng guó，你好是 nǐ hǎo。",
    ):
        assert questions(Reader([str(table(tmp_path / "rows.csv", text, "gb18030"))], Options())) == [text] * 3


def test_damaged_utf_8_names_the_row_even_if_it_is_the_last(tmp_path: Path) -> None:
    rows = [{"instruction": "你是谁？", "output": "我是甄嬛。"}] * 3
    content = "\n".join(json.dumps(row, ensure_ascii=False) for row in [*rows, {"instruction": "q", "output": "ab"}])
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content.encode().replace(b"ab", b"a\xff"))
    with pytest.raises(DataError) as error:
        questions(Reader([str(path)], Options()))
    assert [problem.row for problem in error.value.problems if isinstance(problem, Problem)] == [4]


@pytest.mark.parametrize("encoding", ["utf-32", "utf-32-le", "utf-16-le", "utf-16-be"])
def test_a_given_encoding_is_used_with_or_without_a_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    path = table(tmp_path / "rows.csv", TEXTS["ko"], encoding)
    assert questions(Reader([str(path)], Options(encoding=encoding))) == [TEXTS["ko"]] * 3


def test_text_that_does_not_decode_in_the_given_encoding_names_its_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps({"instruction": TEXTS["ko"], "output": f"{i}"}, ensure_ascii=False) for i in range(5)]
    content = [line.encode("cp949") for line in lines]
    content[3] = content[3].replace("오".encode("cp949"), b"\xff\xff")
    path.write_bytes(b"\n".join(content))
    with pytest.raises(DataError) as error:
        questions(Reader([str(path)], Options(encoding="cp949")))
    assert [(p.kind, p.row) for p in error.value.problems if isinstance(p, Problem)] == [("undecodable text", 4)]


def test_utf_8_is_not_silently_read_as_another_encoding(tmp_path: Path) -> None:
    marked = table(tmp_path / "marked.csv", TEXTS["ko"], "utf-8-sig")
    plain = table(tmp_path / "plain.csv", TEXTS["ko"], "utf-8")
    old = table(tmp_path / "old.csv", TEXTS["ko"], "cp949")
    with pytest.raises(DataError, match="another encoding: 2"):
        questions(Reader([str(marked), str(plain), str(old)], Options(encoding="cp949")))
    assert questions(Reader([str(marked), str(plain), str(old)], Options(encoding={str(old): "cp949"})))


def test_a_mapping_names_files_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old").mkdir()
    table(tmp_path / "old" / "a.csv", TEXTS["ko"], "cp949")
    table(tmp_path / "old" / "b.csv", TEXTS["ja"], "cp932")
    said = {"./old": "cp949", "old/b.csv": "cp932"}
    recipe = Recipe(model="any", data=["old"], encoding=said)
    assert questions(recipe_reader(recipe)) == [TEXTS["ko"]] * 3 + [TEXTS["ja"]] * 3
    with pytest.raises(RecipeError, match=r"old/b.cvs.* is not one of the text files(.|\n)*Did you mean 'old/b.csv'"):
        recipe_reader(Recipe(model="any", data=["old"], encoding={**said, "old/b.cvs": "cp932"}))


def test_a_mapping_may_name_validation_files(tmp_path: Path) -> None:
    data = table(tmp_path / "a.csv", TEXTS["ko"], "utf-8")
    other = table(tmp_path / "b.csv", TEXTS["ko"], "cp949")
    recipe = Recipe(model="any", data=[str(data)], validation=[str(other)], encoding={str(other): "cp949"})
    assert len(questions(recipe_reader(recipe))) == 3
    assert questions(recipe_reader(recipe, [str(other)])) == [TEXTS["ko"]] * 3


@pytest.mark.parametrize(
    "name", ["cp94", "base64", "rot13", "hex", "idna", "undefined", "unicode_escape", "", "a\0b", "\ud83d", 7.5, []]
)
def test_unknown_encodings_are_refused(name: Any) -> None:
    with pytest.raises(RecipeError, match="encoding"):
        build_recipe({"model": "m", "data": "d"}, {"encoding": name})
    with pytest.raises(RecipeError, match="encoding"):
        build_recipe({"model": "m", "data": "d"}, {"encoding": {"d": name}})


def test_a_recipe_keeps_its_encoding(tmp_path: Path) -> None:
    for value in ("cp949", {"d": "EUC-KR"}, None):
        recipe = build_recipe({"model": "m", "data": "d", "encoding": value})
        (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
        assert load_recipe(str(tmp_path / "recipe.yaml")) == recipe
    assert build_recipe({"model": "m", "data": "d", "encoding": 437}).encoding == "437"


def test_a_name_of_another_system_is_not_proposed_again() -> None:
    for name in ("ansi", "mbcs", "oem"):
        if os.name != "nt":
            with pytest.raises(RecipeError, match="there is no encoding") as error:
                build_recipe({"model": "m", "data": "d"}, {"encoding": name})
            assert f"did you mean '{name}'" not in str(error.value)


@pytest.mark.parametrize("command", ["check", "convert"])
def test_the_commands_take_an_encoding(tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(table(tmp_path / "rows.csv", TEXTS["ko"], "cp949"))
    assert main(["data", command, path]) == 2
    assert "--encoding cp949" in "".join(capsys.readouterr())
    assert main(["data", command, path, "--encoding", "euc-kr"]) == 0
    assert main(["data", command, path, "--encoding", f"{{{path}: cp949}}"]) == 0
    assert main(["data", command, path, "--encoding", "cp94"]) == 2
    assert "did you mean" in capsys.readouterr().err
