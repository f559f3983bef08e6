"""The command line of `lowhanging reproduce`: what it refuses, what it asks for, how it ends."""

import subprocess
import sys

import pytest

from lowhanging.reproduce import cli
from lowhanging.reproduce.themes.registry import NAMES, THEMES


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "--epochs is 0, expected an integer of at least 1"),
        (["--seed", "-1"], "--seed is -1, expected an integer of at least 0"),
        (["--seeds", "0"], "--seeds is 0, expected an integer of at least 1"),
        (["--only", "canyon"], "--only is 'canyon', expected one of 'learning', 'rates'"),
        (["--only", ","], "--only names nothing, expected some of 'learning'"),
        (["--data", "no/such/folder"], "no/such/folder"),
    ],
)
def test_bad_arguments_end_with_status_2_and_leave_nothing(arguments, message, tmp_path, capsys):
    out = tmp_path / "report"
    assert cli.main(["reproduce", "--out", str(out), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_an_unwritable_folder_is_refused_before_anything_runs(tmp_path, capsys):
    assert cli.main(["reproduce", "--out", ""]) == 2
    assert "--out is empty, expected the name of a folder" in capsys.readouterr().err
    (tmp_path / "file").write_text("in the way")
    assert cli.main(["reproduce", "--out", str(tmp_path / "file")]) == 2
    assert "--out is" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "in the way"


def test_an_interrupt_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.pipeline, "measure", interrupted)
    assert cli.main(["reproduce", "--tiny", "--out", str(tmp_path)]) == 130
    assert "the same command goes on from here" in capsys.readouterr().err


def test_the_package_itself_is_the_command():
    asked = [sys.executable, "-m", "lowhanging", "reproduce", "--seeds", "0"]
    found = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert "--seeds is 0" in found.stderr


def test_each_size_plans_the_same_themes(capsys):
    """The full size can't run here: what it asks for is read, and each of its settings is one of the quick one's."""
    options = cli.build_parser().parse_args(["reproduce", "--full", "--seeds", "3"])
    settings = cli.settings_of(options)
    assert (settings.data, settings.sizes.modulus, settings.num_seeds) == ("full", 113, 3)
    assert settings.sizes.other_presets[0] == "nanda"
    assert settings.command("modular") == "lowhanging reproduce --seeds 3 --full --only modular --out again"
    quick = cli.settings_of(cli.build_parser().parse_args(["reproduce", "--quick"]))
    assert (quick.data, quick.sizes.modulus, quick.num_seeds) == ("bundled", None, 1)
    assert quick.digest != settings.digest
    assert len(NAMES) == len(set(NAMES)) == len(THEMES)
    with pytest.raises(SystemExit):
        cli.build_parser().parse_args(["reproduce", "--help"])
    assert "hours" in capsys.readouterr().out
