"""`python -m analysis RESULTS [--out DIR] [--overlay published]`. Exit codes: 0 written, 2 the input is wrong or
the report cannot be written."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from analysis.errors import AnalysisError


def main(argv: list[str] | None = None) -> int:
    """Write the report of a study; print its summary and the paths."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis",
        description="Tables, figures and a report from the results of a raygrid study.",
        epilog="Exit codes: 0 everything was written; 2 the input is wrong, or --out cannot be written (one message "
        "says what and what to do).",
    )
    parser.add_argument(
        "results", metavar="RESULTS", type=Path, help="folder with results.parquet, or one CSV or Parquet file"
    )
    parser.add_argument(
        "--out", metavar="DIR", type=Path, help="where to write; default RESULTS/report for a folder, else ./report"
    )
    parser.add_argument(
        "--overlay", choices=["published"], help="draw the curves of Yosinski et al. (2014) beside this study's"
    )
    args = parser.parse_args(argv)
    import analysis

    try:
        written = analysis.write(args.results, args.out, overlay=args.overlay)
    except AnalysisError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"error: {error.filename or args.out or args.results}: {error.strerror or error}", file=sys.stderr)
        return AnalysisError.exit_code
    print(written.summary)
    for line in written.skipped:
        print(f"not drawn: {line}")
    print(f"\nwritten to {written.out}:")
    for path in written.paths:
        print(f"  {path.relative_to(written.out)}")
    return 0


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a reader that has seen enough, as `head`, is no error
    raise SystemExit(main())
