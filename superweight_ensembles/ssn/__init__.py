"""Shapeshifter Networks: layers of any size read windows of one flat bank, which may be smaller than a layer.

Source: Plummer et al., Neural Parameter Allocation Search, ICLR 2022, arXiv 2006.10598.
"""
