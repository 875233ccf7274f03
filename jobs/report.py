"""Write the report of a run: python -m jobs.report runs/quickdraw."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.command import run
from quickdraw_dist.base import storage
from quickdraw_dist.base.command_line import Parser
from quickdraw_dist.run.report.page import write_run_report

EPILOG = """\
The page shows the curves up to the last log interval; the run may be in progress. For the
confusion matrix of any split: python -m jobs.evaluate.

examples:
  python -m jobs.report runs/quickdraw
  python -m jobs.report gs://BUCKET/runs/quickdraw
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Write the report of the run that the command line names."""
    text = "Write report.html, a page with a run's curves and numbers, into its folder."
    parser = Parser("python -m jobs.report", text, EPILOG, settings=False)
    parser.add_argument("run", type=storage.address, help="folder or gs:// address of the run")
    print(f"report: {write_run_report(parser.parse_args(argv).run)}")


if __name__ == "__main__":
    run(main)
