"""Runs -> what they show: numbers over seeds, paired comparisons, sentences, tables, figures, one page.

From the folders up: `cells` reads them, `results` sorts them into studies, `outcomes` and `paired` compare, `claims`
(several conditions) and `choice` with `answers` (several methods on given features) say what is shown, and `page` with
`tables`, `figures` and the rest writes it. `stages/report.py` is the program. What heads leave for all this, and under
which names, stands in `outcomes`, too: the stages that train heads write it.
"""
