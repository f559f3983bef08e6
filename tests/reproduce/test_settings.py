"""Settings of a run: the digest that names the folder of its work, and the command that repeats it."""

import shlex

from lowhanging.reproduce import settings as settings_module
from lowhanging.reproduce.settings import SIZES, Settings, Sizes


def test_the_digest_knows_what_changes_a_number_and_nothing_else():
    base = Settings(SIZES["quick"], "bundled", 0, 1)
    assert base.digest == Settings(SIZES["quick"], "bundled", 5, 3).digest
    assert base.digest != Settings(SIZES["quick"], "full", 0, 1).digest
    assert base.digest != Settings(Sizes("quick", epochs=3), "bundled", 0, 1).digest
    asked = Settings(Sizes("quick", epochs=3), "digits", 2, 4)
    assert asked.command() == "lowhanging reproduce --seeds 4 --seed 2 --epochs 3 --data digits"
    assert list(asked.seeds) == [2, 3, 4, 5]


def test_a_folder_with_a_space_is_one_word_of_the_command():
    settings = Settings(SIZES["quick"], "my digits", 0, 1)
    words = shlex.split(settings.command())
    assert words[words.index("--data") + 1] == "my digits"


def test_the_digest_knows_the_bytes_of_a_folder_of_digits_and_of_the_code(tmp_path, monkeypatch):
    settings = Settings(SIZES["quick"], str(tmp_path), 0, 1)
    (tmp_path / "a").write_bytes(b"1")
    first = settings.digest
    assert settings.digest == first
    (tmp_path / "a").write_bytes(b"2")
    assert settings.digest != first
    second = settings.digest
    (tmp_path / "a").rename(tmp_path / "b")
    assert settings.digest != second
    code = tmp_path / "lowhanging" / "reproduce" / "settings.py"
    code.parent.mkdir(parents=True)
    code.write_text("LARGE = 5")
    monkeypatch.setattr(settings_module, "__file__", str(code))
    third = settings.digest
    code.write_text("LARGE = 4")
    assert settings.digest != third
