"""The picture and the table of a report."""

from __future__ import annotations

import pytest
from bench_files import report_of, row

from structsam_export.benchmark import table
from structsam_export.benchmark.plot import plot
from structsam_export.errors import OutputError

REPORTS = {
    "two": report_of(row("plain"), row("merged <50 %> & \u00e9", ratio=0.6, p50=60.0, macs=3_000_000_000)),
    "one": report_of(row("alone")),
    "macs unknown": report_of(row("peer", macs=None), row("ours"), row("merged", ratio=0.6)),
    "no macs at all": report_of(row("peer", macs=None), row("other", macs=None)),
}


@pytest.mark.parametrize("name", REPORTS)
def test_every_report_can_be_drawn(name, tmp_path):
    plot(REPORTS[name], tmp_path / "bench.png")
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in tmp_path.iterdir()] == ["bench.png"]


@pytest.mark.parametrize(("name", "start"), [("b.svg", b"<?xml"), ("b.pdf", b"%PDF"), ("b.PNG", b"\x89PNG")])
def test_the_name_says_the_format(name, start, tmp_path):
    plot(REPORTS["two"], tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(start)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises((OutputError, FileNotFoundError)):
        plot(REPORTS["one"], tmp_path / "missing" / "b.png")
    assert list(tmp_path.iterdir()) == []


def test_table():
    head, body = table(report_of(row("plain"), row("merged", ratio=0.61234, ratio_paired=0.6, macs=None)))
    assert head == ("variant", "p50 ms", "p90", "ratio", "paired", "GMACs", "nodes", "peak MiB", "activations MiB")
    assert body == [
        ("plain", "100.0", "120.0", "1.000", "1.000", "4.55", "600", "300", "20"),
        ("merged", "100.0", "120.0", "0.612", "0.600", "-", "600", "300", "20"),
    ]


def test_table_of_a_profiled_report():
    head, body = table(report_of(row("eager", profile=None), row("onnx", profile={"merging_share": 0.1767})))
    assert head[-1] == "merging"
    assert [cells[-1] for cells in body] == ["-", "17.7%"]
    assert {len(cells) for cells in body} == {len(head)}
