"""What a terminal shows, and where a command writes."""

import io
import os
import sys

import pytest
from rich.table import Table

from glimodern.cli.outputs import check_output_file, write_text
from glimodern.display import cell, console, first_line, printable, short, typed


def shown(capsys, *things):
    console().print(*things)
    return capsys.readouterr().out


def test_text_is_never_markup(capsys):
    for text in ("[/b]", "[red]x[/red]", "[link=x]y", ":smile:", "[", "\\\\[x]"):
        assert shown(capsys, text) == text + "\n"
        table = Table("h", title=cell(text))
        table.add_row(cell(text, "bold"))
        assert shown(capsys, table).count(text) == 2


def test_control_characters_and_surrogates_are_escaped(capsys):
    assert printable("a\x1b[31mb\nc\u202e\udc80é\u4e2d") == "a\\x1b[31mb\\nc\\u202e\\udc80é\u4e2d"
    assert printable("a\u2028\u2029\u2066\u2069\u200e") == "a\\u2028\\u2029\\u2066\\u2069\u200e"
    assert "\x1b" not in shown(capsys, cell("\x1b[31m"))
    persian = "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 a\u00a0b"
    assert printable(persian) == persian


def test_a_terminal_shows_the_colours_asked_for_alone(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert shown(capsys, "3 files of '/a/b' are True") == "3 files of '/a/b' are True\n"
    assert shown(capsys, cell("3 files", "bold")) == "\x1b[1m3 files\x1b[0m\n"


def test_standard_error_and_quiet(capsys):
    console(stderr=True).print("to error")
    console(quiet=True).print("nowhere")
    assert capsys.readouterr() == ("", "to error\n")


def test_values_in_messages():
    assert short("x" * 78) == repr("x" * 78)
    assert short("x" * 79) == "'" + "x" * 76 + "..."
    assert [typed(value) for value in (3, 0.5, "a\n", ["a"], None)] == [
        "int 3",
        "float 0.5",
        r"str 'a\n'",
        "list",
        "NoneType",
    ]
    assert typed("x" * 100) == "str '" + "x" * 76 + "..."
    assert [first_line(ValueError(text)) for text in ("a\nb", "", "y" * 300)] == ["a", "", "y" * 200]


def test_a_terminal_without_unicode_ends_no_run(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    console().print("é \u4e2d …")
    sys.stdout.flush()
    assert raw.getvalue() == b"\\xe9 \\u4e2d \\u2026\n"


def test_output_file(tmp_path):
    path = check_output_file("--json", tmp_path / "a" / "b" / "c.json")
    assert path.parent.is_dir() and not path.exists()
    write_text(path, "é\udc80")
    assert path.read_text(encoding="utf-8") == "é\\udc80"
    with pytest.raises(ValueError, match="--json: expected a file to write, got the folder"):
        check_output_file("--json", tmp_path)
    with pytest.raises(ValueError, match="expected a folder, got .*c.json, which is no folder"):
        check_output_file("--json", path / "d.json")
    (tmp_path / "link").symlink_to(path)
    for read in (path, path.parent, tmp_path / "link", tmp_path / "a" / ".." / "a"):
        with pytest.raises(ValueError, match="is read by the same command"):
            check_output_file("--json", tmp_path / "link", [str(read)])
    assert check_output_file("--json", path, ["owner/name", str(tmp_path / "other")]) == path


def test_links_and_devices_stay_what_they_are(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "there" / "real")
    write_text(check_output_file("--json", tmp_path / "link"), "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "there" / "real").read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_text(check_output_file("--json", tmp_path / "pipe"), "through")
    assert os.read(reader, 99) == b"through"
    os.close(reader)
    assert not (tmp_path / "pipe").is_file()


def test_a_closed_output_shows_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    console().print(cell("x"))
