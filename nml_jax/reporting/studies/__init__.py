"""The papers' figures and findings, from the runs of one study: what is drawn, claimed, and was published."""
