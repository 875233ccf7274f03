"""Write a run's page anew: python -m jobs.report runs/quickdraw."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from jobs.command import run
from quickdraw_dist.run.report.page import write_run_report

EPILOG = """\
Works on any run's folder, also on gs:// and while the run goes on: curves up to the last look.
What the model takes for what, on any split: python -m jobs.evaluate.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Parse and write."""
    parser = argparse.ArgumentParser(
        "python -m jobs.report",
        description="Write report.html, the page of a run, into its folder.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", help="a run's folder or gs:// address")
    print(f"report: {write_run_report(parser.parse_args(argv).run)}")


if __name__ == "__main__":
    run(main)
