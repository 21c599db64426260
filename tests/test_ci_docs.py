"""docs/ci.md and action.yml: every command is one that the program takes, and the action's script is run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from structsam_export.cli import cli
from structsam_export.report import baseline

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "ci.md").read_text()
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
GITHUB, STEP, GITLAB = (yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL))


def scripts():
    """Every shell script in the examples and the action."""
    steps = [*GITHUB["jobs"]["parity"]["steps"], *ACTION["runs"]["steps"]]
    return [*(step["run"] for step in steps if "run" in step), "\n".join(GITLAB["parity"]["script"])]


def parsed(words):
    """A call of structsam-export, as click reads it."""
    name = words[0] if words[0] in cli.commands else "export"
    return name, cli.commands[name].make_context(name, words[1:] if name == words[0] else words).params


@pytest.mark.parametrize("script", scripts())
def test_scripts_are_bash_and_hold_no_expression(script):
    """An expression in a script is text that others may write, executed."""
    assert "${{" not in script
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0


@pytest.mark.parametrize("script", [s for s in scripts() if "options=" not in s and "structsam-export " in s])
def test_commands_of_the_examples_are_the_program_s(script):
    lines = [line for line in script.splitlines() if line.startswith("structsam-export")]
    assert len(lines) in (1, 2)
    for line in lines:
        name, values = parsed(shlex.split(line)[1:])
        if name == "validate":
            assert values["baseline"] == Path("ci/mine.json")
            assert values["junit"] == Path("parity.xml")
            assert values["summary"] is not None


def test_examples_agree_with_each_other():
    upload = next(s for s in GITHUB["jobs"]["parity"]["steps"] if "upload" in s.get("uses", ""))
    assert upload["with"]["path"].split() == ["parity.xml", "engines/mine/report.html"]
    assert upload["if"] == "always()", "a failed job's report is the one that is read"
    job = GITLAB["parity"]["artifacts"]
    assert (job["when"], job["reports"]["junit"]) == ("always", "parity.xml")
    assert set(STEP[0]["with"]) <= set(ACTION["inputs"])


def test_inputs_of_the_action_are_described():
    rows = dict(re.findall(r"^\| `([\w-]+)` \| (.*?) \|", PAGE.split("With the action")[1], re.MULTILINE))
    assert set(rows) == set(ACTION["inputs"])
    for name, about in ACTION["inputs"].items():
        shown = rows[name].strip("`")
        assert about.get("default", "") == shown or not about.get("default"), name
    used = re.findall(r"\$\{\{ inputs\.([\w-]+)", (ROOT / "action.yml").read_text())
    assert set(used) == set(ACTION["inputs"])


HOSTILE = "\"; touch owned; $(touch owned) `touch owned` ' #"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"FOLDER": "engines/mine"}, {"folder": "engines/mine"}),
        (
            {"FOLDER": "a b", "BASELINE": "b.json", "CHECKPOINT": "c.pth", "MAX_SLOWDOWN": "1.25"},
            {"folder": "a b", "baseline": "b.json", "checkpoint": "c.pth", "max_slowdown": "1.25"},
        ),
        ({"FOLDER": HOSTILE, "BASELINE": HOSTILE}, {"folder": HOSTILE, "baseline": HOSTILE}),
        ({"FOLDER": "--json"}, {"folder": "--json"}),
    ],
)
def test_the_action_s_script_calls_the_program_so(given, expected, tmp_path):
    """Run, with a program in structsam-export's place that says what it was called with."""
    program = tmp_path / "bin" / "structsam-export"
    program.parent.mkdir()
    program.write_text("#!/usr/bin/env bash\nprintf '%s\\0' \"$@\" > called\n")
    program.chmod(0o755)
    step = ACTION["runs"]["steps"][-1]
    empty = dict.fromkeys(step["env"], "")
    assert set(given) <= set(empty)
    variables = {
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "GITHUB_STEP_SUMMARY": "page.md",
        **empty,
        "JUNIT": "out.xml",
        **given,
    }
    ran = subprocess.run(["bash", "-eo", "pipefail", "-c", step["run"]], cwd=tmp_path, env=variables)
    assert ran.returncode == 0
    assert not (tmp_path / "owned").exists()
    name, values = parsed((tmp_path / "called").read_text().split("\0")[:-1])
    assert name == "validate"
    shown = {key: str(value) for key, value in values.items() if value not in (None, (), False)}
    assert shown == {"junit": "out.xml", "summary": "page.md", **expected}


@pytest.mark.parametrize(
    ("extras", "wanted"), [("", "{}"), ("openvino", "{}[openvino]"), (HOSTILE, "{}[" + HOSTILE + "]")]
)
def test_the_action_installs_its_own_checkout(extras, wanted, tmp_path):
    """Run, with a program in Python's place; where the action lies is a folder with a space."""
    program, here = tmp_path / "bin" / "python", str(tmp_path / "the action")
    program.parent.mkdir()
    program.write_text("#!/usr/bin/env bash\nprintf '%s\\0' \"$@\" > called\n")
    program.chmod(0o755)
    step = ACTION["runs"]["steps"][0]
    assert step["if"] == "${{ inputs.install == 'true' }}"
    variables = {"PATH": f"{program.parent}:{os.environ['PATH']}", "PACKAGE": here, "EXTRAS": extras}
    assert set(step["env"]) <= set(variables)
    subprocess.run(["bash", "-eo", "pipefail", "-c", step["run"]], cwd=tmp_path, env=variables, check=True)
    *words, last, _ = (tmp_path / "called").read_text().split("\0")
    assert words[:3] == ["-m", "pip", "install"]
    assert last == wanted.format(here)
    assert not (tmp_path / "owned").exists()


def test_the_action_fails_where_the_program_does(tmp_path):
    """The step's exit code is the program's: 3 of a worse number is what fails the job."""
    program = tmp_path / "bin" / "structsam-export"
    program.parent.mkdir()
    program.write_text("#!/usr/bin/env bash\nexit 3\n")
    program.chmod(0o755)
    step = ACTION["runs"]["steps"][-1]
    variables = {"PATH": f"{program.parent}:{os.environ['PATH']}", **dict.fromkeys(step["env"], "x")}
    variables["GITHUB_STEP_SUMMARY"] = "page.md"
    assert subprocess.run(["bash", "-eo", "pipefail", "-c", step["run"]], cwd=tmp_path, env=variables).returncode == 3


def test_tolerances_are_the_program_s():
    table = re.search(r"\| what \| metric.*?\n\n", PAGE, re.DOTALL)
    assert table
    cells = [[c.strip(" `") for c in line.strip("|").split("|")] for line in table[0].strip().splitlines()[2:]]
    rows = {row[1]: row[2:] for row in cells}
    for i, allowed in enumerate(baseline.PARITY.values()):
        assert {metric: float(rows[metric][i]) for metric in allowed} == allowed
    for metric, allowed in baseline.QUALITY.items():
        assert {float(value) for value in rows[metric]} == {allowed}
    for metric, share in (("nodes", baseline.NODES), ("graph", baseline.MACS)):
        assert {float(value.rstrip(" %")) / 100 for value in rows[metric]} == {share}
