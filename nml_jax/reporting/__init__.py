"""Runs -> what they show: numbers over seeds, paired comparisons, sentences, tables, figures, one page.

`statistics` compares; `claims` (several conditions) and `answers` (several methods) find what to say, and `sentences`
says it; the modules of `tables`, `plots` and `provenance` make the `blocks` of which `page` is put together.
"""
