"""`report.html` of a run, and pages beside it: made from run directories, self-contained, without a script."""

from hanse.report.page import evaluation_page, render, write_report

__all__ = ["evaluation_page", "render", "write_report"]
