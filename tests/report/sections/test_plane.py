import re


def test_every_trajectory_is_drawn_once_and_the_chosen_are_ringed(write, rows):
    html = write(rows).html
    plane = html[html.index('id="plane"') : html.index('id="reading"')]
    (drawing,) = re.findall(r'<svg class="chart".*?</svg>', plane, re.DOTALL)
    groups = re.findall(r'<g data-series="\d">(.*?)</g>\s*</g>', drawing, re.DOTALL)
    marks = [group.count("<use") for group in groups]
    assert sum(marks[:3]) == 18 and sum(marks[3:]) == 6
