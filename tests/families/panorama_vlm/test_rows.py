"""CSV files of rows: what is read, what is set aside and what is refused."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stageline.data.quarantine import SetAside
from stageline.errors import ConfigError, DataError
from stageline.families.panorama_vlm.data.origin import distinct_images
from stageline.families.panorama_vlm.data.rows import (
    KINDS,
    MAX_FIELD,
    cached_name,
    check_quarantine,
    read_rows,
)


@dataclass(frozen=True)
class Fault:
    kind: str
    message: str


def look(path: Path, hfov: float | None, vfov: float | None) -> Fault | None:
    """A file is what its first word says."""
    if not path.is_file():
        return Fault("missing", "no such file")
    text = path.read_text()
    return None if text.startswith("good") else Fault(text, f"{text} it is")


def write(folder: Path, text: str, name: str = "rows.csv", pictures: str = "a b c") -> Path:
    for picture in pictures.split():
        (folder / f"{picture}.jpg").write_text(f"good {picture}")
    (folder / name).write_bytes(text.encode())
    return folder / name


@pytest.mark.parametrize("image", ["url", "image", "image_path", "PATH"])
@pytest.mark.parametrize("query", ["instruction", " Question "])
@pytest.mark.parametrize("response", ["response", "annotation", "caption", "answer"])
def test_columns_have_several_names(tmp_path: Path, image: str, query: str, response: str) -> None:
    file = write(tmp_path, f"{response},extra,{image},{query}\r\nred,1,a.jpg,Which?\r\n")
    table = read_rows([file], look)
    assert [(r.path, r.query, r.response, r.references) for r in table.rows] == [
        (tmp_path / "a.jpg", "Which?", "red", ("red",))
    ]


def test_a_noun_is_wrapped_and_a_sentence_is_not(tmp_path: Path) -> None:
    noun = write(tmp_path, "image,query,answer\na.jpg,the {red} sofa,x\n", "noun.csv")
    both = write(tmp_path, "image,query,instruction,answer\na.jpg,sofa,Where is it?,x\n", "both.csv")
    rows = read_rows([noun, both], look).rows
    assert rows[0].query == (
        'In this panoramic image, please provide a concise but detailed description of "the {red} sofa".'
    )
    assert rows[1].query == "Where is it?"
    assert read_rows([noun], look, query_template="{query}").rows[0].query == "the {red} sofa"
    with pytest.raises(ConfigError, match="query_template"):
        read_rows([noun], look, query_template="Describe it.")


def test_quotes_newlines_marks_and_blank_lines(tmp_path: Path) -> None:
    text = '\ufeffimage,question,answer\r\n\r\na.jpg,"Two\nlines, ""quoted""",빨강 °\r\n\r\nb.jpg,b,c\r\n'
    rows = read_rows([write(tmp_path, text)], look).rows
    assert [(row.number, row.query, row.response) for row in rows] == [
        (1, 'Two\nlines, "quoted"', "빨강 °"),
        (2, "b", "c"),
    ]


@given(
    st.lists(
        st.tuples(
            st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1), st.text("a,\"'\n;é한 ", max_size=9)
        ),
        min_size=1,
        max_size=5,
    )
)
def test_what_was_written_is_read(tmp_path_factory: pytest.TempPathFactory, texts: list[tuple[str, str]]) -> None:
    folder, text = tmp_path_factory.mktemp("rows"), io.StringIO()
    writer = csv.writer(text)
    writer.writerows([("image", "question", "answer"), *(("a.jpg", query, answer) for query, answer in texts)])
    table = read_rows([write(folder, text.getvalue())], look)
    every = sorted([*table.rows, *(aside.row for aside in table.set_aside)], key=lambda row: row.index)
    assert [(row.query, row.response) for row in every] == [(q.strip(), a.strip()) for q, a in texts]


def test_several_references(tmp_path: Path) -> None:
    listed = json.dumps(["red", " dark red "]).replace('"', '""')
    file = write(tmp_path, f'image,question,answer,references\na.jpg,q,r,"{listed}"\nb.jpg,q,,"{listed}"\nc.jpg,q,r,\n')
    rows = read_rows([file], look).rows
    assert [(row.response, row.references) for row in rows] == [
        ("r", ("red", "dark red")),
        ("red", ("red", "dark red")),
        ("r", ("r",)),
    ]


def test_files_follow_each_other_and_splits_are_chosen(tmp_path: Path) -> None:
    one = write(
        tmp_path, "id,image,question,answer,split\n,a.jpg,q,1,train\nx,b.jpg,q,2,validation\n,c.jpg,q,3,Train\n"
    )
    (tmp_path / "sub").mkdir()
    two = write(tmp_path / "sub", "path,question,caption\na.jpg,q,4\n")
    rows = read_rows([one, two], look, split="train").rows
    assert [(r.index, r.number, r.id, r.response) for r in rows] == [
        (0, 1, "row-000000", "1"),
        (1, 3, "row-000001", "3"),
        (2, 1, "row-000002", "4"),
    ]
    assert [r.path.parent.name for r in rows] == [tmp_path.name, tmp_path.name, "sub"]
    assert [r.id for r in read_rows([one], look, split="val").rows] == ["x"]
    (moved,) = read_rows([one], look, image_root=tmp_path / "sub", split="val").rows
    assert moved.path == tmp_path / "sub/b.jpg"


def test_broken_rows_are_set_aside_and_never_replaced(tmp_path: Path) -> None:
    """Check 16: every class, the right rows only, and each remaining row keeps its own picture."""
    kinds = ["empty", "not_an_image", "truncated", "too_small", "too_large", "not_equirectangular"]
    for kind in kinds:
        (tmp_path / f"{kind}.jpg").write_text(kind)
    lines = [f"{kind},{kind}.jpg,q,r" for kind in ["missing", *kinds]]
    lines += ["web,https://example.org/a.jpg,q,r", "no_query,a.jpg, ,r", "no_response,b.jpg,q,", "same,a.jpg,q,first"]
    lines += ["same,b.jpg,q,second", "good,c.jpg,q,c"]
    file = write(tmp_path, "id,image,question,answer\n" + "\n".join(lines) + "\n")
    table = read_rows([file], look, url_cache=tmp_path / "cache")
    assert [(aside.row.number, aside.kind) for aside in table.set_aside] == [
        *((number, kind) for number, kind in enumerate(["missing", *kinds], 1)),
        (8, "url_not_cached"),
        (9, "empty_query"),
        (10, "empty_response"),
        (12, "duplicate_id"),
    ]
    assert table.counts == dict.fromkeys(KINDS, 1)
    assert [(row.id, row.response, row.path.read_text()) for row in table.rows] == [
        ("same", "first", "good a"),
        ("good", "c", "good c"),
    ]
    listed = [aside.listed() for aside in table.set_aside]
    assert [line.row for line in listed] == [*range(1, 11), 12]
    cut = SetAside(4, str(tmp_path / "truncated.jpg"), "truncated", "truncated it is", str(tmp_path / "rows.csv"))
    assert listed[3] == cut


def test_a_row_with_several_faults_is_one_row(tmp_path: Path) -> None:
    table = read_rows([write(tmp_path, "image,question,answer\n,,\n")], look)
    (aside,) = table.set_aside
    assert aside.kind == "missing"
    assert aside.message == "the image cell is empty; the query is empty; the response is empty"


def test_the_limit_of_the_quarantine(tmp_path: Path) -> None:
    """Check 16: 3 % of broken rows end with an error that names them; 2 % do not."""
    lines = ["image,question,answer", *["a.jpg,q,r"] * 97, *["gone.jpg,q,r"] * 3]
    table = read_rows([write(tmp_path, "\n".join(lines))], look)
    check_quarantine(table, "quarantine", 0.03)
    with pytest.raises(DataError, match=r"(?s)3 of 100 rows.*3\.0%.*row 98: missing.*gone\.jpg") as caught:
        check_quarantine(table, "quarantine", 0.02)
    assert caught.value.exit_code == DataError.exit_code
    with pytest.raises(DataError, match="3 of 100 rows"):
        check_quarantine(table, "error", 0.5)
    with pytest.raises(DataError, match="1 of 1 rows"):
        check_quarantine(read_rows([write(tmp_path, "\n".join([lines[0], lines[-1]]))], look), "quarantine", 1.0)
    with pytest.raises(DataError, match="no rows"):
        check_quarantine(read_rows([write(tmp_path, lines[0])], look), "quarantine", 1.0)


def test_pictures_alone_need_no_text(tmp_path: Path) -> None:
    file = write(tmp_path, "image\nb.jpg\na.jpg\nb.jpg\n")
    seen: list[Path] = []

    def count(path: Path, hfov: float | None, vfov: float | None) -> Fault | None:
        seen.append(path)
        return look(path, hfov, vfov)

    table = read_rows([file], count, with_text=False)
    assert [row.number for row in distinct_images(table.rows)] == [1, 2]
    assert seen == [tmp_path / "b.jpg", tmp_path / "a.jpg"]


def test_a_declared_field_of_view_reaches_the_look_at_the_picture(tmp_path: Path) -> None:
    file = write(tmp_path, "image,erp_hfov_deg,erp_vfov_deg\na.jpg,200,90.5\na.jpg,,\n")
    seen: list[tuple[float | None, float | None]] = []

    def note(path: Path, hfov: float | None, vfov: float | None) -> Fault | None:
        seen.append((hfov, vfov))
        return None

    rows = read_rows([file], note, with_text=False).rows
    assert seen == [(200.0, 90.5), (None, None)]
    assert rows[0].erp_hfov_deg == 200.0


def test_addresses_are_found_in_the_cache_only(tmp_path: Path) -> None:
    url = "HTTPS://example.org/%2e%2e/pano.JPG?size=../../x"
    file = write(tmp_path, f"url,question,answer\n{url},q,r\nftp://example.org/a.jpg,q,r\n")
    (tmp_path / "cache").mkdir()
    name = cached_name(url)
    assert name == hashlib.sha256(url.encode()).hexdigest()[:40] + ".jpg"
    (tmp_path / "cache" / name).write_text("good web")
    table = read_rows([file], look, url_cache=tmp_path / "cache")
    assert [row.path for row in table.rows] == [tmp_path / "cache" / name]
    assert [aside.kind for aside in table.set_aside] == ["url_not_cached"]
    assert "local cache" in read_rows([file], look).set_aside[0].message


@pytest.mark.parametrize("url", ["http://h/a", "http://h/a.exe", "http://h/a.jpg/../b", "http://h/.png/..", "http://h"])
def test_names_in_the_cache_are_plain(url: str) -> None:
    assert Path(cached_name(url)).name == cached_name(url)
    assert cached_name(url).endswith(".img")
    assert cached_name(url) != cached_name(url + "?")


def test_faults_of_files_are_reported_at_once(tmp_path: Path) -> None:
    """A missing column names the file, the columns found and the names that would do."""
    bare = write(tmp_path, "picture,question\na.jpg,q\n", "bare.csv")
    latin = tmp_path / "latin.csv"
    latin.write_bytes("image,question,answer\na.jpg,q,Grün\n".encode("latin-1"))
    quote = write(tmp_path, 'image,question,answer\na.jpg,q,"r\nb.jpg,q,r\n', "quote.csv")
    twice = write(tmp_path, "url,image,question,answer\na.jpg,a.jpg,q,r\n", "twice.csv")
    cells = "a.jpg,q\na.jpg,q,r,train,400,\na.jpg,q,r,dev,,\n"
    cells += f'a.jpg,q,{"x" * (MAX_FIELD + 1)},,,\na.jpg,q,r,,,"[1]"\n'
    loose = write(tmp_path, f"image,question,answer,split,erp_hfov_deg,references\n{cells}", "loose.csv")
    with pytest.raises(DataError) as caught:
        read_rows([bare, latin, quote, twice, loose, tmp_path / "gone.csv"], look)
    text = str(caught.value)
    assert "bare.csv': no column for the image; columns found: picture, question; accepted: url, image," in text
    assert "bare.csv': no column for the response" in text
    assert "latin.csv': is not UTF-8" in text
    assert "quote.csv': is not readable as a CSV file behind row 0: unexpected end of data" in text
    assert "twice.csv': 2 columns mean 'image'" in text
    assert "loose.csv' row 1 (line 2): 2 cells, expected 6" in text
    assert "row 2 (line 3): erp_hfov_deg is '400'" in text
    assert "row 3 (line 4): split 'dev'" in text
    assert "row 4 (line 5): a cell of 65,537 characters" in text
    assert "row 5 (line 6): references '[1]'" in text
    assert "gone.csv" in text
    assert "split '', expected one of train, val" in text
    assert "12 faults" in text
