"""`report.html` of a run, and pages beside it: made from run directories, self-contained, without a script."""

from hanse.report.page import render, write_evaluation, write_report

__all__ = ["render", "write_evaluation", "write_report"]
