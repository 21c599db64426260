"""Checks of a run as JUnit XML, which GitLab, Jenkins and others show beside a merge request."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree as ET

from structsam_export.files import atomic
from structsam_export.report.baseline import Verdict, shown

SUITE = "structsam-export"
# Characters that XML 1.0 cannot hold, however they are escaped.
ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def legal(text: str) -> str:
    """Text that may stand in XML."""
    return ILLEGAL.sub("?", text)


def junit(verdict: Verdict, name: str) -> bytes:
    """The file's content.

    Args:
        verdict: each check becomes a test case, `classname` its stage, `name` its metric.
        name: of the export.
    """
    failed = str(sum(not check.passed for check in verdict.checks))
    counts = {"tests": str(len(verdict.checks)), "failures": failed, "errors": "0"}
    root = ET.Element("testsuites", {"name": SUITE, **counts})
    suite = ET.SubElement(root, "testsuite", {"name": legal(name), **counts, "skipped": "0"})
    for check in verdict.checks:
        case = ET.SubElement(
            suite, "testcase", {"classname": legal(f"{SUITE}.{name}.{check.stage}"), "name": legal(check.metric)}
        )
        if not check.passed:
            ET.SubElement(case, "failure", {"message": legal(str(check)), "type": "ParityError"}).text = legal(
                str(check)
            )
        elif check.then is not None:
            ET.SubElement(case, "system-out").text = f"{shown(check.now)} now, {shown(check.then)} in the baseline"
    ET.indent(root)
    return bytes(ET.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def write_junit(path: Path, verdict: Verdict, name: str) -> None:
    """Write the file, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    with atomic(path) as partial:
        partial.write_bytes(junit(verdict, name))
