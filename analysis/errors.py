"""The one error of the analysis: bad input, said in one message.

AnalysisError    what was asked, what was found, what to do; allowed values where there are any. Exit code 2
"""

from __future__ import annotations


class AnalysisError(ValueError):
    """The input cannot be analysed; `str(error)` is one clear message for a person."""

    exit_code = 2
