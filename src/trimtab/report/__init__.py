"""Views of a run's result files: console tables, one HTML page, Markdown. Computes nothing."""

from trimtab.report.compare import console_tables, write_markdown, write_page
from trimtab.report.results import Results, read_results

__all__ = ["Results", "console_tables", "read_results", "write_markdown", "write_page"]
