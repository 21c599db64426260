"""What comes from files or the command line reaches the terminal as text, never as escapes or markup."""

from __future__ import annotations

import pytest

from structsam_export.console import markup, printable


@pytest.fixture
def shown(capsys, monkeypatch):
    """What a fresh console writes to stderr."""
    monkeypatch.setattr("structsam_export.console._console", None)
    return lambda: capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain [red] text", "plain [red] text"),
        ("\x1b[31mred\x1b]0;title\x07", "\\x1b[31mred\\x1b]0;title\\x07"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("over\rwritten\x7f\x9b", "over\\rwritten\\x7f\\x9b"),
        ("\u202egnp.exe", "\\u202egnp.exe"),  # turns the text around
        ("\udcff.png", "\\udcff.png"),  # a file name that is not UTF-8
        ("Käfer 猫 3.00\u202fPM 🐈", "Käfer 猫 3.00\u202fPM 🐈"),
    ],
)
def test_printable(text, expected):
    assert printable(text) == expected
    printable(text).encode()


@pytest.mark.parametrize("text", ["[/]", "[red]x[/red]", "[/red", "a\\", "[link=x]", ":cat:", "\x1b[2J"])
def test_text_that_looks_like_markup_is_shown(text, shown):
    from structsam_export.console import console, note, stage

    with stage(f"load {text}") as say:
        say(text)
    assert f"load {printable(text)}" in shown()
    console().print(f"[bold]{markup(text)}[/bold]")
    assert shown() == printable(text) + "\n"
    note(text)
    assert shown() == printable(text) + "\n"


def test_tables_show_names_as_they_are(capsys):
    from structsam_export.cli.show import print_table

    print_table(["model", ":cat:"], [["[/] \x1b[31m", "[red]"]])
    out = capsys.readouterr().out
    assert "[/] \\x1b[31m" in out and "[red]" in out and ":cat:" in out


@pytest.mark.parametrize("name", ["[/]", "[red]", "\x1b[31mx", "\u202ex"])
@pytest.mark.parametrize("option", ["--model", "--checkpoint", "--method", "--layers", "--image", "--no-such-"])
def test_errors_about_hostile_text(option, name, in_process):
    code, out, err = in_process("export", f"{option}{name}" if option.endswith("-") else f"{option}={name}")
    assert code in (2, 5) and not out
    assert name in err if name.startswith("[") else (name not in err and "\x1b[31m" not in err)


@pytest.mark.parametrize(
    "arguments",
    [
        ["export", "--checkpoint", ""],
        ["export", "--checkpoint="],
        ["--checkpoint", " "],
        ["export", "--image", ""],
        ["trace", "--output", ""],
        ["validate", ""],
        ["build", "folder", "--backend="],
        ["bench", "a", ""],
        ["evaluate", "--dataset", ""],
        ["evaluate", "--root", ""],
        ["sweep", "--plot", ""],
        [""],
    ],
)
def test_empty_text_is_no_default(arguments, in_process):
    """As an unset shell variable makes it."""
    code, out, err = in_process(*arguments)
    assert (code, out) == (2, "") and "is empty" in err
