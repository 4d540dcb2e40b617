"""Wrong supervision as data: label noise and caption swaps, both from one keyed permutation, and their ledger.

The rank of a record in the permutation decides whether it is corrupted, and a hash of (seed, id) decides to what.
Neither depends on the rate. So the records corrupted at 5 % are also corrupted at 10 %, with the same wrong label.

Ids and ranks are computed in blocks that stay in cache. Memory for the labels themselves grows with the number of
records, and nothing else does.
"""

from nml_jax.noise.captions import CaptionSwap, swap_captions
from nml_jax.noise.labels import KINDS, corrupt_labels, list_arguments
from nml_jax.noise.ledger import Ledger
from nml_jax.noise.permutation import Permutation

__all__ = ["KINDS", "CaptionSwap", "Ledger", "Permutation", "corrupt_labels", "list_arguments", "swap_captions"]
