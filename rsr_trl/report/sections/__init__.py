"""The parts of the page: a file each, with `make(material)`, which returns what its template shows.

A part that the dataset can't fill is a [`~rsr_trl.report.pool.Missing`]. A new part is a file here, a template of the
same name, and its line in `SECTIONS` in `page.py`.
"""
