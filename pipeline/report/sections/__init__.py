"""The parts of the page, one module each: `ReportData` in, `Section` out."""
