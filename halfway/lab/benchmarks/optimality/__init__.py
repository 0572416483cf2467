"""Optimality: how near attacks that look for the nearest adversarial point come to the best of all.

AttackBench's measure (Cinà et al., AAAI 2025, arXiv 2404.19460), of our attacks and of peers' on
the same networks, images and number of forward and backward passes.
"""

from halfway.lab.benchmarks.optimality.suite import KEEPS_ROWS, as_markdown, as_text, rows

__all__ = ["KEEPS_ROWS", "as_markdown", "as_text", "rows"]
