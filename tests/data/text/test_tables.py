"""Test tables of texts in every format, and what is said of damaged ones."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nml_jax.data.text.overlap import describe_overlap
from nml_jax.data.text.tables import choose_columns, read_scores, read_table
from nml_jax.errors import UserError

BARE = ("source", "label", "mark", "sentence")


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def test_formats_give_the_same_table(tmp_path: Path):
    want = {"text": ['say "hi"', "a,b\u2028c", ""], "label": ["x", "y", "x"]}
    rows = list(zip(*want.values(), strict=True))
    tsv = write(tmp_path / "a.tsv", "\ufefftext\tlabel\r\n" + "".join(f"{a}\t{b}\r\n" for a, b in rows) + "\r\n")
    quoted = ['"say ""hi""",x', '"a,b\u2028c",y', ",x"]
    csv = write(tmp_path / "a.csv", "text,label\n" + "\n".join(quoted))
    one, two = '{"text": "say \\"hi\\"", "label": "x"}\n\n', '{"text": "a,b\u2028c", "label": "y"}\n'
    lines = write(tmp_path / "a.jsonl", one + two + '{"label": "x", "text": ""}\n')
    pq.write_table(pa.table(want), tmp_path / "a.parquet")
    for path in (tsv, csv, lines, tmp_path / "a.parquet"):
        assert dict(read_table(path)) == want, path
    assert read_table(tsv).place(1) == "line 3"
    assert read_table(lines).place(1) == "line 3"
    assert read_table(tmp_path / "a.parquet").place(1) == "row 1"


def test_files_without_header_and_with_broken_lines(tmp_path: Path, capsys):
    rows = "gj04\t1\t\tA.\ngj04\t0\t*\tB\tmore\n"
    table = read_table(write(tmp_path / "bare.csv", rows), bare=BARE)  # tabs, whatever the name says
    assert table["sentence"] == ["A.", "B"]
    assert table.place(1) == "line 2"
    named = read_table(write(tmp_path / "named.tsv", "sentence\tlabel\nA\t1\n"), bare=BARE)
    assert dict(named) == {"sentence": ["A"], "label": ["1"]}
    broken = write(tmp_path / "b.tsv", "text\tlabel\nA\t1\nhalf\nB\t0\n")
    assert read_table(broken, broken=1)["text"] == ["A", "B"]
    assert "1 broken lines are left out, such as line 3" in capsys.readouterr().err
    with pytest.raises(UserError, match="line 3: 1 cells, but 2 columns"):
        read_table(broken)
    read_table(write(tmp_path / "q.tsv", 'text\tlabel\n"say ""hi"""\t1\n'))
    assert "1 cells have quotes around them" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "content", "words"), [
    ("a.jsonl", '{"text": "a"}\n{"text": \n', "line 2 is not JSON"),
    ("a.jsonl", '{"text": "a"}\n["b"]\n', "line 2 is not an object"),
    ("a.jsonl", "\n", "has no rows"),
    ("a.tsv", "", "has no rows"),
    ("a.csv", 'text,label\na,1\n"b,2\n', "line 3: "),
    ("a.csv", 'text,label\n"a\nb",1\nc\n', "line 4: 1 cells"),
    ("a.xlsx", "text", "is not a .tsv, .csv, .jsonl or .parquet"),
    ("a.parquet", "PAR1 no", "cannot read"),
])  # fmt: skip
def test_damaged_tables(tmp_path: Path, name: str, content: str, words: str):
    with pytest.raises(UserError, match=words):
        read_table(write(tmp_path / name, content))


def test_columns_and_scores(tmp_path: Path):
    path = tmp_path / "a.tsv"
    assert choose_columns(path, ["id", "sentence_A", "sentence_B", "score"], "", "") == (
        ("sentence_A", "sentence_B"), "score")  # fmt: skip
    with pytest.raises(UserError, match="no column is known for labels; tests of benchmarks keep theirs hidden"):
        choose_columns(path, ["index", "sentence"], "", "")
    table = read_table(write(path, "sentence\tscore\na\t1\nb\t\nc\tnan\n"))
    with pytest.raises(UserError, match=r"line 4: 'score' is 'nan', not a number from 0 to 5"):
        read_scores(path, table, "score", (0, 5), lambda cell: cell == "")
    table["score"][2] = "5"
    assert read_scores(path, table, "score", (0, 5), lambda cell: cell == "") == ([1, 5], [0, 2])


def test_overlap_ignores_case_blanks_and_punctuation():
    train = [("A man  is playing .", "No one"), ("b", "c")]
    test = [("a man is playing", "no one!"), ("b", "d"), ("no one", "c")]
    assert describe_overlap(train, test, "sick") == (
        "sick: 1 of 3 rows are training rows, too; 4 of 5 different sentences occur in training"
    )
    assert describe_overlap([("x",)], [("y",)], "t") == ""
