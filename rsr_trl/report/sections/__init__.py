"""The parts of the page: a file each, with `view(material)`, which returns what its template shows, as a dict.

A part that the dataset can't fill is a [`~rsr_trl.report.material.Missing`]. A new part is a file here, a template of
the same name, and its line in `SECTIONS` in `page.py`.
"""
