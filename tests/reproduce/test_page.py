"""The files of a report: claims in Markdown, sentences set as lists, and a report replaced as a whole."""

import dataclasses
from pathlib import Path

import pytest

from lowhanging.reproduce import claims, page


def test_a_claim_on_the_page_of_claims():
    claim = claims.Claim(3, "a", "b", "c (e.g. x; y). More", "d", "e", "holds", "f", part="b")
    text = page.markdown([claim], ["heading"])
    assert "| 3b | a | **holds** |" in text
    assert "## 3b. a: holds\n\nThe write-up: b\n\nMeasured:\n\n* c (e.g. x; y).\n* More\n\nHeld against:" in text
    assert text.endswith("Rule:\n\n* e\n\nRepeat it: `f`\n")
    assert dataclasses.replace(claim, part="").label == "3"


WORDS = "ten words of no weight that make of this sentence a long one, " * 2 + "as they come twice"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one; two. Three", [["one; two."], ["Three"]]),
        ("at 0.5, e.g. here. n = 8 there.", [["at 0.5, e.g. here."], ["n = 8 there."]]),
        (f"{WORDS}; one; two", [[f"{WORDS};", "one;", "two"]]),
        (f"{WORDS} (one; two. Three); four [5; 6]", [[f"{WORDS} (one; two. Three);", "four [5; 6]"]]),
        (f"{WORDS} (over 3 seeds): one; two", [[f"{WORDS} (over 3 seeds):", "one;", "two"]]),
        (f"{WORDS}: one, and two, without an end", [[f"{WORDS}: one, and two, without an end"]]),
        ("", [[""]]),
    ],
)
def test_texts_break_at_sentences_and_long_ones_at_semicolons(text, expected):
    found = page.sentences(text)
    assert found == expected
    assert " ".join(line for lines in found for line in lines) == text  # nothing but the breaks is new


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_report_is_replaced_as_a_whole(tmp_path):
    old = {"a.png": b"1", "b.png": b"1", "index.html": b"1"}
    page.replace_together(tmp_path, old)
    assert files_of(tmp_path) == old
    (tmp_path / ".report.part").mkdir()  # of a run that was killed
    (tmp_path / ".report.part" / "a.png").write_bytes(b"half")
    page.replace_together(tmp_path, {"a.png": b"2", "index.html": b"2"}, stale=["b.png", "c.png"])
    assert files_of(tmp_path) == {"a.png": b"2", "index.html": b"2"}


def test_a_write_that_fails_leaves_the_earlier_report(tmp_path, monkeypatch):
    old = {"a.png": b"1", "b.png": b"1", "index.html": b"1"}
    page.replace_together(tmp_path, old)
    real = page.write_atomically

    def full(path, write):
        if path.name == "index.html":
            raise OSError("no space left on device")
        real(path, write)

    monkeypatch.setattr(page, "write_atomically", full)
    with pytest.raises(OSError, match="no space"):
        page.replace_together(tmp_path, {"a.png": b"2", "index.html": b"2"}, stale=["b.png"])
    assert files_of(tmp_path) == old


def test_the_page_comes_last(tmp_path, monkeypatch):
    """Cut off between two moves, the old page is still there, never a new one beside old numbers."""
    page.replace_together(tmp_path, {"results.json": b"1", "index.html": b"1"})
    real, moved = page.os.replace, []

    def cut_off(source, target):
        if target.parent == tmp_path:
            moved.append(target.name)
            if len(moved) == 2:
                raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(page.os, "replace", lambda source, target: cut_off(Path(source), Path(target)))
    with pytest.raises(KeyboardInterrupt):
        page.replace_together(tmp_path, {"results.json": b"2", "index.html": b"2"})
    assert moved == ["results.json", "index.html"]
    assert files_of(tmp_path) == {"results.json": b"2", "index.html": b"1"}
