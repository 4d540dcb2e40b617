"""Downstream tasks: the datasets that heads are trained and tested on."""
